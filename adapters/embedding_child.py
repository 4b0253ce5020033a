"""A model in a process of its own (`adapters.embedding_process`): kept running, asked one thing at a time, in order.

Questions go before documents, and documents come in small batches, so that a question waits for one batch at most.
What somebody no longer waits for is not asked. The process is started again when it dies. What a document was asked
meanwhile is asked again, each text alone; a text in whose work the process died three times is refused from then on,
since it would kill every process that comes.
"""

import asyncio
import sys
from array import array
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import structlog

from adapters.embedding_process import HEAD_BYTES, Given, Ready, Task, Wanted, framed
from domain.backoff import pause
from domain.errors import EmbedderUnavailable, Rejected

log = structlog.get_logger(__name__)

Vector = list[float]

PROJECT: Final = Path(__file__).resolve().parents[1]
LOAD_SECONDS: Final = 120.0
WORK_SECONDS: Final = 60.0
DEATHS: Final = 3
SUSPECTS: Final = 1000
LASTED_SECONDS: Final = 60.0
"""A process that lived as long was well, and the next one need not wait."""


class _Ended(EmbedderUnavailable):
    """The process died of this request, or beside it."""


@dataclass(eq=False, slots=True)
class _Asked:
    wanted: Wanted
    answer: "asyncio.Future[array[float]]"


