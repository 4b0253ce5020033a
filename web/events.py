"""The events of a turn: from the first, from where a reader was, live or long after, on any worker alike."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web

from domain.ids import place_of
from domain.tokens import Token
from domain.turns import End, Start
from streams.records import Question, Turn
from web.errors import ApiError, bad_input
from web.owner import elsewhere
from web.progress import Progress, place_of_turn, progress_of
from web.questions import own_question
from web.site import SITE
from web.sse import Ending

OPENING: Final = b"retry: 300\n\n"  # ms until a browser comes back after a break
COME_BACK: Final = b"retry: 200\n\n"  # at shutdown: others are ready to go on
EVENT_NUMBER: Final = re.compile(r"-1|[0-9]{1,9}")
END_EVENTS: Final = {
    "completed": "turn.completed",
    "stopped": "turn.stopped",
    "failed": "turn.failed",
    "handed_over": "turn.handed_over",
}

_json = msgspec.json.Encoder().encode


async def events(request: web.Request) -> web.StreamResponse:
    """Send the events of a turn as they come, until its end."""
    turn_id, after = request.match_info["turn_id"], position(request)
    place = place_of(turn_id)
    if place is not None and request.app[SITE].chat.settings.events_from == "owner":
        # Before the log is read, which would make this worker follow the partition too.
        owner = elsewhere(request, place.partition)
        if owner is not None:
            # Some clients drop their headers on the way, and the place must not get lost with them.
            return web.Response(status=307, headers={"Location": str(owner.update_query(starting_after=after))})
    question, progress = await followed(request, turn_id)
    if progress.end is not None and after >= len(progress.pieces) - 1:
        # The reader has everything. To a browser's EventSource, 204 says not to come back.
        return web.Response(status=204)
    return await stream_events(request, question, after)


async def followed(request: web.Request, turn_id: str) -> tuple[Question, Progress]:
    """Return the question of a turn whose events this user can have, and how far it is.

    Raises `ApiError`: 404, and 410 where Kafka has deleted the events.
    """
    site = request.app[SITE]
    question = await own_question(request, turn_id)
    if isinstance(question, Turn):
        raise events_expired(turn_id)
    progress = await progress_of(site, question)
    if progress.gone:
        raise events_expired(turn_id)
    return question, progress


def position(request: web.Request) -> int:
    """Return the number of the last event that the reader has, -1 for none; raises `ApiError` for what is no number.

    ``Last-Event-ID`` counts first: a browser that reconnects sends it to the URL with which it once began.
    """
    for name, value in (
        ("Last-Event-ID", request.headers.get("Last-Event-ID", "")),
        ("starting_after", request.query.get("starting_after", "")),
    ):
        if value:
            if not EVENT_NUMBER.fullmatch(value):
                raise bad_input(name, f"{name} must be the number of an event, not {value[:50]!r}.")
            return int(value)
    return -1


def wants_events(request: web.Request) -> bool:
    """Return whether a client asks for events rather than JSON."""
    return "text/event-stream" in request.headers.get("Accept", "").lower()


async def stream_events(request: web.Request, question: Question, after: int = -1) -> web.StreamResponse:
    """Send a turn's events with a number above ``after``."""
    site = request.app[SITE]
    place = place_of_turn(question.turn_id)
    follow = partial(
        site.chat.services.token_log.follow, question.turn_id, place.partition, question.tokens_from, after
    )
    # Where to go on, for a client that loses the answer to its POST.
    headers = {"Content-Location": f"/v1/turns/{question.turn_id}/events"}
    response, _ = await site.streams.serve(request, follow, Events(question.turn_id), headers=headers)
    return response


def events_expired(turn_id: str) -> ApiError:
    """Return the 410 for a turn whose tokens Kafka has deleted."""
    message = f"The events of this turn are not kept any more. GET /v1/turns/{turn_id} has its answer."
    return ApiError(410, "events_expired", message)


class Events:
    """Says a turn's pieces as the native events. An event's id is its number in the turn."""

    opening = OPENING

    __slots__ = ("_turn_id",)

    def __init__(self, turn_id: str) -> None:
        self._turn_id = turn_id

    def say(self, batch: list[Token]) -> bytes:
        """Return the events of a batch."""
        said = []
        for token in batch:
            if token.kind == "token":  # nearly all of them
                said.append(b'id: %d\nevent: token\ndata: {"text":%b}\n\n' % (token.seq, _json(token.text)))
            else:
                name, data = event_of(self._turn_id, token)
                said.append(b"id: %d\nevent: %b\ndata: %b\n\n" % (token.seq, name.encode(), _json(data)))
        return b"".join(said)

    def farewell(self, ending: Ending) -> bytes:
        """Return when to come back; what is missing is then sent."""
        return COME_BACK if ending == "shutdown" else b""


def event_of(turn_id: str, token: Token) -> tuple[str, Mapping[str, Any] | list[Any]]:
    """Return a piece's name and data as a native event."""
    match token.kind:
        case "token":
            return "token", {"text": token.text}
        case "claim":
            start = msgspec.json.decode(token.text, type=Start)
            said = {"turn_id": turn_id, "conversation_id": start.conversation_id, "model": start.model}
            return "turn.started", said
        case "citations":
            return "turn.citations", msgspec.json.decode(token.text)
        case "tool":
            return "turn.tool_calls", {"tool_calls": msgspec.json.decode(token.text)}
        case _:
            end = msgspec.json.decode(token.text, type=End)
            return END_EVENTS[end.outcome], _end(end)


def _end(end: End) -> dict[str, Any]:
    said: dict[str, Any] = {"outcome": end.outcome}
    match end.outcome:
        case "failed":
            said["error"] = end.error
        case "handed_over":
            said["reason"] = ""
        case _:
            said |= {"model": end.model, "finish": end.finish, "usage": end.usage, "timings": end.timings}
            said |= {"retrieval": end.retrieval, "cache": end.cache}
    return said
