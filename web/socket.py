"""A WebSocket: the commands of the native routes as messages, and the events of their turns as they come.

A command is carried out as the request that it stands for, by the handler of that route. So who may do what, what is
too long, and what a repeated key gives is the same on both ways, and an answer here is that route's answer with a type.
Events are read from the log by the same fold as everywhere; their numbers are those of the event stream, so a client
may go on with the one where it left the other.

Messages that ask something are carried out in the order in which they came, so that two questions sent at once are
accepted in that order. A stop waits for none of them.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Annotated, Any, Final, Literal, cast
from urllib.parse import quote

import msgspec
import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from multidict import CIMultiDict
from yarl import URL

from domain.tokens import Token
from streams.records import Question
from web.auth import check_origin
from web.bodies import BODY, decoded
from web.errors import ApiError, bad_input, error_object, told
from web.events import event_of, followed
from web.progress import place_of_turn
from web.questions import own_question
from web.site import SITE
from web.sse import Ending
from web.tracing import REQUEST_ID, request_id_of

log = structlog.get_logger(__name__)

Command = Literal["ask", "regenerate", "edit", "stop", "feedback", "events", "ping"]

MAX_FOLLOWED: Final = 100  # turns at once; each costs about as much as an event stream
MAX_COMMANDS: Final = 16  # at once; more wait in the connection
CLOSE_SECONDS: Final = 1.0  # how long a client may take to answer a close; a shutdown waits for it
# Who is asking, and from where. The rest of the handshake is about the connection.
OF_THE_HANDSHAKE: Final = ("Host", "Authorization", "Cookie", "Origin", "User-Agent")
CLOSE_CODES: Final[Mapping[Ending, tuple[int, bytes]]] = {
    "shutdown": (WSCloseCode.SERVICE_RESTART, b"service restart"),
    "error": (WSCloseCode.INTERNAL_ERROR, b"internal error"),
}

_json = msgspec.json.Encoder().encode


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What a client sends. Fields that are not here go to the route as its body.

    ``ref``: the client's own name for the message; what answers it carries it too.
    """

    type: Command
    ref: str = ""
    conversation_id: str = ""
    turn_id: str = ""
    starting_after: Annotated[int, msgspec.Meta(ge=-1)] = -1
    idempotency_key: str = ""


async def socket(request: web.Request) -> web.StreamResponse:
    """Take commands and send events until the client leaves."""
    site = request.app[SITE]
    settings = site.chat.settings
    response = web.WebSocketResponse(
        heartbeat=settings.ping_seconds,
        max_msg_size=settings.max_body_bytes,
        timeout=CLOSE_SECONDS,
        compress=False,  # a token is smaller than what compression adds, and each connection would hold a window
    )
    if not response.can_prepare(request):
        message = "This route speaks the WebSocket protocol. GET /v1/turns/{turn_id}/events needs none."
        raise ApiError(426, "upgrade_required", message, headers={"Upgrade": "websocket"})
    check_origin(request)
    writer = await response.prepare(request)
    work = Socket(request, response).run()
    attended = await site.streams.attend(request, work, kind="websocket", writer=writer)
    if attended.error is not None:
        log.error("socket broke off", exc_info=attended.error)
    if attended.ending in CLOSE_CODES:
        code, why = CLOSE_CODES[attended.ending]
        await response.close(code=code, message=why)
    if response.close_code == WSCloseCode.ABNORMAL_CLOSURE and request.transport is not None:
        request.transport.abort()  # closing it would wait for a client that does not read
    return response


