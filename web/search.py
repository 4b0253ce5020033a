"""Search: the passages that an answer to a question would be given, for whoever wants to see them, and vectors."""

from base64 import b64encode
from struct import pack
from typing import Final

from aiohttp import web

from domain.knowledge import Found, Reader
from web.auth import who
from web.bodies import give, take
from web.errors import ApiError, bad_input
from web.shapes import (
    Embedding,
    EmbeddingList,
    EmbeddingUsage,
    SearchHit,
    SearchResults,
    WantedEmbeddings,
    WantedSearch,
)
from web.site import SITE

MAX_INPUTS: Final = 256


async def search(request: web.Request) -> web.StreamResponse:
    """Return the best passages for a query, of each document one first."""
    site, wanted = request.app[SITE], await take(request, WantedSearch)
    if not wanted.query.strip():
        raise bad_input("query", "query is empty.")
    if len(wanted.query) > site.chat.settings.max_input_chars:
        message = f"query may have at most {site.chat.settings.max_input_chars} characters (HEADRACE_MAX_INPUT_CHARS)."
        raise bad_input("query", message)
    identity = who(request)
    said = [message for message in wanted.messages if message.get("role") in {"user", "assistant"}]
    if said and said[-1].get("role") == "user" and said[-1].get("content") == wanted.query:
        said.pop()
    found = await site.chat.services.retriever.search(
        Reader(identity.tenant, identity.user), [*said, {"role": "user", "content": wanted.query}], k=wanted.k
    )
    return give(SearchResults(data=[_hit(each) for each in found]))


def _hit(found: Found) -> SearchHit:
    passage = found.passage
    return SearchHit(
        document_id=passage.document_id,
        title=passage.title,
        path=passage.path,
        text=passage.text,
        score=round(found.score, 6),
        url=passage.url or None,
    )


async def embed(request: web.Request) -> web.StreamResponse:
    """Return the vectors of texts, in OpenAI's form."""
    site, wanted = request.app[SITE], await take(request, WantedEmbeddings)
    settings = site.chat.settings
    if settings.retrieval == "off":
        raise ApiError(409, "retrieval_off", "No embedding model is loaded here (HEADRACE_RETRIEVAL=off).")
    if wanted.model not in {"", settings.embedding_model}:
        message = f"There is no embedding model {wanted.model[:200]!r} here, but {settings.embedding_model!r}."
        raise ApiError(404, "model_not_found", message, param="model")
    texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    if not 0 < len(texts) <= MAX_INPUTS or not all(text.strip() for text in texts):
        raise bad_input("input", f"input must be a text, or 1 to {MAX_INPUTS} texts, none of them empty.")
    vectors = await site.chat.services.embedders.of(settings.embedding_model).documents(texts)
    tokens = sum(len(text) // 4 + 1 for text in texts)
    return give(
        EmbeddingList(
            data=[
                Embedding(index=index, embedding=_encoded(vector) if wanted.encoding_format == "base64" else vector)
                for index, vector in enumerate(vectors)
            ],
            model=settings.embedding_model,
            usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
        )
    )


def _encoded(vector: list[float]) -> str:
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode()
