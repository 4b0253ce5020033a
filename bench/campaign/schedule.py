"""What is going to happen, before anything does: which fault when, and who asks what. Pure, and the same for a seed.

Two lanes run side by side. In the first, faults of processes, brokers, networks, clocks and disks follow one another,
each given the time to recover before the next: that is what the promise covers. In the second, faults of the model and
of clients come at any time, also in the middle of the others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

Lane = Literal["machines", "talk"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. ``share`` is how often it comes in one round of its lane.

    ``takes``: seconds until the next of its lane may come. ``reach``: a silence that begins within so many seconds
    after the fault is counted as its doing; what comes later is put down to the return to normal.
    ``lasts``: from and to how many seconds it goes on before it is healed.
    """

    name: str
    lane: Lane
    share: int
    takes: float
    reach: float
    lasts: tuple[float, float] = (0.0, 0.0)


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("worker SIGKILL", "machines", 4, 9, 0.5),
        Kind("host lost", "machines", 3, 12, 0.5, (3, 4)),
        Kind("worker SIGTERM", "machines", 3, 9, 3),
        Kind("worker frozen 1 s", "machines", 2, 5, 1.5, (1, 1)),
        Kind("worker frozen 8 s", "machines", 1, 16, 9, (8, 8)),
        Kind("worker added", "machines", 1, 10, 9),
        Kind("worker removed", "machines", 0, 8, 3),  # follows each that was added
        Kind("broker killed: leader", "machines", 1, 24, 7, (5, 6)),
        Kind("broker killed: coordinator", "machines", 1, 24, 7, (5, 6)),
        Kind("broker killed: controller", "machines", 1, 24, 7, (5, 6)),
        Kind("worker to Kafka: latency", "machines", 1, 7, 5, (4, 4)),
        Kind("worker to Kafka: cut", "machines", 1, 9, 5, (2, 4)),
        Kind("worker to Kafka: half-open", "machines", 1, 10, 6, (3, 5)),
        Kind("worker to Kafka: slow", "machines", 1, 7, 5, (4, 4)),
        Kind("worker to model: latency", "machines", 1, 5, 4, (3, 3)),
        Kind("worker to model: cut", "machines", 1, 5, 4, (2, 3)),
        Kind("worker to model: half-open", "machines", 1, 7, 6, (3, 5)),
        Kind("worker to model: slow", "machines", 1, 5, 4, (3, 3)),
        Kind("clock jump", "machines", 1, 5, 4, (3, 3)),
        Kind("disk full", "machines", 1, 14, 8, (4, 6)),
        Kind("model 429", "talk", 1, 18, 0),
        Kind("model 500", "talk", 1, 18, 0),
        Kind("model refuses", "talk", 1, 18, 0),
        Kind("model resets before a token", "talk", 1, 18, 0),
        Kind("model resets after a token", "talk", 2, 18, 0),
        Kind("model stalls", "talk", 1, 18, 0),
        Kind("model ends without end mark", "talk", 1, 18, 0),
        Kind("model sends a broken chunk", "talk", 1, 18, 0),
        Kind("model sends an error", "talk", 1, 18, 0),
        Kind("clients dropped", "talk", 2, 18, 1),
    )
}

# What a question carries so that the model fails over it; `tests.support.scripted_answer` has the words.
MODEL_FAULTS: Final[Mapping[str, str]] = {
    "model 429": "fault=429 retry_after=1",
    "model 500": "fault=500 times=2",
    "model refuses": "fault=refuse",
    "model resets before a token": "fault=reset after=0",
    "model resets after a token": "fault=reset after=7 times=2",
    "model stalls": "fault=stall after=5",
    "model ends without end mark": "fault=end after=9",
    "model sends a broken chunk": "fault=malformed after=6",
    "model sends an error": "fault=error after=8",
}

# How a fault's note begins that could not be done where the campaign runs.
NOT_DONE: Final = "nobody: "

