"""A start without Kafka."""

import pytest
import structlog

from adapters.kafka_admin import ensure_topics
from deploy.embedded import free_port
from domain.errors import LogUnavailable


async def test_a_start_without_kafka_waits_says_so_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.kafka_admin.ASK_SECONDS", 0.2)
    nowhere = f"127.0.0.1:{free_port()}"

    with structlog.testing.capture_logs() as logs, pytest.raises(LogUnavailable) as caught:
        await ensure_topics(nowhere, [], patience=0.5)

    assert f"Kafka does not answer at {nowhere} (KAFKA_BOOTSTRAP_SERVERS)" in str(caught.value)
    assert [entry["event"] for entry in logs] == ["waiting for kafka"] * len(logs)
    assert logs
