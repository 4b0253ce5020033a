"""A model server whose answers are known beforehand, and which fails in every way that a real one does.

It speaks OpenAI's chat completions; `tests.support.scripted_answer` tells what it says and which directives a
question may carry. ``async with ModelServer() as server`` runs it beside a test, and

    python -m tests.support.model_server --port 8080

as a process. Besides the OpenAI routes: ``GET /stats``; ``POST /admin/fault`` with ``{"fault", "times", "after",
"retry_after", "message"}`` for the next requests, whatever they ask; ``POST /admin/refuse`` with ``{"seconds"}``.

It shares the machine with what is measured, so all paced answers are written by one timer, each token as one
prepared piece straight to its socket: 200 answers of 50 tokens/s take a sixth of a core.
"""

import argparse
import asyncio
import heapq
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any, Self

from aiohttp import web

from adapters.resuming import PROBE_NEXT, PROBE_QUESTION
from domain.resume import CONTINUE, last_words
from tests.support.scripted_answer import (
    Chunks,
    Script,
    cut_characters,
    expected_answer,
    rest_of,
    script_of,
    tool_calls,
    tool_deltas,
)

END_OF_PASSAGES = "</passages>\n\n"

__all__ = ["ModelServer", "Stats", "expected_answer"]

TICK = 0.001
"""Least time between two looks at what is due. Finer, and waking up costs more than writing."""

RESET_AFTER = 0.05
"""A reset destroys what its receiver has not read yet, so it comes this much later than the token before it."""

COMMENT_EVERY = 0.02

FLOOD = 64


@dataclass
class Stats:
    """What happened since the start. ``cancelled``: the client left before its answer was whole."""

    requests: int = 0
    active: int = 0
    completed: int = 0
    cancelled: int = 0
    tokens: int = 0
    prefills: int = 0
    other_prefills: int = 0
    faults: int = 0


class Pacer:
    """Writes to all paced answers from one timer. An iterator is asked for each piece when it is due."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, float, Iterator[bytes], web.Request, asyncio.Future[None]]] = []
        self._number = count()
        self._timer: asyncio.TimerHandle | None = None

    async def write(self, request: web.Request, pieces: Iterator[bytes], pace: float) -> None:
        """Write the pieces as HTTP chunks, so many a second; returns after the last."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._due, (loop.time(), next(self._number), 1 / pace, pieces, request, written))
        self._schedule(loop)
        await written

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None and self._due:
            self._timer = loop.call_at(max(self._due[0][0], loop.time() + TICK), self._write_due, loop)

    def _write_due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._due and self._due[0][0] <= now:
            due, number, interval, pieces, request, written = self._due[0]
            transport = request.transport
            piece = next(pieces, None)
            if piece is None or transport is None or transport.is_closing() or written.done():
                heapq.heappop(self._due)
                if not written.done():
                    written.set_result(None)
                continue
            transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            heapq.heapreplace(self._due, (due + interval, number, interval, pieces, request, written))
        self._schedule(loop)


