"""How tokens stand in a Kafka record: one frame is many tokens of many turns, because Kafka costs per record.

A frame is msgpack ``[version, [[turn_id, epoch, seq, kind, text], ...]]``, about 65 bytes a token. The version
is that of the whole frame: a reader that does not know it sets the record aside and goes on.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from domain.errors import BadRecord
from domain.tokens import Token

VERSION: Final = 1

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[int, list[Token]])
_head = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])


def encode(tokens: Sequence[Token]) -> bytes:
    """Return the frame of these tokens."""
    return _encoder.encode((VERSION, tokens))


def decode(raw: bytes | None) -> list[Token]:
    """Return the tokens of a frame; raises `BadRecord` with what was wrong with it."""
    if raw is None:
        raise BadRecord("a frame without a value")
    try:
        version, tokens = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(_why(raw, error)) from error
    if version != VERSION:
        raise BadRecord(_unknown(version))
    return tokens


def mentions(raw: bytes | None, turn_id: str) -> bool:
    """Return whether a frame may hold tokens of a turn: a search of bytes, 50 times cheaper than decoding."""
    return raw is not None and turn_id.encode() in raw


def _why(raw: bytes, error: Exception) -> str:
    """Tell a frame of a newer version, whose body we may not be able to read, from a broken one."""
    try:
        version, _ = _head.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"not a frame: {error}"
    return f"not a frame: {error}" if version == VERSION else _unknown(version)


def _unknown(version: int) -> str:
    return f"a frame of version {version}, where {VERSION} is known"
