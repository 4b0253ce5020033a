"""The model servers as one: each answer goes to a server that is well, and from one that fails to the next.

All servers of a group serve the same models under the same key. A circuit breaker for each (`domain.breaker`) keeps
requests away from what fails. An attempt that fails before its first token goes to another server at once, unseen;
one that breaks off later raises `ModelBusy`, because only who asked knows what of it counts, and the next attempt
finds another server first.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import get_args
from urllib.parse import urlsplit

import structlog

from adapters.model import open_model
from adapters.resuming import Server, open_resuming
from adapters.token_counts import TokenCounts, Tokenize
from config import metrics
from config.settings import Settings
from domain.breaker import Breaker, State
from domain.errors import BadRequest, ChatError, KeyRefused, ModelBusy
from domain.generation import Delta, Generation
from domain.hearing import Hear

log = structlog.get_logger(__name__)

KEY_SECONDS = 60.0
"""How long a server is left alone that refuses the key, where another one takes it."""


class Member:
    """One server of the group: its share, its answers at this moment, and its health."""

    def __init__(self, server: Server, *, name: str, weight: float) -> None:
        self.server = server
        self.name = name
        self.weight = weight
        self.active = 0
        self.asked = 0
        self.breaker = Breaker()
        self.shown: State = "closed"


class Asking:
    """One request to one server. ``latest``: what it said last, and so whether it has begun."""

    __slots__ = ("hear", "latest", "member")

    def __init__(self, member: Member, hear: Hear[Delta]) -> None:
        self.member = member
        self.hear = hear
        self.latest: list[Delta] = []


class ModelGroup:
    """See the module. `open_model_group` makes it."""

    def __init__(
        self,
        members: Sequence[Member],
        *,
        counts: TokenCounts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = counts or TokenCounts()
        self._members = members
        self._clock = clock
        for member in members:
            self._show(member, "closed")

    async def stream(self, generation: Generation, hear: Hear[Delta]) -> None:
        """Have ``hear`` take the answer, or the rest of it, from the first server that has it; see `Resuming.stream`.

        Raises `ModelBusy` when all servers failed or are left alone for now. Its ``retry_after`` is 0 where another
        server is there to go on, and the seconds until one may be asked where none is. `KeyRefused` is raised only
        where every server refuses the key.
        """
        failed: ChatError | None = None
        tried: list[Member] = []
        while (member := self._choose(tried)) is not None:
            tried.append(member)
            asking = Asking(member, hear)
            try:
                await self._ask(asking, generation)
            except ModelBusy as error:
                if asking.latest:
                    raise ModelBusy(str(error), retry_after=self._retry_after([member])) from error
                failed = error
            except KeyRefused as error:
                failed = failed or error
            else:
                return
        if isinstance(failed, KeyRefused) and len(tried) == len(self._members):
            raise failed
        why = failed or "all model servers are left alone for a moment, after failures"
        raise ModelBusy(str(why), retry_after=self._retry_after(tried)) from failed

    def wait(self) -> float:
        """Return the seconds until a server may be asked, 0 if one may be now."""
        now = self._clock()
        return min(member.breaker.wait(now) for member in self._members)

    async def models(self) -> list[str]:
        """Return the ids of the models that the servers list, each once. Raises if none of them has a list."""
        listed: dict[str, None] = {}
        failed: ChatError | None = None
        known = False
        for member in self._members:
            try:
                listed |= dict.fromkeys(await member.server.models())
                known = True
            except ChatError as error:
                # What may pass tells more than what will not: with a refused key, another server can still come back.
                failed = error if failed is None or isinstance(error, ModelBusy) else failed
        if failed is not None and not known:
            raise failed
        return list(listed)

    def _choose(self, tried: Collection[Member]) -> Member | None:
        """Return whom to ask: of those that may be, one that did not just fail, with the most room for its weight."""
        now = self._clock()
        able = [member for member in self._members if member not in tried and member.breaker.admits(now)]
        return min(able, key=lambda member: self._rank(member, now), default=None)

    @staticmethod
    def _rank(member: Member, now: float) -> tuple[bool, float, float]:
        return (member.breaker.doubtful(now), member.active / member.weight, member.asked / member.weight)

    def _retry_after(self, failed: Collection[Member]) -> float | None:
        """Return when to try again; None where only experience tells."""
        now = self._clock()
        if self._choose(failed) is not None:
            return 0.0
        waits = [member.breaker.wait(now) for member in self._members if member.breaker.state(now) == "open"]
        return min(waits) if len(waits) == len(self._members) else None

    async def _ask(self, asking: Asking, generation: Generation) -> None:
        """Ask one server, and learn from what becomes of it."""
        member = asking.member
        breaker = member.breaker
        breaker.asked(self._clock())
        self._note(member)
        member.asked += 1
        member.active += 1

        def hear(deltas: list[Delta]) -> Awaitable[object] | None:
            if not asking.latest:
                breaker.answered()
                self._note(member)
            asking.latest = deltas
            return asking.hear(deltas)

        try:
            await member.server.stream(generation, hear)
            breaker.completed()
            if asking.latest and (usage := asking.latest[-1].usage) is not None:
                self.counts.learn(generation, usage.input_tokens)
        except KeyRefused:
            breaker.failed(self._clock(), retry_after=KEY_SECONDS if len(self._members) > 1 else None)
            raise
        except BadRequest:  # the request is at fault, and the server well
            breaker.completed()
            raise
        except ModelBusy as error:
            breaker.failed(self._clock(), retry_after=error.retry_after)
            raise
        finally:
            member.active -= 1
            self._note(member)

    def _note(self, member: Member) -> None:
        """Log and show a change of a server's state."""
        state = member.breaker.state(self._clock())
        if state != member.shown:
            wait = round(member.breaker.wait(self._clock()), 1)
            log.warning("model server's state changed", server=member.name, state=state, seconds=wait)
            self._show(member, state)

    @staticmethod
    def _show(member: Member, state: State) -> None:
        member.shown = state
        for each in get_args(State):
            metrics.model_servers.labels(member.name, each).set(each == state)


@asynccontextmanager
async def open_model_group(
    settings: Settings, *, try_out: bool = False, clock: Callable[[], float] = time.monotonic
) -> AsyncGenerator[ModelGroup, None]:
    """Open the model servers that the settings name. Connects to nothing until something is asked.

    ``try_out``: find out in the background how each server continues texts of the model that most answers come from.
    """
    async with AsyncExitStack() as stack:
        members = []
        tokenize: list[Tokenize] = []
        for url, weight in settings.model_urls:
            one = settings.model_copy(update={"openai_base_url": url})
            model = await stack.enter_async_context(open_model(one, clock=clock))
            tokenize.append(model.tokenize)
            name = urlsplit(url).netloc.rpartition("@")[2]
            resuming = await stack.enter_async_context(open_resuming(model, settings.ways_to_resume, name=name))
            if try_out:
                resuming.try_out(settings.model)
            members.append(Member(resuming, name=name, weight=weight))
        yield ModelGroup(members, counts=TokenCounts(tokenize, clock=clock), clock=clock)
