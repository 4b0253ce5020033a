"""The language model: any server that speaks OpenAI's chat completions.

The openai SDK does what it does well: keys, retries, redirects, base URLs, errors. The bytes of the answer are
ours: `adapters.model_transport` reads them where they arrive, and `adapters.completion_stream` decodes them.
`bench/model_decode.py` prints what that brings.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Self

import aiohttp
import httpx2
import msgspec
from openai import APIError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

from adapters.completion_stream import CompletionStream, is_refusal
from adapters.model_transport import AiohttpTransport, Listening, listening
from config import metrics
from config.settings import Settings
from domain.errors import BadRequest, ChatError, KeyRefused, ModelBusy
from domain.generation import Delta, Generation
from domain.hearing import Hear

SDK_RETRIES: Final = 1
"""Covers a kept connection that the server closed meanwhile. What lasts longer is waited for by whoever runs
the turn, who knows its limits and can be stopped."""

LIST_SECONDS: Final = 60.0
LIST_PAUSE: Final = 2.0
"""How long the list of models holds, and how long everyone makes do without after a failed look at it."""

LIST_TIMEOUT: Final = 5.0

DRAIN_SECONDS: Final = 0.1
"""After the end mark only the end of the HTTP body is missing. Read, the connection serves the next answer; a
server that does not send it costs this much time and a connection."""

BROKEN: Final = (httpx2.RequestError, aiohttp.ClientError, OSError)
"""What a read raises: what the transport maps, what it does not, and what comes from the socket itself."""


class _Listed(msgspec.Struct):
    id: str


class _Tokens(msgspec.Struct):
    tokens: list[Any] = []
    count: int = 0


class _List(msgspec.Struct):
    data: list[_Listed] = []


class Model:
    """A model server, for any number of answers at once. `open_model` makes it."""

    def __init__(
        self, client: AsyncOpenAI, *, stall_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._listing = asyncio.Lock()
        self._listed: list[str] | None = None
        self._look_at = clock()
        self._why_unlisted: ChatError = ModelBusy("the model server was not asked yet")

    async def stream(self, generation: Generation, hear: Hear[Delta]) -> None:
        """Have ``hear`` take the answer as it comes, at once for each read from the network; return at its end.

        Raises `ModelBusy` where the same generation may work soon, also after some deltas, and `BadRequest`
        where it never will; and what ``hear`` raises. That, or its task's cancellation, ends the generation: the
        connection is dropped at once, so that the server stops writing what nobody will read.
        """
        answer, now = CompletionStream(), asyncio.get_running_loop().time

        def take(piece: bytes) -> Awaitable[object] | None:
            deltas = answer.feed(piece)
            # Comments keep a connection alive, but a server that sends nothing else has stalled.
            if answer.heard:
                listener.since = now()
            if answer.done or answer.failure:
                listener.stop()
            return hear(deltas) if deltas else None

        with Counted() as counted, failures_translated():
            async with (
                asyncio.timeout(self._stall_seconds) as beginning,  # over the SDK's second try too
                self._client.chat.completions.with_streaming_response.create(
                    model=generation.model,
                    messages=(),  # they are in extra_body, past the SDK's rewriting of every part of each
                    stream=True,
                    extra_body=body_of(generation),
                ) as response,
            ):
                beginning.reschedule(None)
                counted.answered = True
                with listening(response.http_response, take, self._stall_seconds) as listener:
                    try:
                        await listener.until_end()
                    except BROKEN as error:
                        answer.close(self._why_broken(listener, error))
                        return
                    if answer.failure:
                        raise answer.failure
                    if answer.done:
                        await drain(listener)
                    else:
                        answer.close("the model server's stream ended in the middle of the answer")

    def _why_broken(self, listener: Listening, error: BaseException) -> str:
        if listener.silent:
            return f"the model server said nothing for {self._stall_seconds:g} s"
        return f"the model server's stream broke: {reason(error)}"

    async def models(self) -> list[str]:
        """Return the ids of the models that the server lists, [] if it has no list; at most a minute old.

        While the server cannot be reached the last list holds; raises `ModelBusy` if there is none, and `KeyRefused`
        where asking again is no use.
        """
        async with self._listing:
            if self._clock() >= self._look_at:
                await self._look()
        if self._listed is None:
            raise self._why_unlisted.with_traceback(None)
        return list(self._listed)

    async def _look(self) -> None:
        try:
            with failures_translated():
                self._listed = await self._list()
            self._look_at = self._clock() + LIST_SECONDS
        except ChatError as error:
            self._why_unlisted = error
            self._look_at = self._clock() + LIST_PAUSE

    async def _list(self) -> list[str]:
        try:
            response = await self._client.get(
                "/models", cast_to=httpx2.Response, options={"timeout": LIST_TIMEOUT, "max_retries": 0}
            )
            return [model.id for model in msgspec.json.decode(response.content, type=_List).data]
        except APIStatusError as error:
            if error.status_code in {404, 405, 501}:
                return []
            raise
        except msgspec.DecodeError as error:
            raise ModelBusy(f"the model server's list of models cannot be read: {error}") from error

    async def tokenize(self, model: str, text: str) -> int | None:
        """Return how many tokens a model makes of a text, None if the server does not count. Raises `ChatError`."""
        root = str(self._client.base_url).rstrip("/").removesuffix("/v1")
        # llama.cpp calls it content, vLLM prompt; neither minds the other.
        body = {"model": model, "content": text, "prompt": text, "add_special_tokens": False}
        with failures_translated():
            try:
                response = await self._client.post(
                    f"{root}/tokenize", cast_to=httpx2.Response, body=body, options={"max_retries": 0}
                )
                counted = msgspec.json.decode(response.content, type=_Tokens)
            except APIStatusError as error:
                if error.status_code < 500 and error.status_code != 429:
                    return None
                raise
            except msgspec.DecodeError:
                return None
        return counted.count or len(counted.tokens) or None


class Counted:
    """Counts one request to the model server, by what becomes of it."""

    def __init__(self) -> None:
        self.answered = False

    def __enter__(self) -> Self:
        metrics.model_requests_open.inc()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        metrics.model_requests_open.dec()
        metrics.model_requests.labels(self._result(error)).inc()

    def _result(self, error: BaseException | None) -> str:
        match error:
            case None:
                return "completed"
            case BadRequest():
                return "refused"
            case ModelBusy():
                return "broken" if self.answered else "busy"
            case _:  # the generator was closed, or its task cancelled
                return "cancelled"


@asynccontextmanager
async def open_model(settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> AsyncGenerator[Model, None]:
    """Open the model server that the settings name. Connects to nothing until something is asked."""
    connect = settings.model_connect_seconds
    async with AsyncOpenAI(
        base_url=settings.openai_base_url,
        api_key=settings.openai_api_key.get_secret_value() or "none",
        max_retries=SDK_RETRIES,
        timeout=Timeout(settings.model_stall_seconds, connect=connect, pool=connect),
        # A proxy that compresses a stream holds tokens back until it has enough of them.
        default_headers={"Accept-Encoding": "identity"},
        http_client=DefaultAsyncHttpxClient(
            # The number of answers at once is bounded where turns are taken up, not by a queue in here.
            transport=AiohttpTransport(connections=max(1_000, 2 * settings.turns_in_work)),
            event_hooks={"response": [leave_waiting_to_us]},
        ),
    ) as client:
        yield Model(client, stall_seconds=settings.model_stall_seconds, clock=clock)


async def leave_waiting_to_us(response: httpx2.Response) -> None:
    """Keep the SDK from asking the same server again, after a sleep of up to two minutes that nobody could see."""
    response.headers["x-should-retry"] = "false"


def body_of(generation: Generation) -> dict[str, Any]:
    """Return the request's body. Every option goes through, also those that only this server knows."""
    options = generation.options
    return {
        **options,
        "model": generation.model,
        "messages": list(generation.messages),
        "stream": True,
        "stream_options": {**(options.get("stream_options") or {}), "include_usage": True},
    }


