"""What an operator can have done beside the workers, as commands of `faust -A streams.app`.

    faust -A streams.app rebuild --sink elasticsearch --from 2026-09-01

A command is a process of its own that is in no group and answers nobody: it opens what it needs, and no more.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import click
from faust.cli import AppCommand, option

from adapters.elastic import open_elastic
from adapters.log_reader import LogReader, open_log_reader
from adapters.postgres import open_postgres
from adapters.search_index import SearchIndex
from adapters.turn_store import TurnStore
from config import logging
from config.settings import Settings
from domain.errors import LogUnavailable
from domain.prices import Prices
from streams.archiving import Limits, Sink
from streams.postgres_sink import PostgresSink
from streams.rebuilding import Rebuilt, rebuild
from streams.search_sink import SearchSink
from streams.topics import Topics

if TYPE_CHECKING:
    from streams.app import ChatApp

SINKS: Final = ("postgres", "elasticsearch")


class Moment(click.ParamType):
    """A time that has been, as people write it: 2026-09-01, 2026-09-01T12:00+02:00; in UTC if it does not say."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time; says what is wrong and ends the process with 2."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time such as 2026-09-01 or 2026-09-01T12:00Z.", param, ctx)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if moment > datetime.now(UTC):
            self.fail(f"{moment.isoformat()} has not been yet.", param, ctx)
        return moment


class Rebuild(AppCommand):
    """Write a store again from the topics, while the workers run.

    All turns that were finished since TIME, and what was said of turns since then, are written over what the store has
    of them, what was erased is erased, and how far the workers have got stays as it is. It may be repeated, and broken
    off at any moment.
    """

    options = [  # noqa: RUF012 - Faust's own type
        option("--sink", type=click.Choice(SINKS), required=True, help="The store."),
        option(
            "--from",
            "since",
            type=Moment(),
            required=True,
            help="A time such as 2026-09-01T12:00Z; UTC, if it does not say.",
        ),
    ]

    def __call__(self) -> NoReturn:
        """Do it, and end the process."""
        settings = cast("ChatApp", self.app).settings
        logging.configure(settings.log_format, self.loglevel)
        try:
            asyncio.run(_rebuild(settings, self.kwargs["sink"], self.kwargs["since"]))
        except LogUnavailable as error:
            _end(f"Kafka is away: {error}", os.EX_TEMPFAIL)
        except KeyboardInterrupt:
            _end("Broken off. What was written stays, and it can begin again.", 130)
        raise SystemExit(os.EX_OK)


async def _rebuild(settings: Settings, name: str, since: datetime) -> None:
    topics = Topics.of(settings)
    turns, controls, feedback = topics.turns.name, topics.controls.name, topics.feedback.name
    began = time.monotonic()
    async with open_log_reader(settings.kafka_bootstrap_servers) as reader, _opened(name, settings) as sink:
        starts = await _starts(reader, (turns, controls, feedback), range(settings.partitions), since)
        length = sum([await _between(reader, topic, starts[topic]) for topic in starts])
        with click.progressbar(length=length, label=f"Rebuilding {name}", file=sys.stderr, show_pos=True) as bar:
            rebuilt = await rebuild(
                sink,
                reader,
                Limits(settings.window_seconds, settings.window_turns, settings.window_bytes),
                starts,
                turns=turns,
                controls=controls,
                feedback=feedback,
                on_batch=bar.update,
            )
    click.echo(_summary(rebuilt, name, time.monotonic() - began))


async def _starts(
    reader: LogReader, topics: Iterable[str], partitions: range, since: datetime
) -> dict[str, Mapping[int, int]]:
    """Return where each topic is to be read from, and tell the operator what is not there any more."""
    starts: dict[str, Mapping[int, int]] = {}
    for topic in topics:
        starts[topic] = await reader.since(topic, partitions, int(since.timestamp() * 1000))
        firsts = await reader.beginnings(topic, partitions)
        if any(first > 0 and starts[topic][partition] <= first for partition, first in firsts.items()):
            click.echo(f"Kafka has deleted the beginning of {topic}: what it has is written.", err=True)
    return starts


async def _between(reader: LogReader, topic: str, starts: Mapping[int, int]) -> int:
    ends = await reader.ends(topic, starts)
    return sum(ends[partition] - start for partition, start in starts.items())


@asynccontextmanager
async def _opened(name: str, settings: Settings) -> AsyncIterator[Sink]:
    prices = Prices(*settings.prices)
    async with AsyncExitStack() as stack:
        if name == "postgres":
            yield PostgresSink(TurnStore(await stack.enter_async_context(open_postgres(settings))), prices)
        else:
            elastic = await stack.enter_async_context(open_elastic(settings))
            yield SearchSink(SearchIndex(elastic, settings.index_prefix), prices)


def _summary(rebuilt: Rebuilt, name: str, seconds: float) -> str:
    text = f"{rebuilt.turns:,} turns written to {name} in {seconds:.1f} s"
    if rebuilt.refused:
        text += f"; {len(rebuilt.refused):,} records that it never takes, see above"
    return f"{text}."


def _end(why: str, exit_code: int) -> NoReturn:
    click.echo(why, err=True)
    raise SystemExit(exit_code)
