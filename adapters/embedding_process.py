"""The child process that turns texts into vectors, for `adapters.embedder`: a model there stops no stream here.

    python -m adapters.embedding_process FOLDER

Requests come on stdin and answers go to stdout, one after the other, each msgpack behind its length (4 bytes, big
endian). It says first what the model is, and ends with its stdin, which is to say with the worker, however that ends.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final, Literal

import msgspec

HEAD_BYTES: Final = 4
NICENESS: Final = 10
"""Whoever reads tokens goes first."""

BATCH: Final = 16


class Ready(msgspec.Struct, frozen=True):
    """The first message. ``window``: how many model tokens of a text the model reads."""

    dims: int
    window: int


class Wanted(msgspec.Struct, frozen=True):
    """A request: the vectors of ``texts``, or how well each of them answers ``question``."""

    texts: list[str]
    question: str | None = None


class Given(msgspec.Struct, frozen=True):
    """The answer: vectors one after the other as float32, or one float32 a text; or why there are none."""

    values: bytes = b""
    error: str = ""


Message = Ready | Given | Wanted
Task = Literal["vectors", "scores"]


def write(stream: BinaryIO, message: Message) -> None:
    """Write a message."""
    stream.write(framed(message))
    stream.flush()


def framed(message: Message) -> bytes:
    """Return a message behind its length."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def _read(stream: BinaryIO) -> Wanted | None:
    """Return the next request, None at the end."""
    head = stream.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    return msgspec.msgpack.decode(stream.read(int.from_bytes(head, "big")), type=Wanted)


def main() -> None:
    """Serve until stdin ends."""
    # Ctrl-C goes to all processes of a terminal: the worker decides when it needs no vectors any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    # Libraries print; what they print must not stand between our messages.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    import torch  # noqa: PLC0415 - takes seconds, and is to be niced
    from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: PLC0415

    torch.set_num_threads(1)
    folder = sys.argv[1]
    compute: Callable[[Wanted], Any]
    if sys.argv[2:] == ["scores"]:
        ranker = CrossEncoder(folder, local_files_only=True, device="cpu")

        def compute(wanted: Wanted) -> Any:
            pairs = [(wanted.question or "", text) for text in wanted.texts]
            return ranker.predict(pairs, batch_size=BATCH, show_progress_bar=False)

        ready = Ready(0, int(ranker.max_length or 0))
    else:
        model = SentenceTransformer(folder, local_files_only=True, device="cpu")

        def compute(wanted: Wanted) -> Any:
            return model.encode(wanted.texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)

        ready = Ready(int(model.get_embedding_dimension() or 0), int(model.max_seq_length or 0))
    write(out, ready)
    while (wanted := _read(sys.stdin.buffer)) is not None:
        try:
            write(out, Given(compute(wanted).astype("<f4").tobytes()))
        except Exception as error:  # noqa: BLE001 - one text that a model cannot read must not end the process
            write(out, Given(error=repr(error)[:500]))


if __name__ == "__main__":
    main()
