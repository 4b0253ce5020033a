"""Files into Markdown: plain text, Markdown, HTML, PDF and Word documents, each read by a process of its own.

Whatever a file is made to do, it does it there: it has a limit on memory, pages and time, and all that comes of it is a
text, or a sentence that says why there is none (`Unreadable`). It is given none of our keys and passwords, and ends
with the worker. What is the machine's doing and not the file's is `ParserUnavailable`: the file is read again.
"""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Final

import msgspec

from adapters.parsing_process import SECONDS, Parsed
from domain.errors import Rejected, Retriable
from domain.files import MEDIA_TYPES, Kind

AT_ONCE: Final = 2
NOTICE_SECONDS: Final = 0.5
"""How long after the end of what reads a file the end of the process that made it may be noticed."""

PROJECT: Final = Path(__file__).resolve().parents[1]


class Unreadable(Rejected):
    """A file that cannot be read. The message says why, and what to do."""

    code = "unreadable_file"


class ParserUnavailable(Retriable):
    """A file could not be read now."""


class Parsers:
    """Reads files, a few at a time. ``most_bytes``: of the text that may come of one.

    The process is started by the first file, or by `start`, and again after it has died.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._places = asyncio.Semaphore(AT_ONCE)
        self._starting = asyncio.Lock()
        self._process: Process | None = None
        self._control: socket.socket | None = None

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

    async def start(self) -> None:
        """Start the process if there is none. Raises `ParserUnavailable`."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            await self.close()
            self._control, theirs = socket.socketpair()
            command = [sys.executable, "-m", "adapters.parsing_process"]
            given = [str(self._most_bytes), str(os.getpid()), str(theirs.fileno())]
            with theirs:
                try:
                    self._process = await asyncio.create_subprocess_exec(
                        *command, *given, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL,
                        pass_fds=[theirs.fileno()], cwd=PROJECT, env={"PATH": os.defpath, "PYTHONUTF8": "1"},
                    )  # fmt: skip
                except OSError as error:  # no memory, no process or no open file is left
                    raise ParserUnavailable(f"no process to read files in starts: {error.strerror}") from error

    async def close(self) -> None:
        """End the process, and with it whatever it reads."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _parse(self, data: bytes, kind: Kind) -> Parsed:
        await self.start()
        assert self._process is not None
        process = self._process
        try:
            async with asyncio.timeout(SECONDS):
                answer = await self._asked(data, kind)
        except TimeoutError:
            return Parsed(error=f"The file was not read within {SECONDS} seconds. Divide it, or save it as text.")
        except OSError as error:
            raise ParserUnavailable("the process that reads files has ended") from error
        try:
            return msgspec.msgpack.decode(answer, type=Parsed)
        except msgspec.DecodeError as error:
            with suppress(TimeoutError):
                async with asyncio.timeout(NOTICE_SECONDS):
                    await process.wait()
                    raise ParserUnavailable("the process that reads files has ended") from error
            return Parsed(error="The file cannot be read: it takes too much memory or time. Divide it.")

    async def _asked(self, data: bytes, kind: Kind) -> bytes:
        """Return what the process answers. Raises OSError where it takes no file any more."""
        assert self._control is not None
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [kind.encode()], [theirs.fileno()])
        reader, writer = await asyncio.open_connection(sock=ours)
        with closing(writer), suppress(ConnectionError):  # a file may end its reader at any time
            writer.write(data)
            await writer.drain()
            writer.write_eof()
            return await reader.read()
        return b""


@asynccontextmanager
async def open_parsers(most_bytes: int) -> AsyncIterator[Parsers]:
    """Yield them."""
    parsers = Parsers(most_bytes)
    try:
        yield parsers
    finally:
        await parsers.close()
