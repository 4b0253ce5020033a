"""The same Idempotency-Key, the same turn: a client that heard no answer may simply ask again, of any worker.

The log decides. The owner of the conversation's partition carries the request out: it first catches up with what Kafka
has (`web/catch_up.py`), and then looks for the key in its jobs, in the log beyond them, and among the finished turns
(`tables/replays.py`). Here is what the log cannot tell it yet: who is publishing under a key at this moment, and
drafts whose publication Kafka did not acknowledge. They may be in the log or not, so a repetition publishes the very
same record. What a worker publishes that lost its partition and does not know it, the agent decides in log order.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from config import metrics
from domain.ids import uuid7
from streams.records import Question, encode
from web.caches import Cache
from web.errors import ApiError, bad_input
from web.keys import Identity

R = TypeVar("R")

HEADER: Final = "Idempotency-Key"
MAX_KEY_LENGTH: Final = 255
DAY: Final = 86_400.0
UNSURE_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Replay:
    """Which request it is: a hash of who asks what route under which key, and one of the body. Empty without a key."""

    key: str = ""
    fingerprint: str = ""

    def check(self, fingerprint: str) -> None:
        """Raise `ApiError` 409 if what was made under this key was asked with another body."""
        if fingerprint != self.fingerprint:
            message = "This Idempotency-Key was used with another request. Use a new key for a new request."
            raise ApiError(409, "idempotency_key_reused", message, param=HEADER)

    @property
    def conversation_id(self) -> str:
        """The conversation that a request begins which has none: the same for each repetition, on every worker."""
        number = int(self.key, 16)
        return uuid7(0, number, number >> 12)


def replay_of(identity: Identity, request: web.Request, body: bytes) -> Replay:
    """Return which request of this user's it is; raises `ApiError` 400 for a key that cannot be one."""
    header = request.headers.get(HEADER, "")
    if not header:
        return Replay()
    if len(header) > MAX_KEY_LENGTH:
        raise bad_input(HEADER, f"An {HEADER} may have at most {MAX_KEY_LENGTH} characters, not {len(header)}.")
    if not header.isprintable():
        raise bad_input(HEADER, f"An {HEADER} may have printable characters only.")
    named = msgspec.json.encode([identity.tenant, identity.user, request.method, request.rel_url.raw_path, header])
    return Replay(_hash(named), _hash(body))


def _hash(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


class Attempt:
    """A request that is being carried out. ``draft``: the question as it was published, perhaps in vain."""

    __slots__ = ("draft", "fingerprint", "task")

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.draft: Question | None = None
        self.task: asyncio.Task[Any]


class Attempts:
    """The requests with a key that this worker is carrying out, and those whose end it does not know."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._running: dict[str, Attempt] = {}
        self._unsure: Cache[Attempt] = Cache(UNSURE_BYTES, DAY, clock)

    async def once(self, replay: Replay, carry_out: Callable[[Attempt], Awaitable[R]]) -> R:
        """Carry a request out, once for all that ask for it at the same time.

        ``carry_out`` publishes the attempt's draft, having made it where there is none. Raises what that raises, and
        `ApiError` 409 where the key is being used with another body.
        """
        if not replay.key:
            return await carry_out(Attempt(""))
        running = self._running.get(replay.key)
        attempt = running or self._unsure.get(replay.key) or Attempt(replay.fingerprint)
        replay.check(attempt.fingerprint)
        if running is None:
            self._running[replay.key] = attempt
            attempt.task = asyncio.create_task(self._carried_out(replay.key, attempt, carry_out))
        else:
            metrics.replays_served.inc()
        # Shielded, because a repetition may be waiting for the same task when this client leaves.
        result: R = await asyncio.shield(attempt.task)
        return result

    async def _carried_out(self, key: str, attempt: Attempt, carry_out: Callable[[Attempt], Awaitable[R]]) -> R:
        try:
            result = await carry_out(attempt)
        except BaseException:
            # Without a draft nothing was made: the client may mend the request and keep the key.
            if attempt.draft is not None:
                self._unsure.put(key, attempt, len(encode(attempt.draft)))
            raise
        finally:
            del self._running[key]
        self._unsure.drop(key)  # from here on the log has it
        return result
