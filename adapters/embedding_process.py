"""The child process that turns texts into vectors, for `adapters.embedding_child`: a model there stops no stream here.

    python -m adapters.embedding_process FOLDER vectors|scores SOCKET

Questions come on stdin and their answers go to stdout, one after the other, each msgpack behind its length (4 bytes,
big endian). It says first what the model is, and ends with its stdin, which is to say with the worker, however that
ends.

Documents come in the same form on a socket, whose descriptor is given, to a fork of this process: it shares the memory
that the model was loaded into. Linux runs it as idle work, on cores that nobody else wants. While it was only niced,
the worker's loop waited for milliseconds on the one core and the model kept the other (docs/adr/0015).
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import msgspec

from adapters.priority import come_after, come_last
from adapters.tether import tie

HEAD_BYTES: Final = 4
BATCH: Final = 16

# Before torch is imported, which reads them then: one core, and nothing fetched from anywhere.
ENVIRON: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


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
Compute = Callable[[Wanted], Any]


def framed(message: Message) -> bytes:
    """Return a message behind its length."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def write(stream: BinaryIO, message: Message) -> None:
    """Write a message."""
    stream.write(framed(message))
    stream.flush()


def read(stream: BinaryIO) -> Wanted | None:
    """Return the next request, None at the end."""
    head = stream.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    length = int.from_bytes(head, "big")
    body = stream.read(length)
    return msgspec.msgpack.decode(body, type=Wanted) if len(body) == length else None


def _vectors(folder: str) -> tuple[Ready, Compute]:
    """Load a model that gives vectors."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds, and is to be niced

    model = SentenceTransformer(folder, local_files_only=True, device="cpu")

    def compute(wanted: Wanted) -> Any:
        return model.encode(wanted.texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)

    return Ready(int(model.get_embedding_dimension() or 0), int(model.max_seq_length or 0)), compute


def _scores(folder: str) -> tuple[Ready, Compute]:
    """Load a cross-encoder."""
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 - as above

    model = CrossEncoder(folder, local_files_only=True, device="cpu")

    def compute(wanted: Wanted) -> Any:
        pairs = [(wanted.question or "", text) for text in wanted.texts]
        return model.predict(pairs, batch_size=BATCH, show_progress_bar=False)

    return Ready(0, int(model.max_seq_length or 0)), compute


def serve(requests: BinaryIO, answers: BinaryIO, ready: Ready, compute: Compute) -> None:
    """Answer requests until they end, or nobody reads the answers any more."""
    with suppress(ConnectionError):
        write(answers, ready)
        while (wanted := read(requests)) is not None:
            try:
                given = Given(compute(wanted).astype("<f4").tobytes())
            except Exception as error:  # noqa: BLE001 - one text that a model cannot read must not end the process
                given = Given(error=f"{type(error).__name__}: {error}"[:500])
            write(answers, given)


def serve_all(questions: BinaryIO, answers: BinaryIO, documents: int, ready: Ready, compute: Compute) -> None:
    """Answer questions here, and beside them what is asked on the socket ``documents``, until the questions end."""
    this = os.getpid()
    with socket.socket(fileno=documents) as connection:
        asked, answered = connection.makefile("rb"), connection.makefile("wb")
    if not hasattr(os, "SCHED_IDLE"):
        # macOS has no such class, and its numerical library does not bear a fork.
        threading.Thread(target=serve, args=(asked, answered, ready, compute), daemon=True).start()
    elif os.fork() == 0:
        tie(this, signal.SIGKILL)
        come_last()
        # Who waits for the end of the process that answers questions must not wait for this one.
        for pipe in (questions, answers):
            os.dup2(asked.fileno(), pipe.fileno())
        serve(asked, answered, ready, compute)
        os._exit(0)
    else:
        asked.close()
        answered.close()
    serve(questions, answers, ready, compute)


def main() -> None:
    """Load the model, and serve."""
    # Both go to all processes of a terminal or a container: the worker decides when it needs no vectors any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    come_after()
    os.environ |= ENVIRON
    # Libraries print; what they print must not stand between our messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    folder, task, documents = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if not Path(folder).is_dir():
        raise SystemExit(f"{folder} is no folder")  # and no name that a library would look up elsewhere

    import torch  # noqa: PLC0415 - takes seconds, and is to be niced
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types
    torch.set_num_threads(1)
    ready, compute = _scores(folder) if task == "scores" else _vectors(folder)
    serve_all(sys.stdin.buffer, answers, documents, ready, compute)


if __name__ == "__main__":
    main()
