"""What a chunk of a model's stream costs a worker: our decoding beside the SDK's objects, on its two transports.

    python -m bench.model_decode

Once as one flood of 20,000 chunks, where decoding is nearly all there is; once as 50 streams of 50 tokens/s, as
in life, where each read brings one chunk and the transport costs most.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from adapters.model import Model
from adapters.model_transport import AiohttpTransport
from bench.machine import running
from domain.generation import Delta, Generation

Read = Callable[[str], Awaitable[int]]

FLOOD = 20_000
STREAMS, TOKENS = 50, 200
ROUNDS = 3


def ours(client: AsyncOpenAI) -> Read:
    """Read with our adapter."""
    model = Model(client, stall_seconds=60)

    async def read(question: str) -> int:
        generation = Generation("scripted", [{"role": "user", "content": question}])
        deltas: list[Delta] = []
        await model.stream(generation, deltas.extend)
        return len(deltas)

    return read


def sdk(client: AsyncOpenAI) -> Read:
    """Read as the SDK's documentation does."""

    async def read(question: str) -> int:
        stream = await client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": question}], stream=True
        )
        return sum([1 async for _ in stream])

    return read


@asynccontextmanager
async def readers(url: str) -> AsyncIterator[dict[str, Read]]:
    """Yield the four ways to read."""
    async with (
        AsyncOpenAI(
            base_url=url,
            api_key="none",
            http_client=DefaultAsyncHttpxClient(transport=AiohttpTransport(connections=100)),
        ) as aio,
        AsyncOpenAI(base_url=url, api_key="none", http_client=DefaultAsyncHttpxClient()) as httpx,
    ):
        yield {
            "ours on aiohttp": ours(aio),
            "ours on httpx": ours(httpx),
            "SDK on aiohttp": sdk(aio),
            "SDK on httpx": sdk(httpx),
        }


async def cost(read: Read, questions: list[str], tokens: int) -> float:
    """Return microseconds of CPU a token."""
    before = time.process_time()
    await asyncio.gather(*(read(question) for question in questions))
    return 1e6 * (time.process_time() - before) / tokens


async def main() -> None:
    """Run and print the best of some interleaved rounds: CPU time only ever gets longer by what else runs."""
    flood = [f"flood [tokens={FLOOD} pace=0]"]
    paced = [f"stream {number} [tokens={TOKENS} pace=50]" for number in range(STREAMS)]
    with running("model", "tests.support.model_server") as server:
        async with readers(server.url) as ways:
            for read in ways.values():
                await read("warm up [tokens=100 pace=0]")
            best = dict.fromkeys(ways, (float("inf"), float("inf")))
            for _ in range(ROUNDS):
                for name, read in ways.items():
                    now = await cost(read, flood, FLOOD), await cost(read, paced, STREAMS * TOKENS)
                    best[name] = min(best[name][0], now[0]), min(best[name][1], now[1])
    print("                     flood          50 streams")
    base = best["ours on aiohttp"]
    for name, (flooded, spread) in best.items():
        print(f"{name:16s} {flooded:7.2f} us {flooded / base[0]:5.1f}x {spread:7.1f} us {spread / base[1]:5.1f}x")


if __name__ == "__main__":
    asyncio.run(main())
