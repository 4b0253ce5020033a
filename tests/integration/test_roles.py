"""Workers do all their work in Postgres as a role that owns nothing, made by what docker-compose.yml runs."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec
import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from adapters.document_store import DocumentRow, DocumentStore
from adapters.history import History
from adapters.metric_store import MetricStore, StoredMetric
from adapters.postgres import Postgres
from adapters.turn_store import TurnStore
from deploy.embedded import wheel
from domain.errors import SinkUnavailable
from domain.history import Owner
from domain.ids import uuid7
from domain.knowledge import Citation
from domain.spans import Span
from streams.postgres_sink import PostgresSink
from streams.records import Control, Feedback, Turn
from tests.support.postgres import rows, schema_of
from tests.support.services import ROOT

T0: Final = 1_790_000_000_000  # September 2026
AT: Final = datetime.fromtimestamp(T0 // 1000, UTC)
ANN: Final = Owner("acme", "ann")
TURNS: Final = "chat.turns.v1@a"
PASSWORD: Final = "it's a $ecret"
SERVICES: Final[Mapping[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
# What a role may do to a table, as Postgres names it.
RIGHTS: Final = {
    "migrations": frozenset({"SELECT"}),
    **dict.fromkeys(["progress", "conversations", "metrics_1m"], frozenset({"SELECT", "INSERT", "UPDATE"})),
    **dict.fromkeys(["turns", "usage", "citations"], frozenset({"SELECT", "INSERT", "DELETE"})),
    **dict.fromkeys(["feedback", "documents"], frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})),
}


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """The name of a role that nobody else has, and that is gone afterwards."""
    name = f"headrace_{uuid4().hex[:12]}"
    yield name
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def compose(url: str, role: str, folder: Path) -> None:
    """Run what docker-compose.yml runs before a worker, as the owner at this URL, and for a role of this name."""
    _, *schema = SERVICES["schema"]["entrypoint"]
    own = {"PATH": os.environ["PATH"], "DATABASE_URL": url}
    subprocess.run([sys.executable, *schema], check=True, cwd=ROOT, env=own)

    (config,) = SERVICES["rights"]["configs"]
    text = (ROOT / "deploy" / "postgres_role.sql").read_text()
    file = folder / "role.sql"
    file.write_text(re.sub(r"\bheadrace\b", role, text))
    _, *arguments = SERVICES["rights"]["entrypoint"]
    arguments = [str(file) if each == config["target"] else each for each in arguments]
    names = {"dbname": "PGDATABASE"}
    where = {names.get(name, f"PG{name.upper()}"): str(value) for name, value in conninfo_to_dict(url).items()}
    psql = wheel("pgserver") / "pginstall" / "bin" / "psql"
    subprocess.run([psql, *arguments], check=True, env=where | {"ROLE_PASSWORD": PASSWORD})


def as_worker(url: str, role: str) -> str:
    """Return where a worker connects to."""
    return make_conninfo(url, user=role, password=PASSWORD)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Postgres]:
    postgres = Postgres(url)
    await postgres.open()
    try:
        yield postgres
    finally:
        await postgres.close()


def conversation_id(number: int) -> str:
    return uuid7(T0 - 1, 7, number)


def turn(number: int, *, conversation: int = 0) -> Turn:
    return Turn(
        turn_id=uuid7(T0 + number, 3, number),
        conversation_id=conversation_id(conversation),
        tenant=ANN.tenant,
        user=ANN.user,
        input=f"What of {number}?",
        answer="It is so [1].",
        model="small",
        outcome="completed",
        asked_at=T0 + number,
        ended_at=T0 + number + 500,
        citations=[Citation(1, "manual", "Manual", "", "It is so.")],
    )


def thumb(of: Turn) -> Feedback:
    return Feedback(
        turn_id=of.turn_id, conversation_id=of.conversation_id, tenant=of.tenant, user=of.user, rating=1, at=T0
    )


def control(action: str) -> Control:
    fields = {"action": action, "conversation_id": conversation_id(0), "tenant": ANN.tenant, "user": ANN.user, "at": T0}
    return msgspec.convert(fields | {"title": "x"}, Control)


async def archive(sink: PostgresSink) -> None:
    """Have two turns written, one of them again, and one that is erased with all that was said of it."""
    await sink.keep(Span(TURNS, 0, 0, 2), {0: turn(1), 1: turn(2, conversation=1)})
    await sink.keep(Span(TURNS, 0, 2, 4), {2: turn(2, conversation=1), 3: turn(3, conversation=1)})
    for start in (0, 2):
        said = {start: thumb(turn(1)), start + 1: thumb(turn(2, conversation=1))}
        await sink.note(Span("feedback", 0, start, start + 2), said, TURNS)
    orders = dict(enumerate(map(control, ("create", "rename", "erase"))))
    await sink.obey(Span("controls", 0, 0, 3), orders, TURNS)
    await sink.rewind(TURNS, {0: 0})


async def tabulate(store: MetricStore) -> None:
    """Have a row of the metrics written, and corrected."""
    for revision in (1, 2):
        row = StoredMetric("turns", AT, "k", revision, True, {}, {"turns": revision})
        await store.keep("metrics", revision, [row])


async def learn(store: DocumentStore) -> None:
    """Have it written that a document failed, then that it was learned; and of another that it was forgotten."""
    for revision, status in enumerate(["failed", "learned"]):
        row = DocumentRow(ANN.tenant, "manual", ANN.user, "Manual", None, status, None, 7, {}, AT, revision)
        gone = row._replace(document_id="list", status="learned" if status == "failed" else "forgotten")
        await store.keep("outcomes", revision, [row, gone])


async def test_a_worker_of_the_compose_file_can_do_all_of_its_work_and_nothing_else(
    database_url: str, role: str, tmp_path: Path
) -> None:
    for _ in range(2):  # as at every start
        compose(database_url, role, tmp_path)

    async with opened(as_worker(database_url, role)) as postgres:
        sink = PostgresSink(TurnStore(postgres))
        await sink.prepare()
        await archive(sink)
        assert await sink.progress(TURNS, [0]) == {0: 0}
        metrics = MetricStore(postgres)
        await metrics.prepare()
        await tabulate(metrics)
        assert await metrics.progress("metrics") == 2
        await learn(DocumentStore(postgres))
        history = History(postgres)
        (conversation,) = await history.conversations(ANN, limit=9)
        found = await history.turns(ANN, conversation.conversation_id, limit=9)
        assert [each.turn_id for each in found] == [turn(3).turn_id, turn(2).turn_id]
        assert [each.document_id for each in found[0].citations] == ["manual"]
        assert await history.turn(ANN, turn(3).turn_id) == found[0]
        assert await history.conversation(ANN, conversation_id(0)) is None
        assert [said.turn_id for said in await history.feedback(ANN, [turn(2).turn_id])] == [turn(2).turn_id]

    assert rows(database_url, "SELECT measures->>'turns' FROM metrics_1m") == [("2",)]
    assert rows(database_url, "SELECT document_id, status FROM documents") == [("manual", "learned")]
    with psycopg.connect(as_worker(database_url, role), autocommit=True) as connection:
        for forbidden in ("DROP TABLE turns", "TRUNCATE turns", "CREATE TABLE x ()", "UPDATE usage SET claims = 0"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden.encode())


async def test_the_role_has_exactly_the_rights_that_are_named_here(
    database_url: str, role: str, tmp_path: Path
) -> None:
    compose(database_url, role, tmp_path)

    query = "SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = %s"
    granted: dict[str, set[str]] = {}
    for table, right in rows(database_url, query, role):
        granted.setdefault(table, set()).add(right)
    attributes = "SELECT rolcanlogin, rolsuper OR rolcreatedb OR rolcreaterole OR rolbypassrls FROM pg_roles"
    assert granted == RIGHTS
    assert rows(database_url, f"{attributes} WHERE rolname = %s", role) == [(True, False)]
    assert rows(database_url, "SELECT left(rolpassword, 5) FROM pg_authid WHERE rolname = %s", role) == [("SCRAM",)]


async def test_a_worker_that_may_not_migrate_says_who_has_to(database_url: str, role: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        connection.execute(f"GRANT USAGE ON SCHEMA {schema_of(database_url)} TO {role}".encode())

    async with opened(as_worker(database_url, role)) as postgres:
        with pytest.raises(SinkUnavailable, match=r"adapters\.schema"):
            await PostgresSink(TurnStore(postgres)).prepare()
