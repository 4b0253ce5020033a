"""Switches off one safeguard after the other and shows which test notices: a safeguard that nobody misses is none.

    python -m bench.mutants [NAME …]

Each mutant is a copy of the tree with one line of the product changed. Its tests run in the copy, and have to
fail there. Ends with 1 if a mutant survives, or if a line to change is not in the code any more.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

ROOT: Final = Path(__file__).parents[1]
NOT_COPIED: Final = shutil.ignore_patterns(
    ".git", ".venv", "*_cache", "__pycache__", ".hypothesis", ".headrace", "build"
)
FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
SECONDS: Final = 300
# A test that waits for ever then fails by name; by a thread, pytest itself would end.
HANGS_FAIL: Final = ("--timeout=60", "--timeout-method=signal")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One safeguard switched off: ``old`` becomes ``new`` in ``file``. ``tests`` are given to pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str]


MUTANTS: Final = (
    Mutant(
        "fence: a piece of an older epoch counts",
        "domain/tokens.py",
        "if not self.claims or token.epoch != self.epoch or token.seq != self.next:",
        "if not self.claims or token.seq != self.next:",
        ["tests/unit/test_fold.py"],
    ),
    Mutant(
        "fence: an older claim counts",
        "domain/tokens.py",
        "if token.epoch <= self.epoch:",
        "if token.epoch < 0:",
        ["tests/unit/test_fold.py"],
    ),
    Mutant(
        "fence: what this worker wrote is shown before what others wrote ahead of it is known",
        "adapters/token_hub.py",
        "        place.ahead[offset] = tokens\n",
        "        place.ahead[place.position] = tokens\n",
        ["tests/unit/test_token_log_hub.py"],
    ),
    Mutant(
        "order: a frame that Kafka did not take is passed over",
        "adapters/token_producer.py",
        "        if self.frame is None:\n            tokens, raw",
        "        if self.pending:\n            tokens, raw",
        ["tests/unit/test_token_log_producer.py"],
    ),
    Mutant(
        "order: a turn that lost tokens takes more without a new claim",
        "adapters/token_producer.py",
        "        if lane.shut:\n            self._refuse_shut(lane, token)\n",
        "",
        ["tests/unit/test_token_log_producer.py"],
    ),
    Mutant(
        "order: the answer to another request counts",
        "adapters/leaders.py",
        "if number != self._number:",
        "if number < 0:",
        ["tests/unit/test_broker.py"],
    ),
    Mutant(
        "framing: what looks like a chunk is one, wherever aiohttp stands",
        "adapters/model_transport.py",
        " and self._found == content",
        "",
        ["tests/unit/test_model_transport.py"],
    ),
    Mutant(
        "ack after the end: acknowledged before it is answered",
        "streams/turn_runner.py",
        "        await self._attempt(job)\n        if self._jobs",
        "        await self._acknowledge(job)\n        await self._attempt(job)\n        if self._jobs",
        ["tests/unit/test_turn_runner.py", "tests/unit/test_turn_runner_machine.py"],
    ),
    Mutant(
        "ack after the end: acknowledged though its end was fenced",
        "agents/generate.py",
        "        while not self.logged.fold.ended:\n            if self.logged.cut:",
        "        for _ in range(1):\n            if self.logged.cut:",
        ["tests/unit/test_generate.py", "-k", "fenced"],
    ),
    Mutant(
        "commit cap: commits pass what is in work",
        "streams/delivery.py",
        "lowest = min((m.offset for m in self._unacked_messages if m.tp == tp and not m.acked), default=None)",
        "lowest = None",
        ["tests/unit/test_commit_machine.py", "tests/unit/test_faust_faults.py"],
    ),
    Mutant(
        "commit cap: what is in work is held weakly",
        "streams/delivery.py",
        "        self._unacked_messages = set()\n",
        "",
        ["tests/unit/test_commit_machine.py", "tests/unit/test_faust_faults.py"],
    ),
    Mutant(
        "commit cap: an older assignment's acknowledgement counts",
        "streams/delivery.py",
        "        if message not in self._unacked_messages:\n            return False\n",
        "",
        ["tests/unit/test_commit_machine.py", "tests/unit/test_faust_faults.py"],
    ),
    Mutant(
        "perform_seek: a partition without a committed offset stays where it stood",
        "streams/delivery.py",
        "            await self.seek_wait(earliest)\n",
        "",
        ["tests/unit/test_commit_machine.py", "tests/unit/test_faust_faults.py"],
    ),
    Mutant(
        "claim wait: a claim is not read back",
        "agents/generate.py",
        "        await token_log.until(partition, offset)\n",
        "",
        ["tests/unit/test_generate.py", "-k", "older_worker"],
    ),
    Mutant(
        "claim wait: tokens are written before the claim is known to count",
        "agents/generate.py",
        "owned = await asyncio.shield(self.claiming)",
        "owned = True",
        ["tests/unit/test_generate.py"],
    ),
    Mutant(
        "fence of rows: a row of an older epoch counts",
        "domain/fence.py",
        "        if epoch < self.epoch:\n",
        "        if epoch < -1:\n",
        ["tests/unit/test_changelog.py"],
    ),
    Mutant(
        "fence of rows: a store that was written in a replaced worker's name is kept",
        "adapters/changelog.py",
        "if epoch == replica.database.own_epoch:",
        "if epoch < 0:",
        ["tests/unit/test_changelog.py"],
    ),
    Mutant(
        "fence of rows: a changelog is not claimed before it is read",
        "streams/table_recovery.py",
        "            await self._claim(replicas, epoch)\n",
        "",
        ["tests/integration/test_table_recovery.py", "-k", "wrote_late"],
    ),
    Mutant(
        "fence of rows: a store is kept although others may have had it",
        "streams/table_recovery.py",
        "return (self.generation, self.member_id) == (other.generation + 1, other.member_id)",
        "return self.member_id == other.member_id",
        ["tests/unit/test_table_recovery.py"],
    ),
    Mutant(
        "fence of rows: a store is kept although something unread stands before its own rows",
        "streams/table_recovery.py",
        " if not self._table(tp).database(tp.partition).has_gap}",
        "}",
        ["tests/unit/test_table_recovery.py"],
    ),
    Mutant(
        "fence of rows: what a late record hides is not written again",
        "streams/table_recovery.py",
        "            await self._mend(replicas, epoch)\n",
        "",
        ["tests/integration/test_table_recovery.py", "-k", "wrote_late"],
    ),
    Mutant(
        "same key: a finished turn does not have its key",
        "tables/replays.py",
        'return found.turn_id if found and found.turn_id != question.turn_id else ""',
        'return ""',
        ["tests/unit/test_replays.py"],
    ),
    Mutant(
        "same key: a later turn takes the key of the first",
        "tables/replays.py",
        "    if found and found.turn_id != turn.turn_id:\n        return\n",
        "",
        ["tests/unit/test_replays.py"],
    ),
    Mutant(
        "same key: the owner does not look among the finished turns",
        "web/ask.py",
        "        site.replays.find(conversation_id, replay.key, site.now_ms())\n",
        "        None\n",
        ["tests/unit/test_web_ask.py"],
    ),
    Mutant(
        "same key: the owner does not find it among the questions in work",
        "streams/turn_runner.py",
        "next((found for found in self.in_work(conversation_id) if found.replay_key == replay_key), None)",
        "None",
        ["tests/unit/test_turn_runner.py"],
    ),
    Mutant(
        "same key: the owner does not look in the log beyond its jobs",
        "web/ask.py",
        "        or next((question for question in waiting if question.replay_key == replay.key), None)\n",
        "",
        ["tests/unit/test_web_ask.py"],
    ),
    Mutant(
        "same key: a question in work is not refused a second time",
        "streams/turn_runner.py",
        "if question.replay_key and earlier.replay_key == question.replay_key:",
        "if False:",
        ["tests/unit/test_turn_runner.py"],
    ),
    Mutant(
        "accepted: answered 202 before Kafka has acknowledged the question",
        "web/ask.py",
        "    await site.chat.publish(site.chat.topics_of.questions, question.conversation_id, question, at_ms=at_ms)\n",
        "    __import__('asyncio').ensure_future(\n        site.chat.publish("
        "site.chat.topics_of.questions, question.conversation_id, question, at_ms=at_ms)\n    )\n",
        ["tests/unit/test_web_ask.py"],
    ),
    Mutant(
        "accepted: a record counts as published before Kafka has acknowledged it",
        "streams/app.py",
        "return int((await sent).offset)",
        "return 0",
        ["tests/unit/test_faust_faults.py", "tests/unit/test_dead_letters.py"],
    ),
    Mutant(
        "moved leaders: nobody asks who leads a partition now",
        "streams/app.py",
        "    follow_moved_leaders()\n",
        "",
        ["tests/unit/test_faust_faults.py"],
    ),
)


def lives(mutant: Mutant) -> bool:
    """Run a mutant's tests; return whether they pass in spite of it."""
    with TemporaryDirectory(prefix="headrace-mutant-") as folder:
        copy = Path(folder) / "headrace"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        changed = copy / mutant.file
        text = changed.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            print(f"STALE     {mutant.name}: {mutant.file} has {text.count(mutant.old)} times: {mutant.old}")
            return True
        changed.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *HANGS_FAIL, *mutant.tests]
        # Workers that a test starts have to take the copy's modules, wherever the project is installed.
        environ = os.environ | {"PYTHONPATH": str(copy)}
        try:
            run = subprocess.run(
                command, cwd=copy, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"caught    {mutant.name}\n          its tests did not end in {SECONDS} s")
            return False
    failed = FAILED.findall(run.stdout)
    if run.returncode == 1 and failed:
        print(f"caught    {mutant.name}\n          by {failed[0]}")
        return False
    print(f"SURVIVED  {mutant.name}: pytest ended with {run.returncode}\n{run.stdout[-2000:]}{run.stderr[-1000:]}")
    return True


def main() -> int:
    """Run the mutants whose names begin with what was asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="how a mutant's name begins")
    wanted = tuple(parser.parse_args().names)
    chosen = [mutant for mutant in MUTANTS if mutant.name.startswith(wanted or "")]
    survivors = [mutant for mutant in chosen if lives(mutant)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    raise SystemExit(main())
