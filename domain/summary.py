"""The running summary of a conversation: what it covers, and what it should cover next.

A summary belongs to a turn: it says what was said up to that turn, along the branch that leads to it. So it is right
for every path that goes through its turn, and for no other: who edits or branches off before it has the summary before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from domain.conversation import Spoken, cost, last_that_fit
from domain.grounding import CONTROL, UNSEEN
from domain.prompt import load_prompt

PROMPT: Final = load_prompt("summary.v1")
KEPT: Final = 8  # summaries of one conversation: of its branches, and of earlier turns that others may branch off

S = TypeVar("S", bound=Spoken)


@dataclass(frozen=True, slots=True)
class Summary:
    """What was said up to a turn, and including it."""

    turn_id: str
    text: str


def summary_of(summaries: Sequence[Summary], path: Sequence[Spoken], parent: str = "") -> Summary | None:
    """Return the summary that reaches furthest along a path. The turn before the first counts as being on it.

    Of a path without turns that is ``parent``, where it would end.
    """
    known = {summary.turn_id: summary for summary in summaries}
    places = [*(turn.turn_id for turn in reversed(path)), path[0].parent if path else parent]
    return next((known[turn_id] for turn_id in places if turn_id in known), None)


def to_condense(path: Sequence[S], summary: Summary | None, *, context: int) -> list[S]:
    """Return the turns that the summary should take up next, oldest first, where prompts have ``context`` tokens.

    None until the turns that no summary covers take a third: instructions, passages and the question need the rest.
    Then half of those stay as they are, so that not every turn asks for a new summary.
    """
    after = [turn.turn_id for turn in path].index(summary.turn_id) + 1 if summary and _is_on(path, summary) else 0
    uncovered = [turn for turn in path[after:] if turn.answer]
    if sum(map(cost, uncovered)) <= context // 3:
        return []
    old = uncovered[: len(uncovered) - len(last_that_fit(uncovered, context // 6))]
    taken: list[S] = []
    for turn in old:
        taken.append(turn)
        if sum(map(cost, taken)) > context // 2:  # it has to fit the model's window, and the next round takes the rest
            break
    return taken


def _is_on(path: Sequence[Spoken], summary: Summary) -> bool:
    return any(turn.turn_id == summary.turn_id for turn in path)


def carried_on(summaries: Sequence[Summary], left: Sequence[Spoken], kept: Sequence[Spoken]) -> list[Summary]:
    """Return the summaries of a row that some turns have left: each still stands before a turn that is kept.

    Where a turn leaves before it was summarised, the summary before it stands for it: better a gap than to begin anew.
    """
    known = {summary.turn_id: summary for summary in summaries}
    for turn in left:
        if turn.parent in known and turn.turn_id not in known:
            known[turn.turn_id] = replace(known[turn.parent], turn_id=turn.turn_id)
    wanted = {turn.turn_id for turn in kept} | {turn.parent for turn in kept}
    return [summary for turn_id, summary in known.items() if turn_id in wanted][-KEPT:]


def asking(summary: Summary | None, turns: Sequence[Spoken], *, characters: int) -> list[Mapping[str, Any]]:
    """Return the messages that ask a model for the summary up to the last of these turns.

    Of a turn that is longer than ``characters``, the beginning of the question and of the answer stand for it.
    """
    half = characters // 2
    said = [f"Summary so far:\n{summary.text}"] if summary else []
    said += (f"User: {turn.input[:half]}\nAssistant: {turn.answer[:half]}" for turn in turns)
    return [
        {"role": "system", "content": PROMPT.text},
        {"role": "user", "content": "<conversation>\n" + cleaned("\n\n".join(said)) + "\n</conversation>"},
    ]


def cleaned(text: str) -> str:
    """Return a text without what a chat template, or the fence around it, would take for more than text."""
    text = CONTROL.sub(" ", UNSEEN.sub("", text))
    return text.replace("<conversation", "‹conversation").replace("</conversation", "‹/conversation").strip()
