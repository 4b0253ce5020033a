"""`faust -A streams.app learn PATH…`: files and folders become documents, and this waits until they are learned.

It only writes to the documents' topic and reads what became of them: the workers learn. A file's id is its path, so
that it is renewed when it is given again; and its digest stands in the document's metadata, so that one that has not
changed is not even sent.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

import click
from faust.cli import AppCommand, argument, option

from adapters.document_log import DocumentLog, Sent, open_document_log
from adapters.document_status import DocumentStatuses, open_document_statuses
from adapters.elastic import open_elastic
from adapters.kafka_admin import ensure_topics
from config import logging
from config.settings import Settings
from domain.errors import LogUnavailable, SinkUnavailable
from domain.files import MEDIA_TYPES, media_type_in, media_type_of
from domain.knowledge import DocumentStatus
from streams.learning import LONGEST_NAME, status_of
from streams.records import Document, document_key, encode
from streams.topics import Topics, partition_of

if TYPE_CHECKING:
    from streams.app import ChatApp

SENT_AT_ONCE: Final = 32
SENT_BYTES: Final = 16 << 20
LOOK_SECONDS: Final = 0.5
ASKED_AT_ONCE: Final = 200
SILENT_SECONDS: Final = 60.0
DIGEST: Final = "sha256"
NO_ID: Final = re.compile(r"[^A-Za-z0-9._:@<>/+ -]")
LONGEST_ID: Final = 200


class Refused(Exception):
    """What was asked for cannot be done; nothing was sent."""


class Owner(NamedTuple):
    """Whose the documents are."""

    tenant: str
    user: str


@dataclass(slots=True)
class Learned:
    """What a run came to. ``failed``: why, by document."""

    documents: int = 0
    passages: int = 0
    unchanged: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def summary(self, seconds: float) -> str:
        """Return it in a sentence, and a line for each document that failed."""
        pace = f" ({self.passages / seconds:,.1f} passages/s)" if self.passages else ""
        lines = [f"{self.documents:,} documents learned, {self.passages:,} passages in {seconds:.1f} s{pace}"]
        lines[0] += f"; {self.unchanged:,} unchanged" if self.unchanged else ""
        lines[0] += f"; {len(self.failed):,} failed:" if self.failed else "."
        return "\n".join([*lines, *(f"  {name}: {why}" for name, why in sorted(self.failed.items()))])


class Learn(AppCommand):
    """Have files and folders learned: PDF, DOCX, HTML, Markdown and text.

    Needs a worker to learn them. Those that have not changed since are left out. It may be broken off and begun again
    at any moment.
    """

    options = [  # noqa: RUF012 - Faust's own type
        argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH..."),
        option("--tenant", help="Whose documents they are; `dev` with HEADRACE_AUTH=dev."),
        option("--user", help="Which user may replace and delete them; `dev` with HEADRACE_AUTH=dev."),
        option("--reader", "readers", multiple=True, help="Who may read them besides; without, the whole tenant."),
        option("--again", is_flag=True, help="Send those that have not changed, too."),
    ]

    def __call__(self) -> NoReturn:
        """Do it, and end the process."""
        settings = cast("ChatApp", self.app).settings
        logging.configure(settings.log_format, self.loglevel)
        try:
            owner = _owner(settings, self.kwargs["tenant"], self.kwargs["user"])
            learned = asyncio.run(_learn(settings, owner, **self.kwargs))
        except Refused as error:
            _end(str(error), os.EX_USAGE)
        except (LogUnavailable, SinkUnavailable) as error:
            _end(f"Not now: {error}", os.EX_TEMPFAIL)
        except KeyboardInterrupt:
            _end("\nBroken off. What was sent is learned all the same.", 130)
        raise SystemExit(os.EX_DATAERR if learned.failed else os.EX_OK)


def _owner(settings: Settings, tenant: str | None, user: str | None) -> Owner:
    """Return whose the documents are. Raises `Refused` for names that no record's key or status could have."""
    if any(name is not None and not 0 < len(name) <= LONGEST_NAME for name in (tenant, user)):
        raise Refused(f"Names of tenants and users have 1 to {LONGEST_NAME} characters.")
    if tenant and "/" in tenant:
        raise Refused(f"The name of a tenant has no slash: {tenant!r} is none.")
    usual = "dev" if settings.auth == "dev" else ""
    if not (tenant or usual) or not (user or usual):
        raise Refused("Say whose documents they are: --tenant NAME --user NAME.")
    return Owner(tenant or usual, user or usual)


