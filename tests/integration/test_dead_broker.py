"""One of three brokers is dead: what it led is read from who leads it now, and holds up nothing else if nobody does."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from adapters.log_reader import open_log_reader
from adapters.token_log import open_token_log
from tests.support.kafka import produce
from tests.support.services import can_launch, launch, launched, missing
from tests.support.turns import answer, collect, whole

TOPIC = "read-from-any-broker"
# Noticed within 2 s instead of 9, so that the test is short.
SETTINGS = ("broker.session.timeout.ms=2000", "broker.heartbeat.interval.ms=500")


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[str]:
    """Where three brokers of the test's own listen, which its folder can end."""
    if not can_launch():
        missing("needs a real Kafka of its own, to kill a broker of it", "KAFKA")
    set_to = [part for setting in SETTINGS for part in ("--kafka-set", setting)]
    with launched(tmp_path, "kafka", "--brokers", "3", *set_to) as environ:
        yield environ["KAFKA_BOOTSTRAP_SERVERS"]


@pytest.mark.kafka
async def test_offsets_are_told_by_new_leaders_while_the_old_one_is_dead(brokers: str, tmp_path: Path) -> None:
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
    await asyncio.to_thread(admin.create_topics([NewTopic(TOPIC, 6, 3)])[TOPIC].result)
    async with open_log_reader(brokers, threads=1) as reader:
        await asyncio.to_thread(produce, brokers, TOPIC, b"before", key=b"a key")
        ends = await reader.ends(TOPIC, range(6))
        leader = admin.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions[0].leader

        await asyncio.to_thread(launch, tmp_path, "kill", f"kafka{leader}")

        assert await reader.ends(TOPIC, range(6)) == ends
        found = await reader.since(TOPIC, range(6), 0)
    assert sum(ends.values()) == 1
    assert found == dict.fromkeys(range(6), 0)


@pytest.mark.kafka
async def test_a_partition_that_only_the_dead_broker_had_does_not_keep_the_ends_of_others(
    brokers: str, tmp_path: Path
) -> None:
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
    await asyncio.to_thread(admin.create_topics([NewTopic(TOPIC, 6, 1)])[TOPIC].result)
    async with open_log_reader(brokers, threads=1) as reader:
        ends = await reader.ends(TOPIC, range(6))
        partitions = admin.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions
        dead = partitions[0].leader
        led = {number for number, partition in partitions.items() if partition.leader != dead}

        await asyncio.to_thread(launch, tmp_path, "kill", f"kafka{dead}")

        assert await reader.ends_told(TOPIC, range(6)) == {number: ends[number] for number in led}
        await asyncio.to_thread(launch, tmp_path, "start", f"kafka{dead}")
        async with asyncio.timeout(30):
            while await reader.ends_told(TOPIC, range(6)) != ends:
                await asyncio.sleep(0.1)


@pytest.mark.kafka
async def test_tokens_go_on_in_order_with_the_new_leaders_of_a_broker_that_is_frozen(
    brokers: str, tmp_path: Path
) -> None:
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
    await asyncio.to_thread(
        admin.create_topics([NewTopic(TOPIC, 6, 3, config={"min.insync.replicas": "2"})])[TOPIC].result
    )
    turns = [f"t{partition}" for partition in range(6)]
    async with open_log_reader(brokers) as reader, open_token_log(brokers, TOPIC, log_reader=reader) as token_log:
        await token_log.own(range(6))
        leader = admin.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions[0].leader
        pid = json.loads((tmp_path / "state.json").read_text())[f"kafka{leader}"]["pid"]
        answers = [answer(token_log, turn_id, partition, 400, pause=0.005) for partition, turn_id in enumerate(turns)]
        try:
            async with asyncio.timeout(20):  # a minute is librdkafka's own patience with a socket
                answering = asyncio.gather(*answers)
                await asyncio.sleep(0.5)
                os.kill(pid, signal.SIGSTOP)
                await answering
                for partition, turn_id in enumerate(turns):
                    assert await collect(token_log, turn_id, partition) == whole(turn_id, 400)
        finally:
            os.kill(pid, signal.SIGCONT)
