"""The token log as the rest of the program sees it: write tokens to it, hold a turn, read a turn.

Readers read only the log, in its order: what a tail brings of it, and what this worker wrote right behind that, once
Kafka has acknowledged it. So no higher epoch stands before anything that is shown, and a crash cannot take it back.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

from adapters.log_reader import LogReader
from adapters.logged_turn import LoggedTurn
from adapters.pushed import Pushed
from adapters.token_hub import PATIENCE_SECONDS, OnBadFrame, OnBatch, TokenHub
from adapters.token_producer import TokenProducer
from adapters.token_tail import TokenTail
from domain.errors import Expired
from domain.hearing import Hear
from domain.tokens import Token

FRESH_SECONDS: Final = 5.0
STALE_SECONDS: Final = 60.0


class TokenLog:
    """One topic's writer and readers. Every method belongs to the event loop."""

    def __init__(self, topic: str, producer: TokenProducer, hub: TokenHub, log_reader: LogReader) -> None:
        self._topic = topic
        self._hub = hub
        self._log_reader = log_reader
        self._ends: dict[int, tuple[int, float]] = {}
        self._asking: dict[int, asyncio.Task[int]] = {}
        # Bound as they are: `append` runs ten thousand times a second.
        self.append = producer.append
        self.room = producer.room
        self.put = producer.put

    async def until(self, partition: int, offset: int) -> None:
        """Wait until everything up to this offset of a partition has been read; see `TokenHub.until`."""
        await self._hub.until(partition, offset)

    async def own(self, partitions: Collection[int], *, within: float = PATIENCE_SECONDS) -> None:
        """Follow these partitions because this worker answers in them; see `TokenHub.own`."""
        await self._hub.own(partitions, within=within)

    def attach(self, turn_id: str, partition: int, since: int) -> AbstractAsyncContextManager[LoggedTurn]:
        """Hold a turn, complete and growing; see `TokenHub.attach`."""
        return self._hub.attach(turn_id, partition, since)

    async def follow(self, turn_id: str, partition: int, since: int, after: int, hear: Hear[Token]) -> None:
        """Have ``hear`` take the pieces numbered above ``after``, each time all that there are; return after the end.

        ``since`` as for `attach`. Raises `Expired` where the log has deleted the turn, and `LogUnavailable`
        where Kafka does not answer; then ask again with ``after`` the last piece that came.
        """
        seen, ended = after + 1, False
        while not ended:
            async with self.attach(turn_id, partition, since) as turn:
                if turn.expired and not turn.pieces:
                    raise Expired(f"the log has no tokens of turn {turn_id} any more")
                following = _Following(turn, seen, hear)
                with turn.heard_by(following.look):
                    await following.until_end()
                # A turn that was cut off is attached again, and raises there if that is of no use.
                seen, ended = following.seen, turn.fold.ended

    async def end_offset(self, partition: int) -> int:
        """Return an offset that no token written from now on can be below. Some seconds old at times."""
        position = self._hub.position(partition)
        if position is not None:
            return position
        end, at = self._ends.get(partition, (0, float("-inf")))
        age = asyncio.get_running_loop().time() - at
        if age < FRESH_SECONDS:
            return end
        asking = self._asking.get(partition)
        if asking is None:
            asking = self._asking[partition] = asyncio.create_task(self._ask_end(partition))
            asking.add_done_callback(lambda done: self._asked(partition, done))
        return end if age < STALE_SECONDS else await asyncio.shield(asking)

    async def _ask_end(self, partition: int) -> int:
        end = (await self._log_reader.ends(self._topic, [partition]))[partition]
        self._ends[partition] = (end, asyncio.get_running_loop().time())
        return end

    def _asked(self, partition: int, done: asyncio.Task[int]) -> None:
        del self._asking[partition]
        # An old end serves as well, so nobody need hear of it; this marks the error as seen.
        if not done.cancelled():
            done.exception()

    async def close(self) -> None:
        """Stop asking for ends."""
        for asking in list(self._asking.values()):
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


class _Following(Pushed[list[Token]]):
    """Hands on the pieces of a turn. ``seen``: how many are behind it."""

    __slots__ = ("_turn", "seen")

    def __init__(self, turn: LoggedTurn, seen: int, hear: Hear[Token]) -> None:
        super().__init__(hear)
        self.seen = seen
        self._turn = turn

    def _next(self) -> list[Token]:
        turn = self._turn
        new = turn.pieces[self.seen :]
        self.seen += len(new)
        self._ended = turn.fold.ended or turn.cut
        return new


def _ignore(partition: int, offset: int, raw: bytes, reason: str) -> None:
    """Do nothing about a bad frame but count it."""


@asynccontextmanager
async def open_token_log(
    bootstrap: str,
    topic: str,
    *,
    log_reader: LogReader,
    frame_ms: float = 5.0,
    on_bad_frame: OnBadFrame = _ignore,
    idle_fetch_pause_ms: float = 0.0,
) -> AsyncIterator[TokenLog]:
    """Open the producer and the tail of the token topic, which must exist.

    ``on_bad_frame(partition, offset, value, reason)`` is called for each record of an owned partition that is
    no frame. ``idle_fetch_pause_ms`` is for a broker that does not wait by itself, see `config.settings`.
    """
    async with AsyncExitStack() as stack:

        def open_tail(on_batch: OnBatch, patient: bool) -> TokenTail:
            return TokenTail(
                bootstrap,
                topic,
                on_batch,
                patient=patient,
                known=lambda partition: hub.position(partition) or 0,
                idle_pause=idle_fetch_pause_ms / 1000,
            )

        hub = TokenHub(topic, log_reader, open_tail, on_bad_frame=on_bad_frame)
        producer = TokenProducer(bootstrap, topic, frame_ms=frame_ms, on_written=hub.wrote, on_look=hub.look)
        stack.push_async_callback(hub.close)
        stack.push_async_callback(producer.close)
        token_log = TokenLog(topic, producer, hub, log_reader)
        stack.push_async_callback(token_log.close)
        yield token_log