async def drain(listener: Listening) -> None:
    """Read what is left of a stream that has said all, but not for long."""
    with suppress(*BROKEN):  # TimeoutError is an OSError
        async with asyncio.timeout(DRAIN_SECONDS):
            await listener.drain()


@contextmanager
def failures_translated() -> Iterator[None]:
    """Turn the SDK's and its transport's errors into ours."""
    try:
        yield
    except APIStatusError as error:
        raise refusal_of(error) from error
    except (APIError, *BROKEN) as error:
        raise ModelBusy(f"the model server did not answer: {reason(error)}") from error


def refusal_of(error: APIStatusError) -> ChatError:
    """Return what an answer with an error status means for whoever asked."""
    status = error.status_code
    if status in {401, 403}:
        # Such a message often quotes part of the key, and it would be shown to the person who asked.
        return KeyRefused(f"the model server does not accept this worker's key (HTTP {status}): check OPENAI_API_KEY")
    body = error.body if isinstance(error.body, dict) else {}
    said = body.get("message") or f"HTTP {status}"
    if is_refusal(status):
        return BadRequest(f"the model server refused the request: {said}")
    return ModelBusy(
        f"the model server is busy: {said}", retry_after=retry_after(error.response.headers, datetime.now(UTC))
    )


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that a server wants us to wait: Retry-After as a number or as an HTTP date."""
    value = headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a zone
        return None


def reason(error: BaseException) -> str:
    """Return the innermost cause that says something, since the SDK's own text is only "Connection error."."""
    said = ""
    cause: BaseException | None = error
    while cause is not None:
        said = str(cause) or said
        cause = cause.__cause__
    return " ".join(said.split()) or type(error).__name__
