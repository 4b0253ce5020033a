"""The examples of docs/analysts.md and docs/archive.md, word for word: each finds what a worker has answered."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import aiohttp
import duckdb
import msgspec
import pytest

from deploy.embedded import Embedded, wheel
from domain.ids import new_turn_id
from streams.records import Turn, decode, encode
from tests.support.chat_client import ChatClient
from tests.support.kafka import everything, produce_all
from tests.support.model_server import ModelServer
from tests.support.services import ROOT
from tests.support.worker import Worker

QUESTIONS: Final = 10
MINUTE_MS: Final = 60_000
BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT: Final = "headrace=# "
WITHIN: Final = 60.0  # an example is tried again until it finds something


@dataclass(frozen=True, slots=True)
class Shell:
    """A person's terminal: where they are, and what their variables say."""

    folder: Path
    environ: Mapping[str, str]

    def run(self, command: str) -> str:
        """Return what a command prints; raises if it fails."""
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=dict(self.environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    async def until(self, command: str, enough: Callable[[str], object]) -> None:
        """Run a command until what it prints is enough, as a person would who is a little early."""
        said = ""
        try:
            async with asyncio.timeout(WITHIN):
                while not enough(said := await asyncio.to_thread(self.run, command)):
                    await asyncio.sleep(0.2)
        except TimeoutError:
            pytest.fail(f"{command}\nstill says\n{said}")


# -- what the pages show


def blocks(page: str, heading: str) -> list[tuple[str, str]]:
    """Return the code of a page's section, each with its language."""
    _, _, section = (ROOT / "docs" / page).read_text().partition(f"\n## {heading}\n")
    section, _, _ = section.partition("\n## ")
    found = [(language, code) for language, code in BLOCK.findall(section) if language]
    assert found, f"{page} shows nothing under {heading}"
    return found


def code(page: str, heading: str, language: str) -> list[str]:
    """Return the code of one language."""
    return [text for each, text in blocks(page, heading) if each == language]


def commands(console: str) -> Iterator[str]:
    """Yield what is typed in a session of a shell, and of psql within it, as commands for a shell."""
    lines = iter(console.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line.removeprefix("$ ")
            while not _is_whole(command):
                command += "\n" + next(lines)
            if command != 'psql "$DATABASE_URL"':
                yield command
        elif line.startswith(PROMPT):
            statement = line.removeprefix(PROMPT)
            while not statement.endswith(";"):
                statement += "\n" + next(lines)
            yield f'psql "$DATABASE_URL" --set ON_ERROR_STOP=1 -c {shlex.quote(statement)}'


def _is_whole(command: str) -> bool:
    try:
        shlex.split(command)
    except ValueError:  # a quotation goes on
        return False
    return not command.endswith(("\\", "|"))


def has_rows(said: str) -> bool:
    """Return whether psql or curl found something."""
    return bool(said.strip()) and not re.search(r'\(0 rows\)|"count":0\b|^\{\}$|"hits":\[\]', said, re.MULTILINE)


# -- what they run against


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    """A terminal beside services of its own, on which a worker has answered, now and some minutes ago.

    Their topics and indices have the names that the pages use, so nobody else's can be there.
    """
    folder = tmp_path / "shell"
    folder.mkdir()
    programs = [Path(sys.executable).parent, wheel("pgserver") / "pginstall" / "bin"]
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    with Embedded(tmp_path / "services", only={"kafka", "es", "pg"}) as services:
        async with ModelServer() as model, aiohttp.ClientSession() as http:
            settings = {
                "OPENAI_BASE_URL": model.base_url,
                "HEADRACE_AUTH": "dev",
                "HEADRACE_RETRIEVAL": "off",
                "HEADRACE_IDLE_FETCH_PAUSE_MS": "5",
                "HEADRACE_WINDOW_SECONDS": "1",
                "HEADRACE_METRICS_GRACE_SECONDS": "1",
            }
            worker = Worker(tmp_path / "worker", services.environ | settings)
            try:
                await worker.start()
                await answer_questions(ChatClient(http, worker.url))
                await answer_earlier(services.environ["KAFKA_BOOTSTRAP_SERVERS"])
                yield Shell(folder, services.environ | {"PATH": path, "HOME": str(folder)})
            finally:
                await worker.stop()


async def answer_questions(client: ChatClient) -> None:
    """Ask, and read the answers to their ends."""
    conversation = await client.converse()
    for number in range(QUESTIONS):
        question = f"Why does a water wheel turn when it rains for {number} days? [say=The%20wheel%20turns. pace=0]"
        turn = await client.ask(conversation, question, metadata={"page": "mill"})
        assert (await client.read(turn)).outcome == "completed"


async def answer_earlier(bootstrap: str) -> None:
    """Publish the same turns as of some minutes ago, so that nobody has to wait until this minute is over."""
    turns = [decode(value, Turn) for value in await everything(bootstrap, "chat.turns.v1")]
    assert len(turns) == QUESTIONS
    records = []
    for number, turn in enumerate(turns):
        ended_at = time.time_ns() // 1_000_000 - (3 + number % 2) * MINUTE_MS
        turn_id = new_turn_id(ended_at, UUID(turn.turn_id).int >> 64 & 0xFFF, number)
        earlier = msgspec.structs.replace(turn, turn_id=turn_id, asked_at=ended_at, ended_at=ended_at)
        records.append((turn.conversation_id.encode(), encode(earlier)))
    produce_all(bootstrap, "chat.turns.v1", records)


# -- the pages' claims


@pytest.mark.timeout(300)
async def test_every_example_of_the_pages_finds_what_was_answered(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page, heading in (("archive.md", "Look at it"), ("archive.md", "Search"), ("analysts.md", "Postgres")):
        for console in code(page, heading, "console"):
            for command in commands(console):
                await shell.until(command, has_rows)
    await follow_with_python(shell)
    await ask_duckdb(shell, monkeypatch)
    if shutil.which("kcat") and shutil.which("jq"):
        for command in commands(*code("analysts.md", "kcat", "console")):
            await shell.until(command, lambda said: '"completed",' in said)


async def follow_with_python(shell: Shell) -> None:
    """Start the program that never stops, and read what it prints."""
    (program,) = code("analysts.md", "Plain Python", "python")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-c", program), env=dict(shell.environ), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WITHIN):
            line = (await process.stdout.readline()).decode()
    finally:
        process.kill()
        await process.wait()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:00Z dev \d+ ms( \(so far\))?", line.strip()), line


async def ask_duckdb(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the rows as files, and ask DuckDB about them."""
    (program,) = code("analysts.md", "DuckDB", "python")
    (shell.folder / "latest.py").write_text(program)
    write_rows = "\n".join(code("analysts.md", "DuckDB", "sh"))
    tokens = "grep -o '\"output_tokens\"' tokens.jsonl | wc -l"  # a row a minute, and there were two
    await shell.until(f"{write_rows}\n{tokens}", lambda said: int(said) >= 2)
    monkeypatch.chdir(shell.folder)
    counts, quantiles = (duckdb.execute(query).fetchall() for query in code("analysts.md", "DuckDB", "sql"))

    assert {tenant for _, tenant, _, _ in counts} == {"dev"}
    assert sum(turns for *_, turns, _ in counts) >= QUESTIONS
    ((tenant, turns, p50, p95),) = quantiles
    assert tenant == "dev"
    assert turns >= QUESTIONS
    assert 0 < p50 <= p95
