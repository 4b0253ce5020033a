"""What leaves a process as its log, whoever wrote the event."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from config.logging import FLOOD_ALLOWS, FLOOD_SECONDS, CalmHandler, Format, configure_structlog, formatter

# An app that logs in the three ways there are, in a process of its own: a worker takes the root logger for itself.
WORKER = """
import logging, sys
import faust, structlog
from config.logging import for_faust

class App(faust.App):
    async def on_start(self):
        structlog.get_logger("agents.answer").info("turn begun", turn_id="t1")
        logging.getLogger("faust.transport").warning("commit took %s s", 3)
        logging.getLogger("httpx").info("HTTP Request: POST")
        print("printed by someone")
        raise SystemExit(3)

app = App("logging", broker="kafka://127.0.0.1:1", logging_config=for_faust("json"), web_enabled=False)
faust.Worker(app, loglevel=sys.argv[1], redirect_stdouts=True).execute_from_commandline()
"""


class Written(io.StringIO):
    """A stream that can tell what was logged to it."""

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@contextmanager
def writing(chosen: Format = "json", *, terminal: bool = False) -> Iterator[Written]:
    """Log through our handler into a stream, beside whatever pytest has on the root logger."""
    written = Written()
    handler = CalmHandler(written)
    handler.setFormatter(formatter(chosen, terminal=terminal))
    before = structlog.get_config()
    configure_structlog()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield written
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        structlog.configure(**before)


def test_an_event_is_one_json_object_in_ecs_names() -> None:
    with writing() as written:
        structlog.get_logger("agents.archive").info("window archived", window=60.0, turns=3)

    (event,) = written.events()
    assert event["message"] == "window archived"
    assert event["log.level"] == "info"
    assert event["log.logger"] == "agents.archive"
    assert event["service.name"] == "headrace"
    assert event["ecs.version"]
    assert event["process.pid"] > 0
    assert event["@timestamp"].endswith("Z")
    assert (event["headrace.window"], event["headrace.turns"]) == (60.0, 3)


def test_fields_come_in_the_order_that_ecs_asks_for() -> None:
    with writing() as written:
        structlog.get_logger("x").info("something")

    assert list(written.events()[0])[:3] == ["@timestamp", "log.level", "message"]


def test_events_of_the_standard_library_look_the_same() -> None:
    with writing() as written:
        logging.getLogger("mode.worker").warning("took %s of %s", 3, "ten")

    (event,) = written.events()
    assert event["message"] == "took 3 of ten"
    assert event["log.level"] == "warning"
    assert event["log.logger"] == "mode.worker"


@pytest.mark.parametrize("logger", [structlog.get_logger("ours"), logging.getLogger("theirs")])
def test_an_error_comes_with_its_type_message_and_trace(logger: Any) -> None:
    with writing() as written:
        try:
            raise ValueError("no such partition")
        except ValueError:
            logger.exception("question refused")

    (event,) = written.events()
    assert event["message"] == "question refused"
    assert event["error.type"] == "ValueError"
    assert event["error.message"] == "no such partition"
    assert "test_logging.py" in event["error.stack_trace"]


def test_an_error_may_be_handed_over_as_itself() -> None:
    with writing() as written:
        structlog.get_logger("x").error("turn failed", exc_info=TimeoutError("60 s"))

    assert written.events()[0]["error.type"] == "TimeoutError"


def test_what_is_bound_to_the_context_is_on_every_event_of_it() -> None:
    with writing() as written, structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("ours").info("one")
        logging.getLogger("theirs").info("two")

    assert [event["headrace.request_id"] for event in written.events()] == ["r-1", "r-1"]


def test_a_field_cannot_take_the_place_of_ours() -> None:
    with writing() as written:
        structlog.get_logger("x").info("something", level="high", timestamp=5, logger="mine")

    (event,) = written.events()
    assert event["log.level"] == "info"
    assert event["log.logger"] == "x"
    assert event["headrace.level"] == "high"


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"\xff", {("a", 1): 2}, {1, 2}, object(), "\ud800", ValueError("x"), 1 << 70]
)
def test_a_value_that_json_does_not_know_still_gives_a_json_line(value: object) -> None:
    with writing() as written:
        structlog.get_logger("x").info("odd", value=value)

    (event,) = written.events()
    assert "odd" in event["message"]
    assert "headrace.value" in event


def test_a_line_break_in_a_text_does_not_break_the_line() -> None:
    with writing() as written:
        structlog.get_logger("x").info("two\nlines", text="a\r\nb")

    assert len(written.getvalue().splitlines()) == 1


def test_a_terminal_gets_a_readable_line() -> None:
    with writing("auto", terminal=True) as written:
        structlog.get_logger("agents.archive").info("window archived", turns=3)

    assert "window archived" in written.getvalue()
    assert "turns" in written.getvalue()
    assert not written.getvalue().startswith("{")


def test_what_is_not_a_terminal_gets_json_and_text_without_colors_where_that_is_asked_for() -> None:
    with writing("auto", terminal=False) as written:
        structlog.get_logger("x").info("something")
    assert written.events()[0]["message"] == "something"

    with writing("text", terminal=False) as written:
        structlog.get_logger("x").info("something")
    assert "something" in written.getvalue()
    assert "\x1b" not in written.getvalue()


def test_a_readable_trace_does_not_show_local_variables() -> None:
    def fail(password: str) -> None:
        raise ValueError(len(password))

    with writing("text") as written:
        try:
            fail("".join(["correct", "horse"]))
        except ValueError:
            structlog.get_logger("x").exception("failed")

    assert "ValueError: 12" in written.getvalue()
    assert "correcthorse" not in written.getvalue()


def record(text: str, at: float, *, name: str = "aiokafka.client", line: int = 1) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.ERROR, "client.py", line, text, None, None)
    made.created = at
    return made


@contextmanager
def calm() -> Iterator[tuple[CalmHandler, Written]]:
    written = Written()
    handler = CalmHandler(written)
    handler.setFormatter(formatter("json", terminal=False))
    yield handler, written


def test_of_a_flood_the_first_are_written_and_then_the_last_with_their_number() -> None:
    with calm() as (handler, written):
        for number in range(1000):
            handler.handle(record(f"cannot reach broker, attempt {number}", at=100.0))
        assert len(written.events()) == FLOOD_ALLOWS

        handler.handle(record("something else", at=100.0 + FLOOD_SECONDS, name="agents.answer"))

        *_, last, other = written.events()
        assert last["message"] == "cannot reach broker, attempt 999"
        assert last["headrace.suppressed"] == 1000 - FLOOD_ALLOWS
        assert other["message"] == "something else"


def test_each_kind_of_a_flood_is_counted_by_itself() -> None:
    with calm() as (handler, written):
        for _ in range(100):
            handler.handle(record("one", at=100.0, line=1))
            handler.handle(record("two", at=100.0, line=2))

        assert [event["message"] for event in written.events()].count("two") == FLOOD_ALLOWS


def test_a_flood_that_goes_on_is_told_of_again() -> None:
    with calm() as (handler, written):
        for second in range(60):
            for _ in range(100):
                handler.handle(record("cannot reach broker", at=float(second)))

        told = [event["headrace.suppressed"] for event in written.events() if "headrace.suppressed" in event]
        assert len(told) == 60 / FLOOD_SECONDS - 1
        assert len(written.events()) < 6000 / 100


def test_a_few_lines_are_not_a_flood() -> None:
    with calm() as (handler, written):
        for second in range(0, 100, 5):
            handler.handle(record("heartbeat failed", at=float(second)))

        assert len(written.events()) == 20


def test_other_loggers_are_never_held_back() -> None:
    with calm() as (handler, written):
        for _ in range(100):
            handler.handle(record("turn finished", at=100.0, name="agents.answer"))

        assert len(written.events()) == 100


def test_closing_tells_what_was_held_back() -> None:
    with calm() as (handler, written):
        for _ in range(10):
            handler.handle(record("cannot reach broker", at=100.0))
        handler.close()

        assert written.events()[-1]["headrace.suppressed"] == 10 - FLOOD_ALLOWS


def run_worker(level: str) -> list[dict[str, Any]]:
    ran = subprocess.run([sys.executable, "-c", WORKER, level], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 3, ran.stderr
    return [json.loads(line) for line in ran.stderr.splitlines()]


def test_a_faust_worker_logs_nothing_but_our_json() -> None:
    events = {event["message"]: event for event in run_worker("info")}

    assert events["turn begun"]["headrace.turn_id"] == "t1"
    assert events["commit took 3 s"]["log.logger"] == "faust.transport"
    assert "printed by someone" in events
    assert "HTTP Request: POST" not in events


def test_the_level_is_the_command_lines() -> None:
    messages = [event["message"] for event in run_worker("warning")]

    assert "commit took 3 s" in messages
    assert "turn begun" not in messages


def test_importing_our_packages_prints_nothing() -> None:
    code = "import config.logging, config.metrics, config.settings, domain.errors, streams.records, streams.topics"

    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)

    assert (ran.stdout, ran.stderr) == ("", "")
