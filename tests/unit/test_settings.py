"""What an operator sets, and what is said when it is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from config.settings import Settings, explain, load, misspelt, variable
from docs.generate import PAGES, settings_page, stale

ROOT = Path(__file__).parents[2]
KEY = "sk-0123456789abcdef"
PLAIN = {"KAFKA_BOOTSTRAP_SERVERS", "ELASTICSEARCH_URL", "DATABASE_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY"}


@pytest.fixture(autouse=True)
def _only_what_the_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLAIN:
        monkeypatch.delenv(name, raising=False)
    load.cache_clear()


def refusal(monkeypatch: pytest.MonkeyPatch, **environ: str) -> str:
    """Return what is said when these variables are set, which must be refused."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    return explain(refused.value)


def test_without_any_variable_there_are_settings_that_work_on_one_machine() -> None:
    settings = Settings()

    assert settings.kafka_bootstrap_servers == "127.0.0.1:9092"
    assert settings.auth == "required"
    assert settings.keys == {}
    assert settings.session_tokens >= settings.context_tokens


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "KAFKA_BOOTSTRAP_SERVERS": "a:1, b:2",
        "ELASTICSEARCH_URL": "https://search:9200/",
        "DATABASE_URL": "postgres://u:p@db/chat",
        "OPENAI_BASE_URL": "http://model/v1/",
        "OPENAI_API_KEY": KEY,
        "HEADRACE_API_KEYS": f"acme/jo@acme.org:{KEY}",
        "HEADRACE_PARTITIONS": "32",
        "HEADRACE_AUTH": "dev",
        "HEADRACE_FRAME_MS": "7.5",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert settings.kafka_bootstrap_servers == "a:1,b:2"
    assert settings.elasticsearch_url == "https://search:9200"
    assert settings.database_url.get_secret_value() == "postgres://u:p@db/chat"
    assert settings.openai_base_url == "http://model/v1"
    assert settings.openai_api_key.get_secret_value() == KEY
    assert settings.keys == {KEY: ("acme", "jo@acme.org")}
    assert (settings.partitions, settings.auth, settings.frame_ms) == (32, "dev", 7.5)


def test_a_model_may_have_a_threshold_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().threshold("headrace") == Settings().threshold("any") > 0

    monkeypatch.setenv("HEADRACE_REFUSAL_THRESHOLD", "0.3, careful=1, org/model-2=0")
    settings = Settings()
    assert [settings.threshold(name) for name in ("headrace", "careful", "org/model-2")] == [0.3, 1, 0]
    assert [settings.threshold(*names) for names in (("careful", "org/model-2"), ("any", "org/model-2"))] == [1, 0]


@pytest.mark.parametrize("value", ["", "a lot", "1.5", "-0.1", "nan", "careful=0.3", "0.3,careful=", "0.3;0.4"])
def test_a_threshold_that_is_none_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert "HEADRACE_REFUSAL_THRESHOLD" in refusal(monkeypatch, HEADRACE_REFUSAL_THRESHOLD=value)


def test_a_model_may_have_a_way_of_its_own_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().ways_to_resume == {"": "auto"}

    monkeypatch.setenv("HEADRACE_MODEL_RESUME", "auto, gpt-4o=instruct,org/model-2=prefill")
    assert Settings().ways_to_resume == {"": "auto", "gpt-4o": "instruct", "org/model-2": "prefill"}


def test_a_model_may_have_a_price_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().prices == ({}, {})

    monkeypatch.setenv("HEADRACE_INPUT_PRICE", "2.5, gpt-4o=5")
    monkeypatch.setenv("HEADRACE_OUTPUT_PRICE", "org/model-2=0.125")
    assert Settings().prices == ({"": 2.5, "gpt-4o": 5.0}, {"org/model-2": 0.125})


@pytest.mark.parametrize("value", ["a lot", "-1", "nan", "0.0001", "1e3", "2.5,", "gpt-4o=", "2,5;3"])
def test_a_price_that_is_none_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert "HEADRACE_INPUT_PRICE" in refusal(monkeypatch, HEADRACE_INPUT_PRICE=value)


def test_a_variable_is_named_after_its_field_unless_other_programs_use_it_too() -> None:
    names = {variable(field) for field in Settings.model_fields}

    assert {name for name in names if not name.startswith("HEADRACE_")} == PLAIN


