"""Several workers behind one address: each request ends up where its conversation is, and a list is of all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from yarl import URL

from domain.errors import NotOwner
from streams.topics import partition_of
from tests.support.fakes import ALICE, BOB, PARTITIONS, FakeKafka, answering
from tests.support.web_client import Web, all_events, serving
from web import owner
from web.owner import FORWARDED

DEAD = URL("http://127.0.0.1:9")  # the discard port, where nobody listens


class Cluster:
    """Two workers on one Kafka; the first owns the even partitions, the second the odd ones."""

    def __init__(self, even: Web, odd: Web) -> None:
        self.even, self.odd = even, odd
        self.kafka = even.kafka
        self.share()

    def share(self) -> None:
        for web, other, parity in ((self.even, self.odd, 1), (self.odd, self.even, 0)):
            url = URL(str(other.server.make_url("/")).rstrip("/"))
            web.worker.owners = {number: url for number in range(PARTITIONS) if number % 2 == parity}

    async def begin_in(self, parity: int) -> str:
        """Begin a conversation whose partition is even or odd."""
        while True:
            conversation_id = await self.even.begin()
            if partition_of(conversation_id, PARTITIONS) % 2 == parity:
                return conversation_id


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    kafka = FakeKafka()
    async with AsyncExitStack() as stack:
        yield Cluster(await stack.enter_async_context(serving(kafka)), await stack.enter_async_context(serving(kafka)))


@pytest.mark.parametrize("parity", [0, 1])
async def test_any_worker_answers_for_any_conversation(cluster: Cluster, parity: int) -> None:
    conversation_id = await cluster.begin_in(parity)
    path = f"/v1/conversations/{conversation_id}"

    for web in (cluster.even, cluster.odd):
        renamed = await web.call("PATCH", path, {"title": "Tea"})
        assert renamed.status == 200
        read = await web.call("GET", path)
        assert (await read.json())["title"] == "Tea"
        assert (await web.call("GET", path, key=BOB)).status == 404
        assert (await web.call("GET", path, key=None)).status == 401
        assert (await web.call("POST", f"{path}/turns", {"input": "Why?"})).status == 202


async def test_what_is_erased_by_one_worker_is_gone_for_all(cluster: Cluster) -> None:
    conversation_id = await cluster.begin_in(0)

    answer = await cluster.odd.call("DELETE", f"/v1/conversations/{conversation_id}")

    assert answer.status == 204
    for web in (cluster.even, cluster.odd):
        assert (await web.call("GET", f"/v1/conversations/{conversation_id}")).status == 404


async def test_a_list_is_of_all_workers_in_one_order(cluster: Cluster) -> None:
    ids = [await web.begin() for _ in range(6) for web in (cluster.even, cluster.odd)]
    for place, conversation_id in enumerate(ids):
        row = cluster.kafka.rows[conversation_id]
        cluster.kafka.rows[conversation_id] = type(row)(
            **{name: getattr(row, name) for name in row.__struct_fields__} | {"updated_at": 1000 * place}
        )

    for web in (cluster.even, cluster.odd):
        first = await (await web.call("GET", "/v1/conversations?limit=7")).json()
        rest = await (await web.call("GET", f"/v1/conversations?limit=7&after={first['data'][-1]['id']}")).json()

        assert [one["id"] for one in first["data"] + rest["data"]] == ids[::-1]
        assert (first["has_more"], rest["has_more"]) == (True, False)


async def test_a_turn_is_streamed_by_any_worker(cluster: Cluster) -> None:
    conversation_id = await cluster.begin_in(0)
    turn_id = await cluster.even.ask("Why?", conversation_id)
    cluster.kafka.claim(turn_id)
    cluster.kafka.say(turn_id, "Because")
    cluster.kafka.end(turn_id)

    streams = [
        await all_events(await web.open("GET", f"/v1/turns/{turn_id}/events")) for web in (cluster.even, cluster.odd)
    ]

    assert streams[0] == streams[1]
    assert len(streams[0]) == 3


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_whether_a_conversation_is_busy_is_asked_of_its_owner(cluster: Cluster, accept: str) -> None:
    conversation_id = await cluster.begin_in(0)
    path, body = f"/v1/conversations/{conversation_id}/turns", {"input": "x", "on_busy": "reject"}

    taken = await cluster.odd.open("POST", path, body, headers={"Accept": accept})
    busy = await cluster.odd.call("POST", path, body, headers={"Accept": accept})
    (question,) = cluster.kafka.questions()
    cluster.kafka.claim(question.turn_id)
    cluster.kafka.end(question.turn_id)

    assert busy.status == 409
    if accept == "application/json":
        assert taken.status == 202
        assert (await taken.json())["turn_id"] == question.turn_id
    else:
        assert taken.status == 200
        assert [event.name for event in await all_events(taken)] == ["turn.started", "turn.completed"]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("parity", [0, 1])
async def test_the_same_key_is_the_same_turn_on_every_worker(cluster: Cluster, parity: int, accept: str) -> None:
    for web in (cluster.even, cluster.odd):
        web.worker.script = answering(["Be", "cause"])
    path = f"/v1/conversations/{await cluster.begin_in(parity)}/turns"
    headers = {"Idempotency-Key": "k", "Accept": accept}

    async def ask(web: Web, text: str = "Why?") -> tuple[int, str | None, str]:
        answer = await web.call("POST", path, {"input": text}, headers=headers)
        return answer.status, answer.headers.get("Location"), await answer.text()

    answers = [*await asyncio.gather(*map(ask, (cluster.even, cluster.odd) * 3)), await ask(cluster.even)]

    assert len(set(answers)) == 1
    assert len(cluster.kafka.questions()) == 1
    for web in (cluster.even, cluster.odd):
        status, _, body = await ask(web, "What?")
        assert status == 409
        assert '"param":"Idempotency-Key","code":"idempotency_key_reused"' in body


async def test_the_same_key_is_the_same_completion_on_every_worker(cluster: Cluster) -> None:
    for web in (cluster.even, cluster.odd):
        web.worker.script = answering(["Be", "cause"])
    for number in range(6):  # some of them even, some of them odd
        headers, body = {"Idempotency-Key": f"k-{number}"}, {"messages": [{"role": "user", "content": "Why?"}]}
        for more in ({}, {"stream": True}):
            headers["Idempotency-Key"] += "-"
            answers = [
                await (await web.call("POST", "/v1/chat/completions", {**body, **more}, headers=headers)).text()
                for web in (cluster.even, cluster.odd, cluster.even)
            ]
            assert "chatcmpl-" in answers[0]
            assert len(set(answers)) == 1

    assert len(cluster.kafka.questions()) == 12


async def test_the_same_key_begins_the_same_conversation_on_every_worker(cluster: Cluster) -> None:
    for number in range(6):
        headers = {"Idempotency-Key": f"k-{number}"}
        answers = [
            await web.call("POST", "/v1/conversations", {"title": "Tea"}, headers=headers)
            for web in (cluster.even, cluster.odd, cluster.even)
        ]
        assert [answer.status for answer in answers] == [201] * 3
        assert len({await answer.text() for answer in answers}) == 1
        assert len({answer.headers["Location"] for answer in answers}) == 1
        other = await cluster.odd.call("POST", "/v1/conversations", {"title": "Coffee"}, headers=headers)
        assert (await other.json())["error"]["code"] == "idempotency_key_reused"

    assert len(cluster.kafka.rows) == 6


async def test_a_keyed_question_outlives_the_owner_that_was_asked(cluster: Cluster) -> None:
    path = f"/v1/conversations/{await cluster.begin_in(0)}/turns"
    cluster.odd.worker.owners = dict.fromkeys(cluster.odd.worker.owners, DEAD)
    asking = asyncio.create_task(cluster.odd.call("POST", path, {"input": "x"}, headers={"Idempotency-Key": "k"}))
    await asyncio.wait([asking], timeout=0.2)

    cluster.odd.worker.owners = {}

    assert (await asking).status == 202
    assert len(cluster.kafka.questions()) == 1


async def test_a_conversation_that_was_begun_elsewhere_just_now_can_be_asked_in(cluster: Cluster) -> None:
    cluster.even.worker.lag = 3
    conversation_id = await cluster.begin_in(0)

    answer = await cluster.odd.call("POST", f"/v1/conversations/{conversation_id}/turns", {"input": "x"})

    assert answer.status == 202


async def test_after_the_first_question_the_owner_is_not_asked_again(cluster: Cluster) -> None:
    conversation_id = await cluster.begin_in(0)
    path = f"/v1/conversations/{conversation_id}/turns"
    await cluster.odd.call("POST", path, {"input": "x"})
    reads = cluster.even.worker.table_reads

    assert (await cluster.odd.call("POST", path, {"input": "x"})).status == 202

    assert cluster.even.worker.table_reads == reads


# -- events that come from the owner


@pytest.fixture
async def redirecting() -> AsyncIterator[Cluster]:
    kafka = FakeKafka()
    async with AsyncExitStack() as stack:
        even, odd = [await stack.enter_async_context(serving(kafka, events_from="owner")) for _ in range(2)]
        yield Cluster(even, odd)


async def test_a_stream_is_sent_on_to_the_owner_and_goes_on_where_it_was(redirecting: Cluster) -> None:
    turn_id = await redirecting.even.ask("Why?", await redirecting.begin_in(0))
    redirecting.kafka.claim(turn_id)
    redirecting.kafka.say(turn_id, "a", "b")
    redirecting.kafka.end(turn_id)
    path = f"/v1/turns/{turn_id}/events"

    url, key = redirecting.odd.server.make_url(path), {"Authorization": f"Bearer {ALICE}"}
    sent_on = await redirecting.odd.session.get(
        url.with_query("x=1"), headers=key | {"Last-Event-ID": "1"}, allow_redirects=False
    )
    there = sent_on.headers["Location"]
    events = await all_events(await redirecting.odd.session.get(there, headers=key))

    assert sent_on.status == 307
    assert URL(there).path_qs == f"{path}?x=1&starting_after=1"
    assert URL(there).port == redirecting.even.server.port
    assert [event.id for event in events] == ["2", "3"]


async def test_while_partitions_move_the_log_is_read_here(redirecting: Cluster) -> None:
    turn_id = await redirecting.even.ask("Why?", await redirecting.begin_in(0))
    redirecting.kafka.claim(turn_id)
    redirecting.kafka.end(turn_id)
    redirecting.odd.worker.rebalancing = True

    answer = await redirecting.odd.open("GET", f"/v1/turns/{turn_id}/events")

    assert answer.history == ()
    assert len(await all_events(answer)) == 2


# -- while partitions move


async def test_a_rebalance_is_waited_for(cluster: Cluster) -> None:
    conversation_id = await cluster.begin_in(0)
    for web in (cluster.even, cluster.odd):
        web.worker.rebalancing = True
    paths = [f"/v1/conversations/{conversation_id}", "/v1/conversations"]
    waiting = [asyncio.create_task(web.call("GET", path)) for web in (cluster.even, cluster.odd) for path in paths]
    await asyncio.wait(waiting, timeout=0.2)
    assert not any(task.done() for task in waiting)

    for web in (cluster.even, cluster.odd):
        web.worker.rebalancing = False

    assert [answer.status for answer in await asyncio.gather(*waiting)] == [200] * 4


async def test_one_that_takes_long_is_503_with_retry_after(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "PATIENCE_SECONDS", 0.05)
    conversation_id = await cluster.begin_in(0)
    cluster.even.worker.rebalancing = True

    for web in (cluster.even, cluster.odd):
        answer = await web.call("GET", f"/v1/conversations/{conversation_id}")
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await answer.json())["error"]["code"] == "not_owner"


async def test_a_dead_owner_is_503_and_a_part_of_a_list_is_not_shown_as_the_whole(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "PATIENCE_SECONDS", 0.05)
    conversation_id = await cluster.begin_in(0)
    cluster.odd.worker.owners = dict.fromkeys(cluster.odd.worker.owners, DEAD)

    for path in (f"/v1/conversations/{conversation_id}", "/v1/conversations"):
        answer = await cluster.odd.call("GET", path)
        assert answer.status == 503
        assert "Retry-After" in answer.headers


async def test_a_new_owner_is_found_while_waiting(cluster: Cluster) -> None:
    conversation_id = await cluster.begin_in(0)
    cluster.odd.worker.owners = dict.fromkeys(cluster.odd.worker.owners, DEAD)
    waiting = asyncio.create_task(cluster.odd.call("GET", f"/v1/conversations/{conversation_id}"))
    await asyncio.wait([waiting], timeout=0.2)
    assert not waiting.done()

    cluster.odd.worker.owners = {}

    assert (await waiting).status == 200


async def test_workers_that_take_each_other_for_the_owner_do_not_send_a_request_round(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "PATIENCE_SECONDS", 0.05)
    conversation_id = await cluster.begin_in(0)
    cluster.even.worker.owners = dict.fromkeys(range(PARTITIONS), next(iter(cluster.even.worker.owners.values())))

    answer = await cluster.odd.call("GET", f"/v1/conversations/{conversation_id}")

    assert answer.status == 503
    assert (await answer.json())["error"]["code"] == "not_owner"


async def test_a_client_that_claims_to_be_a_worker_gets_no_more_than_its_own(cluster: Cluster) -> None:
    await cluster.even.begin()

    answer = await cluster.even.call("GET", "/v1/conversations", key=BOB, headers={FORWARDED: "1"})

    assert (await answer.json())["data"] == []


async def test_an_attempt_that_did_something_is_not_repeated() -> None:
    tries = []

    async def attempt() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise NotOwner("not yet")

    await owner.patiently(attempt)

    assert len(tries) == 3
