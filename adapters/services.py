"""Opens every connection to the outside once, and hands them down as one object."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from adapters.answer_cache import AnswerCache, open_answer_cache
from adapters.document_status import DocumentStatuses, open_document_statuses
from adapters.document_store import DocumentStore
from adapters.elastic import open_elastic
from adapters.embedder import Embedders, open_embedders
from adapters.history import History, open_history
from adapters.log_reader import LogReader, open_log_reader
from adapters.memory_store import MemoryStore
from adapters.metric_store import MetricStore
from adapters.model_group import ModelGroup, open_model_group
from adapters.parsers import Parsers, open_parsers
from adapters.passage_index import PassageIndex
from adapters.postgres import Postgres, open_postgres
from adapters.retriever import Retriever, open_retriever
from adapters.search_index import SearchIndex
from adapters.token_log import TokenLog, open_token_log
from adapters.turn_store import TurnStore
from config.settings import Settings

# Read ahead a few batches and not 64 MB of them, librdkafka's default.
SMALL_BUFFERS: Final = {"queued.max.messages.kbytes": 8 << 10, "fetch.max.bytes": 8 << 20, "fetch.queue.backoff.ms": 10}

OnBadFrame = Callable[[int, int, bytes, str], None]


@dataclass(frozen=True, slots=True)
class Services:
    """Whom we talk to. Agents, tables and views reach the outside through this alone."""

    token_log: TokenLog
    log_reader: LogReader
    model: ModelGroup
    archive_reader: LogReader
    document_reader: LogReader
    postgres: Postgres
    turn_store: TurnStore
    search_index: SearchIndex
    metric_store: MetricStore
    document_store: DocumentStore
    history: History
    embedders: Embedders
    passage_index: PassageIndex
    retriever: Retriever
    documents: DocumentStatuses
    parsers: Parsers
    answer_cache: AnswerCache
    memories: MemoryStore


@asynccontextmanager
async def open_services(settings: Settings, tokens_topic: str, on_bad_frame: OnBadFrame) -> AsyncIterator[Services]:
    """Open all connections; close them in the reverse order."""
    async with AsyncExitStack() as stack:
        log_reader = await stack.enter_async_context(open_log_reader(settings.kafka_bootstrap_servers))
        token_log = await stack.enter_async_context(
            open_token_log(
                settings.kafka_bootstrap_servers,
                tokens_topic,
                frame_ms=settings.frame_ms,
                idle_fetch_pause_ms=settings.idle_fetch_pause_ms,
                log_reader=log_reader,
                on_bad_frame=on_bad_frame,
            )
        )
        model = await stack.enter_async_context(open_model_group(settings, try_out=True))
        # Of their own: no reader of an answer waits for a batch. With a thread for each of turns in Postgres, turns in
        # Elasticsearch and metrics in Postgres: none of them waits for another, nor for documents that are learned.
        archive_reader = await stack.enter_async_context(
            open_log_reader(settings.kafka_bootstrap_servers, threads=3, kafka=SMALL_BUFFERS)
        )
        document_reader = await stack.enter_async_context(
            open_log_reader(settings.kafka_bootstrap_servers, threads=1, kafka=SMALL_BUFFERS)
        )
        postgres = await stack.enter_async_context(open_postgres(settings))
        history = await stack.enter_async_context(open_history(settings))
        elastic = await stack.enter_async_context(open_elastic(settings))
        embedders = await stack.enter_async_context(open_embedders(settings))
        passage_index = PassageIndex(elastic, settings.index_prefix)
        retriever = await stack.enter_async_context(open_retriever(embedders, passage_index, settings))
        documents = await stack.enter_async_context(open_document_statuses(elastic, settings.index_prefix))
        parsers = await stack.enter_async_context(open_parsers(settings.document_bytes))
        if settings.retrieval == "on":
            await parsers.start()  # before there is anybody whom that would stop
        answer_cache = await stack.enter_async_context(open_answer_cache(elastic, settings, retriever.embedder))
        yield Services(
            token_log=token_log,
            log_reader=log_reader,
            model=model,
            archive_reader=archive_reader,
            document_reader=document_reader,
            postgres=postgres,
            turn_store=TurnStore(postgres),
            search_index=SearchIndex(elastic, settings.index_prefix),
            metric_store=MetricStore(postgres),
            document_store=DocumentStore(postgres),
            history=history,
            embedders=embedders,
            passage_index=passage_index,
            retriever=retriever,
            documents=documents,
            parsers=parsers,
            answer_cache=answer_cache,
            memories=MemoryStore(elastic, settings.index_prefix),
        )
