"""One model server, made to continue texts: whichever way it can, what comes is the rest of the answer and no more.

Which way is best (`domain.resume.Way`) depends on the server and on the model's chat template, so it is tried out
once for each model: the beginning of a well-known answer, and a look at what follows. That costs a request of a few
tokens. The model that most answers come from is tried out when the worker starts, any other beside its first answer,
so that nobody's first word is delayed. It does not wait for the first resumption, because those come in a burst, when
another worker has died, and an answer at a temperature that is begun anew soon departs from the text so far.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final, Protocol

import structlog

from config.settings import Resume
from domain.errors import BadRequest, ChatError, ModelBusy
from domain.generation import Delta, Generation
from domain.hearing import Enough, Hear, heard, then_enough
from domain.resume import Join, Way, messages_to_continue
from domain.tool_calls import ToolCalls

log = structlog.get_logger(__name__)

CONTINUE_FLAGS: Final = {"continue_final_message": True, "add_generation_prompt": False}
"""vLLM and SGLang continue a last message of role assistant only with these; llama.cpp does so without, and OpenAI
refuses what it does not know."""

PROBE_QUESTION: Final = "Count from one to twelve, in words, separated by commas."
PROBE_SO_FAR: Final = "one, two, three, four, five, six"
PROBE_NEXT: Final = ","
"""What follows. No message begins with a comma, so a server that says it has continued the text."""

PROBE_TOKENS: Final = 4
PROBE_SECONDS: Final = 30.0
PROBE_AGAIN_SECONDS: Final = 60.0
PROBE_PATIENCE: Final = 0.5
"""How long a resumption waits for a probe that is under way, before it goes on without."""

AT_START: Final = ""
"""Stands for the model that is tried out at the start until its name is known."""

BLANK: Final[Sequence[Way]] = ("instruct",)
"""White space is nothing to continue. The answer begins anew, behind it."""


class Server(Protocol):
    """What is needed of a model server; `adapters.model.Model` is one."""

    async def stream(self, generation: Generation, hear: Hear[Delta]) -> None:
        """Have ``hear`` take what the model says, as it comes; return at its end."""
        ...

    async def models(self) -> list[str]:
        """Return the ids of the models that it has."""
        ...


class Resuming:
    """See the module. ``settings``: `Settings.ways_to_resume`; ``name``: the server's in logs."""

    def __init__(
        self,
        server: Server,
        settings: Mapping[str, Resume],
        *,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = server.models
        self._server = server
        self._settings = settings
        self._name = name
        self._clock = clock
        self._ways: dict[str, Way] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._probe_at: dict[str, float] = {}
        self._refuse_flags: set[str] = set()  # models: of one gateway some need the flags, and others refuse them

    async def stream(self, generation: Generation, hear: Hear[Delta]) -> None:
        """Have ``hear`` take the rest of the answer; tool calls come whole, with the delta that ends the answer.

        Raises as `Model.stream` does.
        """
        calls, probed = ToolCalls(), False

        def whole(deltas: list[Delta]) -> Awaitable[object] | None:
            nonlocal probed
            if not probed:
                probed = True
                self._probe_soon(generation.model)
            for _, tools, finish, _ in deltas:
                if tools or finish:
                    deltas = with_whole_calls(deltas, calls)
                    break
            return hear(deltas) if deltas else None

        await (self._rest(generation, whole) if generation.so_far else self._server.stream(generation, whole))
        if tools := calls.whole():
            await heard(hear, [Delta(tools=tools)])

    async def _rest(self, generation: Generation, hear: Hear[Delta]) -> None:
        """Ask in one way after the other, until the server does not refuse it."""
        refused: BadRequest | None = None
        ways = await self._ways_to_try(generation.model) if generation.so_far.strip() else BLANK
        for way in ways:
            noting = _Noting(hear)
            try:
                return await self._continued(generation, way, noting)
            except BadRequest as error:
                if noting.begun:
                    raise
                refused = refused or error
        assert refused is not None
        raise refused

    async def _ways_to_try(self, model: str) -> Sequence[Way]:
        setting = self._setting(model)
        if setting != "auto":
            return (setting,)
        if model not in self._ways:
            self._probe_soon(model)
            if model in self._probes:
                await asyncio.wait((self._probes[model],), timeout=PROBE_PATIENCE)
        way = self._ways.get(model)
        return (way,) if way else ("perhaps", "instruct")

    async def _continued(self, generation: Generation, way: Way, hear: Hear[Delta]) -> None:
        """Have ``hear`` take what follows the text so far.

        A server that continues it counts the rest towards the limit alone. Others may repeat words of it, or all,
        so they get the whole limit, and the pieces that follow the text so far are counted here.
        """
        join, left = Join(generation.so_far, way), None
        messages = messages_to_continue(generation.messages, generation.so_far, way)
        options = dict(generation.options)
        if generation.limit is not None:
            left = max(1, generation.limit - generation.written)
            if way == "prefill":
                options, left = generation.with_room(left), None
        asked = replace(generation, messages=messages, options=options)

        def following(deltas: list[Delta]) -> Awaitable[object] | None:
            nonlocal left
            joined = [step for delta in deltas if any(step := through(join, delta))]
            if left is not None:
                joined, left = within(joined, left)
            pause = hear(joined) if joined else None
            return then_enough(pause) if left == 0 else pause

        try:
            await (self._ask(asked, following) if way != "instruct" else self._server.stream(asked, following))
        except Enough:
            if left != 0:
                raise
        else:
            if text := join.close():
                await heard(hear, [Delta(text)])

    async def _ask(self, generation: Generation, hear: Hear[Delta]) -> None:
        """Ask to continue the last message, without the flags where the model refuses them."""
        if generation.model not in self._refuse_flags:
            noting = _Noting(hear)
            try:
                return await self._server.stream(with_options(generation, CONTINUE_FLAGS), noting)
            except BadRequest:
                if noting.begun:
                    raise
        without = _Noting(hear)
        try:
            await self._server.stream(generation, without)
        finally:
            if without.begun:
                self._refuse_flags.add(generation.model)  # it refused the flags, and not the request

    # -- the probe

    def try_out(self, model: str) -> None:
        """Find out in the background which way is a model's; without a name, the first's that the server lists."""
        if "auto" in self._settings.values():
            self._keep(AT_START, self._try_out(model))

    async def _try_out(self, model: str) -> None:
        try:
            # Also where the name is known: a server that is not up yet is tried out beside its first answer.
            listed = await self.models()
        except ChatError as error:
            log.info("model server not tried out at the start", server=self._name, reason=str(error))
        else:
            if model := model or next(iter(listed), ""):
                self._probe_soon(model)

    def _setting(self, model: str) -> Resume:
        return self._settings.get(model, self._settings[""])

    def _probe_soon(self, model: str) -> None:
        """Find out in the background which way is this model's, if that is not known or being found out."""
        if self._setting(model) != "auto" or model in self._ways or model in self._probes:
            return
        if self._clock() >= self._probe_at.get(model, float("-inf")):
            self._keep(model, self._probe(model))

    def _keep(self, model: str, probe: Coroutine[Any, Any, None]) -> None:
        self._probes[model] = task = asyncio.create_task(probe)
        task.add_done_callback(lambda _: self._probes.pop(model, None))

    async def _probe(self, model: str) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                self._ways[model] = way = await self._way_of(model)
        except (ChatError, TimeoutError) as error:
            self._probe_at[model] = self._clock() + PROBE_AGAIN_SECONDS
            log.warning("model server not tried out", server=self._name, model=model, reason=str(error))
        else:
            log.info("model server tried out", server=self._name, model=model, resumes_by=way)

    async def _way_of(self, model: str) -> Way:
        messages = [{"role": "user", "content": PROBE_QUESTION}, {"role": "assistant", "content": PROBE_SO_FAR}]
        said: list[Delta] = []
        try:
            await self._ask(Generation(model, messages, {"max_tokens": PROBE_TOKENS, "temperature": 0}), said.extend)
        except BadRequest:
            return "instruct"  # for example: the last message must be of role user
        return "prefill" if "".join(delta.text for delta in said).startswith(PROBE_NEXT) else "instruct"

    async def close(self) -> None:
        """End probes that are under way."""
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)


