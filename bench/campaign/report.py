"""The report of a campaign: as lines for a terminal, as JSON, and as the page docs/reliability.md.

Silence is taken from steady readers (those that do not leave on purpose). It is a wait for the next word, or for the
end, less the model's own pace, if that leaves more than 0.3 s; of a turn's gaps in one row, the longest. The wait for
the first word begins when the question is accepted; where another turn of the conversation is open then, with the
turn's own begin. A gap belongs to the fault that it overlaps and begins not later than the kind's ``reach`` after; a
later one, until everything is as it was, to the row "return to normal"; one without any fault to "no fault". A turn
whose model was made to fail has its gaps in that row, but for those that would belong to a machine's fault: whose they
are cannot be told, and they are in none. What a reader needs to reconnect is in it.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.campaign.clients import Turn
from bench.campaign.schedule import KINDS, NOT_DONE, Fault
from bench.campaign.verify import Finding, Verdict

GOALS: Final = {"worker SIGKILL": 1.5, "host lost": 3.0, "worker SIGTERM": 1.5, "broker killed": 6.0}
FULL_FAULTS: Final = 300
SMALL_SLACK: Final = 3.0
"""How often a goal's time a campaign of fewer faults may take: a kind comes once or twice, and befalls a few turns."""

NORMAL: Final = "return to normal"
NO_FAULT: Final = "no fault"
IN_LOGS: Final = {
    "dead members evicted": "evictions by supervisors and returning workers",
    "peer evicted": "evictions by peers",
    "worker ended": "restarts by supervisors",
    "worker steps back": "workers that stepped back",
    "turns handed over": "hand-overs",
    "record set aside": "dead letters",
    "Traceback (most recent call last)": "tracebacks in the logs",
}
FOUND: Final = Path(__file__).parents[2] / "docs" / "reliability-found.md"
"""What people say of what the campaigns found: a page of its own, because they write it and not the campaign."""

SLOWEST: Final = 5
SHOWN_FINDINGS: Final = 8
SHOWN_RECORDS: Final = 20


PAGE: Final = """\
# Reliability

What a fault campaign did to a running cluster, and what its readers noticed. Written by the campaign itself, but for
[what it found](reliability-found.md):

    {command}

{faults} faults and {turns:,} turns in {minutes:.0f} minutes, seed {seed}, on {machine}.
Brokers, workers, model servers, clients and the verifier share that machine. The same seed gives the same schedule.
[guarantees.md](guarantees.md) says what is promised.

{table}

{goals}

{found}

## How it is measured

Every answer is known beforehand, and each of its tokens says its number. It is compared at four places that share no
code with the product: what its reader saw, over all its connections; the raw records of the token topic, by a fold of a
few lines; the finished turns topic, where a turn has one answer; and what `GET` tells of turns and conversations at the
end. A question that is repeated under its Idempotency-Key has to be one turn.

{silence}

Workers run under their supervisor, with replication 3 and `min.insync.replicas` 2; brokers with
`broker.session.timeout.ms=3000`. A reader reconnects when a connection breaks, and after 3 s without a byte, where
comments come every second. The next fault of a machine waits until the workers own all partitions again and all
replicas are in sync: the promise is for one fault at a time. Faults of the model and of clients come at any time.
"""


@dataclass(slots=True)
class Mark:
    """A fault: when it began, when it was healed, when all was as before (monotonic clock).

    ``note``: whom it befell; of one that could not be done here, `NOT_DONE` and why.
    """

    fault: Fault
    began: float
    healed: float = 0.0
    steady: float = 0.0
    note: str = ""

    @property
    def done(self) -> bool:
        """Whether it befell anybody."""
        return not self.note.startswith(NOT_DONE)


@dataclass(frozen=True, slots=True)
class Silence:
    """How long the readers of the affected turns saw nothing, in seconds."""

    faults: int
    turns: int
    p50: float
    p95: float
    longest: float


@dataclass(slots=True)
class Campaign:
    """What was run. ``slack``: how often the goals' times are allowed."""

    seed: int
    command: str
    machine: str
    folder: Path
    seconds: float
    turns: Sequence[Turn]
    marks: Sequence[Mark]
    verdict: Verdict
    troubles: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    slack: float = 1.0

    @property
    def kept(self) -> bool:
        """Whether the promise was kept, and every goal reached."""
        return not any(self.verdict.tally.bad.values()) and not self.troubles and not self.missed

    @property
    def missed(self) -> list[str]:
        """The goals that were not reached, in words."""
        return [said for is_reached, said in _goals(self) if not is_reached]


def silences(turns: Iterable[Turn], marks: Sequence[Mark]) -> dict[str, Silence]:
    """Return the rows, by kind of fault."""
    found = _by_row(turns, marks)
    done = Counter(mark.fault.kind for mark in marks if mark.done)
    rows = [*(kind for kind in KINDS if done[kind]), NORMAL, NO_FAULT]
    return {row: _silence(done[row], [seconds for seconds, _ in found[row]]) for row in rows}


