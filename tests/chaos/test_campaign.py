"""The fault campaign in its short form: ten faults on real brokers, and everything is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.campaign.cluster import toxiproxy_program
from tests.support.services import LAUNCHER, ROOT, missing

SECONDS = 420


@pytest.mark.kafka
@pytest.mark.timeout(SECONDS + 30)
def test_a_short_campaign_loses_doubles_and_moves_nothing(tmp_path: Path) -> None:
    if not os.environ.get("HEADRACE_TEST_REQUIRE_KAFKA"):
        pytest.skip("takes three minutes: make chaos ARGS=--short, or HEADRACE_TEST_REQUIRE_KAFKA=1")
    if not LAUNCHER.exists() or shutil.which("java") is None:
        missing("needs brokers that can be killed: the services script (HEADRACE_TEST_SERVICES) and Java", "KAFKA")
    if toxiproxy_program() is None:
        missing("needs toxiproxy-server (HEADRACE_TEST_TOXIPROXY)", "KAFKA")
    ran = subprocess.run(
        [sys.executable, "-m", "bench.chaos", "--short", "--folder", str(tmp_path)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=SECONDS,
    )

    assert ran.returncode == 0, ran.stdout[-8000:]
