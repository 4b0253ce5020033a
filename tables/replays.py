"""Which turn answers which Idempotency-Key, in RocksDB, for a day after it was asked.

A row a keyed turn, under the key's hash, in its conversation's partition; it has no content. It is written before
the question is acknowledged, so that every turn is found among the jobs or here. The first turn under a key keeps it.

Each write also looks at a few other rows, in turn, and drops those that are too old: the table stays within a third
of what a day brings.
"""

import msgspec
from faust.types import FutureMessage

from domain.ids import place_of
from domain.turns import DUPLICATE_REQUEST
from streams.app import app
from streams.records import Question, Turn
from tables.row_table import acknowledged, row_table

HOLDS_MS = 86_400_000
LOOKS = 4


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that was asked under a key, at a Unix time in ms, and the fingerprint of the request's body."""

    turn_id: str
    fingerprint: str
    at: int


_replays = row_table("replays", check=msgspec.json.Decoder(Replay).decode)
_looked_at: dict[int, str] = {}  # by partition: the row at which the last look for old ones ended


def find(conversation_id: str, replay_key: str, now: int) -> Replay | None:
    """Return the finished turn that has a key at this time; raises `NotOwner`."""
    row = _replays.row(app.partition(conversation_id), replay_key)
    found = None if row is None else msgspec.json.decode(row, type=Replay)
    return None if found is None or _is_old(found, now) else found


def replayed(question: Question) -> str:
    """Return the finished turn that had a question's key before it, "" if there is none. Raises `NotOwner`."""
    place = place_of(question.turn_id)
    if not question.replay_key or place is None:
        return ""
    # By the turns' own times, so that whoever decides, and however late, decides the same.
    found = find(question.conversation_id, question.replay_key, place.milliseconds)
    return found.turn_id if found and found.turn_id != question.turn_id else ""


async def keep(turn: Turn) -> None:
    """Let a finished turn have its key, unless another one has it; return when the changelog has that."""
    if not turn.replay_key or (turn.error and turn.error.code == DUPLICATE_REQUEST):
        return
    found = find(turn.conversation_id, turn.replay_key, turn.asked_at)
    if found and found.turn_id != turn.turn_id:
        return
    partition = app.partition(turn.conversation_id)
    replay = Replay(turn_id=turn.turn_id, fingerprint=turn.fingerprint, at=turn.asked_at)
    # Also where the row is there: after a crash, or a changelog that did not answer, it may be on this disk alone.
    written = _replays.put(partition, turn.replay_key, msgspec.json.encode(replay))
    await acknowledged(written, *_drop_old(partition, turn.asked_at))


def _drop_old(partition: int, now: int) -> list[FutureMessage]:
    dropped, looked_at = [], ""
    for (key, row), _ in zip(_replays.after(partition, _looked_at.get(partition, "")), range(LOOKS), strict=False):
        looked_at = key
        if _is_old(msgspec.json.decode(row, type=Replay), now):
            dropped.append(_replays.put(partition, key, None))
    _looked_at[partition] = looked_at  # at the end of the table, begin anew
    return dropped


def _is_old(replay: Replay, now: int) -> bool:
    return now - replay.at > HOLDS_MS
