"""Who is in a group, and how a member is put out of it: on the embedded broker and on Kafka."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
from confluent_kafka import Consumer

from adapters.group import Members, evict
from adapters.kafka_admin import ensure_topics
from deploy.embedded import free_port
from domain.errors import LogUnavailable
from streams.topics import TopicSpec
from tests.conftest import Names
from tests.support.services import Services


@pytest.fixture
async def members(services: Services, names: Names) -> AsyncIterator[Members]:
    """The members of the test's group."""
    async with aclosing(Members(services.bootstrap, names.group)) as members:
        yield members


@pytest.fixture
async def joined(services: Services, names: Names) -> AsyncIterator[str]:
    """A member that joined as "client-1", and hears nothing of what happens to it."""
    topic = TopicSpec(f"{names.topic_prefix}some", 1, 1, 3600)
    await ensure_topics(services.bootstrap, [topic])
    options = {"bootstrap.servers": services.bootstrap, "group.id": names.group, "client.id": "client-1"}
    for consumer in open_consumer(options):
        consumer.subscribe([topic.name])
        async with asyncio.timeout(30):
            while not consumer.memberid():
                await asyncio.to_thread(consumer.poll, 0.1)
        yield str(consumer.memberid())


def open_consumer(options: dict[str, str]) -> Iterator[Consumer]:
    """Yield a consumer, and close it."""
    consumer = Consumer(options)
    yield consumer
    consumer.close()


async def test_a_member_is_evicted_by_its_id_and_only_once(members: Members, joined: str) -> None:
    assert await members.evict(joined)

    assert not await members.evict(joined)


async def test_members_are_found_by_the_whole_client_id(members: Members, joined: str) -> None:
    assert await members.of("client") == []
    assert await members.of("client-1") == [joined]

    assert await members.evict_client("client-1") == 1
    assert await members.of("client-1") == []


async def test_a_group_that_nobody_joined_yet_has_nobody_to_evict(services: Services, names: Names) -> None:
    assert await evict(services.bootstrap, f"{names.group}-new", "client-1") == 0


async def test_a_kafka_that_is_away_is_told_of_and_found_again(members: Members, joined: str) -> None:
    async with aclosing(Members(f"127.0.0.1:{free_port()}", "group")) as nobody:
        with pytest.raises(LogUnavailable):
            await nobody.of("client-1", patience=0)

    await members.of("client-1")
    await members.aclose()
    assert await members.of("client-1") == [joined]
