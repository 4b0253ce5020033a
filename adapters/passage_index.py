"""The passages of all documents in Elasticsearch, with their vectors: written by `agents.learn`, searched by everyone.

The invariant: **no request finds a passage that its reader may not read**, because tenant and reader are filters inside
every query, also within the search for near vectors. An index belongs to one embedding model, which its mapping names.
What is searched is an alias, so that another model's index can be filled beside the one that serves (`State`).
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, Final, Literal, NamedTuple

import msgspec
import structlog
from elasticsearch import NotFoundError

from adapters.elastic import Elastic, create_index, reason_of
from domain.errors import Rejected, SinkUnavailable
from domain.knowledge import EVERYONE, Found, Passage, Reader
from domain.retrieval import Query, Ranking

log = structlog.get_logger(__name__)

State = Literal["serving", "filling", "retired"]

INDICES_SECONDS: Final = 2.0
"""How long what is known of the indices is believed: a switch of the alias is noticed within it."""

NEIGHBOURS: Final = 2
"""Vectors that each shard compares for each that is wanted: more finds a little more, and takes longer."""

BULK: Final = 16
"""Passages of a request: to encode and send as many with their vectors takes 2 to 3 ms, in which no token comes."""

PAGE: Final = 1000
"""Passages of which one request asks for the ids."""

TITLE_BOOST: Final = 0.25
_KEYWORD: Final = {"type": "keyword"}
_TEXT: Final = {"type": "text", "analyzer": "english"}
_UNSEARCHED: Final = {"type": "keyword", "index": False, "doc_values": False}
TEXTS: Final = 2000
TEXTS_SECONDS: Final = 600.0
"""How many passages are kept that were read, and for how long at most: the same are found again and again."""

DEFAULTS: Final = frozenset({"index", "similarity"})
_ONLY_STAMPS: Final = {"_source": False, "seq_no_primary_term": True}
_SETTINGS: Final = {"number_of_shards": 1, "auto_expand_replicas": "0-1", "refresh_interval": "1s"}


class Index(NamedTuple):
    """One index of passages. ``state``: ``serving`` is the one behind the alias.

    ``drift``: how its mapping differs from the one that it was made with, "" where it does not. Such an index can be
    searched by words at most.
    """

    name: str
    model: str
    dims: int
    state: State
    drift: str = ""


class Stamp(NamedTuple):
    """Which writing of which passage: what has the same stamp is the same in all its fields."""

    index_name: str
    key: str
    sequence: int
    term: int


class Hits(NamedTuple):
    """What a search found: scores by id, best first, and each passage's stamp, where Elasticsearch tells it."""

    words: Ranking
    near: Ranking
    stamps: Mapping[str, Stamp]


@dataclass(frozen=True, slots=True)
class Learned:
    """A passage as it is written. ``readers``: users of the tenant, none for all of them."""

    tenant: str
    passage: Passage
    readers: tuple[str, ...] = ()
    version: int = 0

    @property
    def spoken(self) -> str:
        """Return what its vector is of: the text, and what it stands under."""
        return "\n".join(filter(None, (self.passage.title, self.passage.path, self.passage.text)))

    def key(self, copy: int = 0) -> str:
        """Return the passage's id: the same text in the same place of a document has the same.

        ``copy`` counts passages of a document that are alike in all that.
        """
        passage = self.passage
        # As JSON, so that no choice of names makes two different lists the same bytes.
        parts = (self.tenant, passage.document_id, passage.title, passage.path, passage.text, copy)
        return blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()


