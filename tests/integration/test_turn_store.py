"""Postgres has every turn of the log once, whoever writes a batch and however often; and forgets what was erased."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Literal

import msgspec
import psycopg
import pytest

from adapters.postgres import Postgres
from adapters.schema import migrate
from adapters.turn_store import TurnStore
from domain.errors import Overtaken, Rejected, SinkRefused, SinkUnavailable
from domain.generation import Usage
from domain.ids import uuid7
from domain.knowledge import Citation
from domain.prices import FREE, Prices
from domain.spans import Span
from domain.turns import Failure, Outcome
from streams.postgres_sink import PostgresSink
from streams.records import Control, Feedback, Turn
from tests.support.postgres import rows

T0 = 1_790_000_000_000  # September 2026
TURNS, CONTROLS, FEEDBACK = "chat.turns.v1@a", "chat.controls.v1@a", "chat.feedback.v1@a"


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


def thumb(
    number: int, *, rating: Literal[1, -1] = 1, comment: str = "", at: int = T0, conversation: int = 0
) -> Feedback:
    return Feedback(
        turn_id=turn_id(number),
        conversation_id=conversation_id(conversation),
        tenant="acme",
        user="ann",
        rating=rating,
        comment=comment,
        at=at,
    )


def span(start: int, stop: int, *, log: str = TURNS, partition: int = 0) -> Span:
    return Span(log, partition, start, stop)


@asynccontextmanager
async def opened(url: str, prices: Prices = FREE) -> AsyncIterator[PostgresSink]:
    postgres = Postgres(url)
    await postgres.open()
    try:
        yield PostgresSink(TurnStore(postgres), prices)
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


async def note(sink: PostgresSink, start: int, *feedback: Feedback, again: bool = False) -> None:
    where = span(start, start + len(feedback), log=FEEDBACK)
    await sink.note(where, dict(enumerate(feedback, start)), TURNS, again=again)


def thumbs(url: str) -> dict[str, tuple[int, str | None]]:
    return {
        str(key): (rating, said) for key, rating, said in rows(url, "SELECT turn_id, rating, comment FROM feedback")
    }


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


@pytest.mark.parametrize("table", ["turns", "usage", "citations"])
async def test_a_turn_that_any_of_its_tables_refuses_is_found_in_its_batch(
    sink: PostgresSink, database_url: str, table: str
) -> None:
    column = {"turns": "answer", "usage": "model", "citations": "text"}[table]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT no_odd CHECK ({column} <> 'odd')".encode())
    odd = msgspec.structs.replace(
        turn(2, answer="odd"),
        model="odd",
        citations=[Citation(1, "d", "t", "", "even"), Citation(2, "d", "t", "", "odd")],
    )

    with pytest.raises(SinkRefused) as refused:
        await keep(sink, 0, turn(1), odd, turn(3))
    assert set(refused.value.reasons) == {1}

    await sink.keep(span(0, 3), {0: turn(1), 2: turn(3)})
    with pytest.raises(SinkRefused) as refused:
        await keep(sink, 3, turn(1), odd)  # beside one that is there already
    assert set(refused.value.reasons) == {4}


async def test_a_batch_that_is_refused_and_each_of_its_turns_not_is_no_outage(
    sink: PostgresSink, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE UNIQUE INDEX ON turns_default (answer)")
    year_3000 = [msgspec.structs.replace(turn(number), ended_at=32_503_680_000_000 + number) for number in range(2)]

    # The archive finds out which turns these are by halves.
    with pytest.raises(Rejected, match="each of its rows not"):
        await keep(sink, 0, *year_3000)

    assert (await sink.progress(TURNS, [0]))[0] == 0


async def test_a_control_that_postgres_refuses_is_no_outage(sink: PostgresSink, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE conversations ADD CONSTRAINT no_odd CHECK (title <> 'odd')")

    with pytest.raises(Rejected, match="no_odd"):
        await obey(sink, 0, control("create", title="even"), control("create", conversation=1, title="odd"))

    assert titles(database_url) == []
    assert await sink.progress(CONTROLS, [0]) == {0: 0}


@pytest.mark.parametrize("ended_at", [253_402_300_799_999, 251_000_000_000_000])
async def test_a_turn_of_the_last_months_of_the_calendar_is_kept(
    sink: PostgresSink, database_url: str, ended_at: int
) -> None:
    await keep(sink, 0, msgspec.structs.replace(turn(1), ended_at=ended_at), turn(2))

    found = rows(database_url, "SELECT tableoid::regclass::text FROM turns ORDER BY ended_at")
    assert [name for (name,) in found] == ["turns_2026_09", "turns_default"]


async def test_a_turn_is_kept_with_all_that_its_record_says_and_what_it_cost(database_url: str) -> None:
    said = msgspec.structs.replace(
        turn(1), retrieval="found", cache="miss", experiment="b", bare=True, usage=Usage(1000, 7), model="large"
    )
    async with opened(database_url, Prices({"large": 2.5}, {"large": 10.0})) as sink:
        await sink.prepare()
        await keep(sink, 0, said, turn(2))

    query = "SELECT retrieval, cache, experiment, bare, cost::text FROM turns ORDER BY turn_id"
    assert rows(database_url, query) == [("found", "miss", "b", True, "0.002570000"), (None, None, "", False, None)]
    assert rows(database_url, "SELECT cost FROM usage ORDER BY turn_id") == [(Decimal("0.00257"),), (None,)]


async def test_a_passage_is_kept_whether_the_answer_names_it_or_not(sink: PostgresSink, database_url: str) -> None:
    given = [Citation(n, f"d{n}", "Manual", "", "…") for n in (1, 2)]

    await keep(sink, 0, msgspec.structs.replace(turn(1, answer="So it is [2]."), citations=given))

    assert rows(database_url, "SELECT n, named FROM citations ORDER BY n") == [(1, False), (2, True)]


async def test_of_a_turn_that_comes_twice_in_a_batch_the_later_ones_passages_are_kept(
    sink: PostgresSink, database_url: str
) -> None:
    one, two = [Citation(1, "old", "", "", ""), Citation(2, "old", "", "", "")], [Citation(1, "new", "", "", "")]

    await keep(sink, 0, *(msgspec.structs.replace(turn(1), citations=each) for each in (one, two)))

    assert rows(database_url, "SELECT n, document_id FROM citations") == [(1, "new")]


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


# -- what is said of turns


async def test_of_what_is_said_of_a_turn_the_latest_is_kept_in_whatever_order_it_comes(
    sink: PostgresSink, database_url: str
) -> None:
    await note(sink, 0, thumb(1, comment="Fine\0", at=T0 + 2), thumb(2), thumb(1, rating=-1, at=T0 + 1))
    assert thumbs(database_url) == {turn_id(1): (1, "Fine\N{REPLACEMENT CHARACTER}"), turn_id(2): (1, None)}

    await note(sink, 3, thumb(1, rating=-1, at=T0 + 3))
    await note(sink, 0, thumb(1, comment="Fine", at=T0 + 2), again=True)
    assert thumbs(database_url) == {turn_id(1): (-1, None), turn_id(2): (1, None)}
    assert await sink.progress(FEEDBACK, [0, 1]) == {0: 4, 1: 0}


async def test_what_is_said_is_written_once_by_whoever_comes_first(sink: PostgresSink, database_url: str) -> None:
    await note(sink, 0, thumb(1))

    with pytest.raises(Overtaken):
        await note(sink, 0, thumb(1, rating=-1, at=T0 + 1))
    assert thumbs(database_url) == {turn_id(1): (1, None)}


async def test_what_can_be_no_row_is_named(sink: PostgresSink) -> None:
    with pytest.raises(SinkRefused) as refused:
        await note(sink, 0, thumb(1), msgspec.structs.replace(thumb(2), turn_id="none"))

    assert set(refused.value.reasons) == {1}


async def test_of_an_erased_conversation_nothing_that_was_said_is_kept(sink: PostgresSink, database_url: str) -> None:
    await note(sink, 0, thumb(1), thumb(2, conversation=1))
    await obey(sink, 0, control("erase"))
    await note(sink, 2, thumb(1, rating=-1, at=T0 + 1), thumb(3))
    await note(sink, 0, thumb(1), again=True)

    assert thumbs(database_url) == {turn_id(2): (1, None)}


async def test_an_erasure_beside_what_is_said_leaves_nothing_of_it(sink: PostgresSink, database_url: str) -> None:
    for number in range(5):
        said = [thumb(1000 * number + k, conversation=number) for k in range(100)]
        await asyncio.gather(note(sink, 100 * number, *said), obey(sink, number, control("erase", conversation=number)))

    assert thumbs(database_url) == {}


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
