"""`faust -A streams.app reindex --model NAME`: another embedding model, and never a moment without an answer.

The workers go on: they search through the alias, and write every document that is learned meanwhile to both indices.
The alias moves in one step, and only to an index that finds no less. Until the next reindexing the one that served
before is written to as well, so that `--rollback` loses nothing.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, cast

import click
import msgspec
from faust.cli import AppCommand, option

from adapters.elastic import Elastic, open_elastic
from adapters.embedder import Embedder, Embedders, open_embedders
from adapters.log_reader import open_log_reader
from adapters.parsers import open_parsers
from adapters.passage_index import INDICES_SECONDS, Index, PassageIndex
from adapters.retriever import Retriever
from config import logging
from config.settings import Settings
from domain.errors import Rejected, Retriable
from domain.knowledge import Reader
from streams.learning import passages_of
from streams.reindexing import Filled, Filling, PassagesOf, Pinned, Question, Recall, Side, questions_of, recalls
from streams.topics import Topics

if TYPE_CHECKING:
    from streams.app import ChatApp

LOAD_SECONDS: Final = 300.0
TOLERANCE: Final = 0.02


class Refused(Exception):
    """What was asked for cannot be done as things are; nothing has changed."""


class Asked(msgspec.Struct):
    """A line of a file of questions. Without ``tenant`` and ``user``, somebody who may read the documents."""

    query: str
    document_ids: list[str]
    tenant: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the steps work with."""

    settings: Settings
    elastic: Elastic
    index: PassageIndex
    embedders: Embedders
    cut: PassagesOf


class Reindex(AppCommand):
    """Search documents by another embedding model, without downtime.

    An index for the model is filled from Kafka beside the one that is searched. If it finds no less, it is searched
    from then on, and the other one kept for --rollback. It may be broken off and begun again at any moment.
    """

    options = [  # noqa: RUF012 - Faust's own type
        option("--model", help="A name as HEADRACE_EMBEDDING_MODEL takes it; every worker needs the model."),
        option(
            "--questions",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help='Questions by which both are measured, as JSON lines {"query", "document_ids"}.'
            " Without it, the documents' own headings.",
        ),
        option(
            "--tolerance",
            type=click.FloatRange(0, 1),
            default=TOLERANCE,
            show_default=True,
            help="How much lower the new recall may be.",
        ),
        option("--rollback", is_flag=True, help="Search the index again that was searched before."),
        option("--drop", is_flag=True, help="Delete the indices that are not searched."),
        option("--status", is_flag=True, help="Say which indices there are."),
    ]

    def __call__(self) -> NoReturn:
        """Do it, and end the process."""
        settings = cast("ChatApp", self.app).settings
        logging.configure(settings.log_format, self.loglevel)
        try:
            asyncio.run(self._do(settings))
        except Refused as error:
            _end(str(error), os.EX_USAGE)
        except FileNotFoundError as error:
            _end(str(error), os.EX_NOINPUT)
        except Rejected as error:
            _end(str(error), os.EX_DATAERR)
        except (Retriable, TimeoutError) as error:
            _end(f"Not now: {str(error) or 'the embedding model was not loaded in time'}", os.EX_TEMPFAIL)
        except KeyboardInterrupt:
            _end("Broken off. What was written stays, nothing else has changed, and it goes on from there.", 130)
        raise SystemExit(os.EX_OK)

    async def _do(self, settings: Settings) -> None:
        wanted = [name for name in ("model", "rollback", "drop", "status") if self.kwargs[name]]
        if len(wanted) != 1:
            raise Refused("Say one of --model NAME, --rollback, --drop and --status.")
        async with _opened(settings) as tools:
            if wanted == ["status"]:
                await status(tools)
            elif wanted == ["rollback"]:
                await rollback(tools)
            elif wanted == ["drop"]:
                await drop(tools)
            else:
                await reindex(tools, self.kwargs["model"], self.kwargs["questions"], self.kwargs["tolerance"])


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Tools]:
    # Not the model of the settings: the two that are needed are loaded when they are.
    unloaded = settings.model_copy(update={"retrieval": "off"})
    async with (
        open_elastic(settings) as elastic,
        open_embedders(unloaded) as embedders,
        open_parsers(settings.document_bytes) as parsers,
    ):
        cut = partial(passages_of, parsers=parsers)
        yield Tools(settings, elastic, PassageIndex(elastic, settings.index_prefix), embedders, cut)


# -- what can be asked for


async def status(tools: Tools) -> None:
    """Print the indices."""
    for each in await tools.index.indices():
        count = await tools.index.count(each.name)
        click.echo(f"{each.name}  {each.state:8} {count:>9,} passages  {each.dims} dims  {each.model}")


async def rollback(tools: Tools) -> None:
    """Have the index searched that was searched before."""
    serving, others = await _indices(tools)
    kept = [each for each in others if each.state == "retired"]
    if not kept:
        raise Refused("There is no index to go back to.")
    await _switch(tools, serving, kept[-1])


async def drop(tools: Tools) -> None:
    """Delete what is not searched."""
    _, others = await _indices(tools)
    for each in others:
        await tools.index.drop(each.name)
        click.echo(f"{each.name} ({each.model}) is deleted.")


