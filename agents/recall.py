"""question -> memory -> facts in the prompt: what the assistant knows of who is asking"""

from typing import Final

import structlog

from domain.errors import Retriable
from domain.memory import relevant
from streams.app import app
from streams.records import Question

log = structlog.get_logger(__name__)

RECALL_SECONDS: Final = 0.5


async def recall(question: Question) -> list[str]:
    """Return what the user has told that this question's answer should know; nothing where that is out of reach.

    Never raises, and takes half a second at most: an answer that does not know its user is better than none.
    """
    if app.settings.memory == "off":
        return []
    try:
        known = await app.services.memories.of(question.tenant, question.user, within=RECALL_SECONDS)
    except Retriable as error:
        # While Elasticsearch is left alone after a failure, that has been said already.
        say = log.warning if error.retry_after is None else log.debug
        say("memories not read", turn_id=question.turn_id, reason=str(error))
        return []
    return relevant(known.facts, question.input) if known.enabled else []
