"""What `make up` says when it cannot start, and how it watches over what it has started."""

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy import check_python, up
from deploy.checks import CHECKS, CannotStart, check_disk, check_port, check_writable, free_bytes, lock, shown
from deploy.embedded import Embedded, Postgres, free_port
from deploy.interrupts import Interrupted, Interrupts
from deploy.progress import Progress
from deploy.service import Service, ServiceFailed
from deploy.worker import Worker

# -- what is checked first


def test_a_python_that_is_too_old_is_named() -> None:
    check_python((3, 11, 0))

    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, and this is 3\.9\.2\."):
        check_python((3, 9, 2, "final", 0))


def test_a_taken_port_is_refused_with_the_process_that_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(CannotStart) as refused:
        check_port(taken.getsockname()[1])

    assert f"process {os.getpid()} (" in str(refused.value)
    assert "HEADRACE_PORT=" in str(refused.value)


def test_a_free_port_is_accepted() -> None:
    check_port(free_port())


def test_a_gigabyte_has_to_be_free(tmp_path: Path) -> None:
    check_disk(tmp_path, free=lambda _: 1 << 30)

    with pytest.raises(CannotStart, match=r"only 41 MB are free .* needs 1073 MB"):
        check_disk(tmp_path, free=lambda _: 41_000_000)


def test_the_disk_is_asked_even_where_the_folder_is_not_made_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.1)


def test_a_folder_that_cannot_be_made_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CannotStart, match=r"file/data: Not a directory\. .*HEADRACE_FOLDER"):
        check_writable(tmp_path / "file" / "data")


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(CannotStart, match=f"another `make up` .process {os.getpid()}."):
        lock(tmp_path)


def test_a_folder_is_free_again_after_its_run(tmp_path: Path) -> None:
    lock(tmp_path).close()

    lock(tmp_path).close()


def test_what_a_killed_run_has_left_is_waited_for(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    held = lock(tmp_path)
    (tmp_path / "lock").write_text(str(child.pid))  # a process that is gone; its children hold the lock

    with pytest.raises(CannotStart, match="was killed"):
        lock(tmp_path, patience=0)
    lock(tmp_path, meanwhile=held.close).close()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:{port},localhost:{port}"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka"),
        ("ELASTICSEARCH_URL", "http://elastic:secret@127.0.0.1:{port}"),
        ("ELASTICSEARCH_URL", "127.0.0.1:{port}"),
        ("DATABASE_URL", "postgresql://me:secret@127.0.0.1:{port}/headrace"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:{port}/v1"),
    ],
)
def test_a_given_service_that_does_not_answer_is_named(variable: str, value: str) -> None:
    with pytest.raises(CannotStart) as refused:
        CHECKS[variable](value.format(port=free_port()))

    assert str(refused.value).startswith(f"{variable}: ")
    assert "secret" not in str(refused.value)


