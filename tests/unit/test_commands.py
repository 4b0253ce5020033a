"""What an operator types and gets wrong is answered with what is wrong, and an exit code that says who can mend it."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from click.testing import CliRunner, Result
from faust.cli.base import cli

from adapters.elastic import Elastic
from domain.errors import LogUnavailable
from streams import commands, reindex_command


@pytest.fixture(autouse=True)
def own_loop_policy() -> Iterator[None]:
    """Take back what a command says about this process's event loops: other tests run in it."""
    policy = asyncio.get_event_loop_policy()
    yield
    asyncio.set_event_loop_policy(policy)


def typed(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["-A", "streams.app", "rebuild", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sink", "mongo", "--from", "2026-01-01"], "'mongo' is not one of"),
        (["--sink", "postgres", "--from", "yesterday"], "'yesterday' is no time such as"),
        (["--sink", "postgres", "--from", "2999-01-01"], "has not been yet"),
        (["--sink", "postgres"], "Missing option '--from'"),
        (["--from", "2026-01-01"], "Missing option '--sink'"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_with_it(arguments: list[str], said: str) -> None:
    result = typed(*arguments)

    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-01", 1_767_225_600),
        ("2026-01-01T12:00", 1_767_268_800),
        ("2026-01-01T12:00Z", 1_767_268_800),
        ("2026-01-01T14:00:00+02:00", 1_767_268_800),
    ],
)
def test_times_are_read_as_people_write_them(text: str, seconds: int) -> None:
    assert commands.Moment().convert(text, None, None).timestamp() == seconds


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        ([], os.EX_USAGE, "Say one of --model"),
        (["--model", "new", "--status"], os.EX_USAGE, "Say one of --model"),
        (["--model", "new", "--questions", "nowhere.jsonl"], 2, "'nowhere.jsonl' does not exist"),
        (["--model", "new", "--tolerance", "2"], 2, "2.0 is not in the range"),
        (["--status"], os.EX_TEMPFAIL, "Not now: Elasticsearch is not there"),
    ],
)
def test_a_reindexing_that_cannot_begin_says_why(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], exit_code: int, said: str
) -> None:
    monkeypatch.setattr("config.logging.configure", lambda *_: None)
    monkeypatch.setattr(reindex_command, "open_elastic", lambda _: nullcontext(Elastic("http://127.0.0.1:1")))

    result = CliRunner().invoke(cli, ["-A", "streams.app", "reindex", *arguments])

    assert result.exit_code == exit_code
    assert said in result.output


def test_while_kafka_is_away_the_command_says_so_and_asks_to_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise LogUnavailable("nobody listens")

    monkeypatch.setattr(commands, "open_log_reader", away)
    monkeypatch.setattr("config.logging.configure", lambda *_: None)

    result = typed("--sink", "postgres", "--from", "2026-01-01")

    assert result.exit_code == os.EX_TEMPFAIL
    assert "Kafka is away: nobody listens" in result.output
