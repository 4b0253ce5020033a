"""What questions through a real worker need besides it: a model server whose answers are known, and a client."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.model_server import ModelServer


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    """A scripted model server."""
    async with ModelServer() as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """One session for all of a test's readers, with as many connections as they want."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session
