"""The app: Faust set up from the settings, with the names of the modules that make up Headrace.

The app knows names only; agents, tables and views import it, and nothing imports back. It is the one place
that opens `adapters.services`, before any agent or view starts.
"""

import asyncio
import gc
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from time import monotonic, time
from typing import Any, Final, NoReturn, cast

import aiohttp.web
import faust
import structlog
import uvloop
from aiokafka.errors import MessageSizeTooLargeError
from faust.types import TP
from faust.types.transports import TransportT
from faust.web.drivers.aiohttp import Web as FaustWeb
from yarl import URL

from adapters.group import client_id, evict
from adapters.kafka_admin import ensure_topics
from adapters.priority import go_first
from adapters.services import Services, open_services
from config import logging, metrics, settings
from config.settings import Settings
from domain.errors import ChatError, LogUnavailable, NotOwner, Rejected, Retriable
from streams.delivery import SafeConsumer, follow_moved_leaders, pause_after_empty_fetches, safe_transport
from streams.peer_watch import PeerWatch, open_peer_watch
from streams.records import DeadLetter, Wire, encode
from streams.table_recovery import ChangelogTables, TableRecovery
from streams.topics import Topics, TopicSpec, changelog, partition_of
from streams.turn_runner import UNKNOWN, Limits, TurnRunner

log = structlog.get_logger(__name__)

# Leaf modules, by name: Faust's discovery of a whole package only warns when a module in it fails to import.
MODULES: Final = (
    "tables.conversations",
    "tables.memories",
    "tables.replays",
    "tables.parts",
    "tables.windows",
    "agents.answer",
    "agents.archive",
    "agents.close",
    "agents.control",
    "agents.learn",
    "agents.measure",
    "agents.merge",
    "agents.remember",
    "agents.tabulate",
    "streams.commands",
    "streams.learn_command",
    "streams.reindex_command",
    "web.routes",
)

PUBLISH_SECONDS = 30.0
# What a dead letter holds of a record: as JSON at most 0.8 MB, where Kafka takes 1 MB. The rest stands in its log.
LETTER_VALUE_BYTES: Final = 500_000
LETTER_TEXT_CHARS: Final = 10_000
HEARTBEAT_SECONDS: Final = 0.1  # so long the others may take to hear that a worker is gone, and Kafka waits for each
CLOSE_STREAMS_SECONDS = 5.0
LEAVE_SECONDS = 15.0  # closing tables and streams takes 3 s
STEPPED_BACK: Final = os.EX_TEMPFAIL  # it may work again later, unlike a wrong setting
# Records that wait for Kafka before Faust holds up all streams, questions too, and says so each time. Its own bound of
# 100 is what the tables of one busy second write; ours are bounded where they are written.
BUFFERED_RECORDS = 1000
SWITCH_SECONDS = 0.001  # Python's own is 5 ms: so long another thread may keep the event loop waiting, each time
GC_THRESHOLDS = (5_000, 10, 20)  # Python's own 700 is reached too often beside streams, and 20,000 is a stop of 14 ms

OnWeb = Callable[[aiohttp.web.Application], None]


class ChatWeb(FaustWeb):
    """Faust's web server without Faust's own pages, which show tables and routing to everyone."""

    default_blueprints = production_blueprints = debug_blueprints = optional_blueprints = ()

    def _new_transport_tcp(self) -> aiohttp.web.BaseSite:
        return aiohttp.web.TCPSite(self._runner, cast("ChatApp", self.app).listen_on, self.app.conf.web_port)


