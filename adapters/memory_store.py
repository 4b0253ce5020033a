"""What is known of users, in Elasticsearch: a document a user, which every worker can read.

The truth is the table of the worker that owns the user's partition; this is its mirror, written by that worker alone.
Each write names the revision that it shows, so that one that comes late, from a worker that was replaced, is refused.
Documents are read by id, which sees every write at once, and never searched: nobody's question can reach what another
user told.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Final

import msgspec
from elasticsearch import ConflictError

from adapters.elastic import Elastic, create_index
from domain.errors import SinkUnavailable
from domain.memory import Memories

READ_SECONDS: Final = 2.0

_KEPT: Final = {"type": "keyword", "index": False, "doc_values": False}
_MAPPING: Final = {
    "dynamic": "strict",
    "properties": {
        "tenant": {"type": "keyword"},
        "user": {"type": "keyword"},
        "enabled": {"type": "boolean"},
        "revision": {"type": "long"},
        "since": {"type": "long"},
        "handled": _KEPT,
        # Kept and not indexed: no search finds what a user told.
        "facts": {"type": "object", "enabled": False},
    },
}
_SETTINGS: Final = {"number_of_shards": 1, "auto_expand_replicas": "0-1"}


class MemoryStore:
    """See the module. Methods raise `SinkUnavailable`."""

    def __init__(self, elastic: Elastic, prefix: str) -> None:
        self._elastic = elastic
        self.index = f"{prefix}memories-v1"

    async def of(self, tenant: str, user: str, *, within: float = READ_SECONDS) -> Memories:
        """Return what is known of a user: nothing, of one who has told nothing."""
        try:
            # Not as a time-out of the client's, which would be held against Elasticsearch: this one is impatience.
            async with asyncio.timeout(within), self._elastic.client() as client:
                found = await client.options(ignore_status=404).get(index=self.index, id=document_id(tenant, user))
        except TimeoutError as error:
            raise SinkUnavailable(f"Elasticsearch did not say within {within:g} s what is known of a user") from error
        if not found.body.get("found"):
            return Memories(tenant, user)
        try:
            kept = msgspec.convert(found["_source"], Memories)
        except msgspec.ValidationError as error:
            raise SinkUnavailable(f"a document of {self.index} cannot be read: {error}") from error
        if (kept.tenant, kept.user) != (tenant, user):
            raise SinkUnavailable(f"{self.index} has somebody else's document where this user's should be")
        return kept

    async def keep(self, known: Memories) -> None:
        """Write what is known of a user, unless a later revision is there."""
        await self._prepare()
        # A conflict: whoever owns the user's partition now has written more than we know.
        async with self._elastic.client() as client:
            with suppress(ConflictError):
                await client.index(
                    index=self.index,
                    id=document_id(known.tenant, known.user),
                    document=msgspec.to_builtins(known),
                    version=known.revision,
                    version_type="external_gte",
                )

    async def without(self, known: Sequence[Memories]) -> list[Memories]:
        """Return those of these that the mirror does not have, or has an older revision of."""
        await self._prepare()
        ids = [document_id(each.tenant, each.user) for each in known]
        async with self._elastic.client() as client:
            found = await client.mget(index=self.index, ids=ids, source_includes=["revision"])
        there = {each["_id"]: each["_source"]["revision"] for each in found["docs"] if each.get("found")}
        return [each for each, its_id in zip(known, ids, strict=True) if there.get(its_id, -1) < each.revision]

    async def _prepare(self) -> None:
        """Make the index if it is missing; of several workers that do, one is first.

        Asked before each write, which are few: Elasticsearch would make one of its own kind, that can be searched.
        """
        async with self._elastic.client() as client:
            if not await client.indices.exists(index=self.index):
                await create_index(client, self.index, settings=_SETTINGS, mappings=_MAPPING)


def document_id(tenant: str, user: str) -> str:
    """Return the id of a user's document, which another pair of names does not have."""
    return blake2b(msgspec.json.encode((tenant, user)), digest_size=16).hexdigest()
