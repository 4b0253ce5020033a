"""on_busy=reject: a question that is accepted only while its conversation has no other in work.

Decided at the owner of the conversation, by all that Kafka had when it was asked. A question that another worker puts
into the log in the very same moment may still come first: then the agent ends this one as failed, visibly.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from domain.errors import Retriable
from domain.turns import CONVERSATION_BUSY
from web.catch_up import not_taken
from web.errors import ApiError
from web.progress import progress_of
from web.site import Site

CLOSING_SECONDS: Final = 2.0  # from a turn's end in the log to its place in the conversation: some milliseconds
POLL_SECONDS: Final = 0.005


@asynccontextmanager
async def alone(site: Site, conversation_id: str) -> AsyncIterator[None]:
    """Keep others out while a question is accepted; raises `ApiError` 409 if the conversation is busy."""
    if conversation_id in site.accepting:
        raise _busy()
    site.accepting.add(conversation_id)
    try:
        await _check_free(site, conversation_id)
        yield
    finally:
        site.accepting.discard(conversation_id)


async def _check_free(site: Site, conversation_id: str) -> None:
    working = [*await not_taken(site, conversation_id), *site.chat.runner.in_work(conversation_id)]
    for question in working:
        if (await progress_of(site, question)).end is None:
            raise _busy()
    # What has ended is over for its reader, who may ask at once; for the agent it is when it has been closed.
    deadline = asyncio.get_running_loop().time() + CLOSING_SECONDS
    while closing := {question.turn_id for question in site.chat.runner.in_work(conversation_id)}:
        if closing - {question.turn_id for question in working}:
            raise _busy()
        if asyncio.get_running_loop().time() > deadline:
            raise Retriable("the turn before is being put into its conversation", retry_after=1)
        await asyncio.sleep(POLL_SECONDS)


def _busy() -> ApiError:
    message = "An answer is being written in this conversation. Wait for it, stop it, or ask with on_busy=queue."
    return ApiError(409, CONVERSATION_BUSY, message, param="on_busy")