class ModelServer:
    """The server; ``defaults`` is what questions without directives get. Use it as an async context manager."""

    def __init__(self, port: int = 0, *, defaults: Script | None = None, host: str = "127.0.0.1") -> None:
        self.defaults = defaults or Script()
        self.stats = Stats()
        self.requests: deque[dict[str, Any]] = deque(maxlen=10_000)
        self.headers: deque[Mapping[str, str]] = deque(maxlen=100)
        self.models = ["scripted"]
        self.models_status = 200
        self.lists_sent = 0
        self.probes = 0
        self._host, self._port = host, port
        self._asked: Counter[str] = Counter()
        self._next_faults: deque[Script] = deque()
        self._pacer = Pacer()
        self._peers: set[object] = set()
        self._number = count(1)
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    @property
    def base_url(self) -> str:
        """What OPENAI_BASE_URL is set to."""
        return f"http://{self._host}:{self._port}/v1"

    @property
    def tokens_sent(self) -> int:
        """How many tokens were written, over all answers."""
        return self.stats.tokens

    @property
    def cancelled(self) -> int:
        """How many answers were left by their client before they were whole."""
        return self.stats.cancelled

    @property
    def connections(self) -> int:
        """Over how many connections answers were asked for."""
        return len(self._peers)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._complete),
                web.get("/v1/models", self._models),
                web.get("/stats", self._stats),
                web.post("/admin/fault", self._admin_fault),
                web.post("/admin/refuse", self._admin_refuse),
            ]
        )
        # A client that leaves cancels its handler, which is how a real server stops generating.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def accept(self) -> None:
        """Listen, again after `refuse` and then on the same port."""
        assert self._runner is not None
        self._site = web.TCPSite(self._runner, self._host, self._port, reuse_address=True)
        await self._site.start()
        self._port = self._runner.addresses[0][1]

    async def refuse(self) -> None:
        """Stop listening: new connections are refused, answers in work go on."""
        if self._site is not None:
            await self._site.stop()
            self._site = None

    def fail_next(
        self, fault: str, *, times: int = 1, after: int = 0, retry_after: str = "", message: str = ""
    ) -> None:
        """Let the next requests fail, whatever they ask; with this message, if the fault is an HTTP status."""
        due = Script(fault=fault, after=after, retry_after=retry_after, message=message)
        self._next_faults.extend([due] * times)

    # -- routes

    async def _models(self, _: web.Request) -> web.Response:
        self.lists_sent += 1
        if self.models_status != 200:
            return refusal(self.models_status, f"scripted {self.models_status}")
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"} for name in self.models]
        return web.json_response({"object": "list", "data": listed})

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(asdict(self.stats))

    async def _admin_fault(self, request: web.Request) -> web.Response:
        self.fail_next(**await request.json())
        return web.json_response({})

    async def _admin_refuse(self, request: web.Request) -> web.Response:
        seconds = (await request.json())["seconds"]
        loop = asyncio.get_running_loop()
        # Only after this answer is out. The tasks are short and end with the server.
        loop.call_later(0.01, lambda: self._later(self.refuse()))
        loop.call_later(0.01 + seconds, lambda: self._later(self.accept()))
        return web.json_response({})

    def _later(self, work: Any) -> None:
        self._task = asyncio.ensure_future(work)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if is_probe(body):
            return self._probe(body)
        self.stats.requests += 1
        self.requests.append(body)
        self.headers.append(request.headers)
        if request.transport is not None:
            self._peers.add(request.transport.get_extra_info("peername"))
        try:
            script = self._script(body)
        except ValueError as error:
            return refusal(400, str(error))
        if script.fault:
            self.stats.faults += 1
        if refuses_flags(body, script):
            return refusal(400, "continue_final_message is not a parameter")
        if script.status:
            headers = {"Retry-After": script.retry_after} if script.retry_after else {}
            return refusal(script.status, script.message or f"scripted {script.status}", headers)
        if script.fault == "refuse":
            reset(request)
            return web.Response()
        answer = Answer(body, script, f"chatcmpl-{next(self._number)}", self.stats)
        async with self._counted(script):
            await asyncio.sleep(script.wait)
            return await (self._stream(request, answer) if body.get("stream") else self._whole(answer))

    def _probe(self, body: Mapping[str, Any]) -> web.Response:
        """Answer a worker that tries out how this server goes on. No person asked, so nothing is counted."""
        self.probes += 1
        if refuses_flags(body, self.defaults):
            return refusal(400, "continue_final_message is not a parameter")
        chunks = Chunks("chatcmpl-probe", str(body.get("model")), int(time.time()))
        said = f"{PROBE_NEXT} seven" if continues(body, self.defaults) else "One, two"
        stream = chunks.text(said) + chunks.delta({}, "length") + chunks.done()
        return web.Response(body=stream, content_type="text/event-stream")

    def _script(self, body: Mapping[str, Any]) -> Script:
        """Return what the question asks for, with its fault only where it is due."""
        question = question_of(body)
        script = script_of(question, self.defaults)
        self._asked[question] += 1
        if self._next_faults:
            due = self._next_faults.popleft()
            return replace(script, fault=due.fault, after=due.after, retry_after=due.retry_after, message=due.message)
        return script if self._asked[question] <= script.times else replace(script, fault="")

    @asynccontextmanager
    async def _counted(self, script: Script) -> AsyncIterator[None]:
        self.stats.active += 1
        try:
            yield
            self.stats.completed += not script.fault
        except (asyncio.CancelledError, ConnectionError):
            self.stats.cancelled += 1
            raise
        finally:
            self.stats.active -= 1

    async def _whole(self, answer: "Answer") -> web.Response:
        if answer.script.pace:
            await asyncio.sleep(len(answer.tokens) / answer.script.pace)
        return web.json_response(answer.whole())

    async def _stream(self, request: web.Request, answer: "Answer") -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        script = answer.script
        if script.pace:
            await self._pacer.write(request, answer.pieces(), script.pace)
        else:
            await flood(response, answer.pieces())
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client left")
        if script.fault == "reset":
            await asyncio.sleep(RESET_AFTER)
            reset(request)
        elif script.fault == "stall":
            await asyncio.Event().wait()
        elif script.fault == "comments":
            while True:
                await response.write(b": still here\n\n")
                await asyncio.sleep(COMMENT_EVERY)
        return response


