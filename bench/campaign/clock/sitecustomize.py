"""Lets a campaign's worker have a wrong clock: ``time.time`` is off by what the file of CAMPAIGN_CLOCK says.

Python imports this by itself where the folder is on PYTHONPATH. The monotonic clock stays right, as it does on a
machine whose clock is set. The file is mapped, so a change counts at once and a look costs a tenth of a microsecond.
"""

import mmap
import os
import struct
import time
from pathlib import Path

if name := os.environ.get("CAMPAIGN_CLOCK"):
    with Path(name).open("r+b") as file:
        _offset = mmap.mmap(file.fileno(), 8)
    _time, _time_ns, _unpack = time.time, time.time_ns, struct.Struct("d").unpack_from

    time.time = lambda: _time() + _unpack(_offset)[0]
    time.time_ns = lambda: _time_ns() + int(_unpack(_offset)[0] * 1e9)
