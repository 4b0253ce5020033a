"""What has become of each document: a small one in Elasticsearch, by the view that takes it and by who learns it.

It is a version of the record in Kafka that it tells of: twice the record's time, and one more once it is learned or has
failed. Elasticsearch keeps the higher version, so a view that is late to say "queued" says it to nobody.

To make the first index takes a busy Elasticsearch seconds, for which nobody waits who has just given a document. So a
write goes on when its caller leaves, and until it is over `read` knows of it here.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from hashlib import blake2b
from typing import Any, Final

import msgspec
from elasticsearch import ConflictError, NotFoundError

from adapters.elastic import Elastic, create_index, reason_of
from domain.errors import Overtaken, SinkUnavailable
from domain.knowledge import EVERYONE, DocumentStatus, Reader

_KEYWORD: Final = {"type": "keyword"}
_UNSEARCHED: Final = {"type": "keyword", "index": False, "doc_values": False}
_MAPPINGS: Final = {
    "dynamic": "strict",
    "properties": {
        "tenant": _KEYWORD,
        "user": _KEYWORD,
        "readers": _KEYWORD,
        "document_id": _KEYWORD,
        "title": {"type": "text", "analyzer": "english"},
        "url": _UNSEARCHED,
        "media_type": _KEYWORD,
        "metadata": {"type": "object", "enabled": False},
        "status": _KEYWORD,
        "error": _UNSEARCHED,
        "passages": {"type": "integer"},
        "created_at": {"type": "long"},
        "updated_at": {"type": "long"},
    },
}
_PROGRESS: Final = {"dynamic": "strict", "properties": {"next": {"type": "long"}}}


class DocumentStatuses:
    """See the module. Methods raise `SinkUnavailable`."""

    def __init__(self, elastic: Elastic, prefix: str) -> None:
        self._elastic = elastic
        self._index = f"{prefix}documents-v1"
        self._progress = f"{self._index}-progress"
        self._writing: dict[asyncio.Task[None], dict[tuple[str, str], DocumentStatus]] = {}

    async def write(self, *each: tuple[DocumentStatus, int, bool], shown: bool = True) -> None:
        """Write statuses, each with the time of its record in Unix ms and whether that is done with.

        What is newer stays. Returns once the list has them, unless they need not be ``shown`` there yet.
        """
        if not each:
            return
        task = asyncio.create_task(self._write(each, shown=shown))
        self._writing[task] = {(status.tenant, status.document_id): status for status, _, _ in each}
        task.add_done_callback(self._written)
        await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is still being written: the client that it is written with is about to be closed."""
        for task in (tasks := list(self._writing)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _written(self, task: asyncio.Task[None]) -> None:
        del self._writing[task]
        if not task.cancelled():
            task.exception()  # whoever still waits is told; for whoever left it is as if Elasticsearch was away

    async def _write(self, each: Sequence[tuple[DocumentStatus, int, bool]], *, shown: bool) -> None:
        await self._make()
        lines = []
        for status, at_ms, is_done in each:
            where = {
                "_id": _key(status.tenant, status.document_id),
                "version": 2 * at_ms + is_done,
                "version_type": "external_gte",
            }
            readers = [f"u:{user}" for user in dict.fromkeys([status.user, *status.readers])]
            document = asdict(status) | {"readers": readers if status.readers else [EVERYONE]}
            lines += [msgspec.json.encode({"index": where}), msgspec.json.encode(document)]
        async with self._elastic.client() as client:
            answer = await client.bulk(
                index=self._index,
                operations=b"\n".join([*lines, b""]),  # type: ignore[arg-type]  # it also takes what is encoded
                refresh="wait_for" if shown else False,
                filter_path=["items.*.status", "items.*.error"],
            )
        items = [item for found in answer.body.get("items", ()) for item in found.values()]
        failed = [item for item in items if "error" in item and item["status"] != 409]
        if failed:
            first = reason_of(failed[0]["error"])
            raise SinkUnavailable(f"Elasticsearch does not take the status of a document: {first}")

    async def remove(self, tenant: str, document_id: str, at_ms: int) -> None:
        """Forget a document, if nothing newer is known of it."""
        await self._make()
        async with self._elastic.client() as client:
            with suppress(NotFoundError, ConflictError):
                await client.delete(
                    index=self._index,
                    id=_key(tenant, document_id),
                    version=2 * at_ms + 1,
                    version_type="external_gte",
                    refresh="wait_for",
                )

    async def read(self, tenant: str, document_id: str) -> DocumentStatus | None:
        """Return what is known of a document."""
        async with self._elastic.client() as client:
            try:
                found = await client.get(index=self._index, id=_key(tenant, document_id))
            except NotFoundError:
                return self._being_written(tenant, document_id)
        status, newer = _status(found["_source"]), self._being_written(tenant, document_id)
        return newer if newer and newer.updated_at > status.updated_at else status

    def _being_written(self, tenant: str, document_id: str) -> DocumentStatus | None:
        known = (written.get((tenant, document_id)) for written in reversed(self._writing.values()))
        return next((status for status in known if status is not None), None)

    async def many(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], DocumentStatus]:
        """Return what is known of documents, by tenant and id."""
        if not keys:
            return {}
        await self._make()
        async with self._elastic.client() as client:
            found = await client.mget(index=self._index, ids=[_key(*key) for key in keys])
        return {
            key: _status(each["_source"]) for key, each in zip(keys, found["docs"], strict=True) if each.get("found")
        }

    async def of(self, reader: Reader, *, limit: int, after: str = "") -> list[DocumentStatus]:
        """Return what a reader may know of, the newest first; those that follow the document ``after``."""
        may_read = {"terms": {"readers": [EVERYONE, f"u:{reader.user}"]}}
        place: list[Any] | None = None
        if after:
            known = await self.read(reader.tenant, after)
            if known is None or not known.may_be_read_by(reader):
                return []
            place = [known.created_at, known.document_id]
        async with self._elastic.client() as client:
            try:
                found = await client.search(
                    index=self._index,
                    query={"bool": {"filter": [{"term": {"tenant": reader.tenant}}, may_read]}},
                    sort=[{"created_at": "desc"}, {"document_id": "asc"}],
                    search_after=place,
                    size=limit,
                    filter_path=["hits.hits._source"],
                )
            except NotFoundError:
                return []
        return [_status(hit["_source"]) for hit in found.body.get("hits", {}).get("hits", ())]

    # -- how far learning has got

    async def progress(self, log: str, partition: int) -> int:
        """Return the next offset of a partition of the documents' topic."""
        async with self._elastic.client() as client:
            asking = client.options(ignore_status=404)
            found = await asking.get(index=self._progress, id=f"{log}/{partition}")
        return int(found.body["_source"]["next"]) if found.body.get("found") else 0

    async def advance(self, log: str, partition: int, before: int, offset: int) -> None:
        """Note the next offset of a partition. Raises `Overtaken` where it is not the one ``before`` any more."""
        where: dict[str, Any] = {"index": self._progress, "id": f"{log}/{partition}"}
        async with self._elastic.client() as client:
            found = (await client.options(ignore_status=404).get(**where)).body
        condition: dict[str, Any] = {"op_type": "create"}
        if found.get("found"):
            condition = {"if_seq_no": found["_seq_no"], "if_primary_term": found["_primary_term"]}
        there = int(found["_source"]["next"]) if found.get("found") else 0
        async with self._elastic.client() as client:
            try:
                if there == before:
                    await client.index(**where, document={"next": offset}, **condition)
                    return
            except ConflictError:
                there = await self.progress(log, partition)
        raise Overtaken(f"the progress of partition {partition} is {there} and not {before}")

    async def _make(self) -> None:
        """Make the indices if they are missing; of several workers that do, one is first.

        Asked before each write, also of what is to be deleted: Elasticsearch would make one of its own kind, in which
        a reader's name is words.
        """
        async with self._elastic.client() as client:
            if not await client.indices.exists(index=self._index):
                await create_index(client, self._progress, mappings=_PROGRESS)
                await create_index(client, self._index, mappings=_MAPPINGS)


@asynccontextmanager
async def open_document_statuses(elastic: Elastic, prefix: str) -> AsyncIterator[DocumentStatuses]:
    """Yield the statuses. Close these before Elasticsearch."""
    statuses = DocumentStatuses(elastic, prefix)
    try:
        yield statuses
    finally:
        await statuses.close()


def _key(tenant: str, document_id: str) -> str:
    return blake2b(f"{tenant}\0{document_id}".encode(), digest_size=16).hexdigest()


def _status(source: dict[str, Any]) -> DocumentStatus:
    readers = [reader.removeprefix("u:") for reader in source["readers"] if reader != EVERYONE]
    return msgspec.convert(source | {"readers": readers}, DocumentStatus)
