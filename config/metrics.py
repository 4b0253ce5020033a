"""What an operator can measure: every metric, declared once, with its unit and the question it answers.

Import the metric where the thing happens: ``metrics.frames.inc()``. `docs/metrics.md` is generated from this
file (``make docs``). Labels take few values, and each declaration says which: nothing of a user's, no id and no
free text may become one, since every new value is a new series in Prometheus for as long as it remembers.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

from prometheus_client import Counter, Gauge, Histogram

OTHER: Final = "other"

# What a person notices of a stream lies between 10 ms and a minute; an answer takes up to ten minutes.
_FELT: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ANSWER: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
# Kafka acknowledges in about a millisecond, and the token path gives up after a few seconds.
_ACKNOWLEDGED: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5, 2.0, 10.0)

M = TypeVar("M", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the catalogue. ``labels`` says for each label which values it takes."""

    metric: Counter | Gauge | Histogram
    name: str
    kind: str
    question: str
    labels: dict[str, str]


catalogue: list[Entry] = []


def _entered(metric: M, name: str, question: str, labels: dict[str, str]) -> M:
    catalogue.append(Entry(metric, name, type(metric).__name__.lower(), question, labels))
    return metric


def _counter(name: str, question: str, **labels: str) -> Counter:
    return _entered(Counter(name, question, tuple(labels)), name, question, labels)


def _gauge(name: str, question: str, **labels: str) -> Gauge:
    return _entered(Gauge(name, question, tuple(labels)), name, question, labels)


def _histogram(name: str, question: str, buckets: tuple[float, ...], **labels: str) -> Histogram:
    return _entered(Histogram(name, question, tuple(labels), buckets=buckets), name, question, labels)


# -- questions and turns
questions_accepted = _counter(
    "headrace_questions_accepted_total",
    "How many questions has Kafka taken from this worker's clients? Compare its rate with that of the turns finished.",
)
replays_served = _counter(
    "headrace_replays_served_total",
    "How often was a request repeated under its Idempotency-Key, and answered with what its first try had made? A"
    " rising rate is clients that do not hear our answers.",
)
turns_in_work = _gauge(
    "headrace_turns_in_work",
    "How many answers is this worker writing? At HEADRACE_TURNS_IN_WORK the next questions wait for a place.",
)
turns_held = _gauge(
    "headrace_turns_held",
    "How many questions wait on this worker, for their conversation or for a place? At HEADRACE_TURNS_HELD the rest"
    " waits in Kafka: the model servers cannot keep up.",
)
turns_finished = _counter(
    "headrace_turns_finished_total",
    "How do turns end? A rising share of failed means that the model server or its settings need a look.",
    outcome="completed, stopped, failed, handed_over",
)
time_to_first_token = _histogram(
    "headrace_time_to_first_token_seconds",
    "How long does a person wait, from the accepted question to the first word in the log?",
    _FELT,
)
turn_duration = _histogram(
    "headrace_turn_duration_seconds",
    "How long does an answer take, from the accepted question to its end in the log?",
    _ANSWER,
)
turns_resumed = _counter(
    "headrace_turns_resumed_total",
    "How often was a turn taken up again, by a claim after its first? Each is a worker that died, left or was shut out,"
    " or a model that broke off.",
)
controls = _counter(
    "headrace_controls_total",
    "What do people ask for besides answers?",
    action="create, rename, erase, stop",
)
summaries = _counter("headrace_summaries_total", "How many summaries of long conversations were written?")
memory_changes = _counter(
    "headrace_memory_changes_total",
    "What becomes of what is known of users?",
    action="remember, edit, forget, forget_all, switch",
)

# -- the token path
tokens_logged = _counter(
    "headrace_tokens_logged_total",
    "How many pieces of answers did this worker write to the log and see acknowledged?",
)
frames = _counter(
    "headrace_frames_total",
    "How many Kafka records did these pieces take? Kafka costs per record, so this is what a broker feels. Under load,"
    " 1 to 2 pieces a record mean that HEADRACE_FRAME_MS is too short or partitions are too many.",
)
frame_ack = _histogram(
    "headrace_frame_ack_seconds",
    "How long does Kafka take to acknowledge a request of frames? What a reader sees is at least this old.",
    _ACKNOWLEDGED,
)
fenced_records = _counter(
    "headrace_fenced_records_total",
    "How many records of the token topic did not count, being of an older epoch or out of place? A few follow every"
    " failover; a steady rate is a worker that does not know that it lost its partitions.",
)

