"""Server-sent events, cut out of a byte stream as it arrives.

Written after the parsing rules of the HTML standard (section 9.2.6) for what a model server sends: only the
data of an event is kept, its name, id and retry are skipped. Bytes stay bytes, so a character that was cut
across two reads needs no care, and nothing is decoded twice.
"""

from domain.errors import ModelBusy

BOM = b"\xef\xbb\xbf"

MAX_EVENT_BYTES = 4 << 20
"""Beyond this an event is not waited for. The largest real ones (a whole tool call at once) are some 100 kB."""


class EventStream:
    """Takes the bytes of one stream in pieces of any size, and returns the data of each event they complete."""

    __slots__ = ("_after_cr", "_first", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False
        self._first = True

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that end in this piece; raises `ModelBusy` if one grows beyond bounds."""
        if piece and (self._after_cr or b"\r" in piece):
            piece = self._with_plain_ends(piece)
        if (
            not self._rest
            and 6 < piece.find(b"\n") == len(piece) - 2
            and piece[:6] == b"data: "
            and piece[-1:] == b"\n"
        ):
            self._first = False
            return [piece[6:-2]]  # one event of one line, as is nearly every read of a stream that is paced
        blocks = (self._rest + piece).split(b"\n\n")
        self._rest = blocks.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ModelBusy(f"the model server sent an event of more than {MAX_EVENT_BYTES} bytes")
        if self._first and blocks:
            self._first = False
            blocks[0] = blocks[0].removeprefix(BOM)
        return [data for block in blocks if (data := data_of(block))]

    def close(self) -> bytes:
        """Return the data of an event that lacks its blank line at the end of the stream.

        The standard drops such an event, since it may have been cut; only an end mark is safe to believe.
        """
        return data_of(self._rest)

    def _with_plain_ends(self, piece: bytes) -> bytes:
        """Return the piece with LF for every CR LF and CR, also where a CR LF was cut between two pieces.

        JSON cannot hold a bare CR inside a string, so no data changes.
        """
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def data_of(block: bytes) -> bytes:
    """Return the data of one event's lines, b"" if it has none."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]  # nearly every event of every server; the general way costs three times as much
    values = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values)