@asynccontextmanager
async def open_resuming(
    server: Server, settings: Mapping[str, Resume], *, name: str = ""
) -> AsyncGenerator[Resuming, None]:
    """Make a server continue texts."""
    resuming = Resuming(server, settings, name=name)
    try:
        yield resuming
    finally:
        await resuming.close()


class _Noting:
    """Hands on what is heard. ``begun``: whether anything was."""

    __slots__ = ("begun", "hear")

    def __init__(self, hear: Hear[Delta]) -> None:
        self.hear = hear
        self.begun = False

    def __call__(self, deltas: list[Delta]) -> Awaitable[object] | None:
        self.begun = True
        return self.hear(deltas)


def with_options(generation: Generation, options: Mapping[str, Any]) -> Generation:
    """Return the generation with more options."""
    return replace(generation, options={**generation.options, **options})


def through(join: Join, delta: Delta) -> Delta:
    """Return the delta with that part of its text which follows the text so far."""
    text = join.push(delta.text) if delta.text else ""
    if delta.tools or delta.finish:  # no text comes after them
        text += join.close()
    return delta._replace(text=text)


def within(deltas: Sequence[Delta], left: int) -> tuple[list[Delta], int]:
    """Return the deltas up to so many pieces of text, ended there as by the limit, and how many pieces are left."""
    kept = []
    for delta in deltas:
        left -= bool(delta.text)
        kept.append(delta)
        if left == 0:
            if not delta.finish:
                kept.append(Delta(finish="length"))
            break
    return kept, left


def with_whole_calls(deltas: Sequence[Delta], calls: ToolCalls) -> list[Delta]:
    """Return the deltas without their pieces of tool calls, and with all calls where the answer ends."""
    whole = []
    for delta in deltas:
        if delta.tools:
            try:
                calls.take(delta.tools)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ModelBusy(f"the model server sent tool calls that cannot be read: {error!r}") from error
        step = delta._replace(tools=calls.whole() if delta.finish else "")
        if any(step):
            whole.append(step)
    return whole
