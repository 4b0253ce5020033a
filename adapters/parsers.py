"""Files into Markdown: plain text, Markdown, HTML, PDF and Word documents, each read by a child process of its own.

Whatever a file is made to do, it does it there: it has a limit on memory, pages and time, and all that comes of it is a
text, or a sentence that says why there is none (`Unreadable`). It is given none of our keys and passwords, and ends
with the worker. What is the machine's doing and not the file's is `ParserUnavailable`: the file is read again.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from adapters.parsing_process import Parsed
from domain.errors import Rejected, Retriable
from domain.files import MEDIA_TYPES, Kind

SECONDS: Final = 60.0
AT_ONCE: Final = 2
PROJECT: Final = Path(__file__).resolve().parents[1]
STOPPED: Final = frozenset({-signal.SIGINT, -signal.SIGTERM})
"""How a child ends that was told to, with its terminal or container, before it could say that it does not listen."""


class Unreadable(Rejected):
    """A file that cannot be read. The message says why, and what to do."""

    code = "unreadable_file"


class ParserUnavailable(Retriable):
    """A file could not be read now."""


class Parsers:
    """Reads files, a few at a time. ``most_bytes``: of the text that may come of one."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._places = asyncio.Semaphore(AT_ONCE)

    async def parse(self, data: bytes, media_type: str) -> Parsed:
        """Return what a file says, in Markdown. Raises `Unreadable` and `ParserUnavailable`."""
        kind = MEDIA_TYPES.get(media_type)
        if kind is None:
            raise Unreadable(f"Files of the kind {media_type} cannot be read. PDF, DOCX, HTML, Markdown and text can.")
        async with self._places:
            parsed = await self._parse(data, kind)
        if parsed.error:
            raise Unreadable(parsed.error)
        return parsed

    async def _parse(self, data: bytes, kind: Kind) -> Parsed:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "adapters.parsing_process", kind, str(self._most_bytes), str(os.getpid()),
                stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd=PROJECT, env={"PATH": os.defpath, "PYTHONUTF8": "1"},
            )  # fmt: skip
        except OSError as error:  # no memory, no process or no open file is left
            raise ParserUnavailable(f"no process to read a file in can be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(SECONDS):
                answer, _ = await process.communicate(data)
            return msgspec.msgpack.decode(answer, type=Parsed)
        except TimeoutError:
            return Parsed(error=f"The file was not read within {SECONDS:.0f} seconds. Divide it, or save it as text.")
        except msgspec.DecodeError as error:
            if await process.wait() in STOPPED:
                raise ParserUnavailable("the process that read a file was stopped") from error
            return Parsed(error="The file cannot be read: it takes too much memory or time. Divide it.")
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
