"""Search: the passages that an answer to a question would be given, for whoever wants to see them, and vectors."""

import asyncio
import sys
from array import array
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from domain.errors import SinkUnavailable
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
    if site.chat.settings.retrieval == "off":
        raise ApiError(409, "retrieval_off", "Documents are switched off here (HEADRACE_RETRIEVAL=off).")
    if not wanted.query.strip():
        raise bad_input("query", "query is empty.")
    if len(wanted.query) > site.chat.settings.max_input_chars:
        message = f"query may have at most {site.chat.settings.max_input_chars} characters (HEADRACE_MAX_INPUT_CHARS)."
        raise bad_input("query", message)
    identity = who(request)
    question = {"role": "user", "content": wanted.query}
    said = [_plain(message) for message in wanted.messages if message.get("role") in ("user", "assistant")]
    if said and said[-1] == question:
        said.pop()
    reader = Reader(identity.tenant, identity.user)
    seconds = site.chat.settings.retrieval_seconds
    try:
        async with asyncio.timeout(seconds):
            found = await site.chat.services.retriever.search(reader, [*said, question], k=wanted.k)
    except TimeoutError as error:
        raise SinkUnavailable(f"Elasticsearch did not answer within {seconds:g} s.") from error
    return give(SearchResults(data=[_hit(each) for each in found]))


def _plain(message: Mapping[str, Any]) -> dict[str, str]:
    """Return a message whose content is a text, also where OpenAI's form has it in parts."""
    content = message.get("content")
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        content = " ".join(text for text in texts if isinstance(text, str))
    return {"role": message["role"], "content": content if isinstance(content, str) else ""}


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
    if wanted.dimensions is not None:
        message = "dimensions cannot be chosen: a vector has as many numbers as the model gives."
        raise bad_input("dimensions", message, "unsupported_parameter")
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
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return b64encode(numbers).decode()