@pytest.mark.parametrize(
    ("name", "value", "may_be"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka", "host:port"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka:99999", "host:port"),
        ("KAFKA_BOOTSTRAP_SERVERS", "", "host:port"),
        ("ELASTICSEARCH_URL", "localhost:9200", "http://"),
        ("DATABASE_URL", "mysql://db/chat", "postgresql://"),
        ("DATABASE_URL", "postgresql://db/chat?colour=red", "as libpq reads it"),
        ("HEADRACE_WINDOW_SECONDS", "600", "less than or equal to 120"),
        ("OPENAI_BASE_URL", "api.example.org/v1", "http://"),
        ("HEADRACE_AUTH", "none", "'required' or 'dev'"),
        ("HEADRACE_API_KEYS", "jo:short", "tenant/user:key"),
        ("HEADRACE_PARTITIONS", "0", "greater than or equal to 1"),
        ("HEADRACE_PARTITIONS", "5000", "less than or equal to 4096"),
        ("HEADRACE_PARTITIONS", "many", "valid integer"),
        ("HEADRACE_REPLICATION", "0", "greater than or equal to 1"),
        ("HEADRACE_GROUP", "a b", "[A-Za-z0-9._-]"),
        ("HEADRACE_TOPIC_PREFIX", "a/b", "[A-Za-z0-9._-]"),
        ("HEADRACE_SESSION_SECONDS", "0.5", "greater than or equal to 1"),
        ("HEADRACE_PEER_SECONDS", "0.5", "must be 0, or 1 at least"),
        ("HEADRACE_TURN_SECONDS", "0", "greater than 0"),
        ("HEADRACE_IDLE_FETCH_PAUSE_MS", "-1", "greater than or equal to 0"),
        ("HEADRACE_LOG_FORMAT", "xml", "'auto', 'json' or 'text'"),
        ("HEADRACE_MODEL_RESUME", "yes", "'auto', 'prefill' or 'instruct'"),
        ("HEADRACE_MODEL_RESUME", "auto,gpt-4o=no", "'gpt-4o=no' is not 'auto', 'prefill' or 'instruct'"),
        ("HEADRACE_MODEL_RESUME", "gpt-4o=instruct", "for all models that are not named"),
        ("HEADRACE_MODEL_SERVERS", "http://a/v1,b/v1", "'b/v1' is not a URL"),
        ("HEADRACE_MODEL_SERVERS", "http://a/v1,2*http://a/v1", "named twice"),
        ("HEADRACE_MODEL_SERVERS", "0*http://a/v1", "weight"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_it_may_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, may_be: str
) -> None:
    said = refusal(monkeypatch, **{name: value})

    assert said.startswith(f"{name}: ")
    assert may_be in said


def test_every_wrong_value_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, HEADRACE_PARTITIONS="0", HEADRACE_REPLICATION="x", ELASTICSEARCH_URL="nowhere")

    assert {line.partition(":")[0] for line in said.splitlines()} == {
        "HEADRACE_PARTITIONS",
        "HEADRACE_REPLICATION",
        "ELASTICSEARCH_URL",
    }


def test_settings_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, HEADRACE_SESSION_TOKENS="100", HEADRACE_CONTEXT_TOKENS="200")

    assert "HEADRACE_SESSION_TOKENS" in said
    assert "HEADRACE_CONTEXT_TOKENS" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEADRACE_API_KEYS", "acme/jo:hunter2secret"),
        ("HEADRACE_API_KEYS", "hunter2secret"),
        ("DATABASE_URL", "mysql://jo:hunter2secret@db/chat"),
        ("DATABASE_URL", "postgresql://jo:hunter2secret%zz@db/chat"),
    ],
)
def test_a_refusal_never_shows_a_secret(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert "hunter2secret" not in refusal(monkeypatch, **{name: value})


def test_printing_the_settings_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HEADRACE_API_KEYS", f"acme/jo:{KEY}")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://jo:{KEY}@db/chat")

    settings = Settings()

    assert KEY not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_a_misspelt_variable_is_told_of_with_what_was_probably_meant() -> None:
    (said,) = misspelt(["HEADRACE_PARTITION", "HEADRACE_PARTITIONS", "PATH"])

    assert said == "HEADRACE_PARTITION: there is no such setting; did you mean HEADRACE_PARTITIONS?"


def test_variables_that_kubernetes_makes_for_a_service_of_our_name_are_left_alone() -> None:
    made = ["PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_6066_TCP", "PORT_6066_TCP_ADDR"]

    assert misspelt([f"HEADRACE_{name}" for name in made]) == []


@pytest.mark.parametrize("environ", [{"HEADRACE_PARTITIONS": "0"}, {"HEADRACE_PARTITION": "4"}])
def test_a_process_with_a_wrong_setting_ends_with_the_reason_and_no_trace(environ: dict[str, str]) -> None:
    code = "from config.settings import load; load()"

    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )

    assert ran.returncode == os.EX_CONFIG, "a supervisor would try again"
    assert "HEADRACE_PARTITIONS" in ran.stderr
    assert "docs/settings.md" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_says_what_the_code_says(page: str) -> None:
    assert page not in stale(), "run `make docs`"


def test_a_stale_page_is_noticed(tmp_path: Path) -> None:
    for name, write in PAGES.items():
        (tmp_path / name).write_text(write())
    assert stale(tmp_path) == []

    (tmp_path / "settings.md").write_text(settings_page().replace("`8`", "`9`", 1))

    assert stale(tmp_path) == ["settings.md"]


def test_the_page_of_settings_has_every_variable_and_no_secret_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    page = settings_page()

    assert KEY not in page
    for field in Settings.model_fields:
        assert f"| `{variable(field)}` |" in page