@contextmanager
def server(status: int, seen: dict[str, str]) -> Iterator[str]:
    """Answer every GET with this status, and note what came with it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.update(path=self.path, authorization=self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_model_server_that_refuses_the_key_is_told_from_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    seen: dict[str, str] = {}

    with server(401, seen) as at, pytest.raises(CannotStart, match=r"refuses the key in OPENAI_API_KEY \(401\)"):
        CHECKS["OPENAI_BASE_URL"](f"http://{at}/v1/")

    assert seen == {"path": "/v1/models", "authorization": "Bearer wrong"}


def test_a_model_server_without_a_list_of_models_will_do() -> None:
    with server(404, {}) as at:
        CHECKS["OPENAI_BASE_URL"](f"http://{at}/v1")


def test_credentials_in_the_url_of_elasticsearch_are_sent_and_not_shown() -> None:
    seen: dict[str, str] = {}

    with server(403, seen) as at, pytest.raises(CannotStart) as refused:
        CHECKS["ELASTICSEARCH_URL"](f"http://elastic:a%20secret@{at}")

    assert seen["authorization"] == "Basic ZWxhc3RpYzphIHNlY3JldA=="
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgresql://me:secret@db.example:5432/chat?password=secret", "postgresql://db.example:5432/chat"),
        ("https://example.org/v1", "https://example.org/v1"),
        ("one:9092,two:9092", "one:9092,two:9092"),
    ],
)
def test_a_given_address_is_shown_without_its_password(url: str, kept: str) -> None:
    assert shown(url) == kept


# -- how it watches over what it has started


class Program(Service):
    """A few lines of Python as a service. It is ready at once."""

    def __init__(self, folder: Path, name: str, script: str) -> None:
        self.name = self.title = name
        super().__init__(folder)
        self.script = script

    @property
    def environ(self) -> Mapping[str, str]:
        return {}

    def command(self) -> Sequence[str | Path]:
        return [sys.executable, "-c", self.script]

    def ready(self) -> bool:
        return self.running and "ready" in self.last_lines()


SERVE = "import signal; print('ready', flush=True); signal.pause()"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: {SERVE}"


class Started:
    """Everything that a run needs, with services that are a few lines each."""

    def __init__(self, folder: Path, worker: str = SERVE) -> None:
        self.one, self.two = Program(folder, "one", SERVE), Program(folder, "two", SERVE)
        self.worker = Program(folder, "worker", worker)
        self.out = io.StringIO()
        self.interrupts = Interrupts()
        self.held = lock(folder)
        self.run = up.Run(
            [self.one, self.two],
            self.worker,
            inherit=self.held.fileno(),
            progress=Progress(self.out),
            interrupts=self.interrupts,
        )

    def lines(self) -> list[str]:
        """What was said, without the figures."""
        return [" ".join(line.split()[:-2]) for line in self.out.getvalue().splitlines()]


StartRun = Callable[..., Started]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[StartRun]:
    """A run whose processes are gone at the end."""
    runs: list[Started] = []

    def start(**options: str) -> Started:
        started = Started(tmp_path, **options)
        runs.append(started)
        started.run.start()
        return started

    yield start
    for started in runs:
        started.run.stop()
        started.held.close()


def test_the_worker_is_started_last_and_stopped_first(begin: StartRun) -> None:
    started = begin()

    started.run.stop()

    assert started.lines() == [
        "ok one",
        "ok two",
        "ok worker",
        "ok Stopping worker",
        "ok Stopping two",
        "ok Stopping one",
    ]


def test_a_service_that_dies_ends_the_run_with_the_end_of_its_log(begin: StartRun) -> None:
    started = begin()
    assert started.two.pid is not None

    os.kill(started.two.pid, signal.SIGKILL)

    with pytest.raises(ServiceFailed, match=r"^two ended by SIGKILL\nready$"):
        started.run.watch()


def test_a_worker_that_dies_is_started_again_a_few_times(begin: StartRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "BACK_OFF_SECONDS", (0.0, 0.0))
    started = begin(worker="import time; print('ready', flush=True); time.sleep(0.3); raise SystemExit(3)")

    with pytest.raises(ServiceFailed, match=r"^worker ended with 3"):
        started.run.watch()

    said = started.out.getvalue()
    assert said.count("The worker ended with 3, and is started again") == 2
    assert started.lines().count("ok worker") == 3


def test_a_worker_that_cannot_start_is_not_started_again(begin: StartRun) -> None:
    with pytest.raises(ServiceFailed, match=r"^worker ended with 1\n.*no such setting"):
        begin(worker="raise SystemExit('no such setting')")


def test_ctrl_c_ends_the_watch(begin: StartRun) -> None:
    started = begin()

    with started.interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            started.run.watch()


def test_what_does_not_end_by_itself_is_killed(begin: StartRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "stop_seconds", 0.1)
    started = begin(worker=DEAF)

    started.run.stop()

    assert started.worker.exit_code == -signal.SIGKILL
    assert started.one.exit_code == -signal.SIGTERM


@pytest.mark.timeout(30)
def test_a_worker_that_has_lost_a_service_is_not_waited_for(begin: StartRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "stop_seconds", 3600)
    monkeypatch.setattr(up, "BEREFT_SECONDS", 0.1)
    started = begin(worker=DEAF)
    assert started.two.pid is not None
    os.kill(started.two.pid, signal.SIGKILL)
    with pytest.raises(ServiceFailed):
        started.run.watch()

    started.run.stop()

    assert started.worker.exit_code == -signal.SIGKILL
    assert started.one.exit_code == -signal.SIGTERM


def test_services_hold_the_lock_of_the_folder_as_long_as_they_live(begin: StartRun, tmp_path: Path) -> None:
    started = begin()

    started.held.close()  # as the kernel does when `make up` is killed

    with pytest.raises(CannotStart):
        lock(tmp_path, patience=0)
    started.run.stop()
    lock(tmp_path).close()


# -- the worker and its data


def test_the_worker_tells_why_it_refused_to_start(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 6066, {})
    worker.log.parent.mkdir()
    worker.log.write_text("noise\nHeadrace cannot start, because a setting is wrong:\nHEADRACE_GROUP: too long\n")

    assert worker.last_lines() == "Headrace cannot start, because a setting is wrong:\nHEADRACE_GROUP: too long"


def test_the_environment_comes_before_what_suits_one_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_AUTH", "required")

    variables = Worker(tmp_path, 6066, {"OPENAI_BASE_URL": "http://ours"}).variables()

    assert variables["HEADRACE_AUTH"] == "required"
    assert variables["OPENAI_BASE_URL"] == "http://ours"


@pytest.mark.parametrize("saved", [True, False])
def test_tables_are_made_anew_where_the_broker_lost_the_end_of_its_log(tmp_path: Path, saved: bool) -> None:
    worker = Worker(tmp_path, 6066, {})
    worker.data.mkdir(parents=True)
    if saved:
        (tmp_path / "data" / "broker.saved").touch()

    with up.tables_that_fit(worker, Embedded(tmp_path, only={"kafka"})):
        assert worker.data.exists() == saved

    assert not (tmp_path / "data" / "broker.saved").exists(), "this broker was not stopped in good order"


def test_the_logs_of_the_last_run_are_kept(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        up.keep_logs_of_last_run(tmp_path)
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "worker.log").write_text(text)

    assert (tmp_path / "logs.previous" / "worker.log").read_text() == "second"


def test_a_socket_path_that_is_too_long_is_replaced(tmp_path: Path) -> None:
    deep = Postgres(tmp_path / ("deep" * 25))

    assert len(str(deep.sockets / ".s.PGSQL.5432")) < 104
    assert deep.sockets != Postgres(tmp_path / ("deep" * 26)).sockets


# -- what it shows


def test_without_a_terminal_each_step_is_one_plain_line() -> None:
    out = io.StringIO()

    with Progress(out).step("Worker") as step:
        step.tick()
    with pytest.raises(ServiceFailed), Progress(out).step("Postgres"):
        raise ServiceFailed

    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["ok", "Worker", "0.0", "s"],
        ["failed:", "Postgres", "0.0", "s"],
    ]


def test_a_terminal_that_is_gone_does_not_stop_the_stopping() -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    with Progress(Gone()).step("Stopping Worker") as step:
        step.tick()
