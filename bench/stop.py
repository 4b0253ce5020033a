"""How soon a stop shows, asked of a worker that does not write the answer: from the request to `turn.stopped`.

    KAFKA_BOOTSTRAP_SERVERS=… python -m bench.stop [--stops 50] [--warm-up 20]

Two workers share the work. The stop goes to the one that does not own the conversation, whose reader also waits there,
so the way is the longest that there is: control into Kafka, to the owner, the end into Kafka, to the other worker's
tail. Three states of the answer: *running* at 50 tokens a second, *silent* (the model has taken the prompt and says
nothing), *queued* behind another one. What the model still writes after a stop was shown is paid for in vain.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from time import monotonic

import aiohttp

from bench.machine import Place, described, kafka, running, workers
from bench.token_path import warm_up
from streams.topics import partition_of
from tests.support.chat_client import ChatClient, SeenEvent

PARTITIONS = 8
QUESTIONS = {
    "running": "an answer nobody needs [tokens=100000]",
    "silent": "an answer that does not come [wait=600]",
    "queued": "an answer after the other [tokens=100000]",
}
SETTLE_SECONDS = 0.2
"""So long the model may need to notice that its client has left."""


@dataclass
class Figures:
    """Milliseconds until a stop was shown, and what the model did after it."""

    shown: list[float] = field(default_factory=list)
    cancelled: int = 0
    paid: list[int] = field(default_factory=list)

    def line(self, state: str) -> str:
        """Return the figures of one state of answers."""
        cuts = sorted(self.shown)
        p95 = cuts[min(int(0.95 * len(cuts)), len(cuts) - 1)]
        return (
            f"{state:8s} {len(cuts):5d} {median(cuts):7.1f} ms {p95:7.1f} ms {cuts[-1]:7.1f} ms"
            f" {self.cancelled:6d} {median(self.paid):9g} {max(self.paid):6d}"
        )


class Cluster:
    """Two workers and the model that they ask."""

    def __init__(self, session: aiohttp.ClientSession, model: Place, places: Sequence[Place]) -> None:
        self._session = session
        self._model_url = model.url.removesuffix("/v1")
        self._clients = [ChatClient(session, place.url.removesuffix("/v1")) for place in places]

    async def shared(self) -> None:
        """Return when every partition has its owner, and each worker owns some."""
        async with asyncio.timeout(60):
            owned = await self._owned()
            while sum(map(len, owned)) != PARTITIONS or not all(owned):
                await asyncio.sleep(0.1)
                owned = await self._owned()

    async def _owned(self) -> list[set[int]]:
        found = []
        for client in self._clients:
            async with self._session.get(f"{client.urls[0]}/readyz") as answer:
                found.append(set((await answer.json()).get("partitions", ())))
        return found

    async def stats(self) -> dict[str, int]:
        """Return what the model has done so far."""
        async with self._session.get(f"{self._model_url}/stats") as answer:
            found: dict[str, int] = await answer.json()
            return found

    async def stop_once(self, state: str, figures: Figures) -> None:
        """Have a question answered up to this state, and stop it."""
        conversation = await self._clients[0].converse()
        partition = partition_of(conversation, PARTITIONS)
        stranger = next(
            client for client, owned in zip(self._clients, await self._owned(), strict=True) if partition not in owned
        )
        async with self._ahead(stranger, conversation, state):
            before = await self.stats()
            turn = await stranger.ask(conversation, QUESTIONS[state])
            async with aclosing(stranger.events(turn)) as events:
                await self._until(state, events, before)
                asked_at = monotonic()
                await stranger.call("POST", f"/v1/turns/{turn}/stop")
                async for event in events:
                    if event.name == "turn.stopped":
                        figures.shown.append(1000 * (monotonic() - asked_at))
            shown = await self.stats()
            await asyncio.sleep(SETTLE_SECONDS)
            settled = await self.stats()
        figures.cancelled += settled["cancelled"] - before["cancelled"]
        figures.paid.append(settled["tokens"] - shown["tokens"] if state == "running" else 0)

    @asynccontextmanager
    async def _ahead(self, client: ChatClient, conversation: str, state: str) -> AsyncIterator[None]:
        """For a question that is to be queued, have another one answered before it."""
        if state != "queued":
            yield
            return
        first = await client.ask(conversation, QUESTIONS["silent"])
        yield
        await client.call("POST", f"/v1/turns/{first}/stop")
        await client.read(first)

    async def _until(self, state: str, events: AsyncIterator[SeenEvent], before: dict[str, int]) -> None:
        if state == "running":
            async for event in events:
                if event.id == 10:
                    return
        if state == "silent":
            now = before
            while now["requests"] == before["requests"]:
                await asyncio.sleep(0.01)
                now = await self.stats()


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--stops", type=int, default=50, help="of each state")
    options.add_argument("--warm-up", type=float, default=20.0, help="seconds of load before the first figure")
    return options


async def main(arguments: argparse.Namespace) -> None:
    """Run and print."""
    bootstrap = kafka()
    with running("model", "tests.support.model_server") as model:
        async with workers(bootstrap, model.url, 2) as places, aiohttp.ClientSession() as session:
            cluster = Cluster(session, model, places)
            await cluster.shared()
            await warm_up(places[0], arguments.warm_up)
            print(f"{described()}; stops asked of the worker that does not answer")
            print("state    stops        p50        p95        max  cancelled  paid p50    max", flush=True)
            for state in QUESTIONS:
                figures = Figures()
                for _ in range(arguments.stops):
                    await cluster.stop_once(state, figures)
                print(figures.line(state), flush=True)


if __name__ == "__main__":
    asyncio.run(main(parser().parse_args()))
