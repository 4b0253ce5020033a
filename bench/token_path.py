"""Tokens through the whole path (shown only when Kafka has them) beside a plain proxy, in one interleaved run.

    KAFKA_BOOTSTRAP_SERVERS=… python -m bench.token_path [--streams 1,10,50,200] [--seconds 10] [--warm-up 60]

The worker is asked as its own page asks: a turn in a conversation, answered with its events; with ``--route openai``
by chat completions, as the proxy. A token's added time is from the model server's write to the reader's read. CPU is
that of the whole process over the measured seconds (all brokers' too, so let them serve nobody else), by the tokens
that came in them. A fresh JVM is three times slower than a warm one, which is what the warm-up is for.

Each round has a proxy of its own, because some proxies cost half as much again for all their life: those in which
glibc gives asyncio's read buffer of 256 KiB back at each read, and takes it again with two page faults.
"""

import argparse
import asyncio
import os
from dataclasses import dataclass
from math import isnan
from statistics import median
from time import monotonic

import psutil

from bench.load import Load
from bench.machine import Place, broker_pids, counter, cpu_seconds, described, kafka, page_faults, running, worker

PACE = 50.0
SETTLE = 1.0
TAIL = 0.5
"""Seconds after the last stream has begun before figures are taken, and what streams go on for afterwards."""


@dataclass(frozen=True, slots=True)
class Row:
    """One place under one load. Times in ms, CPU in microseconds a token, page faults a token.

    ``busy`` is the share of all cores that anything used, in percent: near 100, times tell nothing but that.
    """

    streams: int
    place: str
    p50: float
    p99: float
    cpu: float
    broker: float
    frame: float
    faults: float
    busy: float


async def measure(place: Place, brokers: list[int], streams: int, seconds: float) -> Row:
    """Return what it costs to serve so many streams."""
    load = Load(place, streams, pace=PACE, seconds=SETTLE + seconds + TAIL)
    through_kafka = place.name == "worker"
    await load.start()
    await asyncio.sleep(SETTLE)
    before = snapshot(place, brokers if through_kafka else [], through_kafka=through_kafka)
    psutil.cpu_percent()
    since = monotonic()
    await asyncio.sleep(seconds)
    until = monotonic()
    busy = psutil.cpu_percent()
    after = snapshot(place, brokers if through_kafka else [], through_kafka=through_kafka)
    await load.end()
    heard = load.heard(since, until)
    cpu, broker_cpu, tokens, frames, faults = (late - early for late, early in zip(after, before, strict=True))
    return Row(
        streams,
        place.name,
        heard.quantile(0.5),
        heard.quantile(0.99),
        1e6 * cpu / heard.tokens,
        1e6 * broker_cpu / heard.tokens,
        tokens / frames if frames else float("nan"),
        faults / heard.tokens,
        busy,
    )


def snapshot(place: Place, brokers: list[int], *, through_kafka: bool) -> tuple[float, float, float, float, float]:
    """Return CPU seconds of the place and of the brokers, the tokens and frames that it logged, and its page faults."""
    names = ("headrace_tokens_logged_total", "headrace_frames_total") if through_kafka else ()
    tokens, frames = [counter(place.url, name) for name in names] or (float("nan"), float("nan"))
    return cpu_seconds([place.pid]), cpu_seconds(brokers), tokens, frames, float(page_faults(place.pid))


async def warm_up(place: Place, seconds: float) -> None:
    """Let the broker's JVM compile what it will need."""
    load = Load(place, 50, pace=PACE, seconds=seconds)
    await load.start()
    await load.end(within=seconds + 30)


async def compare(model: str, tested: Place, brokers: list[int], arguments: argparse.Namespace) -> list[Row]:
    """Measure a proxy and the worker under all loads, in turn, several times; return the medians."""
    rows = []
    for streams in arguments.streams:
        rounds: list[list[Row]] = []
        for number in range(arguments.rounds):
            with running("proxy", "bench.proxy", model) as proxy:
                # The order turns round each time, so that a machine that slows down or heats up favours nobody.
                order = [proxy, tested] if number % 2 == 0 else [tested, proxy]
                rounds.append([await measure(place, brokers, streams, arguments.seconds) for place in order])
        rows += [middle([row for turn in rounds for row in turn if row.place == name]) for name in ("proxy", "worker")]
    return rows


def middle(rows: list[Row]) -> Row:
    """Return the median of each figure."""
    fields = ("p50", "p99", "cpu", "broker", "frame", "faults", "busy")
    return Row(rows[0].streams, rows[0].place, *(median(getattr(row, name) for row in rows) for name in fields))


def table(rows: list[Row]) -> str:
    """Return the figures, and those of the worker as ratios to the proxy's."""
    titles = ("added p50", "added p99", "CPU/token", "to proxy", "broker/token", "tokens/frame", "faults/token", "busy")
    lines = ["streams  place  " + "".join(f"{title:>14s}" for title in titles)]
    proxies = {row.streams: row for row in rows if row.place == "proxy"}
    for row in rows:
        ratio = row.cpu / proxies[row.streams].cpu if proxies[row.streams].cpu else float("nan")
        lines.append(
            f"{row.streams:7d}  {row.place:7s}{cell(row.p50, 'ms', 2)}{cell(row.p99, 'ms', 2)}{cell(row.cpu, 'us', 1)}"
            f"{cell(ratio, 'x', 2)}{cell(row.broker, 'us', 1)}{cell(row.frame, '', 1)}"
            f"{cell(row.faults, '', 2)}{cell(row.busy, '%', 0)}"
        )
    return "\n".join(lines)


def cell(value: float, unit: str, digits: int) -> str:
    """Return a figure as wide as its column's title, "-" for one that there is not."""
    return f"{'-' if isnan(value) else f'{value:.{digits}f} {unit}':>14s}"


def numbers(text: str) -> list[int]:
    """Return the numbers of a list such as 1,10,50."""
    return [int(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--streams", type=numbers, default=[1, 10, 50, 200], help="how many at once, e.g. 1,50")
    options.add_argument("--route", choices=["native", "openai"], default="native", help="how the worker is asked")
    options.add_argument("--seconds", type=float, default=10.0, help="measured, for each place, load and round")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--warm-up", type=float, default=60.0, help="seconds of load before the first figure")
    return options


async def main(arguments: argparse.Namespace) -> None:
    """Run and print."""
    bootstrap = kafka()
    with running("model", "tests.support.model_server") as model:
        async with worker(bootstrap, model.url, native=arguments.route == "native") as tested:
            await warm_up(tested, arguments.warm_up)
            brokers = await asyncio.to_thread(broker_pids, bootstrap)
            rows = await compare(model.url, tested, brokers, arguments)
    print(
        f"{described()}; route {arguments.route}, {PACE:g} tokens/s a stream, {arguments.rounds} rounds of"
        f" {arguments.seconds:g} s, {os.environ.get('HEADRACE_REPLICATION', '1')} copies of each partition"
    )
    print(table(rows))


if __name__ == "__main__":
    asyncio.run(main(parser().parse_args()))
