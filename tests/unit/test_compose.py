"""docker-compose.yml and the Dockerfile, as far as they can be checked without a container engine."""

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from yarl import URL

from config.settings import Settings, variable

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKER = SERVICES["worker"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
# ${NAME}, ${NAME:-default} and ${NAME:?message}
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")

# What runs at each start and ends.
STEPS = {name for name, service in SERVICES.items() if service["restart"] == "no"}

each_service = pytest.mark.parametrize("service", SERVICES)


def example() -> dict[str, str]:
    """Return what .env.example sets."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def filled_in(text: str, values: dict[str, str]) -> str:
    """Put values and defaults in the place of variables, as compose does."""

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found["name"], found["kind"], found["rest"]
        assert name in values or kind == "-", f"{name} has no value and no default"
        return values.get(name) or (rest if kind == "-" else "")

    return VARIABLE.sub(value, text)


def environment(service: str) -> dict[str, str]:
    """Return a service's variables as it gets them with .env.example."""
    return {name: filled_in(str(value), example()) for name, value in SERVICES[service]["environment"].items()}


# -- docker-compose.yml


def test_the_file_is_a_compose_file() -> None:
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())

    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_the_schema_notices_a_slip() -> None:
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())
    slip = COMPOSE | {"services": SERVICES | {"worker": WORKER | {"read_onyl": True}}}

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(slip)


@each_service
def test_an_image_is_pinned_to_a_version(service: str) -> None:
    _, _, tag = SERVICES[service]["image"].rpartition(":")

    assert re.search(r"\d+\.\d+|b\d{4,}", tag), f"{tag} may be another image tomorrow"


@pytest.mark.parametrize("service", sorted(SERVICES.keys() - STEPS))
def test_a_service_tells_whether_it_is_healthy(service: str) -> None:
    check = SERVICES[service]["healthcheck"]

    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@each_service
def test_data_is_kept_in_named_volumes(service: str) -> None:
    for volume in SERVICES[service].get("volumes", ()):
        source, _, target = volume.partition(":")
        assert source in COMPOSE["volumes"]
        assert target.startswith("/")


def test_every_volume_is_used() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}

    assert used == set(COMPOSE["volumes"])


def test_only_the_worker_is_reachable_and_only_from_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert set(published) == {"worker"}
    assert all(port.startswith("127.0.0.1:") for port in published["worker"])


def test_the_stores_have_no_way_in_or_out() -> None:
    assert COMPOSE["networks"]["data"]["internal"] is True
    for service in ("kafka", "elasticsearch", "postgres", *STEPS):
        assert SERVICES[service]["networks"] == ["data"]


@each_service
def test_what_a_service_waits_for_exists_and_can_become_so(service: str) -> None:
    for other, wait in SERVICES[service].get("depends_on", {}).items():
        if other in STEPS:
            assert wait["condition"] == "service_completed_successfully"
        else:
            assert wait["condition"] in {"service_healthy", "service_started"}
            assert "healthcheck" in SERVICES[other]


def test_every_variable_is_in_the_example_file() -> None:
    used = {found["name"] for found in VARIABLE.finditer((ROOT / "docker-compose.yml").read_text())}
    told = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert used == told


def test_no_secret_is_written_into_the_file() -> None:
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if re.search(r"PASSWORD|KEY|SECRET", name):
                assert str(value).startswith("${")


# -- the worker's settings


@pytest.mark.parametrize("service", ["worker", "schema"])
def test_the_workers_variables_are_settings(service: str) -> None:
    assert set(SERVICES[service]["environment"]) <= {variable(field) for field in Settings.model_fields}


def test_the_workers_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("worker").items():
        monkeypatch.setenv(name, value)

    settings = Settings()

    assert settings.auth == "required"
    assert list(settings.keys.values()) == [("local", "me")]
    assert settings.replication == 1


def test_the_worker_looks_for_the_others_where_they_are() -> None:
    found = environment("worker")

    for name in ("ELASTICSEARCH_URL", "DATABASE_URL", "OPENAI_BASE_URL"):
        host = URL(found[name]).host
        assert host in SERVICES
        assert set(SERVICES[host]["networks"]) & set(WORKER["networks"])
    assert found["KAFKA_BOOTSTRAP_SERVERS"] in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


# tests/integration/test_roles.py runs what these run.
def test_tables_are_made_and_rights_given_by_their_owner() -> None:
    postgres, rights = environment("postgres"), environment("rights")
    owner = tuple(postgres[name] for name in ("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"))

    url = URL(environment("schema")["DATABASE_URL"])
    assert (url.host, url.user, url.password, url.path[1:]) == ("postgres", *owner)
    assert tuple(rights[name] for name in ("PGHOST", "PGUSER", "PGPASSWORD", "PGDATABASE")) == ("postgres", *owner)


