"""`make up` from its first line to its last: it starts, answers, stops on Ctrl-C, and finds everything again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from deploy.embedded import free_port
from deploy.own_docs import OURS as OWN_DOCS

ROOT = Path(__file__).parents[2]
OURS = ("HEADRACE_", "KAFKA_BOOTSTRAP_SERVERS", "ELASTICSEARCH_URL", "DATABASE_URL", "OPENAI_BASE_URL")


class Up:
    """A `make up` that is ready, on a port and in a folder of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        command = [sys.executable, "-m", "deploy.up", "--port", str(port), "--folder", str(folder)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{port}"
        self.said = ""
        self.read_until("Stop  Ctrl-C")
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def read_until(self, text: str) -> None:
        """Return when it has said this; fails if it ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if text in line:
                return
        pytest.fail(f"make up ended:\n{self.said}")

    def stop(self) -> int:
        """Press Ctrl-C and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=60)
        self.said += rest
        return self.process.returncode

    def conversations(self) -> list[str]:
        """Return the titles of all conversations."""
        with urlopen(f"{self.url}/v1/conversations") as answer:  # noqa: S310 - http, and ours
            return [each["title"] for each in json.load(answer)["data"]]

    def learned(self) -> set[str]:
        """Return the ids of documents that are learned."""
        with urlopen(f"{self.url}/v1/documents?limit=200") as answer:  # noqa: S310 - http, and ours
            return {each["document_id"] for each in json.load(answer)["data"] if each["status"] == "learned"}


@pytest.fixture
def make_up(tmp_path: Path) -> Iterator[Callable[[], Up]]:
    """Starts `make up`, always in the same folder."""
    port, started = free_port(), list[Up]()

    def start() -> Up:
        started.append(Up(tmp_path, port))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def ask(up: Up, question: str) -> str:
    """Ask as `make demo-question` does and return the answer."""
    command = [sys.executable, "-m", "deploy.ask", question, "--url", up.url]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout.strip()


def test_make_up_answers_stops_and_finds_everything_again(make_up: Callable[[], Up]) -> None:
    first = make_up()

    assert ask(first, "Why is the sky blue?")
    while not (learned := first.learned()):
        time.sleep(0.2)
    assert all(learned_id.partition("/")[0] in OWN_DOCS for learned_id in learned)
    assert first.stop() == 0
    assert [child for child in first.children if child.is_running()] == []
    assert re.findall(r"Stopping (\w+)", first.said) == ["Worker", "Model", "PostgreSQL", "Kafka"]

    second = make_up()
    assert second.conversations() == ["Why is the sky blue?"]
    assert second.stop() == 0
