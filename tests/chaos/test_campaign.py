"""The fault campaigns in their short forms, on real services: what is accepted is kept, and every row is right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.campaign.cluster import toxiproxy_program
from tests.support.services import ROOT, can_launch, missing

SECONDS = 420


@pytest.fixture
def asked_for() -> None:
    """Skip unless the long tests are asked for, and can run."""
    if not os.environ.get("HEADRACE_TEST_REQUIRE_KAFKA"):
        pytest.skip("takes three minutes: make chaos or chaos-windows ARGS=--short, or HEADRACE_TEST_REQUIRE_KAFKA=1")
    if not can_launch():
        missing("needs services that can be killed: the services script (HEADRACE_TEST_SERVICES) and Java", "KAFKA")


@pytest.mark.kafka
@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.usefixtures("asked_for")
def test_a_short_campaign_loses_doubles_and_moves_nothing(tmp_path: Path) -> None:
    if toxiproxy_program() is None:
        missing("needs toxiproxy-server (HEADRACE_TEST_TOXIPROXY)", "KAFKA")

    run_short("bench.chaos", "--folder", str(tmp_path))


@pytest.mark.kafka
@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.usefixtures("asked_for")
def test_a_short_campaign_leaves_every_turn_once_in_both_stores_and_every_window_right() -> None:
    # In a folder of its own making: pytest's cannot be reached by the user that Postgres runs as.
    run_short("bench.chaos_windows")


def run_short(module: str, *options: str) -> None:
    """Run a campaign in its short form, which ends with 0 if all was kept."""
    ran = subprocess.run(
        [sys.executable, "-m", module, "--short", *options],
        cwd=ROOT,
        env={
            name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "ELASTIC", "DATABASE"))
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stdout[-8000:]
