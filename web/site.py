"""What the handlers of one worker share: the worker itself, and bounded memories of what was seen here."""

import time
from typing import Final

from aiohttp import ClientSession, web

from streams.records import Question
from web.caches import Cache
from web.keys import Keys
from web.ports import Chat, Conversations, Replays
from web.replays import Attempts
from web.shapes import ConversationView
from web.sse import Streams

MEGABYTE: Final = 1 << 20

OWNERS: Final = 100_000
OWNERS_SECONDS: Final = 300.0  # so long may a worker that did not see it take questions for an erased conversation
QUESTIONS_BYTES: Final = 32 * MEGABYTE
QUESTIONS_SECONDS: Final = 3600.0
YOUNG_SECONDS: Final = 10.0  # so long may the table of a new conversation's owner lag behind
BEGUN_SECONDS: Final = 3.0  # so long is what was begun here listed although its table does not have it
ERASED: Final = 10_000
ERASED_SECONDS: Final = 600.0


class Site:
    """See the module.

    ``owners``: conversation -> (tenant, user). ``accepting``: conversations where a question is being accepted that
    must be alone.
    """

    def __init__(self, chat: Chat, conversations: Conversations, replays: Replays) -> None:
        clock = time.monotonic
        self.chat = chat
        self.conversations = conversations
        self.replays = replays
        self.keys = Keys(chat.settings.keys)
        self.streams = Streams(ping=chat.settings.ping_seconds, patience=chat.settings.write_seconds)
        self.attempts = Attempts(clock)
        self.owners: Cache[tuple[str, str]] = Cache(OWNERS, OWNERS_SECONDS, clock)
        self.questions: Cache[Question] = Cache(QUESTIONS_BYTES, QUESTIONS_SECONDS, clock)
        self.accepting: set[str] = set()
        self.created: Cache[tuple[tuple[str, str], ConversationView]] = Cache(OWNERS, BEGUN_SECONDS, clock)
        self.erased: Cache[tuple[tuple[str, str], str]] = Cache(ERASED, ERASED_SECONDS, clock)
        self._http: ClientSession | None = None

    @property
    def http(self) -> ClientSession:
        """Return the client for asking other workers."""
        if self._http is None:
            self._http = ClientSession(auto_decompress=False)
        return self._http

    async def shut_down(self, _: web.Application) -> None:
        """Send the readers of streams to other workers. May be called twice."""
        await self.streams.close()

    async def close(self, _: web.Application) -> None:
        """Close what was opened. Is called twice: Faust cleans up twice."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    def now_ns(self) -> int:
        """Return the Unix time in ns."""
        return time.time_ns()

    def now_ms(self) -> int:
        """Return the Unix time in ms."""
        return self.now_ns() // 1_000_000


SITE: Final = web.AppKey("site", Site)
