"""What flushes of the archive cost the readers of tokens: p99 with both stores there against p99 with neither.

    KAFKA_BOOTSTRAP_SERVERS=… ELASTICSEARCH_URL=… DATABASE_URL=… python -m bench.flush_latency [--turns 100]

Two workers, asked in turn. Both are given so many finished turns a second while they stream, and a window closes every
second; the stores of one of them are at ports where nobody listens, so that it does all but the flush.
"""

import argparse
import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

from bench.machine import Place, delete_topics, described, kafka, running
from bench.token_path import Row, measure, warm_up
from bench.windows_campaign.load import Load as Turns
from tests.support.worker import Worker

PARTITIONS: Final = 8
NOBODY: Final = {"ELASTICSEARCH_URL": "http://127.0.0.1:9", "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}


@asynccontextmanager
async def worker(bootstrap: str, model_url: str, stores: dict[str, str]) -> AsyncIterator[tuple[Place, str]]:
    """Run a worker with these stores; yield it and the prefix of its topics."""
    name = f"bench-{uuid4().hex[:8]}"
    environ = stores | {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "OPENAI_BASE_URL": model_url,
        "HEADRACE_AUTH": "dev",
        "HEADRACE_RETRIEVAL": "off",
        "HEADRACE_PARTITIONS": str(PARTITIONS),
        "HEADRACE_TOPIC_PREFIX": f"{name}.",
        "HEADRACE_GROUP": name,
        "HEADRACE_INDEX_PREFIX": f"{name}-",
        "HEADRACE_WINDOW_SECONDS": "1",
        "HEADRACE_ANSWER_TOKENS": "1000000",
        "HEADRACE_TURN_SECONDS": "3600",
    }
    with TemporaryDirectory() as folder:
        process = Worker(Path(folder), environ)
        try:
            await process.start(90)
            yield Place("worker", f"{process.url}/v1", process.pid, native=True), f"{name}."
        finally:
            await process.stop()
            await asyncio.to_thread(delete_topics, bootstrap, name)


async def loaded(place: Place, prefix: str, arguments: argparse.Namespace) -> Row:
    """Return what tokens take while finished turns come in."""
    turns = Turns(kafka(), PARTITIONS, random.Random(1), prefix=prefix)  # noqa: S311 - any turns will do
    over = asyncio.Event()
    flowing = asyncio.create_task(turns.run(arguments.turns, 0, over))
    try:
        return await measure(place, [], arguments.streams, arguments.seconds)
    finally:
        over.set()
        await flowing


async def main(arguments: argparse.Namespace) -> None:
    """Run and print."""
    given = {name: os.environ[name] for name in NOBODY}
    rows: dict[str, list[Row]] = {"with flushes": [], "without": []}
    with running("model", "tests.support.model_server") as model:
        async with (
            worker(kafka(), model.url, given) as flushing,
            worker(kafka(), model.url, dict(NOBODY)) as idle,
        ):
            tested = {"with flushes": flushing, "without": idle}
            for place, _ in tested.values():
                await warm_up(place, arguments.warm_up)
            for number in range(arguments.rounds):
                for name in sorted(tested, reverse=bool(number % 2)):
                    rows[name].append(await loaded(*tested[name], arguments))
    print(f"{described()}; {arguments.streams} streams, {arguments.turns:.0f} turns/s, {arguments.rounds} rounds")
    for name, found in rows.items():
        p50, p99, busy = (median(getattr(row, field) for row in found) for field in ("p50", "p99", "busy"))
        print(f"{name:>14s}  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  busy {busy:3.0f} %")
    ratio = median(a.p99 / b.p99 for a, b in zip(rows["with flushes"], rows["without"], strict=True))
    print(f"p99 with to without, median of {arguments.rounds} pairs: {ratio:.2f}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--streams", type=int, default=50)
    options.add_argument("--turns", type=float, default=100.0, help="finished turns a second")
    options.add_argument("--seconds", type=float, default=10.0, help="measured, for each worker and round")
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--warm-up", type=float, default=20.0, help="seconds of load for each worker before")
    asyncio.run(main(options.parse_args()))