class ChatApp(faust.App):
    """A Headrace worker. ``services`` and ``runner`` are what agents, tables and views work with."""

    services: Services
    settings: Settings
    topics_of: Topics

    def __init__(self, chat_settings: Settings, **options: Any) -> None:
        self.settings = chat_settings
        self.topics_of = Topics.of(chat_settings)
        self.runner = TurnRunner(
            self, Limits(chat_settings.turns_in_work, chat_settings.turns_held, chat_settings.turns_held_bytes)
        )
        self._register_web: list[OnWeb] = []
        self._peer_watch: PeerWatch | None = None
        self._open = False
        self._stepping_back = False
        self._leaving = False
        self._rebalancing_since = monotonic()
        super().__init__(chat_settings.group, **options)
        metrics.turns_in_work.set_function(lambda: self.runner.running)
        metrics.turns_held.set_function(lambda: self.runner.held)
        self.on_partitions_assigned.connect(cast("Any", self._follow_assignment), weak=False)  # Faust's signal types

    # -- what the delivery layer asks (streams.turn_runner.Group)

    @property
    def generation(self) -> int:
        """Return the number of the current assignment."""
        return self.consumer_generation_id

    def delivers_from(self, partition: int, topic: str = "") -> int:
        """Return the offset where this assignment's delivery of a topic, or questions, began, -1 while not known."""
        if self.rebalancing:
            return UNKNOWN
        return self._delivery.delivers_from.get(TP(topic or self.topics_of.questions.name, partition), UNKNOWN)

    def hold_back(self) -> None:
        """Fetch no more questions. What was fetched still comes: to pause a partition in Faust would drop it."""
        for tp in self._questions():
            self._delivery.on_buffer_full(tp)

    def go_on(self) -> None:
        """Fetch questions again."""
        for tp in self._questions():
            self._delivery.on_buffer_drop(tp)

    def _questions(self) -> list[TP]:
        return [tp for tp in self._assignment or () if tp.topic == self.topics_of.questions.name]

    @property
    def _delivery(self) -> SafeConsumer:
        return cast("SafeConsumer", self.consumer)

    @property
    def member_id(self) -> str:
        """Return what Kafka calls us in the group, "" outside of it. May be asked from any thread."""
        consumer = self._delivery._thread._consumer
        return str(consumer._coordinator.member_id) if consumer is not None else ""

    # -- topics

    def raw_topic(self, spec: TopicSpec) -> faust.TopicT:
        """Return the Faust topic of raw keys and values: decoding, and what happens when it fails, is ours."""
        return self.topic(
            spec.name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            partitions=spec.partitions,
            internal=False,
        )

    async def publish(
        self, spec: TopicSpec, key: str, record: Wire | None, *, at_ms: int | None = None, partition: int | None = None
    ) -> int:
        """Write a record, or that there is none of this key any more; return its offset once Kafka has acknowledged it.

        ``at_ms`` is the record's timestamp in Unix ms, now by default; ``partition`` by default that of the
        conversation that is its key. Raises `LogUnavailable`, and `Rejected` for a record that is too large for Kafka.
        """
        if partition is None:
            partition = partition_of(key, spec.partitions)
        # Faust takes seconds and truncates them to ms again; half a millisecond keeps the number whole.
        timestamp = None if at_ms is None else (at_ms + 0.5) / 1000
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                value = None if record is None else encode(record)
                sent = await self.producer.send(spec.name, key.encode(), value, partition, timestamp, None)
                return int((await sent).offset)
        except TimeoutError as error:
            raise LogUnavailable(
                f"Kafka did not acknowledge a record for {spec.name} in {PUBLISH_SECONDS:.0f} s"
            ) from error
        except Exception as error:
            # What its client refuses, Faust wraps; what the broker refuses, it does not.
            if isinstance(error, MessageSizeTooLargeError) or isinstance(error.__cause__, MessageSizeTooLargeError):
                raise Rejected(f"a record for {spec.name} is larger than Kafka takes") from error
            raise LogUnavailable(f"Kafka did not take a record for {spec.name}: {error!r}") from error

    async def dead_letter(
        self,
        *,
        topic: str,
        partition: int,
        offset: int,
        error: Exception,
        key: bytes | None = b"",
        value: bytes | None = b"",
    ) -> None:
        """Set aside what cannot be decoded or handled, with where it stood and why. Raises `LogUnavailable`.

        Of a large record the letter has the beginning, and says so: were it too large itself, whoever sets the record
        aside would try for ever, and take nothing else from its partition.
        """
        code = error.code if isinstance(error, ChatError) else "internal_error"
        key, value, reason = key or b"", value or b"", (str(error) or repr(error))[:LETTER_TEXT_CHARS]
        metrics.dead_letters.labels(code).inc()
        log.error("record set aside", topic=topic, partition=partition, offset=offset, code=code, reason=reason)
        if len(value) > LETTER_VALUE_BYTES:
            reason += f" (here are {LETTER_VALUE_BYTES} of the {len(value)} bytes of its value)"
        letter = DeadLetter(
            topic=topic,
            partition=partition,
            offset=offset,
            reason=reason,
            code=code,
            key=key[:LETTER_TEXT_CHARS].decode(errors="replace"),
            value=value[:LETTER_VALUE_BYTES],
            at=now_ms(),
        )
        await self.publish(self.topics_of.dead_letters, letter.key, letter)

    # -- who owns what

    def partition(self, conversation_id: str) -> int:
        """Return the partition of a conversation."""
        return partition_of(conversation_id, self.settings.partitions)

    async def settled(self) -> None:
        """Wait until no rebalance is going on and the tables are back: until then they cannot be read or written."""
        while self.rebalancing:  # noqa: ASYNC110 - Faust offers no event for it
            await asyncio.sleep(0.02)

    def owned(self) -> set[int]:
        """Return the partitions of questions that this worker holds, also in the middle of a rebalance."""
        return {tp.partition for tp in self._questions()}

    def owner_url(self, partition: int) -> URL | None:
        """Return where a partition's owner listens, None for this worker; raises `NotOwner` while nobody owns it."""
        if self.rebalancing or not self.tables.actives_ready:
            raise NotOwner("the workers are sharing out the conversations anew", retry_after=1)
        if partition in self.owned():
            return None
        for url, topics in self.router.external_topics_metadata().items():
            if partition in topics.get(self.topics_of.questions.name, ()):
                return URL(url)
        raise NotOwner(f"no worker owns partition {partition} yet", retry_after=1)

    def workers(self) -> list[URL]:
        """Return where the other workers that own partitions listen."""
        own = URL(str(self.conf.canonical_url))
        topic = self.topics_of.questions.name
        return [
            URL(url)
            for url, topics in self.router.external_topics_metadata().items()
            if topics.get(topic) and URL(url) != own
        ]

    def ready(self) -> str:
        """Return "" when this worker can take questions, else what it waits for."""
        if not self._open:
            return "connections are being opened"
        if self._leaving or self.should_stop:
            return "shutting down"
        if reading := self.recovery.describe():
            return f"tables are being recovered: {reading}"
        if self.rebalancing:
            return "partitions are being assigned and tables recovered"
        if not self.tables.actives_ready:
            return "tables are being recovered"
        return ""

    # -- tables

    @property
    def recovery(self) -> TableRecovery:
        """Return what brings the tables back after a rebalance."""
        return cast("ChangelogTables", self.tables).recovery

    def step_back(self, why: str) -> None:
        """End this worker in order, because it can do no good here and now: others take its partitions over.

        The exit code tells a supervisor to start it again, after a pause.
        """
        if self._stepping_back or self.should_stop:
            return
        self._stepping_back = True
        log.critical("worker steps back", reason=why)
        # What made it step back may also keep it from ending in order.
        self._end_within(self.settings.drain_seconds + LEAVE_SECONDS)
        _ = self.add_future(self.crash(SystemExit(STEPPED_BACK)))

    def _end_within(self, seconds: float) -> None:
        """End the process in any case, without another word if need be: what is not acknowledged is not lost."""
        deadline = threading.Timer(seconds, os._exit, [STEPPED_BACK])
        deadline.daemon = True
        deadline.start()

    # -- start and stop

    def worker_init(self) -> None:
        """Have the loop that Faust's command is about to make be uvloop's. Importing the app changes nothing."""
        # At 200 streams an eighth less CPU a token than asyncio's own loop, and half of its p99 (docs/measurements.md).
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        super().worker_init()

    def on_web(self, register: OnWeb) -> None:
        """Have ``register`` add its routes to the web application when the server starts."""
        self._register_web.append(register)

    def on_webserver_init(self, web: faust.web.Web) -> None:
        """Add our routes, and do not let open streams hold up the shutdown."""
        web = cast("FaustWeb", web)  # the driver of `_new_web`
        while self._register_web:  # Faust calls this when the modules are loaded, and again when the server starts
            self._register_web.pop(0)(web.web_app)
        web._runner._shutdown_timeout = CLOSE_STREAMS_SECONDS

    def on_init_dependencies(self) -> Iterable[Any]:
        """Name this worker to Kafka, now that its port is known and before anything connects."""
        self.conf.broker_client_id = client_id(self.settings.group, self.conf.web_port)
        return super().on_init_dependencies()

    async def on_start(self) -> None:
        """Check the settings against the world, and open every connection, before anything else starts."""
        await super().on_start()
        raise_open_files()
        self.producer.buffer.max_messages = BUFFERED_RECORDS
        self._check_address()
        # With the changelogs: one that Faust creates while the group is sharing out is left out of that assignment,
        # and its table has no owner until the next.
        changelogs = [changelog(table.changelog_topic_name, self.settings) for table in self.tables.values()]
        try:
            await ensure_topics(self.settings.kafka_bootstrap_servers, [*self.topics_of.all(), *changelogs])
        except ChatError as error:
            refuse(str(error), os.EX_TEMPFAIL if isinstance(error, Retriable) else os.EX_CONFIG)
        await self._evict_former_life()
        self.services = await self.add_async_context(
            open_services(self.settings, self.topics_of.tokens.name, self._on_bad_frame)
        )
        if self.settings.peer_seconds:
            self._peer_watch = await self.add_async_context(
                open_peer_watch(
                    self.settings,
                    self.topics_of.workers.name,
                    client_id=self.conf.broker_client_id,
                    member=lambda: self.member_id,
                )
            )
        self._open = True

    async def _evict_former_life(self) -> None:
        """Tell Kafka that who is in the group under this host and port is dead, so that its questions go on at once."""
        try:
            await evict(self.settings.kafka_bootstrap_servers, self.settings.group, self.conf.broker_client_id)
        except LogUnavailable as error:
            # Kafka finds out by itself, when the session times out.
            log.warning("former life not evicted", reason=str(error), session_seconds=self.settings.session_seconds)

    async def on_started(self) -> None:
        """Let no other thread, garbage collection or process stop the event loop for long: tokens would wait."""
        await super().on_started()
        sys.setswitchinterval(SWITCH_SECONDS)
        # What the start has made is left out of collections, and the rest is looked through less often.
        # At 10,000 tokens a second full collections come every few seconds, and each stopped every stream for
        # 100 to 200 ms: p99 of the added time was 180 ms with them, and is 25 ms without.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        # Only now: a start takes seconds of a core, and those that answer meanwhile need the brokers more than us.
        if self.settings.niceness and not go_first(self.settings.niceness):
            log.warning(
                "other processes of this machine may go first", reason="no right to it", niceness=self.settings.niceness
            )

    @property
    def listen_on(self) -> str:
        """Return the address to listen on: ``--web-bind``, else only that of ``--web-host``. Faust's choice is all."""
        return str(self.conf.web_bind or self.conf.web_host)

    def on_rebalance_start(self) -> None:
        """Note when conversations become unavailable."""
        self._rebalancing_since = monotonic()
        super().on_rebalance_start()

    def on_rebalance_end(self) -> None:
        """Note how long conversations were unavailable: Faust calls this once the tables are back."""
        super().on_rebalance_end()
        metrics.recovery.observe(monotonic() - self._rebalancing_since)

    def _check_address(self) -> None:
        if self.settings.auth == "dev" and self.conf.web_enabled and not is_loopback(self.listen_on):
            refuse(
                f"HEADRACE_AUTH=dev accepts everyone, so it may listen on a loopback address only, not on"
                f" {self.listen_on}. Set HEADRACE_AUTH=required, or --web-host 127.0.0.1."
            )

    def _on_bad_frame(self, partition: int, offset: int, value: bytes, reason: str) -> None:
        if partition in self.owned():
            error = ChatError(f"not a frame of tokens: {reason}")
            letter = self.dead_letter(
                topic=self.topics_of.tokens.name, partition=partition, offset=offset, error=error, value=value
            )
            _ = self.add_future(letter)

    async def _follow_assignment(self, _sender: Any, assigned: set[TP], **_: Any) -> None:
        owned = {tp.partition for tp in assigned if tp.topic == self.topics_of.questions.name}
        await self.runner.keep(owned)
        # Whoever needs a partition waits for it, in no callback, and the tables come back meanwhile.
        await self.services.token_log.own(owned, within=0)
        if self._peer_watch is not None:
            # Who owns everything is alone, unless there is so little to own that others may have nothing.
            self._peer_watch.accompany(len(owned) < self.settings.partitions or self.settings.partitions == 1)
        log.info("partitions assigned", partitions=sorted(owned), generation=self.generation)

    async def stop(self) -> None:
        """Let running answers come to their end first, for HEADRACE_DRAIN_SECONDS; then hand over what is left.

        Meanwhile this worker stays in the group and answers new questions, too: once it left, others would take the
        running answers from it, and as long as it stayed and did not answer, new ones would wait (up to 6.2 s of 10).
        """
        if self._open and not (self._leaving or self._stepping_back or self.crashed):
            self._leaving = True
            await self.runner.drain(self.settings.drain_seconds)
            # A Kafka that is away keeps Faust from ever ending, and perhaps nobody is left to kill this process.
            self._end_within(LEAVE_SECONDS)
        await super().stop()

    def _new_transport(self) -> TransportT:
        return safe_transport(self, self.runner.hand_over)

    def _new_web(self) -> FaustWeb:
        return ChatWeb(self)


