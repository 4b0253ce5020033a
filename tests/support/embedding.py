"""An embedding model whose vectors are known: as a class, and as a process that can be made to die.

    python -m tests.support.embedding JOURNAL SOCKET

The process writes its pid and every text that it is given into JOURNAL, a line each. The text says what it does:
``die`` ends it, ``bad`` cannot be read, ``hold PATH`` takes until PATH is there.
"""

import asyncio
import os
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

from adapters.embedding_process import Ready, Wanted, serve_all
from domain.errors import EmbedderUnavailable

DIMS = 64


def vector_of(text: str, dims: int = DIMS) -> list[float]:
    """Return a vector that is near to those of texts with the same words."""
    vector = [0.01] * dims
    for word in text.lower().split():
        vector[int.from_bytes(blake2b(word.strip(".,:?!").encode(), digest_size=4).digest()) % dims] += 1.0
    return vector


class WordEmbedder:
    """One model. ``error``: what whoever asks hears; ``asked``: the questions that were asked; ``stuck``: it hangs."""

    def __init__(self, model: str = "words", dims: int = DIMS) -> None:
        self.model = model
        self.dims = dims
        self.ready = True
        self.error: EmbedderUnavailable | None = None
        self.stuck = False
        self.asked: list[str] = []
        self.before: Callable[[], None] = lambda: None

    async def queries(self, texts: Sequence[str]) -> list[list[float]]:
        self.before()
        if self.error is not None:
            raise self.error
        if self.stuck:
            await asyncio.sleep(60)
        self.asked += texts
        return [vector_of(text, self.dims) for text in texts]

    async def documents(self, texts: Sequence[str]) -> list[list[float]]:
        return [vector_of(text, self.dims) for text in texts]


class WordEmbedders:
    """The same model under every name but those that are ``missing``."""

    def __init__(self, *missing: str) -> None:
        self.one = WordEmbedder()
        self._missing = missing

    def of(self, model: str) -> WordEmbedder:
        if model in self._missing:
            raise FileNotFoundError(f"there is no {model}")
        return self.one


class _Array:
    """What of numpy's arrays is used of an answer."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = numbers

    def astype(self, _: str) -> "_Array":
        return self

    def tobytes(self) -> bytes:
        return array("f", self._numbers).tobytes()


def main() -> None:
    """Serve as `adapters.embedding_process` does."""
    journal = Path(sys.argv[1])

    def note(line: str) -> None:
        with journal.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def compute(wanted: Wanted) -> _Array:
        values: list[float] = []
        for text in wanted.texts:
            note(text)
            if text == "die":
                os._exit(3)
            if text == "bad":
                raise ValueError("bad text")
            if text.startswith("hold "):
                while not Path(text.removeprefix("hold ")).exists():
                    time.sleep(0.005)
            values.extend([float(len(text))] if wanted.question is not None else [float(len(text)), 1.0])
        return _Array(values)

    note(f"pid {os.getpid()}")
    serve_all(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[2]), Ready(2, 256), compute)


if __name__ == "__main__":
    main()
