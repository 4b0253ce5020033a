"""What Kafka has of a conversation and this worker has not taken in yet: to decide as its owner, it needs all of it.

Every question that was in the log when somebody asked is then among the runner's jobs, among the finished turns, or
returned here. Usually nothing is left to return: the runner is a few milliseconds behind. Under load it takes no more
than HEADRACE_TURNS_IN_WORK, and what waits is read from the log.
"""

import asyncio
from contextlib import suppress
from typing import Final

from domain.errors import BadRecord, NotOwner, Retriable
from streams.records import Question, decode
from streams.topics import partition_of
from web.ports import Record
from web.site import Site

TAKEN_SECONDS: Final = 0.1
POLL_SECONDS: Final = 0.002
FAR_BEHIND: Final = 20_000  # questions; reading them takes about a second


async def not_taken(site: Site, conversation_id: str) -> list[Question]:
    """Return the conversation's questions that the log has beyond what the runner has taken.

    Raises `NotOwner` where another worker owns the partition by now, `LogUnavailable` and other `Retriable` errors.
    """
    partition = partition_of(conversation_id, site.chat.settings.partitions)
    topic, reader = site.chat.topics_of.questions.name, site.chat.services.log_reader
    end = (await reader.ends(topic, [partition]))[partition]
    start = await _position(site, partition, end)
    if start >= end:
        return []
    if end - start > FAR_BEHIND:
        message = f"{end - start} questions are waiting before this one"
        raise Retriable(message, retry_after=5)
    found: list[Question] = []

    def visit(record: Record) -> bool:
        if record.key() == conversation_id.encode():
            with suppress(BadRecord):  # which the runner sets aside
                found.append(decode(record.value(), Question))
        return False

    await reader.scan(topic, partition, start, end, visit)
    _check_owner(site, partition)  # what was in work until now may have gone meanwhile
    return found


async def _position(site: Site, partition: int, end: int) -> int:
    """Return how far the runner is, having waited a moment for it to come to ``end``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TAKEN_SECONDS
    while (position := site.chat.runner.position(partition)) < end and loop.time() < deadline:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(POLL_SECONDS)
    _check_owner(site, partition)
    return position


def _check_owner(site: Site, partition: int) -> None:
    """Raise `NotOwner` where this worker does not know all that is in work."""
    if site.chat.runner.position(partition) < 0 or site.chat.owner_url(partition) is not None:
        raise NotOwner("this worker has just taken the conversation over, or lost it", retry_after=1)