def _by_row(turns: Iterable[Turn], marks: Sequence[Mark]) -> dict[str, list[tuple[float, Turn]]]:
    """Return each row's affected turns with their longest silence."""
    found: dict[str, list[tuple[float, Turn]]] = defaultdict(list)
    for turn in turns:
        longest: dict[str, float] = {}
        for gap in turn.seen.gaps:
            if row := _row(turn, gap.since, gap.until, marks):
                longest[row] = max(longest.get(row, 0.0), gap.seconds)
        for row, seconds in longest.items():
            found[row].append((seconds, turn))
    return found


def _row(turn: Turn, since: float, until: float, marks: Sequence[Mark]) -> str:
    """Return the row of a gap, "" if it cannot be told whose doing it is."""
    during = [mark for mark in marks if mark.done and mark.began <= until and since <= mark.steady + 1]
    doing = [mark for mark in during if since <= mark.began + KINDS[mark.fault.kind].reach]
    if turn.affliction:
        return "" if _of_machines(doing) else turn.affliction
    if doing:
        return doing[-1].fault.kind
    return NORMAL if _of_machines(during) else NO_FAULT


def _of_machines(marks: Iterable[Mark]) -> bool:
    return any(KINDS[mark.fault.kind].lane == "machines" for mark in marks)


def _silence(faults: int, unsorted: Iterable[float]) -> Silence:
    seconds = sorted(unsorted)
    return Silence(faults, len(seconds), _quantile(seconds, 0.5), _quantile(seconds, 0.95), max(seconds, default=0.0))


