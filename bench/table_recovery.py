"""How long a worker without a disk needs until its conversations are back, beside a bare copy from Kafka to RocksDB.

    KAFKA_BOOTSTRAP_SERVERS=… python -m bench.table_recovery [--rows 100000] [--bytes 2000] [--rounds 3]

The worker is a process as in production with an empty data folder. Two times of it: that in which it copies rows, and
that in which it is not ready, from the moment that it gives up its partitions, before it joins the group, until it
takes questions. The bare copy is the shortest loop over the same librdkafka and RocksDB, with the same options, that
checks nothing and remembers nothing.

Then, with and without a standby: how long one of two workers is not ready when the other leaves.
"""

import argparse
import asyncio
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from rocksdict import Rdict, WriteBatch

from adapters.rocksdb import options
from bench.machine import counter, delete_topics, described, kafka
from tests.support.worker import Worker

PARTITIONS = 8


def row(number: int, size: int) -> bytes:
    """Return a conversation of about ``size`` bytes, as the worker keeps it."""
    conversation = {
        "conversation_id": f"conversation-{number}",
        "tenant": "dev",
        "user": "dev",
        "title": "A conversation",
        "created_at": number,
        "updated_at": number,
        "turns": [],
        "metadata": {},
    }
    # Random text, so that compression has as little to do as with real conversations.
    filling = os.urandom(max(0, size - len(msgspec.json.encode(conversation)) - 12) // 2).hex()
    return msgspec.json.encode(conversation | {"metadata": {"text": filling}})


def write_changelog(bootstrap: str, topic: str, rows: int, size: int) -> None:
    """Make a changelog as Faust would, and fill it."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topics = [NewTopic(topic, PARTITIONS, 1, config={"cleanup.policy": "compact"})]
    for created in admin.create_topics(topics).values():
        created.result(30)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "queue.buffering.max.kbytes": 1 << 20})
    for number in range(rows):
        key = f"conversation-{number}"
        producer.produce(topic, row(number, size), key, partition=number % PARTITIONS)
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("Kafka did not take the rows")


def bare_copy(bootstrap: str, topic: str, rows: int) -> float:
    """Return the seconds that a bare copy of the changelog takes."""
    with TemporaryDirectory() as folder:
        began = monotonic()
        stores = [Rdict(f"{folder}/{partition}", options()) for partition in range(PARTITIONS)]
        consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "-",
                "enable.auto.commit": False,
                # As `adapters.changelog` has it: twice as fast as without.
                "fetch.queue.backoff.ms": 10,
            }
        )
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        copied = 0
        while copied < rows:
            batches = [WriteBatch(raw_mode=True) for _ in stores]
            first = consumer.poll(0.05)
            for message in [first, *consumer.consume(1000, 0)] if first else ():
                batches[message.partition() or 0].put(message.key() or b"", message.value())
                copied += 1
            for store, batch in zip(stores, batches, strict=True):
                store.write(batch)
        took = monotonic() - began
        consumer.close()
        for store in stores:
            store.close()
        return took


def variables(bootstrap: str, group: str, standbys: int) -> dict[str, str]:
    """Return what a worker of the measured group gets."""
    return {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "HEADRACE_AUTH": "dev",
        "HEADRACE_RETRIEVAL": "off",
        "HEADRACE_GROUP": group,
        "HEADRACE_TOPIC_PREFIX": f"{group}.",
        "HEADRACE_PARTITIONS": str(PARTITIONS),
        "HEADRACE_STANDBYS": str(standbys),
    }


async def recovery(bootstrap: str, group: str, rows: int) -> tuple[float, float]:
    """Return the seconds in which a worker with an empty data folder copies, and those in which it is not ready."""
    with TemporaryDirectory() as folder:
        worker = Worker(Path(folder), variables(bootstrap, group, standbys=0))
        try:
            await worker.start(within=300)
            recovered = await asyncio.to_thread(counter, worker.url, "headrace_recovered_records_total")
            if recovered < rows:
                raise RuntimeError(f"only {recovered:.0f} of {rows} rows came back:\n{worker.last_lines()}")
            not_ready = await asyncio.to_thread(counter, worker.url, "headrace_recovery_seconds_sum")
            return copying(worker.log.read_text(encoding="utf-8")), not_ready
        finally:
            await worker.stop()


def copying(log: str) -> float:
    """Return the seconds of the recovery that a worker's log tells of."""
    (line,) = (line for line in log.splitlines() if '"tables recovered"' in line)
    told = msgspec.json.decode(line)
    return float(told["headrace.records"] / told["headrace.records_per_second"])


async def takeover(bootstrap: str, group: str, standbys: int) -> tuple[float, float]:
    """Return the seconds that a worker needs to take over from another, and the megabytes that its disk held before."""
    with TemporaryDirectory() as folder:
        workers = [Worker(Path(folder, name), variables(bootstrap, group, standbys)) for name in ("one", "two")]
        try:
            for worker in workers:
                await worker.start(within=300)
            leaves, stays = workers  # the first one had all partitions once, and still has their files
            await stays.ready()
            while await asyncio.to_thread(counter, stays.url, "headrace_standby_left_records"):  # noqa: ASYNC110 - far away
                await asyncio.sleep(0.1)
            megabytes = sum(file.stat().st_size for file in stays.folder.rglob("*.sst")) / 1e6
            before = await asyncio.to_thread(counter, stays.url, "headrace_recovery_seconds_sum")
            await leaves.terminate()
            await stays.ready()
            return await asyncio.to_thread(counter, stays.url, "headrace_recovery_seconds_sum") - before, megabytes
        finally:
            for worker in workers:
                await worker.stop()


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--rows", type=int, default=100_000)
    found.add_argument("--bytes", type=int, default=2000)
    found.add_argument("--rounds", type=int, default=3)
    return found


def say(bare: float, copied: float, not_ready: float) -> None:
    """Print one line of times in seconds."""
    ratios = copied / bare, not_ready / bare
    print(f"{bare:7.2f} s  {copied:7.2f} s  {ratios[0]:5.2f}x  {not_ready:8.2f} s  {ratios[1]:5.2f}x", flush=True)


async def main(arguments: argparse.Namespace) -> None:
    """Run and print."""
    bootstrap, group = kafka(), f"bench-{uuid4().hex[:8]}"
    topic = f"{group}-conversations-changelog"
    try:
        await asyncio.to_thread(write_changelog, bootstrap, topic, arguments.rows, arguments.bytes)
        print(f"{described()}; {arguments.rows:,} rows of {arguments.bytes:,} bytes in {PARTITIONS} partitions")
        print("bare copy   worker's   ratio   not ready   ratio", flush=True)
        rounds = []
        for _ in range(arguments.rounds):
            bare = await asyncio.to_thread(bare_copy, bootstrap, topic, arguments.rows)
            rounds.append((bare, *await recovery(bootstrap, group, arguments.rows)))
            say(*rounds[-1])
        print("medians")
        say(*(median(column) for column in zip(*rounds, strict=True)))
        print("standbys  takeover   on that worker's disk before", flush=True)
        for standbys in (0, 1):
            took, megabytes = await takeover(bootstrap, group, standbys)
            print(f"{standbys:8d}  {took:6.2f} s  {megabytes:6.0f} MB", flush=True)
    finally:
        await asyncio.to_thread(delete_topics, bootstrap, group)


if __name__ == "__main__":
    asyncio.run(main(parser().parse_args()))
