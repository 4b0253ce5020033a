"""Several model servers as one: shares by weight, and an answer that outlives any of them."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from adapters.model_group import KEY_SECONDS, Member, ModelGroup, open_model_group
from config.settings import Settings
from domain.breaker import FIRST_SECONDS, OPENS_AFTER
from domain.errors import BadRequest, ChatError, KeyRefused, ModelBusy
from domain.generation import Delta, Generation
from domain.hearing import Hear, heard
from tests.support.clock import Clock
from tests.support.model_client import asking, read, text_of
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer


class FakeServer:
    """Says its name, or fails: ``error`` before its first token, ``breaks`` after it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: ChatError | None = None
        self.breaks = False
        self.asked = 0
        self.listed: Sequence[str] = (name,)

    async def stream(self, _: Generation, hear: Hear[Delta]) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        await heard(hear, [Delta(self.name)])
        if self.breaks:
            raise ModelBusy("scripted break")
        await heard(hear, [Delta(finish="stop")])

    async def models(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return list(self.listed)


class Group:
    """A group of fake servers a, b and c, of which a has so much weight."""

    def __init__(self, names: str = "abc", weight: float = 1.0) -> None:
        self.clock = Clock()
        self.servers = {name: FakeServer(name) for name in names}
        members = [
            Member(server, name=name, weight=weight if name == "a" else 1.0) for name, server in self.servers.items()
        ]
        self.group = ModelGroup(members, clock=self.clock)

    def __getitem__(self, name: str) -> FakeServer:
        return self.servers[name]

    async def ask(self) -> str:
        return text_of(await read(self.group, asking("hi")))


async def test_answers_are_shared_out_by_weight() -> None:
    group = Group(weight=3.0)

    said = Counter([await group.ask() for _ in range(50)])

    assert said == {"a": 30, "b": 10, "c": 10}


async def test_the_next_answer_goes_where_the_most_room_is() -> None:
    group = Group("ab")
    begun, end = asyncio.Event(), asyncio.Event()

    def hear(deltas: list[Delta]) -> Awaitable[object]:
        assert begun.is_set() or text_of(deltas) == "a"
        begun.set()
        return end.wait()

    running = asyncio.create_task(group.group.stream(asking("hi"), hear))
    await begun.wait()

    assert await group.ask() == "b"
    assert await group.ask() == "b"
    end.set()
    await running


async def test_an_attempt_that_fails_before_its_first_token_goes_to_another_server_unseen() -> None:
    group = Group()
    group["a"].error = ModelBusy("scripted")

    assert [await group.ask() for _ in range(4)] == ["b", "c", "b", "c"]
    assert group["a"].asked == 1  # it is doubtful, and the others are there


async def test_one_that_breaks_off_is_told_that_another_server_is_there_now() -> None:
    group = Group("ab")
    group["a"].breaks = True

    with pytest.raises(ModelBusy, match="scripted break") as caught:
        await group.ask()

    assert caught.value.retry_after == 0.0
    assert await group.ask() == "b"


async def test_alone_it_is_told_nothing_but_that_it_failed() -> None:
    group = Group("a")
    group["a"].error = ModelBusy("scripted", retry_after=0.0)

    with pytest.raises(ModelBusy) as caught:
        await group.ask()

    assert caught.value.retry_after is None


async def test_a_server_that_is_down_is_left_alone_and_found_again() -> None:
    group = Group("a")
    group["a"].error = ModelBusy("scripted")
    for _ in range(OPENS_AFTER + 20):
        with pytest.raises(ModelBusy):
            await group.ask()
    assert group["a"].asked == OPENS_AFTER

    group["a"].error = None
    group.clock.now += FIRST_SECONDS

    assert [await group.ask() for _ in range(3)] == ["a", "a", "a"]


async def test_who_is_asked_to_wait_is_told_how_long_and_so_is_everyone_after() -> None:
    group = Group("a")
    group["a"].error = ModelBusy("scripted", retry_after=30.0)
    with pytest.raises(ModelBusy) as first:
        await group.ask()
    group.clock.now += 10

    with pytest.raises(ModelBusy) as second:
        await group.ask()

    assert (first.value.retry_after, second.value.retry_after) == (30.0, 20.0)
    assert group["a"].asked == 1


async def test_a_request_at_fault_is_refused_once_and_says_nothing_against_the_server() -> None:
    group = Group("ab")
    group["a"].error = group["b"].error = BadRequest("scripted")
    for _ in range(3 * OPENS_AFTER):
        with pytest.raises(BadRequest):
            await group.ask()

    assert group["a"].asked + group["b"].asked == 3 * OPENS_AFTER


async def test_where_one_server_refuses_the_key_another_answers_and_where_all_do_the_key_is_named() -> None:
    group = Group("ab")
    group["a"].error = KeyRefused("check OPENAI_API_KEY")
    assert [await group.ask() for _ in range(3)] == ["b", "b", "b"]

    group = Group("ab")
    group["a"].error = group["b"].error = KeyRefused("check OPENAI_API_KEY")
    with pytest.raises(KeyRefused, match="OPENAI_API_KEY"):
        await group.ask()


async def test_where_one_refuses_the_key_and_the_other_is_only_busy_it_is_worth_another_try() -> None:
    for names in ("ab", "ba"):
        group = Group(names)
        group["a"].error, group["b"].error = ModelBusy("scripted 503"), KeyRefused("check OPENAI_API_KEY")
        for _ in range(3):
            with pytest.raises(ModelBusy):
                await group.ask()

        group["a"].error = None
        group.clock.now += FIRST_SECONDS

        assert await group.ask() == "a"


async def test_where_one_refuses_the_key_and_the_other_is_left_alone_the_key_is_not_blamed() -> None:
    group = Group("ba")
    group["b"].error = KeyRefused("check OPENAI_API_KEY")
    assert await group.ask() == "a"
    group.clock.now += KEY_SECONDS / 2
    group["a"].error = ModelBusy("scripted", retry_after=KEY_SECONDS)
    with pytest.raises(ModelBusy):
        await group.ask()

    group.clock.now += KEY_SECONDS / 2
    with pytest.raises(ModelBusy):
        await group.ask()

    assert (group["a"].asked, group["b"].asked) == (2, 2)


async def test_it_is_known_how_long_all_servers_are_left_alone() -> None:
    group = Group("ab")
    assert group.group.wait() == 0
    group["a"].error, group["b"].error = ModelBusy("busy", retry_after=30.0), ModelBusy("busy", retry_after=20.0)
    with pytest.raises(ModelBusy):
        await group.ask()
    group.clock.now += 5
    assert group.group.wait() == 15

    group.clock.now += 15
    assert group.group.wait() == 0


async def test_models_are_those_of_all_servers_that_are_there() -> None:
    group = Group()
    group["a"].listed, group["b"].listed = ["m", "n"], ["n", "o"]
    group["c"].error = ModelBusy("scripted")
    assert await group.group.models() == ["m", "n", "o"]

    group["a"].error, group["b"].error = KeyRefused("the key"), KeyRefused("the key")

    with pytest.raises(ModelBusy, match="scripted"):
        await group.group.models()


async def test_an_operator_sees_which_server_is_left_alone() -> None:
    def shown(state: str) -> float | None:
        return REGISTRY.get_sample_value("headrace_model_servers", {"server": "a", "state": state})

    group = Group("a")
    assert (shown("closed"), shown("open")) == (1, 0)

    group["a"].error = ModelBusy("scripted", retry_after=5.0)
    with pytest.raises(ModelBusy):
        await group.ask()

    assert (shown("closed"), shown("open")) == (0, 1)


@asynccontextmanager
async def two_servers() -> AsyncGenerator[tuple[ModelGroup, ModelServer, ModelServer], None]:
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(ModelServer()) for _ in range(2)]
        settings = Settings(model_servers=f"2*{one.base_url},{other.base_url}")
        yield await stack.enter_async_context(open_model_group(settings)), one, other


async def test_on_real_connections_an_answer_goes_on_at_another_server() -> None:
    question = "why? [tokens=20 pace=200 fault=reset after=5]"
    async with two_servers() as (group, one, other):
        before: list[Delta] = []
        with pytest.raises(ModelBusy) as caught:
            await read(group, asking(question), into=before)
        assert caught.value.retry_after == 0.0
        so_far = text_of(before)
        other._asked[question] = 1  # the fault is the first server's alone

        rest = await read(group, Generation("scripted", asking(question).messages, {}, so_far, 5))

        assert so_far + text_of(rest) == "".join(expected_answer(question))
        assert (one.stats.requests, other.stats.requests) == (1, 1)
