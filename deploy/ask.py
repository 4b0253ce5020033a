"""Asks one question from a terminal and prints the answer as it is written (`make demo-question`).

    python -m deploy.ask "How long are tokens kept?" [--url http://127.0.0.1:6066] [--key KEY]

Also the example of a careful client: the question has an Idempotency-Key, so that sending it again does not ask it
twice, and a stream that breaks off is taken up after the last event that was seen, on whichever worker.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import aiohttp

PATIENCE_SECONDS: Final = 30.0
"""How long the server may be away in the middle. A worker that takes over needs one or two."""
SILENCE_SECONDS: Final = 40.0
"""A worker sends a comment every 15 s. One that is silent for so long is gone."""
PAUSE_SECONDS: Final = 0.5


class NoAnswer(Exception):
    """Why there is no answer, for a person."""


class TryAgain(Exception):
    """The same request may work soon."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. ``id`` is its number in the turn."""

    id: str
    name: str
    data: dict[str, Any]

    @property
    def is_last(self) -> bool:
        """Whether the turn is over."""
        return self.name in {"turn.completed", "turn.stopped", "turn.failed", "turn.handed_over"}


class Client:
    """The native routes of the server at this URL, with patience for a worker that restarts."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._seen = False
        self._heard_at = 0.0

    async def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send this until it is taken, and return the answer; raises `NoAnswer`."""
        headers = {"Idempotency-Key": uuid4().hex}
        while True:
            try:
                async with self._session.post(path, json=body, headers=headers) as response:
                    await self._accept(response)
                    return dict(await response.json())
            except (TryAgain, aiohttp.ClientError, TimeoutError) as error:
                await self._pause(error)

    async def events(self, path: str) -> AsyncIterator[Event]:
        """Yield all events of a turn, over as many connections as it takes; raises `NoAnswer`."""
        headers: dict[str, str] = {}
        while True:
            try:
                async with self._session.get(path, headers=headers) as response:
                    await self._accept(response)
                    async for event in parse(response.content):
                        self._heard_at = time.monotonic()
                        headers["Last-Event-ID"] = event.id
                        yield event
                        if event.is_last:
                            return
                raise TryAgain("the stream broke off")
            except (TryAgain, aiohttp.ClientError, TimeoutError) as error:
                await self._pause(error)

    async def _accept(self, response: aiohttp.ClientResponse) -> None:
        """Return if it is a success; raises `TryAgain` and `NoAnswer`."""
        self._seen, self._heard_at = True, self._heard_at or time.monotonic()
        if response.status < 400:
            return
        try:
            message = str(json.loads(await response.text())["error"]["message"])
        except (ValueError, KeyError, TypeError):
            raise NoAnswer(f"{response.url} answered with {response.status}. Is that Headrace?") from None
        raise TryAgain(message) if response.status == 503 else NoAnswer(message)

    async def _pause(self, error: Exception) -> None:
        if not self._seen:
            raise NoAnswer(f"No server answers at {self._url}. Is `make up` running?") from None
        if time.monotonic() - self._heard_at > PATIENCE_SECONDS:
            raise NoAnswer(f"The server does not come back: {str(error) or type(error).__name__}") from None
        await asyncio.sleep(PAUSE_SECONDS)


async def parse(lines: aiohttp.StreamReader) -> AsyncIterator[Event]:
    """Yield the events of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    fields: dict[str, str] = {}
    async for line in lines:
        name, _, value = line.decode().rstrip("\r\n").partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif line.strip() == b"":
            if "event" in fields:
                yield Event(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


async def ask(question: str, url: str, key: str) -> None:
    """Print the answer to stdout, and to stderr how long it took; raises `NoAnswer`."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENCE_SECONDS)
    async with aiohttp.ClientSession(url, headers=headers, timeout=timeout) as session:
        client = Client(session, url)
        conversation = await client.post("/v1/conversations", {})
        asked_at, first_at = time.monotonic(), None
        turn = await client.post(f"/v1/conversations/{conversation['id']}/turns", {"input": question})
        async for event in client.events(turn["events_url"]):
            if event.name == "token":
                first_at = first_at or time.monotonic()
                print(event.data["text"], end="", flush=True)
            elif event.is_last:
                print(flush=True)
                print(summary(event, asked_at, first_at), file=sys.stderr)


def summary(end: Event, asked_at: float, first_at: float | None) -> str:
    """Return one line about the answer; raises `NoAnswer` if it is not complete."""
    match end.name:
        case "turn.failed":
            raise NoAnswer(f"The answer failed: {end.data['error']['message']}")
        case "turn.stopped":
            raise NoAnswer("The answer was stopped.")
        case "turn.handed_over":
            raise NoAnswer("A person takes over this conversation.")
    total = time.monotonic() - asked_at
    tokens = end.data.get("usage", {}).get("output_tokens", 0)
    first = f"first token after {1000 * (first_at - asked_at):.0f} ms, " if first_at else ""
    return f"\n{first}{tokens} tokens in {total:.1f} s ({end.data.get('model', 'model unknown')})"


def main() -> int:
    """Return 0 if there was a whole answer."""
    parser = argparse.ArgumentParser(prog="python -m deploy.ask", description=(__doc__ or "").partition("\n")[0])
    here = f"http://127.0.0.1:{os.environ.get('HEADRACE_PORT') or 6066}"
    parser.add_argument("question")
    parser.add_argument("--url", default=here, help="where Headrace is (default: %(default)s)")
    parser.add_argument("--key", default="", help="where HEADRACE_AUTH=required")
    options = parser.parse_args()
    try:
        asyncio.run(ask(options.question, options.url, options.key))
    except NoAnswer as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