async def reindex(tools: Tools, model: str, questions: Path | None, tolerance: float) -> None:
    """Fill an index for a model; have it searched if it finds no less."""
    asked = _read(questions) if questions else None
    serving, others = await _indices(tools)
    if serving.model == model and not serving.drift:
        raise Refused(f"{serving.name}, which is searched, is of {model} already.")
    if any(each.state == "filling" and each.model != model for each in others):
        raise Refused("An index of another model is being filled. Go on with that model, or --drop it.")
    embedder = tools.embedders.of(model)
    await _loaded(embedder)
    new = await _made(tools, embedder, serving, others)
    filled = await _fill(tools, embedder, new)
    click.echo(f"{new.name} has {await tools.index.count(new.name):,} passages of {filled.documents:,} documents.")
    if filled.refused:
        click.echo(f"{len(filled.refused):,} documents could not be brought in, see above.", err=True)
    if serving.drift:
        click.echo(f"{serving.name} is not as it was made ({serving.drift}), so there is nothing to compare with.")
        await _switch(tools, serving, new)
        return
    measured = _questions(asked, filled) if asked else questions_of(filled)
    if not measured:
        raise Refused("There is no question to measure by, so nothing is switched: give --questions.")
    before, after = await recalls(
        [await _side(tools, each) for each in (serving, new)], measured, tools.settings.passages
    )
    click.echo(_table(len(measured), tools.settings.passages, [(serving, before), (new, after)]))
    if after.is_worse_than(before, tolerance):
        raise Refused(
            f"{new.name} finds less, so {serving.name} is searched as before. Both are written to until --drop;"
            " a higher --tolerance switches all the same."
        )
    await _switch(tools, serving, new)


# -- its steps


async def _indices(tools: Tools) -> tuple[Index, list[Index]]:
    found = await tools.index.indices()
    serving = next((each for each in found if each.state == "serving"), None)
    if serving is None:
        raise Refused("Nothing has been learned yet: set HEADRACE_EMBEDDING_MODEL instead.")
    return serving, [each for each in found if each is not serving]


async def _loaded(embedder: Embedder) -> None:
    async with asyncio.timeout(LOAD_SECONDS):
        await embedder.loaded()


async def _made(tools: Tools, embedder: Embedder, serving: Index, others: Sequence[Index]) -> Index:
    """Return the index to fill: one that was begun, else a new one."""
    begun = next((each for each in others if each.state == "filling"), None)
    if begun is not None:
        click.echo(f"{begun.name} was begun; going on with it.")
        return begun
    for each in others:
        click.echo(f"{each.name} ({each.model}), kept for --rollback until now, is deleted.")
        await tools.index.drop(each.name)
    number = max(int(each.name.rpartition("-")[2]) for each in (serving, *others)) + 1
    name = await tools.index.create(number, embedder.model, embedder.dims)
    # By then every worker knows that it is there, and writes to it whatever comes after what is read here.
    await asyncio.sleep(2 * INDICES_SECONDS)
    return Index(name, embedder.model, embedder.dims, "filling")


async def _fill(tools: Tools, embedder: Embedder, new: Index) -> Filled:
    settings = tools.settings
    topic, partitions = Topics.of(settings).documents.name, range(settings.partitions)
    async with open_log_reader(settings.kafka_bootstrap_servers) as reader:
        begins, ends = [await ask(topic, partitions) for ask in (reader.beginnings, reader.ends)]
        length = sum(ends.values()) - sum(begins.values())
        filling = Filling(reader, topic, tools.index, new.name, embedder, tools.cut)
        with click.progressbar(length=length, label=f"Filling {new.name}", file=sys.stderr, show_pos=True) as bar:
            filled = await filling.run(partitions, bar.update)
    await tools.index.refresh()
    return filled


async def _side(tools: Tools, index: Index) -> Side:
    embedder = tools.embedders.of(index.model)
    await _loaded(embedder)
    pinned = Pinned(tools.elastic, index)
    return Side(pinned, Retriever(tools.embedders, pinned, tools.settings), embedder)


async def _switch(tools: Tools, old: Index, new: Index) -> None:
    await tools.index.switch(new.name, retire=old.name)
    await tools.index.mark(new, "serving")
    await tools.index.mark(old, "retired")
    click.echo(
        f"{new.name} ({new.model}) is searched now. {old.name} ({old.model}) is written to as well, and kept until the"
        f" next reindexing or --drop.\nHEADRACE_EMBEDDING_MODEL={new.model} has new workers load this model at once."
    )


# -- questions


def _read(path: Path) -> list[Asked]:
    asked = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                asked.append(msgspec.json.decode(line, type=Asked))
            except msgspec.DecodeError as error:
                raise Refused(f"{path}, line {number}: {error}") from error
    return asked


def _questions(asked: Sequence[Asked], filled: Filled) -> list[Question]:
    """Return the questions of a file, each with a reader who may find its documents."""
    questions = []
    for each in asked:
        readers = [
            reader
            for (tenant, document_id), reader in filled.readers.items()
            if document_id in each.document_ids and each.tenant in {"", tenant}
        ]
        if readers:
            reader = Reader(readers[0].tenant, each.user or readers[0].user)
            questions.append(Question(each.query, frozenset(each.document_ids), reader))
    if len(questions) < len(asked):
        click.echo(f"{len(asked) - len(questions)} questions are about documents that are not there.", err=True)
    return questions


def _table(count: int, k: int, measured: Sequence[tuple[Index, Recall]]) -> str:
    lines = [f"Recall@{k} of {count} questions"]
    lines += [
        f"  {of.fused:.3f} as answers find them, {of.vectors:.3f} by vectors alone: {index.name}, {index.model}"
        for index, of in measured
    ]
    return "\n".join(lines)


def _end(why: str, exit_code: int) -> NoReturn:
    click.echo(why, err=True)
    raise SystemExit(exit_code)
