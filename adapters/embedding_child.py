"""A model in a process of its own (`adapters.embedding_process`): kept running, asked in order.

Questions and documents have a lane each, because the process answers them beside one another: no question waits for a
document. On each lane one request is under way at a time, and what somebody no longer waits for is not asked.

The process is started again when it or its fork for documents dies. What a document was asked meanwhile is asked again,
each text alone; a text in whose work it died three times is refused from then on, since it would kill every process
that comes.
"""

import asyncio
import socket
import sys
from array import array
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
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
SPARE_SECONDS: Final = 1800.0
"""How long a batch of documents may take: on a machine with nothing to spare, idle work gets a thousandth of a core."""

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


@dataclass(eq=False, slots=True)
class _Lane:
    """Requests of one kind, and how many seconds one of them may take."""

    patience: float
    waiting: deque[_Asked] = field(default_factory=deque)
    in_work: _Asked | None = None
    stir: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, asked: _Asked) -> None:
        self.waiting.append(asked)
        self.stir.set()

    def next(self) -> _Asked | None:
        """Return what is to be asked next, without what nobody waits for any more."""
        while self.waiting:
            if not (asked := self.waiting.popleft()).answer.done():
                return asked
        return None


class Child:
    """See the module. ``command`` is the process; ``name`` is the model's, for the log.

    ``dims`` is how long its vectors are, 0 until it was loaded for the first time.
    """

    batch = 4
    """Texts of a document that are sent at once: 0.2 s of a core. More are hardly faster on one core, and are filled up
    to the longest of them."""

    def __init__(self, command: Sequence[str | Path], name: str) -> None:
        self._command = command
        self._name = name
        self._questions = _Lane(WORK_SECONDS)
        self._documents = _Lane(SPARE_SECONDS)
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
        _dismiss([*self._questions.waiting, *self._documents.waiting])

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
        (self._questions if first else self._documents).put(asked)
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
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        with closing(writer):
            with theirs:
                command, given = [*self._command, str(theirs.fileno())], [theirs.fileno()]
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, cwd=PROJECT, pass_fds=given
                )
            try:
                await self._load(process, reader)
                await self._serve(process, reader, writer)
            finally:
                self._is_loaded.clear()
                self._bury()
                await _end(process)

    async def _load(self, process: Process, documents: StreamReader) -> None:
        """Wait until the model is loaded."""
        assert process.stdout is not None
        async with asyncio.timeout(LOAD_SECONDS):
            ready = msgspec.msgpack.decode(await _read(process.stdout), type=Ready)
            await _read(documents)  # the fork says the same
        self.dims = ready.dims
        self._is_loaded.set()
        log.info("embedding model loaded", model=self._name, dims=ready.dims, window=ready.window)

    async def _serve(self, process: Process, reader: StreamReader, writer: StreamWriter) -> NoReturn:
        """Work on both lanes. Raises what ended one of them, and EOFError where the process ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        ended = asyncio.create_task(process.wait())
        questions = asyncio.create_task(self._work(self._questions, process.stdout, process.stdin))
        documents = asyncio.create_task(self._work(self._documents, reader, writer))
        tasks = (ended, questions, documents)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # What the process died of is what it was asked. The fork for documents is another one.
            self._blame(self._documents if documents.done() else self._questions)
            for work in (questions, documents):
                if work.done():
                    work.result()
            raise EOFError(f"exit code {ended.result()}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, lane: _Lane, reader: StreamReader, writer: StreamWriter) -> NoReturn:
        """Ask one thing after the other."""
        while True:
            lane.stir.clear()
            while (asked := lane.next()) is not None:
                lane.in_work = asked
                async with asyncio.timeout(lane.patience):
                    writer.write(framed(asked.wanted))
                    await writer.drain()
                    given = msgspec.msgpack.decode(await _read(reader), type=Given)
                lane.in_work = None
                self._answer(asked, given)
            await lane.stir.wait()

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

    def _blame(self, lane: _Lane) -> None:
        """Note in whose work the process ended."""
        for text in lane.in_work.wanted.texts if lane.in_work is not None else ():
            self._deaths[text] = self._deaths.pop(text, 0) + 1
        while len(self._deaths) > SUSPECTS:
            self._deaths.popitem(last=False)

    def _bury(self) -> None:
        """Tell those who have asked that the process is gone. Documents that were not begun wait for the next one."""
        for lane in (self._questions, self._documents):
            if lane.in_work is not None:
                _dismiss([lane.in_work])
                lane.in_work = None
        _dismiss(self._questions.waiting)
        self._questions.waiting.clear()


def _dismiss(those: Iterable[_Asked]) -> None:
    for asked in those:
        if not asked.answer.done():
            asked.answer.set_exception(_Ended("the embedding process ended", retry_after=5))


def command_for(folder: Path, task: Task) -> list[str | Path]:
    """Return the command of the process that runs a model."""
    return [sys.executable, "-m", "adapters.embedding_process", folder.resolve(), task]


async def _read(reader: StreamReader) -> bytes:
    """Return the next message, without its length. Raises EOFError."""
    head = await reader.readexactly(HEAD_BYTES)
    return await reader.readexactly(int.from_bytes(head, "big"))


async def _end(process: Process) -> None:
    """Kill a process and its fork, and wait until it and its pipes are gone."""
    with suppress(ProcessLookupError):
        process.kill()
    with suppress(OSError):
        await process.communicate()
