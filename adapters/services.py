"""Opens every connection to the outside once, and hands them down as one object."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from adapters.log_reader import LogReader, open_log_reader
from adapters.model_group import ModelGroup, open_model_group
from adapters.token_log import TokenLog, open_token_log
from config.settings import Settings

OnBadFrame = Callable[[int, int, bytes, str], None]


@dataclass(frozen=True, slots=True)
class Services:
    """Whom we talk to. Agents, tables and views reach the outside through this alone."""

    token_log: TokenLog
    log_reader: LogReader
    model: ModelGroup


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
        model = await stack.enter_async_context(open_model_group(settings))
        yield Services(token_log=token_log, log_reader=log_reader, model=model)