def raise_open_files() -> None:
    """Allow as many open files as the operator lets us: each stream is one, and the usual limit of 1024 is soft."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS names a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def now_ms() -> int:
    """Return the Unix time in ms."""
    return int(time() * 1000)


def is_loopback(host: str) -> bool:
    """Return True if an address, or the name localhost, reaches this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def refuse(why: str, exit_code: int = os.EX_CONFIG) -> NoReturn:
    """End the process with a reason that a person understands, and without a traceback.

    The exit code tells a supervisor whether to try again: a wrong setting stays wrong.
    """
    log.critical("worker cannot start", reason=why)
    sys.stderr.write(f"Headrace cannot start: {why}\n")
    sys.stderr.flush()
    raise SystemExit(exit_code)


def create_app(chat_settings: Settings) -> ChatApp:
    """Return the app. Connects to nothing."""
    follow_moved_leaders()
    if chat_settings.idle_fetch_pause_ms:
        pause_after_empty_fetches(chat_settings.idle_fetch_pause_ms)
    return ChatApp(
        chat_settings,
        broker=[f"kafka://{broker}" for broker in chat_settings.kafka_bootstrap_servers.split(",")],
        store="rocksdb://?driver=rocksdict",
        TableManager=ChangelogTables,
        table_standby_replicas=chat_settings.standbys,
        origin="streams.app",
        logging_config=logging.for_faust(chat_settings.log_format),
        autodiscover=MODULES,
        topic_partitions=chat_settings.partitions,
        topic_replication_factor=chat_settings.replication,
        topic_disable_leader=True,
        broker_session_timeout=chat_settings.session_seconds,
        broker_heartbeat_interval=min(HEARTBEAT_SECONDS, chat_settings.session_seconds / 4),
        broker_rebalance_timeout=10.0,
        broker_request_timeout=max(15.0, chat_settings.session_seconds),
        broker_commit_interval=1.0,
        broker_max_poll_records=500,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        producer_request_timeout=30.0,
        producer_max_request_size=max(1 << 20, Topics.of(chat_settings).documents.record_bytes),
        stream_wait_empty=True,
        web_host="127.0.0.1",
        web_bind="",
        web_application_options={"client_max_size": chat_settings.max_body_bytes},
    )


app = create_app(settings.load())