class Answer:
    """One answer to one request: its tokens, and the pieces that they are written in."""

    def __init__(self, body: Mapping[str, Any], script: Script, completion_id: str, stats: Stats) -> None:
        self.script = script
        self._body = body
        self._stats = stats
        self._question = question_of(body)
        self._id = completion_id
        self._model = str(body.get("model", "scripted"))
        self._chunks = Chunks(completion_id, self._model, int(time.time()), crlf=script.crlf)
        self._calls = (
            tool_calls(self._question, script.tool) if script.tool and body["messages"][-1]["role"] == "user" else []
        )
        tokens = self._after_prefill(expected_answer(self._question, script.tokens))
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(tokens)
        limit = limit if script.limit else len(tokens)
        self.tokens = [] if self._calls else tokens[:limit]
        self.finish = "tool_calls" if self._calls else "length" if limit < len(tokens) else "stop"

    def _after_prefill(self, tokens: Sequence[str]) -> Sequence[str]:
        so_far = text_to_continue(self._body)
        told = is_told_to_continue(self._body)
        if not so_far or not (told or continues(self._body, self.script)):
            return tokens
        self._stats.prefills += 1
        rest = rest_of(tokens, so_far)
        if told and rest is not None:
            return [last_words(so_far), *rest]
        if rest is None:
            # As a real model would: it goes on somehow. Whoever checks the text will see it.
            self._stats.other_prefills += 1
        return tokens if rest is None else rest

    @property
    def usage(self) -> dict[str, int]:
        """Model tokens, counted in words for the prompt."""
        read = sum(len(text_of(message).split()) for message in self._body["messages"])
        return {"prompt_tokens": read, "completion_tokens": len(self.tokens), "total_tokens": read + len(self.tokens)}

    def whole(self) -> dict[str, Any]:
        """Return the answer in one object."""
        self._stats.tokens += len(self.tokens)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.tokens) or None}
        if self._calls:
            message["tool_calls"] = self._calls
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}],
            "usage": self.usage,
        }

    def pieces(self) -> Iterator[bytes]:
        """Yield what is to be written, up to the fault if there is one: a piece for each token."""
        if self.script.cut:
            yield from cut_characters(self._pieces())
        else:
            yield from self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        opening = self._chunks.delta({"role": "assistant", "content": ""})
        if self._calls:
            steps = [self._chunks.delta({"tool_calls": delta}) for delta in tool_deltas(self._calls)]
            yield from [opening, *steps, self._ending()]
            return
        ends = self.script.after if self.script.fault else len(self.tokens)
        for number, token in enumerate(self.tokens[:ends]):
            self._stats.tokens += 1
            said = self._chunks.text(f" t={time.monotonic():.6f}" if self.script.stamp else token)
            if number == 0:
                said = opening + said
            # The end comes with the last token: one that is paced like a token would make answers late.
            yield said + self._ending() if number == ends - 1 and not self.script.fault else said
        if self.script.fault or not self.tokens:
            yield from filter(None, [self._ending()])

    def _ending(self) -> bytes:
        chunks = self._chunks
        match self.script.fault:
            case "malformed":
                return chunks.broken() + chunks.done()
            case "error":
                return chunks.error("scripted error", "server_error", 500) + chunks.done()
            case "reset" | "stall" | "comments" | "end":
                return b""
        usage = b""
        if (self._body.get("stream_options") or {}).get("include_usage"):
            usage = chunks.usage(self.usage)
        return chunks.delta({}, self.finish) + usage + chunks.done()


def question_of(body: Mapping[str, Any]) -> str:
    """Return the text of the last question; raises ValueError if there is none, or none with a text."""
    messages = body.get("messages", ())
    for message in reversed(messages[:-1] if is_told_to_continue(body) else messages):
        if message.get("role") == "user" and message.get("content") is not None:
            return text_of(message).rpartition(END_OF_PASSAGES)[2]
    raise ValueError("there is no message of role user with content")


def is_told_to_continue(body: Mapping[str, Any]) -> bool:
    """Tell whether the last message is no question but says that the answer before it is to go on."""
    messages = body.get("messages", ())
    return len(messages) > 1 and text_of(messages[-1]).startswith(CONTINUE.text.partition("\n")[0])


def text_to_continue(body: Mapping[str, Any]) -> str:
    """Return the text so far, "" where an answer is to begin."""
    last = body["messages"][-2 if is_told_to_continue(body) else -1]
    return text_of(last) if last["role"] == "assistant" else ""


def continues(body: Mapping[str, Any], script: Script) -> bool:
    """Tell whether a server like this continues a last message of role assistant."""
    return script.prefill and (script.flags != "needed" or bool(body.get("continue_final_message")))


def refuses_flags(body: Mapping[str, Any], script: Script) -> bool:
    """Tell whether the request has flags that a server like this does not know."""
    return script.flags == "refused" and "continue_final_message" in body


def is_probe(body: Mapping[str, Any]) -> bool:
    """Tell whether a worker only tries out how this server goes on."""
    return any(text_of(message) == PROBE_QUESTION for message in body.get("messages", ())[:1])


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an error answer in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return web.json_response({"error": error}, status=status, headers=headers)


def reset(request: web.Request) -> None:
    """Reset the connection, so that its client sees an error and not an end."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


async def flood(response: web.StreamResponse, pieces: Iterator[bytes]) -> None:
    """Write as fast as the connection takes it."""
    for group in iter(lambda: b"".join(islice(pieces, FLOOD)), b""):
        await response.write(group)
        await asyncio.sleep(0)


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=Script().tokens)
    parser.add_argument("--pace", type=float, default=Script().pace)
    parser.add_argument("--no-prefill", action="store_true")
    arguments = parser.parse_args()
    defaults = Script(tokens=arguments.tokens, pace=arguments.pace, prefill=not arguments.no_prefill)
    async with ModelServer(arguments.port, defaults=defaults) as server:
        print(f"listening on {server.base_url}", flush=True)  # noqa: T201 - whoever started it reads the port here
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