class Child:
    """See the module. ``command`` is the process; ``name`` is the model's, for the log.

    ``dims`` is how long its vectors are, 0 until it was loaded for the first time.
    """

    batch = 4
    """Texts of a document that are sent at once: 0.2 s of a core, which is what a question may have to wait. More are
    hardly faster on one core, and are filled up to the longest of them."""

    def __init__(self, command: Sequence[str | Path], name: str) -> None:
        self._command = command
        self._name = name
        self._waiting: tuple[deque[_Asked], deque[_Asked]] = (deque(), deque())  # questions, documents
        self._in_work: _Asked | None = None
        self._stir = asyncio.Event()
        self._is_loaded = asyncio.Event()
        self._deaths: OrderedDict[str, int] = OrderedDict()
        self._running: asyncio.Task[NoReturn] | None = None
        self._is_stopped = False
        self.dims = 0

    @property
    def ready(self) -> bool:
        """Return whether it answers."""
        return self._is_loaded.is_set()

    async def loaded(self) -> None:
        """Return once it answers."""
        await self._is_loaded.wait()

    def start(self) -> None:
        """Begin to load it. Returns at once."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End it, and leave nobody waiting."""
        self._is_stopped = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        self._dismiss(*self._waiting)

    async def vectors(self, texts: Sequence[str], *, first: bool) -> list[Vector]:
        """Return a vector for each text.

        Raises `EmbedderUnavailable`, for what is not ``first`` only while the model is being loaded at the beginning,
        and `Rejected` where a text cannot be read.
        """
        if len(texts) > 1 and any(text in self._deaths for text in texts):
            return [vector for text in texts for vector in await self.vectors([text], first=first)]
        try:
            values = await self._ask(Wanted(list(texts)), first=first)
        except _Ended:
            if first:
                raise
            await self._loaded_again()
            return await self.vectors(texts, first=first)
        if len(values) != self.dims * len(texts):
            raise EmbedderUnavailable("the embedding process gave another number of vectors than it was asked for")
        return [values[start : start + self.dims].tolist() for start in range(0, len(values), self.dims)]

    async def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """Return how well each text answers a question. Raises `EmbedderUnavailable` and `Rejected`."""
        return (await self._ask(Wanted(list(texts), question), first=True)).tolist()

    async def _ask(self, wanted: Wanted, *, first: bool) -> "array[float]":
        if any(self._deaths.get(text, 0) >= DEATHS for text in wanted.texts):
            raise Rejected(f"the embedding process died {DEATHS} times while it read this text")
        if not self.ready:
            raise EmbedderUnavailable("the embedding model is being loaded", retry_after=5)
        asked = _Asked(wanted, asyncio.get_running_loop().create_future())
        self._waiting[0 if first else 1].append(asked)
        self._stir.set()
        return await asked.answer

    async def _loaded_again(self) -> None:
        if self._is_stopped:
            raise EmbedderUnavailable("the embedding process was stopped")
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await self.loaded()
        except TimeoutError as error:
            raise EmbedderUnavailable("the embedding model does not load any more") from error

    # -- the process

    async def _run(self) -> NoReturn:
        """Keep a process running."""
        attempt, clock = 0, asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self._live()
            except (OSError, EOFError, TimeoutError, msgspec.DecodeError) as error:
                log.warning("embedding process ended", model=self._name, reason=str(error) or repr(error))
            attempt = 1 if clock() - began > LASTED_SECONDS else attempt + 1
            await asyncio.sleep(pause(attempt, first=0.5, longest=30.0))

    async def _live(self) -> NoReturn:
        """Start a process, and serve by it until it ends. Raises EOFError then, and what else ends it."""
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, cwd=PROJECT)
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                ready = msgspec.msgpack.decode(await _read(process), type=Ready)
            self.dims = ready.dims
            self._is_loaded.set()
            log.info("embedding model loaded", model=self._name, dims=ready.dims, window=ready.window)
            await self._serve(process)
        finally:
            self._is_loaded.clear()
            self._bury()
            await _end(process)

    async def _serve(self, process: Process) -> NoReturn:
        ended = asyncio.create_task(process.wait())
        ended.add_done_callback(lambda _: self._stir.set())
        try:
            while not ended.done():
                self._stir.clear()
                while (asked := self._next()) is not None:
                    self._in_work = asked
                    async with asyncio.timeout(WORK_SECONDS):
                        given = await _exchange(process, asked.wanted)
                    self._in_work = None
                    self._answer(asked, given)
                await self._stir.wait()
            raise EOFError(f"exit code {ended.result()}")
        finally:
            ended.cancel()

    def _next(self) -> _Asked | None:
        """Return what is to be asked next, without what nobody waits for any more."""
        for queue in self._waiting:
            while queue:
                if not (asked := queue.popleft()).answer.done():
                    return asked
        return None

    def _answer(self, asked: _Asked, given: Given) -> None:
        for text in asked.wanted.texts:
            self._deaths.pop(text, None)
        if asked.answer.done():
            return
        if given.error:
            asked.answer.set_exception(Rejected(f"the embedding model cannot read a text: {given.error}"))
        else:
            values = array("f")
            values.frombytes(given.values)
            asked.answer.set_result(values)

    def _bury(self) -> None:
        """Tell those who have asked that the process is gone. Documents that were not begun wait for the next one."""
        if (asked := self._in_work) is not None:
            self._in_work = None
            for text in asked.wanted.texts:
                self._deaths[text] = self._deaths.pop(text, 0) + 1
            while len(self._deaths) > SUSPECTS:
                self._deaths.popitem(last=False)
            self._dismiss(deque([asked]))
        self._dismiss(self._waiting[0])

    @staticmethod
    def _dismiss(*queues: deque[_Asked]) -> None:
        for queue in queues:
            while queue:
                if not (asked := queue.popleft()).answer.done():
                    asked.answer.set_exception(_Ended("the embedding process ended", retry_after=5))


def command_for(folder: Path, task: Task) -> list[str | Path]:
    """Return the command of the process that runs a model."""
    return [sys.executable, "-m", "adapters.embedding_process", folder.resolve(), task]


async def _exchange(process: Process, wanted: Wanted) -> Given:
    assert process.stdin is not None
    process.stdin.write(framed(wanted))
    await process.stdin.drain()
    return msgspec.msgpack.decode(await _read(process), type=Given)


async def _read(process: Process) -> bytes:
    """Return the next message of a process, without its length. Raises EOFError."""
    assert process.stdout is not None
    head = await process.stdout.readexactly(HEAD_BYTES)
    return await process.stdout.readexactly(int.from_bytes(head, "big"))


async def _end(process: Process) -> None:
    """Kill a process, and wait until it and its pipes are gone."""
    with suppress(ProcessLookupError):
        process.kill()
    with suppress(OSError):
        await process.communicate()
