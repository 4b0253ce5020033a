"""Tables that have to come back: damaged files, records that are no rows, another worker's partitions, a full disk."""

import asyncio
import os
import resource
import shutil
from collections import Counter
from pathlib import Path

import aiohttp
import msgspec

from bench.machine import counter
from tests.conftest import Names, StartWorker
from tests.support.chat_client import ChatClient
from tests.support.kafka import claims, consume, epochs, produce
from tests.support.model_server import ModelServer
from tests.support.services import Services
from tests.support.worker import Worker


def stores(worker: Worker, table: str) -> list[Path]:
    """Return the folders of a table's partitions on a worker's disk."""
    return sorted(worker.folder.glob(f"data/**/{table}-*.db"))


async def test_damaged_files_and_records_that_are_no_rows_do_not_keep_conversations_from_coming_back(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession, names: Names
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    conversation = await client.converse()
    await client.read(await client.ask(conversation, "remember this [tokens=5 pace=0]"))
    async with asyncio.timeout(20):  # the turn is put into its row after its reader saw the end
        while True:
            before = await client.call("GET", f"/v1/conversations/{conversation}")
            if before["title"] and before["turns"][0]["last_event_id"] is None:  # and it is not in work any more
                break
            await asyncio.sleep(0.05)
    await worker.terminate()
    changelog = f"{names.group}-conversations-changelog"
    epoch = max(await epochs(services.bootstrap, changelog))
    produce(services.bootstrap, changelog, b"{broken", key=b"other", epoch=epoch)
    produce(services.bootstrap, changelog, b'{"title":"of no conversation"}', key=b"another", epoch=epoch)
    for store in stores(worker, "conversations"):
        os.truncate(store / "CURRENT", 3)

    await worker.start()

    assert await client.call("GET", f"/v1/conversations/{conversation}") == before
    letters = await consume(services.bootstrap, f"{names.topic_prefix}chat.dead-letters.v1", 2)
    assert {(letter["topic"], letter["code"]) for letter in letters} == {(changelog, "bad_record")}
    assert len(list(worker.folder.glob("data/**/conversations-*.db.damaged-*"))) == len(stores(worker, "conversations"))
    answer = await client.ask(conversation, "and now? [tokens=5 pace=0]")
    assert (await client.read(answer)).outcome == "completed"


async def test_a_row_that_a_replaced_worker_wrote_late_counts_for_nobody_and_is_written_again(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession, names: Names
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    conversation = await client.converse()
    await client.call("PATCH", f"/v1/conversations/{conversation}", {"title": "as it was"})
    async with asyncio.timeout(20):
        while (before := await client.call("GET", f"/v1/conversations/{conversation}"))["title"] != "as it was":
            await asyncio.sleep(0.05)
    changelog = f"{names.group}-conversations-changelog"
    late = msgspec.json.encode({"conversation_id": conversation, "tenant": "dev", "user": "dev", "title": "late"})
    lower = min(await epochs(services.bootstrap, changelog)) - 1
    await worker.terminate()
    produce(services.bootstrap, changelog, late, key=conversation.encode(), epoch=lower)
    written = len(await epochs(services.bootstrap, changelog))
    for store in stores(worker, "conversations"):
        shutil.rmtree(store)

    await worker.start()

    assert await client.call("GET", f"/v1/conversations/{conversation}") == before
    claims = len(stores(worker, "conversations"))
    assert len(await epochs(services.bootstrap, changelog)) == written + claims + 1


async def test_who_takes_over_has_the_conversations_already(
    real_kafka: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    workers = [await start_worker(real_kafka, OPENAI_BASE_URL=model.base_url) for _ in range(2)]
    client = ChatClient(http, workers[1].url)
    conversations = [await client.converse() for _ in range(40)]
    read_before = await asyncio.to_thread(counter, workers[1].url, "headrace_recovered_records_total")

    await workers[0].terminate()
    await workers[1].ready()

    titles = [(await client.call("GET", f"/v1/conversations/{each}"))["id"] for each in conversations]
    read = await asyncio.to_thread(counter, workers[1].url, "headrace_recovered_records_total") - read_before
    assert titles == conversations
    assert read < len(conversations) / 4  # two rows a conversation, and half of the partitions were the other's


async def test_only_who_is_given_a_partition_claims_its_tables(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession, names: Names
) -> None:
    changelog = f"{names.group}-conversations-changelog"
    first = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, first.url)
    conversations = [await client.converse() for _ in range(10)]
    alone = await claims(services.bootstrap, changelog)
    second = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    await first.ready()
    shared = await claims(services.bootstrap, changelog)

    await second.terminate()
    await first.ready()

    again = await claims(services.bootstrap, changelog)
    given = {partition for partition in shared if shared[partition] > alone[partition]}
    assert 0 < len(given) < len(alone)
    assert again == alone + Counter(dict.fromkeys(given, 2))
    assert [(await client.call("GET", f"/v1/conversations/{each}"))["id"] for each in conversations] == conversations


async def test_a_worker_whose_disk_takes_no_more_steps_back_and_loses_nothing(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    conversation = await client.converse()
    # No file of the worker's may become larger than this: its log has room, a store's log of writes has not enough.
    room = worker.log.stat().st_size + (200 << 10)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (room, room))

    accepted = -1

    async def fill() -> None:
        nonlocal accepted
        while True:
            metadata = {f"field-{n}": "x" * 500 for n in range(15)} | {"number": str(accepted + 1)}
            await client.call("PATCH", f"/v1/conversations/{conversation}", {"metadata": metadata})
            accepted += 1

    filling = asyncio.create_task(fill())
    assert await worker.ended() == os.EX_TEMPFAIL
    filling.cancel()
    assert "File too large" in worker.last_lines(400)

    await worker.start()
    async with asyncio.timeout(30):
        while int((await client.call("GET", f"/v1/conversations/{conversation}"))["metadata"]["number"]) < accepted:
            await asyncio.sleep(0.05)
