"""Some requests are for the worker that owns the conversation's partition: they are carried out here, or sent on to it.

A worker that is asked by another one says so with a header, and is never asked to send the request on again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import msgspec
from aiohttp import ClientConnectorError, ClientError, ClientTimeout, web
from yarl import URL

from domain.errors import NotOwner, Retriable
from streams.topics import partition_of
from web.bodies import raw
from web.errors import ApiError, ErrorObject
from web.site import SITE
from web.tracing import request_id_of

T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)

FORWARDED: Final = "X-Headrace-Forwarded"
PATIENCE_SECONDS: Final = 5.0  # a rebalance without a dead worker takes about one second
POLL_SECONDS: Final = 0.1
FORWARD_SECONDS: Final = 5.0
ON_THE_WAY_THERE: Final = ("Authorization", "Accept", "Content-Type", "Idempotency-Key")
ON_THE_WAY_BACK: Final = ("Content-Type", "Retry-After", "WWW-Authenticate", "Content-Location")
SAFE: Final = frozenset({"GET", "HEAD"})

Local = Callable[[], Awaitable[web.StreamResponse]]


def is_forwarded(request: web.Request) -> bool:
    """Return whether another worker sent this request."""
    return FORWARDED in request.headers


async def at_owner(request: web.Request, conversation_id: str, local: Local) -> web.StreamResponse:
    """Answer by ``local()`` if this worker owns the conversation, else by its owner.

    While partitions move it waits a little. Raises `NotOwner` after that, `Retriable` if the owner does not answer.
    ``local`` raises `NotOwner` only while it has not done anything yet.
    """
    chat = request.app[SITE].chat
    partition = partition_of(conversation_id, chat.settings.partitions)

    async def once() -> web.StreamResponse:
        url = chat.owner_url(partition)
        if url is None:
            return await local()
        if is_forwarded(request):
            raise NotOwner("the conversation is with another worker", retry_after=1)
        return await forward(request, url)

    return await patiently(once)


def elsewhere(request: web.Request, partition: int) -> URL | None:
    """Return where the owner of a partition answers this request; None if that is this worker, or not known now."""
    try:
        worker = request.app[SITE].chat.owner_url(partition)
    except NotOwner:
        return None
    return None if worker is None else worker.join(request.rel_url)


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat an attempt while nobody owns what it needs; after some seconds, raise `NotOwner`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_SECONDS
    while True:
        try:
            return await attempt()
        except NotOwner:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(POLL_SECONDS)


async def forward(request: web.Request, worker: URL) -> web.Response:
    """Have another worker answer this request."""
    status, headers, body = await call(request, worker, request.method, request.path_qs, await raw(request))
    kept = {name: headers[name] for name in ON_THE_WAY_BACK if name in headers}
    return web.Response(status=status, body=body, headers=kept)


async def call(
    request: web.Request, worker: URL, method: str, path_qs: str, body: bytes = b""
) -> tuple[int, Mapping[str, str], bytes]:
    """Ask another worker something in the name of this request's client; return status, headers and body.

    Raises `NotOwner` if nothing was done over there, or doing it again is harmless, and `Retriable` else.
    """
    headers = {name: request.headers[name] for name in ON_THE_WAY_THERE if name in request.headers}
    headers |= {FORWARDED: "1", "X-Request-Id": request_id_of(request)}
    try:
        async with request.app[SITE].http.request(
            method,
            worker.join(URL(path_qs, encoded=True)),
            headers=headers,
            data=body or None,
            timeout=ClientTimeout(total=FORWARD_SECONDS),
            allow_redirects=False,
        ) as answer:
            content = await answer.read()
    except ClientConnectorError as error:
        raise NotOwner(f"the worker at {worker} cannot be reached", retry_after=1) from error
    except (ClientError, TimeoutError) as error:
        if method in SAFE or (method == "POST" and "Idempotency-Key" in request.headers):
            raise NotOwner(f"the worker at {worker} did not answer", retry_after=1) from error
        raise Retriable(f"the worker at {worker} did not answer; whether it did what was asked is unknown") from error
    if answer.status == 503 and _code(content) == NotOwner.code:
        raise NotOwner(f"the worker at {worker} does not own the conversation", retry_after=1)
    return answer.status, answer.headers, content


def told_by_owner(answer: web.StreamResponse, kind: type[B]) -> B:
    """Return what the owner answered, which `forward` has only carried here; raises `ApiError` for what it refused."""
    if not isinstance(answer, web.Response) or not isinstance(answer.body, bytes):
        raise TypeError("an owner answers in one piece")
    if answer.status < 400:
        return msgspec.json.decode(answer.body, type=kind)
    try:
        error = msgspec.json.decode(answer.body, type=ErrorObject).error
    except msgspec.DecodeError as broken:
        raise Retriable(f"the owner of the conversation answered {answer.status}") from broken
    kept = {name: answer.headers[name] for name in ("Retry-After", "WWW-Authenticate") if name in answer.headers}
    raise ApiError(answer.status, error.code or "", error.message, param=error.param, headers=kept)


def _code(content: bytes) -> str | None:
    try:
        return msgspec.json.decode(content, type=ErrorObject).error.code
    except msgspec.DecodeError:
        return None
