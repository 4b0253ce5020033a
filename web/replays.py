"""The same Idempotency-Key, the same turn: a client that heard no answer may simply ask again.

What was made under a key is remembered by this worker, for a day and within bounds. A record that Kafka did not
acknowledge may still be in the log; so a repetition publishes the same record again, under the same turn id, and
whoever reads the log sees that it is one turn.
"""

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any, Final, TypeVar

from web.caches import Cache
from web.errors import ApiError, bad_input

R = TypeVar("R")

DAY: Final = 86_400.0
MAX_BYTES: Final = 64 << 20
BYTES_PER_KEY: Final = 1000  # besides the body, which the draft holds
MAX_KEY_LENGTH: Final = 255


class Replay:
    """What was asked under one key: the body's fingerprint, what was drafted for it, and who is publishing it."""

    __slots__ = ("draft", "fingerprint", "task")

    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint
        self.draft: Any = None
        self.task: asyncio.Task[Any] | None = None

    async def carry_out(self, draft: Callable[[], Awaitable[R]], commit: Callable[[R], Awaitable[object]]) -> R:
        """Draft unless an earlier try did, and commit."""
        if self.draft is None:
            self.draft = await draft()
        drafted: R = self.draft
        await commit(drafted)
        return drafted

    @property
    def failed(self) -> bool:
        """Return whether the last try ended in an error."""
        return self.task is not None and self.task.done() and (self.task.cancelled() or bool(self.task.exception()))


class Replays:
    """The keys that were used of late."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._replays: Cache[Replay] = Cache(MAX_BYTES, DAY, clock)

    async def once(
        self, key: str, body: bytes, draft: Callable[[], Awaitable[R]], commit: Callable[[R], Awaitable[object]]
    ) -> R:
        """Draft and commit, once for this key. Without a key, simply do it. Raises `ApiError` 409 for another body."""
        if not key:
            return await Replay(b"").carry_out(draft, commit)
        fingerprint = blake2b(body, digest_size=16).digest()
        replay = self._replays.get(key)
        if replay is None:
            replay = Replay(fingerprint)
            self._replays.put(key, replay, BYTES_PER_KEY + len(body))
        if replay.fingerprint != fingerprint:
            message = "This Idempotency-Key was used with another request. Use a new key for a new request."
            raise ApiError(409, "idempotency_key_reused", message, param="Idempotency-Key")
        if replay.task is None or replay.failed:
            replay.task = asyncio.create_task(replay.carry_out(draft, commit))
        try:
            # Shielded, because a repetition may be waiting for the same task when this client leaves.
            result: R = await asyncio.shield(replay.task)
        except Exception:
            if replay.draft is None:
                # It was refused before anything was made: the client may mend the request and keep the key.
                self._replays.drop(key)
            raise
        return result


def replay_key(tenant: str, user: str, header: str, route: str) -> str:
    """Return the key under which a request is remembered, "" if it has none."""
    if len(header) > MAX_KEY_LENGTH:
        raise bad_input("Idempotency-Key", f"An Idempotency-Key may have at most {MAX_KEY_LENGTH} characters.")
    return "\x1f".join((tenant, user, route, header)) if header else ""
