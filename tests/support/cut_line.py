"""A line between a browser and a server that breaks event streams: after so many bytes, so many times."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

STREAM = b"text/event-stream"


class CutLine:
    """Passes bytes on to a port of this machine. How far a stream came does not depend on how fast the machine is."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._after = 0
        self._left = 0
        self._done = asyncio.Event()
        self.url = ""

    async def cut(self, times: int, after: int) -> None:
        """Break the next streams, each after this many bytes with its headers; return when the last was broken."""
        self._left, self._after = times, after
        self._done.clear()
        await self._done.wait()

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Self]:
        """Listen until the block is left."""
        line = cls(port)
        server = await asyncio.start_server(line._connected, "127.0.0.1", 0)
        line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield line
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
            asking = asyncio.create_task(self._ask(reader, there_writer))
            await self._answer(there_reader, writer)
            asking.cancel()
            there_writer.close()
        writer.close()

    async def _ask(self, browser: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await browser.read(65_536):
            server.write(data)
        server.close()

    async def _answer(self, server: asyncio.StreamReader, browser: asyncio.StreamWriter) -> None:
        streamed = 0
        while data := await server.read(65_536):
            streamed += len(data) if streamed or STREAM in data else 0
            if self._left and streamed > self._after:
                browser.write(data[: max(0, self._after - (streamed - len(data)))])
                await browser.drain()
                self._left -= 1
                if not self._left:
                    self._done.set()
                return
            browser.write(data)
            await browser.drain()
