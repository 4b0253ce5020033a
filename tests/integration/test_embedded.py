"""The embedded services are what they say, keep their data, and leave nothing behind."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import openai
import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from elasticsearch import Elasticsearch
from openai.types.chat import ChatCompletionMessageParam

from deploy import model_server
from deploy.embedded import Embedded, Postgres
from deploy.service import ServiceFailed, wait_ready

ROOT = Path(__file__).parents[2]
PARTITIONS = 5


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """All of them, for tests that change nothing which another would see."""
    with Embedded(tmp_path_factory.mktemp("embedded")) as services:
        yield services


def make_topic(environ: Mapping[str, str], name: str) -> None:
    """Create a topic."""
    admin = AdminClient({"bootstrap.servers": environ["KAFKA_BOOTSTRAP_SERVERS"]})
    admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result(10)


def write(environ: Mapping[str, str], topic: str, texts: Mapping[int, str]) -> None:
    """Write a record to each of these partitions, acknowledged."""
    config = {"bootstrap.servers": environ["KAFKA_BOOTSTRAP_SERVERS"], "enable.idempotence": True}
    producer = Producer(config)
    for partition, text in texts.items():
        producer.produce(topic, text.encode(), partition=partition)
    assert producer.flush(10) == 0


def read(environ: Mapping[str, str], topic: str, count: int) -> dict[int, str]:
    """Read as many records from the beginning, by partition."""
    config = {"bootstrap.servers": environ["KAFKA_BOOTSTRAP_SERVERS"], "group.id": "test-embedded"}
    consumer = Consumer(config)
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    messages = consumer.consume(count, timeout=20)
    consumer.close()
    return {message.partition() or 0: (message.value() or b"").decode() for message in messages}


def partitions(environ: Mapping[str, str], topic: str) -> int:
    """Return how many partitions a topic has."""
    admin = AdminClient({"bootstrap.servers": environ["KAFKA_BOOTSTRAP_SERVERS"]})
    return len(admin.list_topics(topic, timeout=10).topics[topic].partitions)


def test_a_topic_has_the_partitions_that_it_was_made_with(embedded: Embedded) -> None:
    make_topic(embedded.environ, "counted")
    write(embedded.environ, "counted", {0: "first", 4: "last"})

    assert partitions(embedded.environ, "counted") == PARTITIONS
    assert read(embedded.environ, "counted", 2) == {0: "first", 4: "last"}


def test_elasticsearch_is_spoken(embedded: Embedded) -> None:
    with Elasticsearch(embedded.environ["ELASTICSEARCH_URL"]) as client:
        assert client.info()["version"]["number"].startswith("8.")


def test_postgres_is_a_real_one(embedded: Embedded) -> None:
    with psycopg.connect(embedded.environ["DATABASE_URL"]) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE numbers (n bigint)")
        with cursor.copy("COPY numbers FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int8"])
            for number in range(3):
                copy.write_row([number])
        cursor.execute("SELECT sum(n), current_database(), version() FROM numbers")
        row = cursor.fetchone()

    assert row is not None
    assert row[:2] == (3, "headrace")
    assert row[2].startswith("PostgreSQL 16")


def test_the_model_goes_on_where_an_answer_was_broken_off(embedded: Embedded) -> None:
    client = openai.OpenAI(base_url=embedded.environ["OPENAI_BASE_URL"], api_key="none")
    broken_off = "The first five letters of the alphabet are A, B, C,"
    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "Name five letters."},
        {"role": "assistant", "content": broken_off},
    ]

    with client.chat.completions.create(
        model=model_server.NAME,
        messages=messages,
        max_tokens=4,
        temperature=0,
        stream=True,
    ) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]

    assert "".join(pieces).startswith(" D,")
    assert len([piece for piece in pieces if piece]) == 4, "one piece a model token"
    assert [model.id for model in client.models.list()] == [model_server.NAME]


def test_everything_is_found_again(tmp_path: Path) -> None:
    # So deep that the path of the Unix socket would be too long.
    folder = tmp_path / ("deep" * 25)
    services = Embedded(folder, only={"kafka", "es", "pg"})
    with services:
        make_topic(services.environ, "kept")
        write(services.environ, "kept", {partition: f"in {partition}" for partition in range(PARTITIONS)})
        admin = AdminClient({"bootstrap.servers": services.environ["KAFKA_BOOTSTRAP_SERVERS"]})
        place = ConsumerGroupTopicPartitions("group", [TopicPartition("kept", 3, 1)])
        admin.alter_consumer_group_offsets([place])["group"].result(10)
        with Elasticsearch(services.environ["ELASTICSEARCH_URL"]) as client:
            client.index(index="kept", id="1", document={"text": "a river"}, refresh=True)
        with psycopg.connect(services.environ["DATABASE_URL"]) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    pids = [service.pid for service in services.services]

    with Embedded(folder, only={"kafka", "es", "pg"}) as again:
        assert [pid for pid in pids if pid and psutil.pid_exists(pid)] == []
        assert partitions(again.environ, "kept") == PARTITIONS
        assert read(again.environ, "kept", PARTITIONS) == {number: f"in {number}" for number in range(PARTITIONS)}
        admin = AdminClient({"bootstrap.servers": again.environ["KAFKA_BOOTSTRAP_SERVERS"]})
        found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("group")])["group"].result(10)
        assert found.topic_partitions is not None
        assert [(each.partition, each.offset) for each in found.topic_partitions] == [(3, 1)]
        with Elasticsearch(again.environ["ELASTICSEARCH_URL"]) as client:
            assert client.search(index="kept", query={"match": {"text": "river"}})["hits"]["total"]["value"] == 1
        with psycopg.connect(again.environ["DATABASE_URL"]) as connection:
            row = connection.execute("SELECT answer FROM kept").fetchone()
            assert row == (42,)
    with contextlib.suppress(FileNotFoundError):
        Postgres(folder).sockets.rmdir()


def test_services_end_when_whoever_started_them_is_killed(tmp_path: Path) -> None:
    script = (
        "import signal, sys; from pathlib import Path; from deploy.embedded import Embedded\n"
        "services = Embedded(Path(sys.argv[1])); services.start()\n"
        "print(*[service.pid for service in services.services], flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        started = [child for pid in pids for child in family(pid)]

        parent.kill()

    assert len(pids) == 3
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []
    assert not (tmp_path / "data" / "postgres" / "cluster" / "postmaster.pid").exists(), (
        "Postgres was shut down in good order"
    )


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def test_the_terminals_ctrl_c_does_not_reach_them(embedded: Embedded) -> None:
    groups = {os.getpgid(service.pid) for service in embedded.services if service.pid}

    assert len(groups) == len(embedded.services)
    assert os.getpgid(0) not in groups


def test_a_service_that_cannot_start_says_why(tmp_path: Path, embedded: Embedded) -> None:
    database = Postgres(tmp_path)
    cluster = database.data / "cluster"
    cluster.mkdir(parents=True)

    database.start()

    with pytest.raises(ServiceFailed, match=r"PostgreSQL ended with \d+\n.*cluster"):
        wait_ready(database, 20)