class PassageIndex:
    """See the module. ``prefix`` begins the names of all indices. Methods raise `SinkUnavailable`."""

    def __init__(self, elastic: Elastic, prefix: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._elastic = elastic
        self._clock = clock
        self.alias = f"{prefix}passages"
        self._answers = f"{prefix}answers-*"  # what `adapters.answer_cache` keeps
        self._known: tuple[float, tuple[Index, ...]] = (float("-inf"), ())
        self._texts: OrderedDict[Stamp, tuple[float, Passage, bool]] = OrderedDict()  # oldest first

    # -- indices

    async def indices(self) -> tuple[Index, ...]:
        """Return all indices of passages, oldest first. What was known a moment ago is believed."""
        at, known = self._known
        if self._clock() - at < INDICES_SECONDS and known:
            return known
        async with self._elastic.client() as client:
            found = await client.options(ignore_status=404).indices.get(
                index=f"{self.alias}-*", filter_path=["*.mappings", "*.aliases"]
            )
        known = tuple(
            _index(name, about, self.alias)
            for name, about in sorted(found.body.items())
            if "mappings" in about and name.removeprefix(f"{self.alias}-").isdigit()
        )
        self._known = (self._clock(), known)
        return known

    async def serving(self) -> Index | None:
        """Return the index that is searched, None before the first document."""
        return next((each for each in await self.indices() if each.state == "serving"), None)

    async def prepare(self, model: str, dims: int) -> tuple[Index, ...]:
        """Return the indices to write to, which are all; makes one for this model where none is searched.

        One that is not searched is being filled, or is kept to go back to. Raises `SinkUnavailable` where the one that
        is searched cannot be written as it has to be: to learn waits until somebody has made it anew.
        """
        found = await self.indices()
        if not any(each.state == "serving" for each in found):
            number = max((int(each.name.rpartition("-")[2]) for each in found), default=0) + 1
            await self.create(number, model, dims, serves=True)
            found = await self.indices()
        if drifted := next((each for each in found if each.state == "serving" and each.drift), None):
            raise SinkUnavailable(remedy(drifted))
        return tuple(each for each in found if not each.drift)

    async def create(self, number: int, model: str, dims: int, *, serves: bool = False) -> str:
        """Make an index for a model, unless it is there; return its name."""
        name = f"{self.alias}-{number:06}"
        async with self._elastic.client() as client:
            await create_index(
                client,
                name,
                settings=_SETTINGS,
                mappings=_mappings(model, dims, "filling"),
                aliases={self.alias: {}} if serves else {},
            )
        self._known = (float("-inf"), ())
        return name

    async def switch(self, to: str, *, retire: str = "") -> None:
        """Have the alias lead to an index, at once and for everyone. The other stays, and is written to as before."""
        remove = [{"remove": {"index": retire, "alias": self.alias}}] if retire else []
        async with self._elastic.client() as client:
            await client.indices.update_aliases(actions=[*remove, {"add": {"index": to, "alias": self.alias}}])
        self._known = (float("-inf"), ())

    async def mark(self, index: Index, state: State) -> None:
        """Say in an index's mapping what it is for."""
        async with self._elastic.client() as client:
            meta = {"model": index.model, "dims": index.dims, "state": state}
            await client.indices.put_mapping(index=index.name, meta=meta)
        self._known = (float("-inf"), ())

    async def drop(self, name: str) -> None:
        """Delete an index, if it is there."""
        async with self._elastic.client() as client:
            await client.options(ignore_status=404).indices.delete(index=name)
        self._known = (float("-inf"), ())

    async def refresh(self) -> None:
        """Have everything that was written be found."""
        async with self._elastic.client() as client:
            await client.options(ignore_status=404).indices.refresh(index=f"{self.alias}-*")

    async def count(self, name: str) -> int:
        """Return how many passages an index has."""
        async with self._elastic.client() as client:
            return int((await client.count(index=name))["count"])

    # -- writing

    async def ids(self, index: str, documents: Iterable[tuple[str, str]]) -> dict[tuple[str, str], set[str]]:
        """Return the ids of the passages of documents, which are named by tenant and id; of some hundreds at most."""
        found: dict[tuple[str, str], set[str]] = {each: set() for each in documents}
        if not found:
            return found
        query = {"bool": {"should": [_of_document(*each) for each in found], "minimum_should_match": 1}}
        after: list[Any] | None = None
        async with self._elastic.client() as client:
            await client.indices.refresh(index=index)
        while True:
            async with self._elastic.client() as client:
                answer = await client.search(
                    index=index,
                    query=query,
                    size=PAGE,
                    sort=[{"tenant": "asc"}, {"document_id": "asc"}, {"key": "asc"}],
                    search_after=after,
                    source=False,
                    filter_path=["hits.hits.sort"],
                )
            places = [hit["sort"] for hit in answer.body.get("hits", {}).get("hits", [])]
            for tenant, document_id, key in places:
                found[tenant, document_id].add(key)
            if len(places) < PAGE:
                return found
            after = places[-1]

    async def write(
        self,
        index: str,
        new: Mapping[str, tuple[Learned, Sequence[float]]],
        kept: Mapping[str, Learned],
        gone: Iterable[str],
        *,
        seen: bool = True,
    ) -> None:
        """Write passages by id, with their vectors; renew what stands beside those that are ``kept``; delete others.

        Returns once a search finds all of it as it is now, unless it need not be ``seen``. Raises `SinkUnavailable`
        where some of it was not taken, and `Rejected` where it never will be; the same call again writes the rest.
        """
        # Readers first: whom a document was taken from must not find it for as long as the rest takes.
        lines = chain(
            (_update(key, _beside(each)) for key, each in kept.items()),
            (_index_line(key) + _encoded(key, *each) + b"\n" for key, each in new.items()),
            (b'{"delete":{"_id":"%b"}}\n' % key.encode() for key in gone),
        )
        waiting = list(islice(lines, BULK))
        while waiting:
            part = waiting
            await asyncio.sleep(0)  # the next are encoded after others had the loop
            waiting = list(islice(lines, BULK))
            # One shard: what is seen of the last part shows all of them.
            await self._bulk(index, part, seen=seen and not waiting)

    async def _bulk(self, index: str, lines: Sequence[bytes], *, seen: bool) -> None:
        """Write. Raises `SinkUnavailable`, and `Rejected` for what would be refused the next time, too."""
        async with self._elastic.client() as client:
            answer = await client.bulk(
                index=index,
                operations=b"".join(lines),  # type: ignore[arg-type]  # it also takes what is encoded already
                refresh="wait_for" if seen else False,
                filter_path=["items.*.status", "items.*.error"],
            )
        items = [item for each in answer.body.get("items", ()) for item in each.values()]
        failed = [item for item in items if "error" in item]
        if not failed:
            return
        never = [item for item in failed if item["status"] == 400]
        first = reason_of((never or failed)[0]["error"])
        if never and (drifted := await self._drifted(index)):
            raise SinkUnavailable(remedy(drifted))
        if never:
            raise Rejected(f"Elasticsearch refuses {len(never)} of {len(lines)} passages: {first}")
        raise SinkUnavailable(f"Elasticsearch does not take {len(failed)} of {len(lines)} passages now: {first}")

    async def _drifted(self, name: str) -> Index | None:
        self._known = (float("-inf"), ())
        return next((each for each in await self.indices() if each.name == name and each.drift), None)

    async def forget(self, tenant: str, document_id: str) -> None:
        """Delete all passages of a document, in every index, and the kept answers that were made from it.

        Then no search finds one.
        """
        indices = [f"{self.alias}-*", self._answers]
        async with self._elastic.client() as client:
            await client.options(ignore_status=404).indices.refresh(index=indices)
        from_it = {"bool": {"filter": [{"term": {"tenant": tenant}}, {"term": {"document_ids": document_id}}]}}
        query = {"bool": {"should": [_of_document(tenant, document_id), from_it]}}
        async with self._elastic.client() as client:
            await client.options(ignore_status=404).delete_by_query(index=indices, query=query, refresh=True)

    # -- reading

    async def search(
        self, reader: Reader, said: Sequence[Query], vector: Sequence[float] | None, depth: int, *, of: str = ""
    ) -> Hits:
        """Return the passages with the words of what is said, and those near to a vector if there is one.

        Both in one request. Near ones have their cosine. ``of``: the index whose model the vector is of. The alias may
        lead to another one by now, where it means nothing. Words alone tell where vectors cannot be searched.
        """
        searches: list[Mapping[str, Any]] = [{}, _words(reader, said, depth)]
        if vector is not None:
            searches += ({"index": of or self.alias, "ignore_unavailable": True}, _near(reader, vector, depth))
        # Encoded here, in a tenth of the time that the client takes for a vector.
        encoded = [msgspec.json.encode(each) for each in searches]
        async with self._elastic.client() as client:
            answer = await client.msearch(
                index=self.alias,
                searches=encoded,  # type: ignore[arg-type]  # as with bulk
                filter_path=["responses.status", "responses.error", "responses.hits.hits"],
            )
        words, *near = answer["responses"]
        if error := words.get("error"):
            if words.get("status") == 404:
                return Hits({}, {}, {})  # nobody has learned a document yet
            raise SinkUnavailable(f"Elasticsearch refuses a search: {reason_of(error)}")
        for each in near:
            if error := each.get("error"):
                log.error("vectors cannot be searched", index=of or self.alias, reason=reason_of(error))
                near = []
        stamps = {stamp.key: stamp for each in (words, *near) for hit in _hits(each) if (stamp := _stamp(hit))}
        return Hits(_ranking(words), _cosines(_ranking(near[0])) if near else {}, stamps)

    async def read(
        self, reader: Reader, ids: Sequence[str], stamps: Mapping[str, Stamp] | None = None
    ) -> dict[str, tuple[Passage, bool]]:
        """Return passages by id, each with whether everyone of the tenant may read it; only what the reader may.

        ``stamps``: of a search by the same reader, a moment ago. What was read with the same stamp is not read again.
        """
        found: dict[str, tuple[Passage, bool]] = {}
        self._drop_old()
        for key in ids:
            if stamps and (stamp := stamps.get(key)) and (kept := self._texts.get(stamp)):
                found[key] = kept[1:]
        missing = [key for key in ids if key not in found]
        if not missing:
            return found
        async with self._elastic.client() as client:
            answer = await client.search(
                index=self.alias,
                query={"bool": {"filter": [{"ids": {"values": missing}}, *_may_read(reader)]}},
                size=len(missing),
                source_excludes=["vector"],
                seq_no_primary_term=True,
                filter_path=["hits.hits"],
            )
        for hit in _hits(answer.body):
            found[hit["_id"]] = _passage(hit["_source"])
            if stamp := _stamp(hit):
                self._texts[stamp] = (self._clock(), *found[hit["_id"]])
        return found

    def _drop_old(self) -> None:
        since = self._clock() - TEXTS_SECONDS
        while self._texts and (len(self._texts) > TEXTS or next(iter(self._texts.values()))[0] < since):
            self._texts.popitem(last=False)

    async def has_any(self, reader: Reader) -> bool:
        """Return whether a reader may read any passage at all."""
        async with self._elastic.client() as client:
            try:
                found = await client.search(
                    index=self.alias,
                    query={"bool": {"filter": _may_read(reader)}},
                    size=0,
                    terminate_after=1,
                    track_total_hits=1,
                    filter_path=["hits.total"],
                )
            except NotFoundError:
                return False
        return bool(found["hits"]["total"]["value"])


def keyed(passages: Iterable[Learned]) -> dict[str, Learned]:
    """Return passages by id, each of several that are alike under one of its own."""
    found: dict[str, Learned] = {}
    for each in passages:
        copy = 0
        while (key := each.key(copy)) in found:
            copy += 1
        found[key] = each
    return found


def with_vectors(
    passages: Mapping[str, Learned], vectors: Iterable[Sequence[float]]
) -> dict[str, tuple[Learned, Sequence[float]]]:
    """Return passages by id, each with its vector, as they are written. ``vectors`` are in the passages' order."""
    return {key: (each, vector) for (key, each), vector in zip(passages.items(), vectors, strict=True)}


def found_in(passages: Mapping[str, tuple[Passage, bool]], ranked: Iterable[tuple[str, float]]) -> list[Found]:
    """Return ranked ids as what was found, without those that are gone meanwhile."""
    return [Found(key, passages[key][0], score, passages[key][1]) for key, score in ranked if key in passages]


def _mappings(model: str, dims: int, state: State) -> dict[str, Any]:
    return {
        "dynamic": "strict",
        "_meta": {"model": model, "dims": dims, "state": state},
        "properties": {
            "key": _KEYWORD,
            "tenant": _KEYWORD,
            "document_id": _KEYWORD,
            "readers": _KEYWORD,
            "title": _TEXT,
            "path": _TEXT,
            "text": _TEXT,
            "url": _UNSEARCHED,
            "position": {"type": "integer"},
            "version": {"type": "long"},
            "vector": {"type": "dense_vector", "dims": dims, "index": True, "similarity": "cosine"},
        },
    }


def _index(name: str, about: Mapping[str, Any], alias: str) -> Index:
    meta = about["mappings"].get("_meta", {})
    model, dims = str(meta.get("model", "")), meta.get("dims")
    dims = dims if isinstance(dims, int) else 0
    state: State = "serving" if alias in about.get("aliases", {}) else meta.get("state", "retired")
    return Index(name, model, dims, state, _drift(about["mappings"], _mappings(model, dims, state)))


def _drift(found: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """Return how a mapping differs from the one that was made; what Elasticsearch adds does not count."""
    if not made["_meta"]["model"]:
        return "it does not name its embedding model"
    if str(found.get("dynamic")) != made["dynamic"]:
        return f"dynamic is {found.get('dynamic', 'true')} and not {made['dynamic']}"
    for name, wanted in made["properties"].items():
        there = found.get("properties", {}).get(name)
        if there is None:
            return f"the field {name} is missing"
        for key, value in wanted.items():
            # Elasticsearch leaves out what is its default.
            if there.get(key, value if key in DEFAULTS else None) != value:
                return f"{key} of the field {name} is {there.get(key)!r} and not {value!r}"
    return ""


def remedy(drifted: Index, why: str = "") -> str:
    """Return what is wrong with an index, and what to do about it."""
    model = drifted.model or "NAME"
    return (
        f"The index {drifted.name} is not as it has to be: {why or drifted.drift}."
        f" Make it anew: faust -A streams.app reindex --model {model}"
    )


def _index_line(key: str) -> bytes:
    return b'{"index":{"_id":"%b"}}\n' % key.encode()


def _update(key: str, fields: Mapping[str, Any]) -> bytes:
    return b'{"update":{"_id":"%b"}}\n%b\n' % (key.encode(), msgspec.json.encode({"doc": fields}))


def _encoded(key: str, learned: Learned, vector: Sequence[float]) -> bytes:
    passage = learned.passage
    document = {
        "key": key,
        "document_id": passage.document_id,
        "title": passage.title,
        "path": passage.path,
        "text": passage.text,
        "vector": vector,
        **_beside(learned),
    }
    return msgspec.json.encode(document)


def _beside(learned: Learned) -> dict[str, Any]:
    """Return what of a passage may change while its text stays."""
    return {
        "tenant": learned.tenant,
        "readers": [_user(user) for user in learned.readers] or [EVERYONE],
        "url": learned.passage.url,
        "position": learned.passage.position,
        "version": learned.version,
    }


def _user(user: str) -> str:
    """Return a user as a reader. Who is called * is not everyone."""
    return f"u:{user}"


def _may_read(reader: Reader) -> list[dict[str, Any]]:
    return [{"term": {"tenant": reader.tenant}}, {"terms": {"readers": [EVERYONE, _user(reader.user)]}}]


def _of_document(tenant: str, document_id: str) -> dict[str, Any]:
    return {"bool": {"filter": [{"term": {"tenant": tenant}}, {"term": {"document_id": document_id}}]}}


def _words(reader: Reader, said: Sequence[Query], depth: int) -> dict[str, Any]:
    boosts = {"text": 1.0, "title": TITLE_BOOST, "path": TITLE_BOOST}
    should = [
        {"match": {field: {"query": each.text, "boost": each.weight * boost}}}
        for each in said
        for field, boost in boosts.items()
    ]
    query = {"bool": {"should": should, "minimum_should_match": 1, "filter": _may_read(reader)}}
    return {"query": query, "size": depth, **_ONLY_STAMPS, "track_total_hits": False}


def _near(reader: Reader, vector: Sequence[float], depth: int) -> dict[str, Any]:
    knn = {
        "field": "vector",
        "query_vector": vector,
        "k": depth,
        "num_candidates": depth * NEIGHBOURS,
        "filter": _may_read(reader),
    }
    return {"knn": knn, "size": depth, **_ONLY_STAMPS}


def _ranking(response: Mapping[str, Any]) -> Ranking:
    return {hit["_id"]: float(hit["_score"]) for hit in _hits(response)}


def _hits(response: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = response.get("hits", {}).get("hits", ())
    return found


def _stamp(hit: Mapping[str, Any]) -> Stamp | None:
    if "_seq_no" not in hit:
        return None  # another server than Elasticsearch may not tell
    return Stamp(hit["_index"], hit["_id"], hit["_seq_no"], hit["_primary_term"])


def _cosines(ranking: Ranking) -> Ranking:
    """Return the cosines that Elasticsearch's scores stand for: (1 + cosine) / 2."""
    return {key: 2 * score - 1 for key, score in ranking.items()}


def _passage(source: Mapping[str, Any]) -> tuple[Passage, bool]:
    fields = ("document_id", "title", "path", "text", "url", "position", "version")
    passage = Passage(*(source[name] for name in fields))
    return passage, EVERYONE in source["readers"]
