"""What is known of a user: facts, each the value of one slot, of which the latest told counts.

A fact is never changed by a later one: it is superseded, keeps from when to when it was valid, and is used no more. The
order in which facts arrive does not matter, only when they were told, since they come out of many conversations. What a
user erases leaves no trace, and with it goes what it had superseded.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from domain.conversation import tokens_in

Kind = Literal["identity", "preference", "work", "note"]

TEXT_LENGTH: Final = 300
FACT_TOKENS: Final = 256  # of all facts in a prompt: a dozen of the usual length
HANDLED: Final = 200  # a change comes again within seconds, and these are days of a user's

ALWAYS: Final = frozenset({"identity", "preference"})
ABOUT_ME: Final = re.compile(
    r"""\b(?: who\ am\ i | about\ me | (?:know|remember)\ me | my\ memor(?:y|ies)
            | (?:what|who|where|when|which)(?:'s|\ is|\ are|\ was)\ my
            | (?:what|where|which)\ (?:\w+\ )?(?:do|did|am)\ i\ (?:live|work|working|called|prefer|like|use|do|tell|say)
            | (?:know|remember|recall)\ (?:what|where|who|that|which)?\ ?(?:my|i)\b )""",
    re.VERBOSE,
)
WORD: Final = re.compile(r"[^\W_]+")
_COMMON = """
a about after all also always an and any are as ask at be because been before being but by can could did do does for
from get give had has have he her him his how i if in into is it its just know like made make me more most my new no not
now of on one only or other our out over please prefer prefers really said say she should show so some such tell than
that the their them then there these they this those to too up us use used user uses using very want wants was we were
what when where which who why will with work works would you your
"""
COMMON: Final = frozenset(_COMMON.split())  # words that say nothing about what a text is about


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that a user told. Times are Unix ms.

    ``slot``: what it is a value of; a later fact of the same slot supersedes it, and then it has a ``valid_to``.
    ``turn_id`` and ``conversation_id``: where it was told, empty where it was entered by hand.
    """

    id: str
    text: str
    slot: str
    kind: Kind
    created_at: int
    valid_from: int
    valid_to: int | None = None
    turn_id: str = ""
    conversation_id: str = ""


@dataclass(frozen=True, slots=True)
class Memories:
    """All that is known of one user. ``enabled``: the user's own switch.

    ``handled``: the ids of the latest changes, each of which counts once. ``since``: when the user had everything
    forgotten, or switched memory on again; what was told before that is not added, however late it arrives.
    ``revision`` rises with every change.
    """

    tenant: str
    user: str
    enabled: bool = True
    facts: list[Fact] = field(default_factory=list)
    handled: list[str] = field(default_factory=list)
    since: int = 0
    revision: int = 0

    @property
    def valid(self) -> list[Fact]:
        """Return what is true now, the latest told first."""
        valid = [fact for fact in self.facts if fact.valid_to is None]
        return sorted(valid, key=lambda fact: (fact.valid_from, fact.id), reverse=True)

    def find(self, fact_id: str) -> Fact | None:
        """Return the fact of this id that is true now."""
        return next((fact for fact in self.valid if fact.id == fact_id), None)


# -- what changes them


def remembered(known: Memories, fact: Fact, *, most: int) -> Memories:
    """Return what is known with one more fact, of the ``most`` that a user may have."""
    if not known.enabled or fact.created_at <= known.since:
        return known
    same = next((each for each in known.valid if each.slot == fact.slot and each.text == fact.text), None)
    if same is None:
        facts = [*known.facts, fact]
    else:
        again = replace(same, valid_from=max(same.valid_from, fact.valid_from))
        facts = [again if each is same else each for each in known.facts]
    return replace(known, facts=_bounded(_in_order(facts, fact.slot), most))


def edited(known: Memories, before: Fact, text: str, slot: str, kind: Kind, at: int) -> Memories:
    """Return what is known with another text for a fact, of the slot and kind that it has now.

    The old one was wrong, and is gone. What the new one says may take the place of another fact.
    """
    fact = replace(before, text=text, slot=slot, kind=kind, valid_from=max(at, before.valid_from))
    facts = [fact if each.id == before.id else each for each in known.facts]
    return replace(known, facts=facts if slot == before.slot else _in_order(facts, slot))


def forgotten(known: Memories, slots: Iterable[str]) -> Memories:
    """Return what is known without these slots, and without what once was in them."""
    gone = frozenset(slots)
    return replace(known, facts=[fact for fact in known.facts if fact.slot not in gone])


def emptied(known: Memories, at: int) -> Memories:
    """Return what is known when everything told until now is forgotten."""
    kept = [fact for fact in known.facts if fact.valid_from > at]
    return replace(known, facts=kept, since=max(at, known.since))


def switched(known: Memories, *, enabled: bool, at: int) -> Memories:
    """Return what is known with the user's switch on or off. What was told while it was off stays unknown."""
    if known.enabled or not enabled:
        return replace(known, enabled=enabled)
    return replace(known, enabled=True, since=max(at, known.since))


def _in_order(facts: Sequence[Fact], slot: str) -> list[Fact]:
    """Return the facts with those of a slot each valid until the next one."""
    row = sorted((fact for fact in facts if fact.slot == slot), key=lambda fact: (fact.valid_from, fact.id))
    until = [following.valid_from for following in row[1:]]
    ordered = [replace(fact, valid_to=end) for fact, end in zip(row, [*until, None], strict=True)]
    return [*(fact for fact in facts if fact.slot != slot), *ordered]


def _bounded(facts: list[Fact], most: int) -> list[Fact]:
    """Return the latest facts that are true, and as many superseded ones at most."""
    by_age = sorted(facts, key=lambda fact: (fact.valid_from, fact.id))
    valid = [fact for fact in by_age if fact.valid_to is None][-most:]
    superseded = [fact for fact in by_age if fact.valid_to is not None][-most:]
    return [*superseded, *valid]


# -- what is used


def relevant(facts: Iterable[Fact], question: str, *, budget: int = FACT_TOKENS) -> list[str]:
    """Return what a question's answer should know, within so many model tokens.

    Who the user is and how they want to be answered always counts; the rest where it shares a word with the question,
    or where the question is about the user.
    """
    valid = sorted(
        (fact for fact in facts if fact.valid_to is None), key=lambda fact: (fact.valid_from, fact.id), reverse=True
    )
    asked, about_me = words(question), is_about_user(question)
    shared = {fact.id: len(asked & words(fact.text)) for fact in valid}
    wanted = [fact for fact in valid if fact.kind in ALWAYS or shared[fact.id] or about_me]
    wanted.sort(key=lambda fact: (fact.kind not in ALWAYS, -shared[fact.id]))
    texts = []
    for fact in wanted:
        budget -= tokens_in(fact.text) + 2  # its dash and line end
        if budget < 0:
            break
        texts.append(fact.text)
    return texts


def is_about_user(question: str) -> bool:
    """Return whether a question is answered by what its user has told, and by no document."""
    return ABOUT_ME.search(question.casefold().replace("’", "'")) is not None


def words(text: str) -> frozenset[str]:
    """Return the words of a text that say what it is about, without the ending of a plural."""
    found = (word for word in WORD.findall(text.casefold()) if word not in COMMON)
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word for word in found)
