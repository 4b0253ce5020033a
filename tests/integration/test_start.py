"""A worker that cannot work says why and ends, instead of starting halfway."""

import asyncio

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType

from tests.conftest import Names, StartWorker
from tests.support.services import Services
from tests.support.worker import Worker


async def refused(worker: Worker) -> str:
    """Return the log of a worker that ended by itself, as a failure."""
    async with asyncio.timeout(60):
        while worker.running:
            await asyncio.sleep(0.05)
    return worker.last_lines(200)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"HEADRACE_PARTITIONS": "many"}, "HEADRACE_PARTITIONS: Input should be a valid integer"),
        ({"HEADRACE_API_KEYS": "secretsecretsecret"}, "HEADRACE_API_KEYS: entry 1 must be tenant/user:key"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "kafka"}, "KAFKA_BOOTSTRAP_SERVERS: 'kafka' is not host:port"),
    ],
)
async def test_a_wrong_setting_is_named_and_no_secret_is_shown(
    services: Services, start_worker: StartWorker, environ: dict[str, str], said: str
) -> None:
    log = await refused(await start_worker(services, ready=False, supervised=False, **environ))

    assert said in log
    assert "secretsecret" not in log
    assert "Traceback" not in log


async def test_dev_is_refused_on_an_address_that_others_reach(
    services: Services, names: Names, start_worker: StartWorker
) -> None:
    worker = await start_worker(services, ready=False, WEB_BIND="0.0.0.0")

    log = await refused(worker)

    assert "HEADRACE_AUTH=dev accepts everyone" in log
    assert "Traceback" not in log


async def test_a_topic_with_another_partition_count_stops_the_start(
    services: Services, start_worker: StartWorker
) -> None:
    first = await start_worker(services)
    await first.stop()

    log = await refused(await start_worker(services, ready=False, HEADRACE_PARTITIONS="5"))

    assert "chat.questions.v1 has 8 partitions and needs 5" in log
    assert "Traceback" not in log


async def test_topics_are_created_with_the_settings_partitions_and_retention(
    real_kafka: Services, names: Names, start_worker: StartWorker
) -> None:
    await start_worker(real_kafka, HEADRACE_PARTITIONS="3", HEADRACE_TOKENS_DAYS="2")

    admin = AdminClient({"bootstrap.servers": real_kafka.bootstrap})
    topic = f"{names.topic_prefix}chat.tokens.v1"
    resource = ConfigResource(ResourceType.TOPIC, topic)
    configured = await asyncio.to_thread(admin.describe_configs([resource])[resource].result, 10)
    assert configured["retention.ms"].value == str(2 * 86_400_000)
    assert len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 3
