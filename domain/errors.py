"""What can go wrong, sorted by who can do something about it.

ChatError
├── Retriable             the same call may work soon: back off and repeat
│   ├── ModelBusy         429, 5xx, refused, time-out, broken or stalled stream
│   ├── LogUnavailable    Kafka did not take or return a record in time
│   ├── StoreUnavailable  this worker's disk does not take or return a row
│   ├── SinkUnavailable   Postgres or Elasticsearch does not take or return what it keeps
│   ├── EmbedderUnavailable  no vectors now: the model is being loaded, or its server is away
│   ├── Overtaken         somebody else has written what a sink was to be given
│   └── NotOwner          another worker owns the conversation's partition, or a rebalance is going on
└── Rejected              it never will work: dead-letter it and tell the user why
    ├── BadRecord         a record on a topic that cannot be decoded
    ├── BadRequest        the model server refuses this request, whoever sends it again
    │   └── KeyRefused    it refuses this worker's key; another server may take it
    ├── SinkRefused       a sink will never take these records
    ├── TooLate           the windows that a turn belongs to cannot be corrected any more
    ├── Expired           the log was asked for what it has deleted already
    └── TurnFailed        the turn cannot be finished within its attempts or its time
"""

from collections.abc import Mapping


class ChatError(Exception):
    """Root of every error that Headrace raises on purpose. ``code`` is stable and goes out to clients."""

    code = "internal_error"


class Retriable(ChatError):
    """The same call may work soon. ``retry_after`` is the server's own wish in seconds, if it gave one."""

    code = "temporarily_unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelBusy(Retriable):
    """The model server is overloaded, unreachable, or broke off in the middle of an answer."""

    code = "model_unavailable"


class LogUnavailable(Retriable):
    """Kafka did not acknowledge or return a record in time."""

    code = "log_unavailable"


class StoreUnavailable(Retriable):
    """This worker's disk does not take or return a row."""

    code = "store_unavailable"


class SinkUnavailable(Retriable):
    """Postgres or Elasticsearch does not take or return what it keeps."""

    code = "sink_unavailable"


class EmbedderUnavailable(Retriable):
    """There are no vectors now: the embedding model is being loaded, or its server is away."""

    code = "embedder_unavailable"


class Overtaken(Retriable):
    """A sink's progress is not where a batch begins: another worker wrote it, or we did before a crash."""

    code = "overtaken"


class NotOwner(Retriable):
    """This worker does not hold the conversation's partition now."""

    code = "not_owner"


class Rejected(ChatError):
    """Trying again cannot help."""

    code = "rejected"


class BadRecord(Rejected):
    """A record on one of our topics cannot be decoded."""

    code = "bad_record"


class BadRequest(Rejected):
    """The model server refused the request itself (a 4xx other than 408, 409 and 429)."""

    code = "model_refused"


class KeyRefused(BadRequest):
    """The model server does not accept this worker's key."""

    code = "model_key_refused"


class SinkRefused(Rejected):
    """A sink will never take some records of a batch, whose ``reasons`` stand by offset. None of it was written."""

    code = "sink_refused"

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(next(iter(reasons.values()), ""))
        self.reasons = reasons


class TooLate(Rejected):
    """A turn came so late that what its windows had is deleted."""

    code = "too_late"


class Expired(Rejected):
    """The log has deleted what was asked for: it is older than the topic's retention."""

    code = "expired"


class TurnFailed(Rejected):
    """The turn used up its attempts or its time without reaching an end."""

    code = "turn_failed"