SHORT: Final = (
    "worker SIGKILL",
    "host lost",
    "worker SIGTERM",
    "worker frozen 8 s",
    "broker killed: leader",
    "worker to Kafka: cut",
    "worker to model: half-open",
    "model resets after a token",
    "model stalls",
    "clients dropped",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. ``at``: seconds after the campaign's begin. ``target``: a number to choose the victim by."""

    number: int
    at: float
    kind: str
    target: int
    lasts: float


def schedule(seed: int, count: int, *, only: Iterable[str] = ()) -> list[Fault]:
    """Return so many faults in the order of their times; of the kinds whose names begin with one of ``only``."""
    random = Random(seed)  # noqa: S311 - it has to be the same again
    wanted = [kind for kind in KINDS.values() if not tuple(only) or kind.name.startswith(tuple(only))]
    if not wanted:
        raise ValueError(f"no fault is called {', '.join(only)}; there are {', '.join(KINDS)}")
    talk = [kind for kind in wanted if kind.lane == "talk" and kind.share]
    machines = [kind for kind in wanted if kind.lane == "machines" and kind.share]
    of_talk = (count // 3 if machines else count) if talk else 0
    return _timed(random, _drawn(random, machines, count - of_talk), _drawn(random, talk, of_talk))


def short_schedule(seed: int) -> list[Fault]:
    """Return the ten faults that every change has to survive, in an order that the seed gives."""
    random = Random(seed)  # noqa: S311 - it has to be the same again
    kinds = [KINDS[name] for name in random.sample(SHORT, len(SHORT))]
    machines, talk = ([kind for kind in kinds if kind.lane == lane] for lane in ("machines", "talk"))
    return _timed(random, machines, talk)


def _timed(random: Random, *lanes: list[Kind]) -> list[Fault]:
    """Return the faults of these lanes, each lane's one after the other."""
    times: list[tuple[float, Kind]] = []
    for lane in lanes:
        at = 0.0
        for kind in lane:
            times.append((at, kind))
            at += kind.takes * random.uniform(0.9, 1.1)
    return [
        Fault(number, round(at, 2), kind.name, random.randrange(1 << 16), round(random.uniform(*kind.lasts), 2))
        for number, (at, kind) in enumerate(sorted(times, key=lambda fault: fault[0]))
    ]


def _drawn(random: Random, kinds: list[Kind], count: int) -> list[Kind]:
    """Return so many kinds: round after round, in each of which every kind has its share."""
    drawn: list[Kind] = []
    while kinds and len(drawn) < count:
        deck = [kind for kind in kinds for _ in range(kind.share)]
        random.shuffle(deck)
        for kind in deck:
            drawn += [kind, KINDS["worker removed"]] if kind.name == "worker added" else [kind]
    return drawn[:count]


def length(faults: Iterable[Fault]) -> float:
    """Return after how many seconds the last fault is over, if nothing is late."""
    return max((fault.at + KINDS[fault.kind].takes for fault in faults), default=0.0)


Reading = Literal["steady", "drops", "late", "pauses"]


@dataclass(frozen=True, slots=True)
class Errand:
    """What one client does: ask in a conversation, read in its way, perhaps stop, ask again, or repeat its request.

    ``keyed``: the request carries an Idempotency-Key. ``stop_after``: stop the turn at this event, -1 for never.
    """

    number: int
    tenant: int
    slot: int
    tokens: int
    pace: int
    reading: Reading
    keyed: bool
    repeats: bool
    regenerates: bool
    stop_after: int
    drop_after: tuple[int, ...]


def errand(seed: int, number: int, *, slots: int, tenants: int) -> Errand:
    """Return what the client of this number does."""
    random = Random(seed * 1_000_003 + number)  # noqa: S311 - it has to be the same again
    slot = random.randrange(slots)
    tokens = random.randint(20, 40)
    pace = random.choice((20, 30, 40, 50))
    reading = random.choices(("steady", "drops", "late", "pauses"), (70, 16, 7, 7))[0]
    keyed = random.random() < 0.75
    deed = random.random()
    drops = sorted(random.randrange(1, tokens) for _ in range(random.randint(1, 3))) if reading == "drops" else []
    return Errand(
        number=number,
        tenant=slot % tenants,
        slot=slot,
        tokens=tokens,
        pace=pace,
        reading=reading,  # type: ignore[arg-type] # what was drawn from
        keyed=keyed,
        repeats=keyed and deed < 0.1,
        regenerates=0.1 <= deed < 0.14,
        stop_after=random.randrange(2, tokens // 2) if 0.14 <= deed < 0.19 else -1,
        drop_after=tuple(drops),
    )
