"""What questions through a real worker need besides it: a model server whose answers are known, and a client."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.support.model_server import ModelServer
from tests.support.search import own_indices
from tests.support.services import Services


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


@pytest.fixture
def index_prefix(services: Services) -> Iterator[str]:
    """What the names of the test's own indices in Elasticsearch begin with."""
    with own_indices(services.elasticsearch_url) as prefix:
        yield prefix
