"""What a model proposes to remember of a question, where one is set for it: how it is asked, and what is believed.

A model's answer is data that anyone may have influenced. It is believed only where it is the JSON that was asked for
and speaks of what the question says; and what is a secret by our own reading is not taken.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from domain.memory import TEXT_LENGTH, Kind, words
from domain.prompt import load_prompt
from domain.secret import is_secret
from domain.statements import Told
from domain.told import LONGEST, MOST, one_line

PROMPT: Final = load_prompt("memory.v1")
ANSWER_TOKENS: Final = 400
SLOT: Final = re.compile(r"[^\W_][\w .:/+#-]{0,59}")


def asking(text: str) -> list[Mapping[str, Any]]:
    """Return the messages that ask a model what to remember of a question."""
    return [
        {"role": "system", "content": PROMPT.text},
        {"role": "user", "content": f"<message>\n{one_line(text[:LONGEST])}\n</message>"},
    ]


def proposed(answer: str, text: str) -> list[Told] | None:
    """Return what a model's answer proposes to remember of a question's text; None if it is not what was asked for."""
    begin, end = answer.find("{"), answer.rfind("}")
    try:
        listed = json.loads(answer[begin : end + 1])["facts"]
        facts = [_fact(each, text) for each in listed]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return [fact for fact in facts if fact is not None][:MOST]


def _fact(entry: Mapping[str, str], text: str) -> Told | None:
    said, slot, kind = one_line(entry["text"]), entry["slot"].casefold(), entry["kind"]
    if not 0 < len(said) <= TEXT_LENGTH or not SLOT.fullmatch(slot) or kind not in get_args(Kind):
        return None
    # Else it is made up, or repeats the instructions' example.
    if not words(said) & words(text) or is_secret(said):
        return None
    return Told(said, slot, cast("Kind", kind))