class Socket:
    """One connection: its commands in work, and the turns that it follows."""

    def __init__(self, request: web.Request, response: web.WebSocketResponse) -> None:
        self._request = request
        self._response = response
        self._number = count(1)
        self._room = asyncio.Semaphore(MAX_COMMANDS)
        self._asking = asyncio.Lock()
        self._commands: set[asyncio.Task[None]] = set()
        self._followed: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Carry out commands until the client closes."""
        try:
            async for sent in self._response:
                if sent.type not in {WSMsgType.TEXT, WSMsgType.BINARY}:
                    break
                await self._room.acquire()
                task = asyncio.create_task(self._carry_out(sent.data))
                self._commands.add(task)
                task.add_done_callback(self._carried_out)
        finally:
            tasks = [*self._commands, *self._followed.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _carried_out(self, task: asyncio.Task[None]) -> None:
        self._commands.discard(task)
        self._room.release()

    # -- commands

    async def _carry_out(self, sent: str | bytes) -> None:
        about: dict[str, str] = {}
        async with self._refusing(about):
            content = sent.encode() if isinstance(sent, str) else sent
            message = decoded(content, Message)
            about["ref"] = message.ref
            match message.type:
                case "ping":
                    await self._send({"type": "pong", "ref": message.ref})
                case "events":
                    await self._follow(message)
                case "stop":
                    await self._call(message, f"/v1/turns/{_named(message)}/stop", {})
                case "feedback":
                    await self._call(message, f"/v1/turns/{_named(message)}/feedback", _body(content))
                case "ask" | "regenerate" | "edit":
                    await self._ask(message, content)

    async def _ask(self, message: Message, content: bytes) -> None:
        """Ask, and follow the new turn."""
        body = _body(content)
        async with self._asking:
            self._check_room()
            if message.type != "ask":
                turn = await self._call(message, f"/v1/turns/{_named(message)}/{message.type}", body)
            elif conversation_id := message.conversation_id or await self._begin(message):
                turn = await self._call(message, f"/v1/conversations/{quote(conversation_id, safe='')}/turns", body)
            else:
                return
        if turn is not None:
            question = await own_question(self._request, turn["turn_id"])
            if isinstance(question, Question):  # else its events are gone, and it was asked under this key before
                self._begin_to_follow(question, -1)

    async def _begin(self, message: Message) -> str:
        """Begin a conversation; return its id, "" if that was refused."""
        begun = await self._call(message, "/v1/conversations", {}, tell=False)
        return "" if begun is None else str(begun["id"])

    async def _call(
        self, message: Message, path: str, body: dict[str, Any], *, tell: bool = True
    ) -> dict[str, Any] | None:
        """Carry out a request of the native routes, and tell the client its answer; return it, None if refused."""
        # aiohttp's own way in for a request, so that the middlewares and the guards of the route hold here too.
        answer = cast("web.Response", await self._request.app._handle(self._sub_request(message, path, body)))
        said: dict[str, Any] = msgspec.json.decode(cast("bytes", answer.body))
        if answer.status >= 400:
            await self._send(_error(answer.status, answer.headers) | said | {"ref": message.ref})
            return None
        if tell:
            await self._send({"type": "accepted", **said, "ref": message.ref})
        return said

    def _sub_request(self, message: Message, path: str, body: dict[str, Any]) -> web.Request:
        """Return the request that a command stands for, from this client."""
        request = self._request
        headers = CIMultiDict((name, request.headers[name]) for name in OF_THE_HANDSHAKE if name in request.headers)
        headers["Content-Type"] = "application/json"
        if message.idempotency_key:
            headers["Idempotency-Key"] = message.idempotency_key
        made = request.clone(method="POST", rel_url=URL(path, encoded=True), headers=headers)
        made[BODY] = _json(body)
        made[REQUEST_ID] = f"{request_id_of(request)}-{next(self._number)}"
        return made

    # -- events

    async def _follow(self, message: Message) -> None:
        """Send a turn's events from where the client wants them; following it anew begins again from there."""
        question, progress = await followed(self._request, _named(message))
        if question.turn_id not in self._followed:
            self._check_room()
        await self._send(
            {"type": "accepted", "turn_id": question.turn_id, "status": progress.status, "ref": message.ref}
        )
        self._begin_to_follow(question, message.starting_after)

    def _check_room(self) -> None:
        if len(self._followed) >= MAX_FOLLOWED:
            why = f"A socket can follow {MAX_FOLLOWED} turns at once. Wait for one to end, or open another socket."
            raise ApiError(429, "too_many_turns_followed", why)

    def _begin_to_follow(self, question: Question, after: int) -> None:
        turn_id = question.turn_id
        if turn_id in self._followed:
            self._followed[turn_id].cancel()
        task = self._followed[turn_id] = asyncio.create_task(self._tell(question, after))
        task.add_done_callback(lambda _: self._told(turn_id, task))

    def _told(self, turn_id: str, task: asyncio.Task[None]) -> None:
        if self._followed.get(turn_id) is task:
            del self._followed[turn_id]

    async def _tell(self, question: Question, after: int) -> None:
        turn_id, token_log = question.turn_id, self._request.app[SITE].chat.services.token_log

        async def say(batch: list[Token]) -> None:
            for token in batch:
                await self._response.send_frame(_event(turn_id, token), WSMsgType.TEXT)

        async with self._refusing({"turn_id": turn_id}):
            await token_log.follow(turn_id, place_of_turn(turn_id).partition, question.tokens_from, after, say)

    # -- what the client is told

    async def _send(self, said: dict[str, Any]) -> None:
        if not said.get("ref", True):
            del said["ref"]
        await self._response.send_frame(_json(said), WSMsgType.TEXT)

    @asynccontextmanager
    async def _refusing(self, about: dict[str, str]) -> AsyncIterator[None]:
        """Tell the client what fails, and what it is about: the message's ``ref``, or the turn that it follows."""
        with suppress(ConnectionError):  # the client has left, which `run` sees too
            try:
                yield
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 - `told` logs what nobody foresaw
                outside = told(self._request, error)
                said = msgspec.json.decode(error_object(outside, self._request))
                await self._send(_error(outside.status, outside.headers) | said | about)


def _named(message: Message) -> str:
    """Return the turn that a command cannot do without, as it goes into a path; raises `ApiError`."""
    if not message.turn_id:
        raise bad_input("turn_id", "turn_id is required.", "missing_required_parameter")
    return quote(message.turn_id, safe="")


def _body(content: bytes) -> dict[str, Any]:
    """Return the fields of a message that its route takes."""
    fields: dict[str, Any] = msgspec.json.decode(content)
    return {name: value for name, value in fields.items() if name not in Message.__struct_fields__}


def _error(status: int, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the beginning of an error message: what the error object leaves to HTTP."""
    later = {"retry_after": int(headers["Retry-After"])} if "Retry-After" in headers else {}
    return {"type": "error", "status": status, **later}


def _event(turn_id: str, token: Token) -> bytes:
    """Return an event as a message: its data, with its name, its turn and its number."""
    name, data = event_of(turn_id, token)
    fields = {"citations": data} if isinstance(data, list) else data
    return _json({"type": name, "id": token.seq, **fields, "turn_id": turn_id})
