"""`reindex` ends with a sentence and an exit code that say whether to try again, and never with a traceback."""

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from config import logging
from domain.errors import EmbedderUnavailable, LogUnavailable, Rejected, SinkUnavailable
from streams.reindex_command import Refused, Reindex


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Refused("there is nothing to do"), os.EX_USAGE, "there is nothing to do"),
        (FileNotFoundError("no such model"), os.EX_NOINPUT, "no such model"),
        (Rejected("a text is refused"), os.EX_DATAERR, "a text is refused"),
        (SinkUnavailable("Elasticsearch is away"), os.EX_TEMPFAIL, "Not now: Elasticsearch is away"),
        (LogUnavailable("Kafka is away"), os.EX_TEMPFAIL, "Not now: Kafka is away"),
        (EmbedderUnavailable("no model yet"), os.EX_TEMPFAIL, "Not now: no model yet"),
        (TimeoutError(), os.EX_TEMPFAIL, "Not now: the embedding model was not loaded in time"),
    ],
)
def test_whatever_ends_it_is_said(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(logging, "configure", lambda *_: None)
    command: Any = SimpleNamespace(app=SimpleNamespace(settings=SimpleNamespace(log_format="")), loglevel="", _do=fail)

    with pytest.raises(SystemExit) as ended:
        Reindex.__call__(cast("Reindex", command))

    assert ended.value.code == code
    assert said in capsys.readouterr().err