# -- readers
open_streams = _gauge(
    "headrace_open_streams",
    "How many clients listen to this worker now?",
    kind="events, completions, websocket",
)
slow_readers = _counter(
    "headrace_slow_readers_total",
    "How many readers were cut off because they took no byte for HEADRACE_WRITE_SECONDS?",
)
log_reads = _counter(
    "headrace_log_reads_total",
    "How many readers came too late, too slow or to the wrong worker, and were served by reading the log back?",
)

# -- documents
documents = _counter(
    "headrace_documents_total",
    "What becomes of the documents that this worker learns? Of one that failed, its status says why.",
    outcome="learned, failed",
)
passages_embedded = _counter(
    "headrace_passages_embedded_total",
    "How many passages did this worker turn into vectors? Those that a document had before are not among them.",
)
learning_duration = _histogram(
    "headrace_learning_seconds",
    "How long does a document take to be read, cut, embedded and indexed, once its turn has come?",
    (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
retrievals = _counter(
    "headrace_retrievals_total",
    "What do searches for passages come to? weak: nothing that is likely to answer; empty: the user may read nothing.",
    outcome="found, weak, empty, unavailable",
)
retrieval_duration = _histogram(
    "headrace_retrieval_seconds",
    "How long does an answer wait for its passages?",
    _FELT,
)

# -- the model server
model_requests = _counter(
    "headrace_model_requests_total",
    "What becomes of requests to the model server?",
    result="completed, busy, refused, broken, cancelled",
)
model_requests_open = _gauge(
    "headrace_model_requests_open",
    "How many answers does the model server write for this worker at this moment?",
)
model_servers = _gauge(
    "headrace_model_servers",
    "Which model servers are asked (closed), left alone after failures (open), or tried again (half-open)? 1 for the"
    " state that a server was in when it was last asked.",
    server="host and port",
    state="closed, open, half-open",
)
claim_wait = _histogram(
    "headrace_claim_wait_seconds",
    "How long did a new answer's first word wait in this worker for its claim to come back from the log?",
    _ACKNOWLEDGED,
)

# -- delivery
dead_letters = _counter(
    "headrace_dead_letters_total",
    "How many records were set aside, and why? Each is on chat.dead-letters.v1 with its place and reason.",
    reason="the codes of domain/errors.py",
)
recovery = _histogram(
    "headrace_recovery_seconds",
    "How long are conversations unavailable when partitions move here, until their tables are back?",
    (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
recovery_left = _gauge(
    "headrace_recovery_left_records",
    "How many changelog records does this worker still have to read before its conversations are available?",
)
recovered_records = _counter(
    "headrace_recovered_records_total",
    "How many changelog records went into this worker's tables while their conversations were unavailable?",
)
fenced_rows = _counter(
    "headrace_fenced_rows_total",
    "How many rows in changelogs were dropped here because a worker wrote them after its replacement had taken over?",
)
standbys_left = _gauge(
    "headrace_standby_left_records",
    "How many changelog records do this worker's standby copies still lack, of those that were there when partitions"
    " were last assigned? Until it is 0, a takeover has to read them.",
)
stores_set_aside = _counter(
    "headrace_stores_set_aside_total",
    "How many table partitions on this worker's disk were of no use and rebuilt? More than a few damaged ones is a"
    " disk that wants replacing.",
    reason="damaged, foreign, ahead, truncated",
)

peer_evictions = _counter(
    "headrace_peer_evictions_total",
    "How many members that had fallen silent did this worker have Kafka put out of the group? Each is a worker that was"
    " killed, frozen or cut off; if they live on, HEADRACE_PEER_SECONDS is too short for them.",
)

# -- windows
window_turns = _counter(
    "headrace_window_turns_total",
    "How do turns, and what is said of them, come to the metrics windows? late: after its shortest window had closed,"
    " which is published again;"
    " many of them ask for a longer HEADRACE_METRICS_GRACE_SECONDS. too_late: set aside on the dead letters. repeated:"
    " published twice, after a crash, and counted once.",
    arrival="in_time, late, too_late, repeated",
)
window_overdue = _gauge(
    "headrace_window_overdue_seconds",
    "How long ago did the oldest metrics window end that is still open on this worker? Below 0 none has ended. More"
    " than HEADRACE_METRICS_GRACE_SECONDS and a few: a partition lags, or Kafka takes no parts.",
)
parts_published = _counter(
    "headrace_parts_published_total",
    "How many parts of metrics windows has this worker published? first: a window's first; correction: it was reopened"
    " by a late turn; none: only that time has passed.",
    kind="first, correction, none",
)

windows_waiting = _gauge(
    "headrace_windows_waiting",
    "How many metrics windows have parts and are not final yet? They wait for a partition that has not closed them;"
    " after 5 s their rows are published as not final.",
    size="in seconds: 10, 60, 300",
)
metric_rows = _counter(
    "headrace_metric_rows_total",
    "How many rows has this worker published to the metrics topics?",
    metric="turns, tokens, quality",
    final="true, false",
)
tabulated_rows = _counter(
    "headrace_tabulated_rows_total",
    "How many rows of the one-minute metrics topics has this worker given to Postgres?",
)
tabulate_up = _gauge(
    "headrace_tabulate_up",
    "Does Postgres take the one-minute metrics? 0: it does not, and the log says why; they wait in Kafka. 1 on every"
    " worker but the one that brings them.",
)

# -- answer cache
answer_cache_lookups = _counter(
    "headrace_answer_cache_lookups_total",
    "How often is an earlier answer given instead of a new one? Many unavailable: Elasticsearch takes more than 0.3 s.",
    result="exact, hit, miss, unavailable",
)
answer_cache_saved_tokens = _counter(
    "headrace_answer_cache_saved_model_tokens_total",
    "How many model tokens did that save? They are those that the earlier answers took.",
    kind="input, output",
)
answer_cache_saved_cost = _counter(
    "headrace_answer_cache_saved_cost_total",
    "What would these have cost, at HEADRACE_INPUT_PRICE and HEADRACE_OUTPUT_PRICE?",
)

# -- the archive
archive_up = _gauge(
    "headrace_archive_up",
    "Does the sink take what it is given? 0: it does not, and the log says why; turns wait in Kafka, answers go on.",
    sink="postgres, elasticsearch",
)
archive_left = _gauge(
    "headrace_archive_left_records",
    "How many finished turns of this worker's partitions does the sink not have yet? It rises within a window; over"
    " several it means that the sink is away or too slow.",
    sink="postgres, elasticsearch",
)
archive_behind = _gauge(
    "headrace_archive_behind_seconds",
    "For how long has the sink lacked something? More than two or three windows is an outage: mend it within"
    " HEADRACE_TURNS_DAYS, after which Kafka deletes what waits.",
    sink="postgres, elasticsearch",
)
archived_turns = _counter(
    "headrace_archived_turns_total",
    "How many finished turns has this worker written?",
    sink="postgres, elasticsearch",
)
archive_batch = _histogram(
    "headrace_archive_batch_seconds",
    "How long does a sink take for a batch?",
    _FELT,
    sink="postgres, elasticsearch",
)
archive_expired = _counter(
    "headrace_archive_expired_records_total",
    "How many records did Kafka delete before the sink had them? Anything but 0 is a loss: only the answers that are"
    " in the conversations are left of them.",
    sink="postgres, elasticsearch",
)

# -- HTTP
http_requests = _counter(
    "headrace_http_requests_total",
    "Which routes are used, and how do they answer?",
    route="the route's pattern, or other where none matched",
    status="the three digits",
)
http_request_duration = _histogram(
    "headrace_http_request_seconds",
    "How long does a route take to begin its answer? Streams count until their headers are out.",
    _FELT,
    route="the route's pattern, or other where none matched",
)
