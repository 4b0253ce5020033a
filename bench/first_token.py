"""From the question to the first token, through the whole path beside a plain proxy, one question after the other.

    KAFKA_BOOTSTRAP_SERVERS=… python -m bench.first_token [--questions 200] [--beside 0,50] [--warm-up 60]

The model server answers at once, so this is what we add: the question into Kafka and out again, the claim, the
prompt, the request to the model, the first frame. ``beside`` so many streams are running on the same worker.
What the claim costs of it, is how long the first word waited for it: the model is asked meanwhile.
"""

import argparse
import asyncio
import re
from collections.abc import Sequence
from statistics import quantiles

from aiohttp import ClientSession

from bench.load import Load, Question, Reader, questions_for
from bench.machine import Place, described, kafka, running, worker
from bench.token_path import PACE, numbers, warm_up


async def time_to_first_token(question: Question) -> float:
    """Ask one question; return the milliseconds until its first token came."""
    reader = Reader(question)
    await reader.start()
    async with asyncio.timeout(30):
        await reader.ended.wait()
    if not reader.came:
        raise RuntimeError(f"no token came; the server said {reader.status.decode()}")
    return 1000 * (reader.came[0] - reader.asked_at)


async def compare(places: Sequence[Place], questions: int) -> dict[str, list[float]]:
    """Ask all places in turn; return the times of each."""
    texts = [f"question {number} [stamp=1 tokens=3 pace=0]" for number in range(questions)]
    asked = {place.name: await questions_for(place, texts) for place in places}
    times: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(questions):
        for name, each in asked.items():
            times[name].append(await time_to_first_token(each[number]))
    return times


def table(beside: int, times: dict[str, list[float]]) -> str:
    """Return the figures."""
    lines = []
    for name, taken in times.items():
        cuts = quantiles(taken, n=100)
        lines.append(f"{beside:6d}  {name:7s} {cuts[49]:8.2f} ms {cuts[98]:8.2f} ms")
    return "\n".join(lines)


def claim_wait(metrics: str) -> str:
    """Return how long first words waited for their claim, from a worker's /metrics."""
    found = re.findall(r'^headrace_claim_wait_seconds_bucket\{le="([^"]+)"\} (\S+)$', metrics, re.MULTILINE)
    buckets = [(float(bound), float(count)) for bound, count in found]
    whole = buckets[-1][1]
    low = before = 0.0
    for bound, count in buckets:
        if count >= whole / 2:
            # As Prometheus does: as if the waits lay evenly within their bucket.
            median = low + (bound - low) * (whole / 2 - before) / (count - before)
            return f"the claim's share of it: p50 {1000 * median:.2f} ms, over {whole:.0f} turns"
        low, before = bound, count
    return "no turn waited for a claim"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--questions", type=int, default=200)
    options.add_argument("--beside", type=numbers, default=[0, 50], help="how many streams run meanwhile, e.g. 0,50")
    options.add_argument("--route", choices=["native", "openai"], default="native", help="how the worker is asked")
    options.add_argument("--warm-up", type=float, default=60.0, help="seconds of load before the first figure")
    return options


async def main(arguments: argparse.Namespace) -> None:
    """Run and print."""
    bootstrap = kafka()
    with running("model", "tests.support.model_server") as model, running("proxy", "bench.proxy", model.url) as proxy:
        async with worker(bootstrap, model.url, native=arguments.route == "native") as tested:
            await warm_up(tested, arguments.warm_up)
            print(f"{described()}; route {arguments.route}, {arguments.questions} questions")
            print("beside  place    first p50   first p99", flush=True)
            for beside in arguments.beside:
                # Long enough for all questions; closed when they are done.
                load = Load(tested, beside, pace=PACE, seconds=600)
                await load.start()
                print(table(beside, await compare([proxy, tested], arguments.questions)), flush=True)
                load.close()
            async with ClientSession() as session, session.get(f"{tested.url.removesuffix('/v1')}/metrics") as answer:
                print(claim_wait(await answer.text()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(parser().parse_args()))