def _quantile(values: list[float], share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def counted(logs: Iterable[Path]) -> dict[str, int]:
    """Return how often the workers' logs say what is worth counting."""
    counts = dict.fromkeys(IN_LOGS.values(), 0)
    for log in logs:
        if log.exists():
            text = log.read_text(encoding="utf-8", errors="replace")
            for said, name in IN_LOGS.items():
                counts[name] += text.count(said)
    return counts


def table(campaign: Campaign) -> str:
    """Return the figures as Markdown."""
    tally = campaign.verdict.tally
    rows = silences(campaign.turns, campaign.marks)
    totals = [
        ("turns accepted", tally.accepted),
        ("lost", tally.lost),
        ("answered twice", tally.answered_twice),
        ("unfinished", tally.unfinished),
        ("failed though the model could answer", tally.failed),
        ("tokens read and checked", tally.tokens),
        ("tokens lost", tally.tokens_lost),
        ("tokens doubled", tally.tokens_doubled),
        ("tokens reordered", tally.tokens_reordered),
        ("readers that saw something else than the log", tally.readers_wrong),
        ("conversations that are not what was asked and answered", tally.tables_wrong),
        ("turns that GET tells wrongly", tally.api_wrong),
        ("turns stopped by their client", tally.stopped),
        ("finished turns published again, the same", tally.published_again),
        ("repeated requests refused as such", tally.refused_repeats),
        ("records of zombies dropped", tally.fenced),
        *((name, count) for name, count in campaign.counts.items()),
    ]
    lines = ["| | |", "|---|---:|", *(f"| {name} | {count:,} |" for name, count in totals), ""]
    claims = sorted(tally.claims.items())
    lines += ["| claims of a turn | " + " | ".join(str(number) for number, _ in claims) + " |"]
    lines += ["|---|" + "---:|" * len(claims)]
    lines += ["| turns | " + " | ".join(f"{count:,}" for _, count in claims) + " |", ""]
    lines += [
        "| fault | times | turns affected | silence p50 (s) | p95 (s) | longest (s) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        figures = f"{row.p50:.2f} | {row.p95:.2f} | {row.longest:.2f}" if row.turns else "– | – | –"
        lines.append(f"| {name} | {row.faults or ''} | {row.turns} | {figures} |")
    return "\n".join(lines)


def goals(campaign: Campaign) -> list[str]:
    """Say of each goal whether it was reached, and of each fault that could not be done here that it was not."""
    not_done = Counter((mark.fault.kind, mark.note) for mark in campaign.marks if not mark.done)
    left_out = [f"{kind}: not done, {times} times ({note})" for (kind, note), times in not_done.items()]
    return [*(said for _, said in _goals(campaign)), *left_out]


def _goals(campaign: Campaign) -> Iterator[tuple[bool, str]]:
    """Yield whether each goal was reached, and say it; all kinds whose names begin alike have their turns together."""
    found = _by_row(campaign.turns, campaign.marks)
    for name, goal in GOALS.items():
        row = _silence(0, [seconds for kind in found if kind.startswith(name) for seconds, _ in found[kind]])
        limit = goal * campaign.slack
        if row.turns:
            mark = "reached" if row.p95 <= limit else "MISSED"
            said = f"{name}: p95 {row.p95:.2f} s of {limit:.1f} s allowed: {mark} ({row.turns} turns)"
            yield row.p95 <= limit, said


def slowest(campaign: Campaign) -> dict[str, list[str]]:
    """Return the turns with the longest silences of each row, for whoever wants to know why."""
    found = _by_row(campaign.turns, campaign.marks)
    return {
        row: [
            f"{seconds:.2f} s: turn {turn.turn_id}, client {turn.errand.number}, {turn.seen.connections} connections,"
            f" accepted at {turn.accepted_wall:.3f}"
            for seconds, turn in sorted(found[row], key=lambda one: -one[0])[:SLOWEST]
        ]
        for row in found
    }


def page(campaign: Campaign) -> str:
    """Return docs/reliability.md."""
    return PAGE.format(
        command=campaign.command,
        faults=sum(mark.done for mark in campaign.marks),
        turns=len(campaign.turns),
        minutes=campaign.seconds / 60,
        seed=campaign.seed,
        machine=campaign.machine,
        table=table(campaign),
        goals="\n".join(f"- {line}" for line in goals(campaign)),
        found=FOUND.read_text(encoding="utf-8").strip(),
        silence=(__doc__ or "").partition("\n\n")[2].strip(),
    )


def failure(campaign: Campaign) -> str:
    """Return what is needed to look into a failure and to run it again."""
    logs = sorted(str(path) for path in campaign.folder.glob("w*/worker.log"))
    lines = [
        "A PROMISE WAS BROKEN, OR A GOAL MISSED",
        f"run it again with: {campaign.command}",
        "the workers' logs: " + " ".join(logs),
    ]
    lines += [*campaign.missed, *campaign.troubles[:SHOWN_FINDINGS]]
    for finding in campaign.verdict.findings[:SHOWN_FINDINGS]:
        lines += _told(finding, campaign.marks)
    if (more := len(campaign.verdict.findings) - SHOWN_FINDINGS) > 0:
        lines.append(f"… and {more} more, see the JSON")
    return "\n".join(lines)


def _told(finding: Finding, marks: Sequence[Mark]) -> list[str]:
    lines = ["", finding.what]
    if finding.turn is not None:
        turn, seen = finding.turn, finding.turn.seen
        lines.append(
            f"  turn {turn.turn_id} of conversation {turn.conversation_id}, client {turn.errand.number}"
            f" ({turn.errand.reading}, {seen.connections} connections), accepted at {turn.accepted_wall:.3f}"
        )
        lines.append(f"  asked: {turn.question}")
        until = max(seen.last_at, turn.accepted_at) + 5
        near = [mark for mark in marks if mark.began <= until and turn.asked_at - 5 <= max(mark.steady, mark.began)]
        lines += [
            f"  near it: fault {mark.fault.number} {mark.fault.kind} ({mark.note}),"
            f" {mark.began - turn.accepted_at:+.2f} s after it was accepted"
            for mark in near
        ]
    if finding.log is not None:
        records = finding.log.records
        shown = records if len(records) <= SHOWN_RECORDS else [*records[:6], *records[-14:]]
        lines += [
            f"  {offset} epoch {epoch} seq {seq} {kind} {text[:60]!r}" for offset, epoch, seq, kind, text in shown
        ]
    return lines


def as_json(campaign: Campaign) -> dict[str, Any]:
    """Return everything as JSON has it."""
    tally = campaign.verdict.tally
    return {
        "kept": campaign.kept,
        "seed": campaign.seed,
        "command": campaign.command,
        "machine": campaign.machine,
        "seconds": round(campaign.seconds, 1),
        "faults": [
            asdict(mark.fault)
            | {
                "done": mark.done,
                "note": mark.note,
                "healed_after": mark.healed - mark.began,
                "steady_after": mark.steady - mark.began,
            }
            for mark in campaign.marks
        ],
        "tally": {name: value for name, value in asdict(tally).items() if name != "claims"},
        "claims": dict(sorted(tally.claims.items())),
        "silence": {name: asdict(row) for name, row in silences(campaign.turns, campaign.marks).items()},
        "goals": goals(campaign),
        "slowest": slowest(campaign),
        "counts": campaign.counts,
        "troubles": campaign.troubles,
        "findings": ["\n".join(_told(finding, campaign.marks)) for finding in campaign.verdict.findings],
    }


def write(campaign: Campaign, out: Path | None) -> None:
    """Write the JSON beside the logs, or the report where it is asked for: Markdown, with the JSON beside it."""
    place = out or campaign.folder / "report.md"
    place.write_text(page(campaign), encoding="utf-8")
    place_json = campaign.folder / "report.json"
    place_json.write_text(json.dumps(as_json(campaign), indent=1, ensure_ascii=False), encoding="utf-8")
