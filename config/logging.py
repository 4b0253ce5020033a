"""How events are logged: one JSON object a line in ECS field names, or a readable line on a terminal.

Our own events come through structlog, those of Faust, mode, aiokafka and the others through the standard
library, and all of them leave by one handler on stderr (stdout keeps Faust's banner). Two ways in:

``configure("auto")``
    sets up a process of ours that is not a worker.
``faust.App(..., logging_config=for_faust("auto"))``
    because ``faust worker`` clears the root logger's handlers when it starts, and applies this dict instead.
    The level is the command line's: ``faust worker -l info``.

ECS: https://www.elastic.co/docs/reference/ecs/logging/intro
"""

import json
import logging
import logging.config
import math
import sys
import traceback
from datetime import UTC, datetime
from typing import IO, Any, Final, Literal

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "json", "text"]

ECS_VERSION: Final = "8.11.0"
SERVICE: Final = "headrace"

# An outage of a broker makes aiokafka log a thousand errors in twelve seconds, all of them the same few; aiohttp logs
# one with its traceback for every request that is not HTTP.
FLOODING: Final = ("aiohttp", "aiokafka")
FLOOD_ALLOWS: Final = 3
FLOOD_SECONDS: Final = 10.0

# At INFO these tell of every HTTP request that they make, which for us is one per answer.
TALKATIVE: Final = ("httpx", "httpx2", "httpcore", "httpcore2", "elastic_transport")


def configure(chosen: Format = "auto", level: int | str = "INFO") -> None:
    """Send every event of this process through our handler. May be called again, then the last call counts."""
    configure_structlog()
    logging.config.dictConfig(_config(chosen) | {"root": {"level": level, "handlers": ["default"]}})


def for_faust(chosen: Format = "auto") -> dict[str, Any]:
    """Lead structlog into the standard library, and return what a Faust app is to do with the latter.

    ``merge`` tells mode to fill in the root logger's level from the command line. The handler that it would add
    has the name of ours, which therefore takes its place.
    """
    configure_structlog()
    return _config(chosen) | {"merge": True}


def configure_structlog() -> None:
    """Hand structlog's events to the standard library, so that all events leave by one way."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Modules make their loggers on import, so a cached one would outlive the configuration of a test.
        cache_logger_on_first_use=False,
    )


def _config(chosen: Format) -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": formatter, "chosen": chosen}},
        # The stream is looked up once, here: a worker then puts a proxy in stderr's place, which logs what it is given.
        "handlers": {"default": {"()": CalmHandler, "stream": "ext://sys.stderr", "formatter": "ours"}},
        "loggers": {name: {"level": "WARNING"} for name in TALKATIVE},
    }


def formatter(chosen: Format = "auto", *, terminal: bool | None = None) -> logging.Formatter:
    """Return the formatter of both kinds of events. ``terminal``: whether a person watches; asks stderr if None."""
    if terminal is None:
        terminal = sys.stderr.isatty()
    as_text = chosen == "text" or (chosen == "auto" and terminal)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, _note_suppressed],
        processors=_text(colors=terminal) if as_text else [ecs, _json],
    )


# -- one JSON object a line


def ecs(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Return the event under ECS's names; what the caller added goes under ``headrace.``, where none clash."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    return {
        "@timestamp": _time(record),
        "log.level": record.levelname.lower(),
        "message": str(event.pop("event", "")),
        "ecs.version": ECS_VERSION,
        "service.name": SERVICE,
        "log.logger": record.name,
        "process.pid": record.process,
        "process.thread.name": record.threadName,
        **_error(event.pop("exc_info", None)),
        **{f"{SERVICE}.{name}": value for name, value in event.items()},
    }


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error(exc_info: Any) -> dict[str, str]:
    """Return ECS's error fields of what logging calls take as ``exc_info``: an exception, its triple, or True."""
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    elif exc_info and not isinstance(exc_info, BaseException):
        exc_info = sys.exception()
    if not isinstance(exc_info, BaseException):
        return {}
    kind = type(exc_info)
    return {
        "error.type": kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        "error.message": str(exc_info),
        "error.stack_trace": "".join(traceback.format_exception(exc_info)),
    }


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except Exception:  # noqa: BLE001 - JSON has no form for a value, and a log line must not become an error itself
        return json.dumps({name: value if isinstance(value, int) else ascii(value) for name, value in event.items()})


# -- a readable line


def _text(*, colors: bool) -> list[Processor]:
    # The default formatter of exceptions prints local variables, and with them whatever secrets they hold.
    plain = structlog.dev.plain_traceback
    return [_head, structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, exception_formatter=plain)]


def _head(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put time, level and logger where the renderer looks for them."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
    event.update(timestamp=time, level=record.levelname.lower(), logger=record.name)
    return event


# -- floods


class CalmHandler(logging.StreamHandler[IO[str]]):
    """Writes records, but of a flood only the first of each kind, and afterwards the last with their number.

    A kind is a place in the source: so texts that vary count together, and there are only so many. Time is the
    records' own.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._kinds: dict[tuple[str, int], _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record unless it is one of a flood, after what is due of floods that are over."""
        self._tell(record.created)
        if self._passes(record):
            super().emit(record)

    def close(self) -> None:
        """Tell of all floods, then close."""
        self._tell(math.inf)
        super().close()

    def _passes(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in FLOODING:
            return True
        kind = self._kinds.setdefault((record.pathname, record.lineno), _Kind(record.created))
        kind.count += 1
        if kind.count <= FLOOD_ALLOWS:
            return True
        kind.held_back = record
        return False

    def _tell(self, now: float) -> None:
        for place in [place for place, kind in self._kinds.items() if now - kind.since >= FLOOD_SECONDS]:
            kind = self._kinds.pop(place)
            if kind.held_back is not None:
                kind.held_back.suppressed = kind.count - FLOOD_ALLOWS
                super().emit(kind.held_back)


class _Kind:
    """How many records of one kind there were since a time, and the last one that was not written."""

    __slots__ = ("count", "held_back", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.held_back: logging.LogRecord | None = None


def _note_suppressed(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Say on the record that ends a flood how many were held back, itself included."""
    if suppressed := getattr(event["_record"], "suppressed", 0):
        event["suppressed"] = suppressed
    return event
