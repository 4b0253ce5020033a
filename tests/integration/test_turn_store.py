"""Postgres has every turn of the log once, whoever writes a batch and however often; and forgets what was erased."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import msgspec
import psycopg
import pytest

from adapters.postgres import Postgres
from adapters.schema import migrate
from adapters.turn_store import TurnStore
from domain.errors import Overtaken, SinkRefused, SinkUnavailable
from domain.ids import uuid7
from domain.knowledge import Citation
from domain.spans import Span
from domain.turns import Failure, Outcome
from streams.postgres_sink import PostgresSink
from streams.records import Control, Turn
from tests.support.postgres import rows, schema_of
from tests.support.services import ROOT

T0 = 1_790_000_000_000  # September 2026
TURNS, CONTROLS = "chat.turns.v1@a", "chat.controls.v1@a"


def turn_id(number: int) -> str:
    return uuid7(T0 + number, 3, number)


def conversation_id(number: int) -> str:
    return uuid7(T0 - 1, 7, number)


def turn(number: int, *, conversation: int = 0, outcome: Outcome = "completed", answer: str = "It is so.") -> Turn:
    return Turn(
        turn_id=turn_id(number),
        conversation_id=conversation_id(conversation),
        tenant="acme",
        user="ann",
        input=f"What of {number}?",
        answer=answer,
        model="small",
        outcome=outcome,
        asked_at=T0 + number,
        ended_at=T0 + number + 500,
    )


def control(
    action: str, *, conversation: int = 0, title: str | None = None, user: str = "ann", at: int = T0
) -> Control:
    return msgspec.convert(
        {
            "action": action,
            "conversation_id": conversation_id(conversation),
            "tenant": "acme",
            "user": user,
            "at": at,
            "title": title,
        },
        Control,
    )


def span(start: int, stop: int, *, log: str = TURNS, partition: int = 0) -> Span:
    return Span(log, partition, start, stop)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresSink]:
    postgres = Postgres(url)
    await postgres.open()
    try:
        yield PostgresSink(TurnStore(postgres))
    finally:
        await postgres.close()


@pytest.fixture
async def sink(database_url: str) -> AsyncIterator[PostgresSink]:
    async with opened(database_url) as sink:
        await sink.prepare()
        yield sink


async def keep(sink: PostgresSink, start: int, *turns: Turn) -> None:
    await sink.keep(span(start, start + len(turns)), dict(enumerate(turns, start)))


async def obey(sink: PostgresSink, start: int, *controls: Control) -> None:
    where = span(start, start + len(controls), log=CONTROLS)
    await sink.obey(where, dict(enumerate(controls, start)), TURNS)


def answers(url: str) -> dict[str, str]:
    return {str(key): answer for key, answer in rows(url, "SELECT turn_id, answer FROM turns")}


def titles(url: str) -> list[tuple[str, bool]]:
    return rows(url, "SELECT title, erased_at IS NOT NULL FROM conversations")


# -- each turn once


async def test_what_an_answer_cites_is_written_with_it_replaced_with_it_and_erased_with_it(
    sink: PostgresSink, database_url: str
) -> None:
    given = [Citation(n, f"d{n}", "Manual", "", f"Passage {n}\0") for n in (1, 2)]
    cited = msgspec.structs.replace(turn(1), citations=given)
    texts = "SELECT n, document_id, url, text FROM citations ORDER BY n"

    await keep(sink, 0, cited, turn(2))
    assert rows(database_url, texts) == [(1, "d1", None, "Passage 1�"), (2, "d2", None, "Passage 2�")]

    await keep(sink, 2, msgspec.structs.replace(cited, citations=given[:1]))
    assert rows(database_url, texts) == [(1, "d1", None, "Passage 1�")]

    await obey(sink, 0, control("erase"))
    await keep(sink, 3, cited)
    assert rows(database_url, texts) == []


async def test_a_batch_and_its_progress_are_written_together(sink: PostgresSink, database_url: str) -> None:
    await keep(sink, 0, turn(1), turn(2))

    assert set(answers(database_url)) == {turn_id(1), turn_id(2)}
    assert await sink.progress(TURNS, [0, 1]) == {0: 2, 1: 0}


async def test_a_batch_that_is_written_again_changes_nothing(sink: PostgresSink, database_url: str) -> None:
    await keep(sink, 0, turn(1), turn(2))

    with pytest.raises(Overtaken):
        await keep(sink, 0, turn(1), turn(2), turn(3))

    assert len(answers(database_url)) == 2
    assert (await sink.progress(TURNS, [0]))[0] == 2


async def test_of_two_owners_that_write_the_same_batch_at_once_one_is_overtaken(
    sink: PostgresSink, database_url: str
) -> None:
    batch = [turn(number) for number in range(200)]

    outcomes = await asyncio.gather(*(keep(sink, 0, *batch) for _ in range(4)), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if outcome] == [Overtaken] * 3
    assert len(answers(database_url)) == 200


async def test_a_sleepers_batch_that_begins_where_nobody_is_any_more_is_not_written(
    sink: PostgresSink, database_url: str
) -> None:
    await keep(sink, 0, turn(1))
    await keep(sink, 1, turn(2))

    with pytest.raises(Overtaken):
        await keep(sink, 1, turn(3), turn(4))

    assert set(answers(database_url)) == {turn_id(1), turn_id(2)}


async def test_a_turn_that_was_published_twice_is_there_once(sink: PostgresSink, database_url: str) -> None:
    await keep(sink, 0, turn(1), turn(2))
    await keep(sink, 2, turn(2), turn(3), turn(3))

    assert set(answers(database_url)) == {turn_id(1), turn_id(2), turn_id(3)}
    assert rows(database_url, "SELECT count(*), count(DISTINCT turn_id) FROM usage") == [(3, 3)]


async def test_after_a_rewind_what_is_there_is_written_over(sink: PostgresSink, database_url: str) -> None:
    await keep(sink, 0, turn(1, answer="old"), turn(2))

    await sink.rewind(TURNS, {0: 0})
    await keep(sink, 0, turn(1, answer="new"), turn(2))

    assert answers(database_url) == {turn_id(1): "new", turn_id(2): "It is so."}


async def test_a_span_without_turns_moves_the_progress(sink: PostgresSink) -> None:
    await sink.keep(span(0, 7), {})

    assert (await sink.progress(TURNS, [0]))[0] == 7


# -- what a row can hold


async def test_a_text_with_nul_is_kept_without_it(sink: PostgresSink, database_url: str) -> None:
    odd = msgspec.structs.replace(turn(1, answer="a\x00b \\u0000"), metadata={"k\x00": ["\x00", 1, None]})
    await keep(sink, 0, odd)

    assert answers(database_url) == {turn_id(1): "a\ufffdb \\u0000"}
    assert rows(database_url, "SELECT metadata FROM turns") == [({"k\ufffd": ["\ufffd", 1, None]},)]


async def test_a_turn_that_can_be_no_row_is_named_and_nothing_of_its_batch_written(
    sink: PostgresSink, database_url: str
) -> None:
    foreign = msgspec.structs.replace(turn(2), conversation_id="not a uuid")

    with pytest.raises(SinkRefused) as refused:
        await keep(sink, 0, turn(1), foreign)

    assert set(refused.value.reasons) == {1}
    assert answers(database_url) == {}
    assert (await sink.progress(TURNS, [0]))[0] == 0


async def test_a_turn_that_only_postgres_refuses_is_found_in_its_batch(sink: PostgresSink, database_url: str) -> None:
    rows_before = "ALTER TABLE turns ADD CONSTRAINT no_odd CHECK (answer <> 'odd')"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(rows_before)
    batch = [turn(number, answer="odd" if number in {3, 8} else "even") for number in range(10)]

    with pytest.raises(SinkRefused) as refused:
        await keep(sink, 0, *batch)

    assert set(refused.value.reasons) == {3, 8}
    assert answers(database_url) == {}


async def test_months_have_partitions_of_their_own_and_a_wrong_clock_none(
    sink: PostgresSink, database_url: str
) -> None:
    year = 365 * 86_400_000
    early, late = (msgspec.structs.replace(turn(2 + k), ended_at=T0 + k * 5 * year) for k in (-1, 1))
    await sink.keep(span(0, 3), {0: turn(1), 1: msgspec.structs.replace(early, turn_id=turn_id(9)), 2: late})

    found = rows(database_url, "SELECT tableoid::regclass::text FROM turns ORDER BY ended_at")
    assert [name for (name,) in found] == ["turns_2021_09", "turns_2026_09", "turns_default"]


# -- conversations


async def test_a_conversation_has_the_title_of_its_first_turn_and_the_time_of_its_last(
    sink: PostgresSink, database_url: str
) -> None:
    await keep(sink, 0, turn(1), turn(2))
    await keep(sink, 2, turn(3))

    found = rows(database_url, "SELECT title, (extract(epoch FROM updated_at) * 1000)::bigint FROM conversations")
    assert found == [("What of 1?", T0 + 503)]


async def test_a_turn_outside_of_conversations_begins_none(sink: PostgresSink, database_url: str) -> None:
    refused = msgspec.structs.replace(
        turn(2, conversation=2, outcome="failed"), error=Failure("busy", "conversation_busy")
    )
    await keep(sink, 0, msgspec.structs.replace(turn(1), stateless=True), refused)

    assert titles(database_url) == []
    assert rows(database_url, "SELECT in_conversation FROM turns") == [(False,), (False,)]


@pytest.mark.parametrize("turn_first", [True, False])
async def test_a_title_that_was_given_counts_more_than_the_first_question(
    sink: PostgresSink, database_url: str, turn_first: bool
) -> None:
    if turn_first:
        await keep(sink, 0, turn(1))
    await obey(sink, 0, control("create"), control("rename", title="Of things"))
    if not turn_first:
        await keep(sink, 0, turn(1))

    assert titles(database_url) == [("Of things", False)]


async def test_nobody_else_changes_or_erases_a_conversation(sink: PostgresSink, database_url: str) -> None:
    await keep(sink, 0, turn(1))
    await obey(sink, 0, control("rename", title="Mine", user="bob"), control("erase", user="bob"))

    assert titles(database_url) == [("What of 1?", False)]
    assert len(answers(database_url)) == 1


async def test_what_was_erased_is_gone_and_a_turn_that_ends_late_does_not_bring_it_back(
    sink: PostgresSink, database_url: str
) -> None:
    await keep(sink, 0, turn(1), turn(2, conversation=1))
    await obey(sink, 0, control("erase"), control("rename", title="Back?"), control("create", title="Back?"))
    await keep(sink, 2, turn(3), turn(4, conversation=1))

    assert set(answers(database_url)) == {turn_id(2), turn_id(4)}
    assert sorted(titles(database_url)) == [("", True), ("What of 2?", False)]
    # What was paid for stays in the accounts.
    assert rows(database_url, "SELECT count(*) FROM usage") == [(4,)]


async def test_an_erasure_that_comes_before_the_first_turn_holds(sink: PostgresSink, database_url: str) -> None:
    await obey(sink, 0, control("erase"))
    await keep(sink, 0, turn(1))

    assert answers(database_url) == {}


async def test_an_erasure_beside_a_batch_leaves_nothing_of_it(sink: PostgresSink, database_url: str) -> None:
    for number in range(5):
        each = [turn(1000 * number + k, conversation=number) for k in range(100)]
        await asyncio.gather(keep(sink, 100 * number, *each), obey(sink, number, control("erase", conversation=number)))

    assert answers(database_url) == {}


# -- Postgres itself


async def test_while_postgres_is_away_whoever_wants_it_hears_why_and_soon_at_once() -> None:
    clock = iter(range(1000))
    postgres = Postgres("postgresql://127.0.0.1:1/none", clock=lambda: next(clock) * 1e-6)
    await postgres.open()
    with pytest.raises(SinkUnavailable, match="refused"):
        async with postgres.connection(connect=0.05):
            pass

    while postgres.reachable:
        with pytest.raises(SinkUnavailable):
            async with postgres.connection(connect=0.05):
                pass

    with pytest.raises(SinkUnavailable, match="left alone"):
        async with postgres.connection(connect=3600):
            pass
    await postgres.close()


async def test_many_workers_make_the_schema_once(database_url: str) -> None:
    async def start() -> None:
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await migrate(connection)

    await asyncio.gather(*(start() for _ in range(4)))

    assert rows(database_url, "SELECT count(*) > 0, count(*) = count(DISTINCT name) FROM migrations") == [(True, True)]


async def test_a_migration_that_was_changed_after_it_was_applied_is_refused(
    sink: PostgresSink, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE migrations SET digest = 'another'")

    with pytest.raises(SinkUnavailable, match=r"0001_archive\.sql"):
        await sink.prepare()


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """A role whose rights will be those of a worker's."""
    name = f"headrace_{uuid4().hex[:12]}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name}".encode())
        yield name
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def grant(url: str, role: str) -> None:
    """Do what an operator does after a migration."""
    text = (ROOT / "deploy" / "postgres_role.sql").read_text()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(re.sub(r"\bheadrace\b", role, text).encode())


async def test_a_workers_role_can_do_all_that_the_archive_does_and_change_no_table(
    sink: PostgresSink, database_url: str, role: str
) -> None:
    grant(database_url, role)
    async with opened(f"{database_url}%20-crole%3D{role}") as worker:
        await worker.prepare()
        await keep(worker, 0, turn(1), turn(2))
        await keep(worker, 2, turn(2), turn(3, conversation=1))
        await obey(worker, 0, control("create"), control("rename", title="x"), control("erase"))
        await worker.rewind(TURNS, {0: 0})

    assert set(answers(database_url)) == {turn_id(3)}
    with psycopg.connect(f"{database_url}%20-crole%3D{role}", autocommit=True) as connection:
        for forbidden in ("DROP TABLE turns", "TRUNCATE turns", "CREATE TABLE x ()", "UPDATE usage SET claims = 0"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden.encode())


async def test_a_worker_that_may_not_migrate_says_who_has_to(database_url: str, role: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"GRANT USAGE ON SCHEMA {schema_of(database_url)} TO {role}".encode())

    async with opened(f"{database_url}%20-crole%3D{role}") as worker:
        with pytest.raises(SinkUnavailable, match=r"adapters\.schema"):
            await worker.prepare()