def test_the_worker_connects_as_the_role_that_is_given_rights_and_does_not_know_the_owner() -> None:
    url, owner = URL(environment("worker")["DATABASE_URL"]), environment("postgres")

    (config,) = SERVICES["rights"]["configs"]
    assert config["target"] in SERVICES["rights"]["entrypoint"]
    assert COMPOSE["configs"][config["source"]]["file"] == "deploy/postgres_role.sql"
    assert f"CREATE ROLE {url.user} LOGIN" in (ROOT / "deploy" / "postgres_role.sql").read_text()
    assert url.password == environment("rights")["ROLE_PASSWORD"]
    assert url.path == f"/{owner['POSTGRES_DB']}"
    assert url.user != owner["POSTGRES_USER"]
    assert owner["POSTGRES_PASSWORD"] not in " ".join(environment("worker").values())


def test_the_worker_waits_for_its_rights_and_they_for_the_tables() -> None:
    assert "rights" in WORKER["depends_on"]
    assert "schema" in SERVICES["rights"]["depends_on"]
    assert "postgres" in SERVICES["schema"]["depends_on"]
    # The server that the image starts for the time in which it makes the database is not the one to wait for.
    assert "--host 127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"][1]


def test_the_tables_are_made_by_the_workers_image() -> None:
    assert SERVICES["schema"]["image"] == WORKER["image"]
    assert SERVICES["schema"]["pull_policy"] == "never"


def test_the_elasticsearch_server_has_the_clients_major() -> None:
    server = SERVICES["elasticsearch"]["image"].rpartition(":")[2]
    (client,) = re.findall(r"^elasticsearch==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)

    assert server.split(".")[:2] == client.split(".")[:2]


def test_one_broker_is_not_asked_for_more_than_one_copy() -> None:
    copies = {name: value for name, value in environment("kafka").items() if name.endswith(("FACTOR", "MIN_ISR"))}

    assert copies
    assert set(copies.values()) == {"1"}


@pytest.mark.parametrize("service", ["worker", *sorted(STEPS)])
def test_what_is_ours_has_no_rights_that_it_does_not_need(service: str) -> None:
    ours = SERVICES[service]

    assert ours["user"] in {"10001:10001", "postgres"}
    assert ours["read_only"] is True
    assert ours["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in ours["security_opt"]


def test_the_worker_has_a_place_for_what_is_temporary() -> None:
    assert any(mount.startswith("/tmp") for mount in WORKER["tmpfs"])


# -- the Dockerfile


def instructions(name: str) -> list[str]:
    """Return what follows each instruction of this name."""
    return re.findall(rf"^{name}\s+(.+)$", DOCKERFILE, re.MULTILINE)


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    ran = subprocess.run([hadolint, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout) == (0, "")


def test_base_images_are_pinned_and_the_same() -> None:
    images = {line.partition(" ")[0] for line in instructions("FROM")}

    (image,) = images
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", image)


def test_the_image_runs_as_the_user_that_compose_names() -> None:
    assert instructions("USER") == [WORKER["user"]]
    assert "HEALTHCHECK" in DOCKERFILE
    assert instructions("VOLUME") == ["/data"]


def copied() -> list[str]:
    """Return the files and folders that the image takes from the repository."""
    lines = [line.split() for line in instructions("COPY") if "--from" not in line]
    return [source for *sources, _ in lines for source in sources]


@pytest.mark.parametrize("source", copied())
def test_what_the_image_copies_exists_and_is_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    ignored = False
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#") and fnmatch(source, pattern.removeprefix("!")):
            ignored = not pattern.startswith("!")
    assert not ignored


def test_the_image_has_all_packages_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert set(project["tool"]["setuptools"]["packages"]) <= set(copied())


def test_the_containers_entry_starts_the_worker_just_as_everyone_does(tmp_path: Path) -> None:
    fake = tmp_path / "headrace"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    entry = ROOT / "deploy" / "worker.sh"

    ran = subprocess.run(
        [entry, "--web-port", "7000"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )

    said = " ".join(ran.stdout.split())
    assert said.startswith("worker --datadir /data ")
    assert "--web-bind 0.0.0.0" in said
    assert said.endswith("--web-port 7000")


def test_entry_and_health_check_mean_the_same_port() -> None:
    port = WORKER["ports"][0].rpartition(":")[2]

    assert instructions("EXPOSE") == [port]
    assert f"--web-port {port} " in (ROOT / "deploy" / "worker.sh").read_text()
    assert f":{port}/readyz" in DOCKERFILE
    assert f":{port}/readyz" in " ".join(WORKER["healthcheck"]["test"])


def test_the_example_secrets_say_that_they_are_to_be_changed() -> None:
    assert "change-this" in example()["HEADRACE_API_KEYS"]
    assert "change-this" in example()["POSTGRES_OWNER_PASSWORD"]
