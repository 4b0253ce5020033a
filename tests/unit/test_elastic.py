"""Elasticsearch is opened whether it is there or not, and asked once then."""

import asyncio

import pytest

from adapters.elastic import open_elastic
from config.settings import Settings
from domain.errors import SinkUnavailable


async def test_the_first_request_is_made_when_it_is_opened_and_nobody_waits_for_its_answer() -> None:
    asked = asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(5):
        async with open_elastic(Settings(elasticsearch_url=url)):
            await asked.wait()
        server.close()


async def test_it_is_opened_where_nobody_answers() -> None:
    async with open_elastic(Settings(elasticsearch_url="http://127.0.0.1:1")) as elastic:
        with pytest.raises(SinkUnavailable, match="not there"):
            async with elastic.client() as client:
                await client.info()
