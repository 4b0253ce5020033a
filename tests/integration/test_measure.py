"""Turns become parts of metrics windows in a real worker, each once, however it ends meanwhile."""

import asyncio
import time
from collections import Counter
from contextlib import suppress

from domain.ids import new_turn_id, uuid7
from domain.windows import SIZES_MS, start_of
from streams.records import Turn, decode, encode
from tables.measures import Part
from tests.conftest import Names, StartWorker
from tests.support.kafka import everything, produce_all
from tests.support.services import Services

HOUR_MS = 3_600_000


def finished(number: int, ended_at: int) -> Turn:
    """Return a turn of one of 20 conversations."""
    return Turn(
        turn_id=new_turn_id(ended_at, 0, number),
        conversation_id=uuid7(0, 0, number % 20),
        tenant="t",
        user="u",
        input="?",
        answer="!",
        model="m",
        outcome="completed",
        ended_at=ended_at,
    )


async def counted(services: Services, topic: str) -> dict[int, Counter[int]]:
    """Return for each size and start how many turns the latest parts of all partitions have."""
    latest: dict[tuple[int, int, int], Part] = {}
    for part in [decode(value, Part) for value in await everything(services.bootstrap, topic)]:
        window = (part.size, part.start, part.partition)
        if part.rows and (window not in latest or place(part) > place(latest[window])):
            latest[window] = part
    found: dict[int, Counter[int]] = {size: Counter() for size in SIZES_MS}
    for part in latest.values():
        found[part.size][part.start] += sum(row.measures.turns for row in part.rows)
    return found


def place(part: Part) -> tuple[int, int]:
    return part.epoch, part.revision


async def test_every_turn_is_in_its_windows_once_though_the_worker_is_killed(
    services: Services, start_worker: StartWorker, names: Names
) -> None:
    over = start_of(time.time_ns() // 1_000_000, SIZES_MS[-1]) - 1
    # Each window is over, and so closed again for each turn that comes to it later.
    turns = [finished(number, over - number * 7919 % 300_000) for number in range(600)]
    old = finished(600, over - 30 * HOUR_MS)
    truth = {size: Counter(start_of(turn.ended_at, size) for turn in [*turns, old]) for size in SIZES_MS}
    topic, parts = f"{names.topic_prefix}chat.turns.v1", f"{names.topic_prefix}chat.metrics.parts.v1"

    def publish(some: list[Turn]) -> None:
        # Some of them twice, as by a worker that died before it knew that Kafka had the turn.
        records = [(each.conversation_id.encode(), encode(each)) for each in [*some, *some[::50]]]
        produce_all(services.bootstrap, topic, records)

    worker = await start_worker(services, HEADRACE_METRICS_GRACE_SECONDS="1")
    publish(turns[:300])
    async with asyncio.timeout(30):
        while not (await counted(services, parts))[SIZES_MS[0]]:
            await asyncio.sleep(0.01)
    publish(turns[300:400])
    worker.kill()
    await worker.start()
    publish([*turns[400:], old])

    found = await counted(services, parts)
    with suppress(TimeoutError):
        async with asyncio.timeout(60):
            while found != truth:
                await asyncio.sleep(0.2)
                found = await counted(services, parts)
    assert found == truth
    assert await everything(services.bootstrap, f"{names.topic_prefix}chat.dead-letters.v1") == []