async def _learn(
    settings: Settings, owner: Owner, paths: Sequence[Path], readers: Sequence[str], again: bool, **_: object
) -> Learned:
    if settings.retrieval == "off":
        raise Refused("Documents are switched off (HEADRACE_RETRIEVAL=off).")
    files = by_id(files_in(paths))
    if not files:
        raise Refused("There is no file of a kind that can be learned: PDF, DOCX, HTML, Markdown and text can.")
    began = time.monotonic()
    async with _opened(settings) as (topic, statuses):
        learning = Learning(settings, topic, statuses, owner, readers, again=again)
        with click.progressbar(length=len(files), label="Learning", file=sys.stderr, show_pos=True) as bar:
            await learning.run(files, bar)
    click.echo(learning.learned.summary(time.monotonic() - began))
    return learning.learned


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[DocumentLog, DocumentStatuses]]:
    spec = Topics.of(settings).documents
    await ensure_topics(settings.kafka_bootstrap_servers, [spec])
    async with (
        open_document_log(settings.kafka_bootstrap_servers, spec.name, spec.record_bytes) as topic,
        open_elastic(settings) as elastic,
        open_document_statuses(elastic, settings.index_prefix) as statuses,
    ):
        yield topic, statuses


class Learning:
    """One run. ``learned``: what it has come to so far."""

    def __init__(
        self,
        settings: Settings,
        topic: DocumentLog,
        statuses: DocumentStatuses,
        owner: Owner,
        readers: Sequence[str],
        *,
        again: bool,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._statuses = statuses
        self._owner = owner
        self._readers = readers
        self._again = again
        self._waiting: dict[str, int] = {}  # when what is not learned yet was sent, by id
        self.learned = Learned()

    async def run(self, files: dict[str, Path], bar: Any) -> None:
        """Send what is new, and wait until it is learned."""
        for ids in _shares(list(files), ASKED_AT_ONCE):
            known = await self._statuses.many([(self._owner.tenant, each) for each in ids])
            batch: list[Document] = []
            for document_id in ids:
                before = known.get((self._owner.tenant, document_id))
                if (document := await self._changed(document_id, files[document_id], before)) is None:
                    bar.update(1)
                    continue
                batch.append(document)
                if len(batch) == SENT_AT_ONCE or sum(len(each.file) + len(each.text) for each in batch) > SENT_BYTES:
                    await self._send(batch, known)
                    batch = []
            await self._send(batch, known)
            bar.update(await self._look())
        await self._wait(bar)

    async def _changed(self, document_id: str, path: Path, before: DocumentStatus | None) -> Document | None:
        """Return a file as a document, None if it is learned as it is or cannot be."""
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            self.learned.failed[document_id] = f"The file cannot be read: {error.strerror}."
            return None
        media_type = media_type_in(data, media_type_of(path.name) or "")
        if why := self._unfit(data, media_type):
            self.learned.failed[document_id] = why
            return None
        if not self._again and _is_learned(before, data, self._readers):
            self.learned.unchanged += 1
            return None
        return _document(document_id, path, data, self._owner, self._readers)

    def _unfit(self, data: bytes, media_type: str | None) -> str:
        if not data.strip():
            return "The file is empty."
        if len(data) > self._settings.document_bytes:
            return (
                f"The file is larger than {self._settings.document_bytes} bytes (HEADRACE_DOCUMENT_BYTES). Divide it."
            )
        if media_type is None:
            return "The file is not of the kind that its name says. Rename it, or save it anew."
        return ""

    async def _send(self, batch: Sequence[Document], known: dict[tuple[str, str], DocumentStatus]) -> None:
        """Give documents to Kafka, and have them listed as queued."""
        keys = [document_key(each.tenant, each.document_id) for each in batch]
        await self._topic.append(
            [
                Sent(partition_of(key, self._settings.partitions), key.encode(), encode(each), each.at)
                for key, each in zip(keys, batch, strict=True)
            ]
        )
        self._waiting |= {each.document_id: each.at for each in batch}
        queued = [status_of(each, each.at, known.get((each.tenant, each.document_id))) for each in batch]
        await self._statuses.write(*((each, each.updated_at, False) for each in queued), shown=False)

    async def _wait(self, bar: Any) -> None:
        """Return when all that was sent is learned or has failed."""
        heard, said = time.monotonic(), False
        while self._waiting:
            try:
                done = await self._look()
            except SinkUnavailable:
                done = 0  # the workers wait for it as well
            bar.update(done)
            heard = time.monotonic() if done else heard
            if not said and time.monotonic() - heard > SILENT_SECONDS:
                said = True
                click.echo(f"\nNothing was learned for {SILENT_SECONDS:.0f} s. Is a worker running?", err=True)
            if self._waiting:
                await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> int:
        """Return of how many documents it has turned out what becomes of them."""
        done = 0
        for ids in _shares(list(self._waiting), ASKED_AT_ONCE):
            known = await self._statuses.many([(self._owner.tenant, each) for each in ids])
            for (_, document_id), status in known.items():
                if status.status == "queued" or status.updated_at < self._waiting[document_id]:
                    continue
                del self._waiting[document_id]
                done += 1
                if status.status == "failed":
                    self.learned.failed[document_id] = status.error
                else:
                    self.learned.documents += 1
                    self.learned.passages += status.passages
        return done


# -- files


def files_in(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yield the files that can be learned, each with its id: its path from the folder that was given, with its name."""
    for given in paths:
        path = given.resolve()
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            is_hidden = any(part.startswith(".") for part in each.relative_to(path).parts)
            if not is_hidden and each.is_file() and media_type_of(each.name):
                yield document_id_of(each.relative_to(path.parent).as_posix()), each


def by_id(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Return files by their ids. Raises `Refused` where two would be one document."""
    found: dict[str, Path] = {}
    for document_id, path in files:
        if (other := found.setdefault(document_id, path)) != path:
            raise Refused(
                f"{other} and {path} would both be the document {document_id!r}. Give a folder above both instead."
            )
    return found


def document_id_of(name: str) -> str:
    """Return a path as an id."""
    plain = NO_ID.sub("_", name).lstrip("._:@<>/+ -")[:LONGEST_ID] or "file"
    # Two names that differ in what is no part of an id only have to stay two.
    return plain if plain == name else f"{plain}-{blake2b(name.encode(), digest_size=4).hexdigest()}"


def _document(document_id: str, path: Path, data: bytes, owner: tuple[str, str], readers: Sequence[str]) -> Document:
    """Return a file as a document: as text if it is some as it stands, else as the file that it is."""
    expected = media_type_of(path.name) or "text/plain"
    media_type = media_type_in(data, expected) or expected
    text, file = "", data
    if MEDIA_TYPES[media_type] in {"text", "markdown"}:
        with suppress(UnicodeDecodeError):
            text, file = data.decode("utf-8-sig"), b""
    tenant, user = owner
    return Document(
        document_id=document_id,
        tenant=tenant,
        user=user,
        text=text,
        file=file,
        name=path.name,
        media_type=media_type,
        readers=list(readers),
        metadata={DIGEST: _digest(data)},
        at=time.time_ns() // 1_000_000,
    )


def _is_learned(known: DocumentStatus | None, data: bytes, readers: Sequence[str]) -> bool:
    """Return whether a document is learned as it is now, for the same readers."""
    if known is None or known.status != "learned" or known.metadata.get(DIGEST) != _digest(data):
        return False
    return set(known.readers) == ({known.user, *readers} if readers else set())


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _shares(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _end(why: str, exit_code: int) -> NoReturn:
    click.echo(why, err=True)
    raise SystemExit(exit_code)
