"""Reads out of a question what its user tells about themselves, and what they want forgotten.

Only a plain statement in the first person counts: no question, no supposition, no negation, nothing about or by
somebody else, nothing within quotes, code or a text that is to be worked on. To miss a fact costs a repetition; to make
one up costs trust.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from domain.grounding import CONTROL, UNSEEN
from domain.memory import TEXT_LENGTH, Fact, words
from domain.secret import is_secret
from domain.statements import NEGATED, OF_MINE, Told, stated, topic

LONGEST: Final = 4000  # characters; who writes more has pasted it
LONGEST_CLAUSE: Final = 2 * TEXT_LENGTH
MOST: Final = 5  # facts of one question
NOTE: Final = "note:"


@dataclass(frozen=True, slots=True)
class Forget:
    """What is to be forgotten: a slot, what the turn before told (``latest``), or ``everything``."""

    slot: str = ""
    latest: bool = False
    everything: bool = False


def told_in(text: str) -> list[Told | Forget]:
    """Return what a user's question tells, in its order; of one slot the last."""
    found: dict[str, Told | Forget] = {}
    for clause in _clauses(text):
        each = _wish_to_forget(clause) or _fact(clause)
        if each is not None:
            found.pop(each.slot, None)
            found[each.slot] = each
    return list(found.values())[:MOST]


def as_told(text: str) -> Told:
    """Return a fact that was entered by hand, in its own words."""
    fact = _fact(text.rstrip(".!"))
    return Told(text, fact.slot, fact.kind) if fact else Told(text, _note_slot(text), "note")


def as_edited(fact: Fact, text: str) -> Told:
    """Return what a fact says after its text was changed by hand.

    It is still about the same, unless the text states something else, or is a sentence with no word of the old one.
    """
    told = as_told(text)
    if told.slot.startswith(NOTE) and (len(text.split()) < 3 or _telling(text) & _telling(fact.text)):
        return Told(text, fact.slot, fact.kind)
    return told


def _telling(text: str) -> set[str]:
    return {word for word in words(text) if len(word) > 1}


def one_line(text: str) -> str:
    """Return a text as one line, without what a chat template would take for more than text."""
    return " ".join(CONTROL.sub(" ", UNSEEN.sub("", text)).split())


# -- from a question to what may be statements

CODE: Final = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`", re.DOTALL)
QUOTE: Final = re.compile(
    r"""  "[^"\n]*" | “[^”\n]*” | „[^“”\n]*[“”] | «[^»\n]*» | (?<!\w)'[^'\n]*'(?!\w) | ^[ ]*>.*$""",
    re.MULTILINE | re.VERBOSE,
)
LEFT_OUT: Final = "…"
# A label before what somebody says, or a field of a form: the line is not a sentence of the user's own.
LABELLED: Final = re.compile(r"\s*(?:[-*] )?[\w ]{1,30}:\s")
OWN_LABEL: Final = re.compile(
    r"\s*(?:(?:please )?(?:remember|keep in mind|for (?:future )?reference|fyi)|ps)\b", re.IGNORECASE
)
# Who asks for work on a text, or for a story, speaks in it as somebody else.
AS_OTHER: Final = re.compile(
    r"""\b(?: translate | summari[sz]e | rewrite | rephrase | paraphrase | proofread | spell-?check | shorten | classify
            | extract | transcribe | correct\ (?:this|the|my|it) | improve\ (?:this|the|my) | edit\ (?:this|the)
            | fix\ (?:this|the|my)\ (?:text|sentence|grammar|english) | analy[sz]e\ (?:this|the) | the\ following
            | in\ this\ (?:text|sentence|passage) | pretend | imagine | suppose | role-?play | act\ (?:as|like)
            | hypothetical\w* | story | poem | novel | dialogue | screenplay | lyrics | cover\ letter )\b""",
    re.IGNORECASE | re.VERBOSE,
)
DOUBTFUL: Final = re.compile(
    r"""\b(?: if | unless | whether | suppose | assume | maybe | perhaps | might | would | could | should | wish | hope
            | hoping | used\ to | almost | for\ example | e\.g | say\ that | let's\ say | as\ though | wonder\w* )\b""",
    re.IGNORECASE | re.VERBOSE,
)
SENTENCE: Final = re.compile(r"(?<=[.!?])[\"')]?\s+|\n+|;\s+")
CLAUSE: Final = re.compile(
    r"""(?: ,\s*(?:(?:and|but|so)\s+)? | \s+(?:and|but)\s+ )
        (?= (?: i | i'm | i\ am | my | we | we're | our | you\ can\ call | call\ me | please | remember | always | keep
              | can | could | what | how | why | who | when | where | do | does | is | are | would | will | should
              | which )\b )""",
    re.IGNORECASE | re.VERBOSE,
)
LEAD: Final = re.compile(
    r"""\s* (?: (?: hi | hello | hey | well | ok | okay | so | oh | yes | thanks | thank\ you | by\ the\ way | btw | fyi
                  | also | and | but | actually | just\ so\ you\ know | for\ the\ record | for\ (?:future\ )?reference
                  | first | as\ you\ (?:may\ )?know | sorry )
                (?: \ there | \ again | \ headrace | \ assistant )? [ ]?[,:!.–-]*[ ] )+""",
    re.IGNORECASE | re.VERBOSE,
)


def _clauses(text: str) -> Iterator[str]:
    """Yield what may be a statement of the user's own."""
    if len(text) > LONGEST:
        return
    plain = QUOTE.sub(LEFT_OUT, CODE.sub(LEFT_OUT, CONTROL.sub(LEFT_OUT, UNSEEN.sub("", text.replace("’", "'")))))
    if AS_OTHER.search(plain):
        return
    for sentence in SENTENCE.split(plain):
        if DOUBTFUL.search(sentence) or (LABELLED.match(sentence) and not OWN_LABEL.match(sentence)):
            continue
        for clause in CLAUSE.split(sentence.strip()):
            if not clause.endswith("?") and LEFT_OUT not in clause and len(clause) <= LONGEST_CLAUSE:
                lead = LEAD.match(clause)
                yield clause[lead.end() if lead else 0 :].strip(" .!,;:)(")


# -- what a clause says

REMEMBER: Final = re.compile(
    r"(?:please )?(?:i want you to )?(?:remember|keep in mind|don't forget|do not forget)(?: this)?(?: that|:|,)?"
    r" (?P<x>.+)",
    re.IGNORECASE,
)
NO_NOTE: Final = re.compile(r"(?:when|how|the time|what|who|this|to|me)\b", re.IGNORECASE)
PREDICATE: Final = re.compile(r"\s+(?:is|are|was|were|has|have|will|runs?|uses?|starts?|ends?|takes?)\s")
FORGET: Final = re.compile(
    r"(?:please )?(?:you can |i want you to )?(?:forget|delete|erase|remove)(?: about)? (?P<x>.+)", re.IGNORECASE
)
EVERYTHING: Final = re.compile(
    r"""(?:everything|all|anything)\ (?:that\ )?
        (?: you\ (?:know|remember|have)(?:\ about\ me)? | you've\ (?:stored|learned)\ about\ me | about\ me
          | i(?:'ve|\ have)?\ (?:ever\ )?told\ you(?:\ about\ me)? )
      | (?:all\ )?(?:of\ )?(?:my|your)\ memor(?:y|ies)(?:\ (?:of|about)\ me)?""",
    re.IGNORECASE | re.VERBOSE,
)
LATEST: Final = re.compile(
    r"(?:that|this|what i(?:'ve| have)? just (?:said|told you)|what i said)(?: again)?", re.IGNORECASE
)
SLOTS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), slot)
    for pattern, slot in (
        (r"my (?:first |full )?name|who i am|what i(?:'m| am) called", "name"),
        (r"my (?:job|role|profession)|what i do", "role"),
        (r"my (?:employer|company)|where i work", "employer"),
        (r"my (?:address|location|city|home)|where i live", "location"),
        (r"where i(?:'m| am) from", "origin"),
        (r"my (?:preferred )?language(?: preference)?", "language"),
    )
)


def _fact(clause: str) -> Told | None:
    asked = REMEMBER.fullmatch(clause)
    fact = _note(asked["x"]) if asked else stated(clause.removeprefix("please ").removeprefix("Please "))
    return fact if fact and len(fact.text) <= TEXT_LENGTH and not is_secret(clause) else None


def _note(said: str) -> Told | None:
    """Return what somebody asks to be remembered, in their own words where no statement that is known here fits."""
    if len(said.split()) < 3 or NO_NOTE.match(said) or NEGATED.search(said):
        return None
    return stated(said) or Told(f"{said[0].upper()}{said[1:]}.", _note_slot(said), "note")


def _note_slot(text: str) -> str:
    """Return what a sentence speaks of: a later one that says something else of the same takes its place."""
    return f"{NOTE}{topic(PREDICATE.split(text)[0])}"


def _wish_to_forget(clause: str) -> Forget | None:
    asked = FORGET.fullmatch(clause)
    if asked is None:
        return None
    what = asked["x"]
    if EVERYTHING.fullmatch(what):
        return Forget(everything=True)
    if LATEST.fullmatch(what):
        return Forget(latest=True)
    slot = _slot_named(what)
    return Forget(slot=slot) if slot else None


def _slot_named(what: str) -> str:
    """Return the slot that somebody names ("where I live") or states the value of ("that I live in Rome"), or ""."""
    mine = re.fullmatch(rf"(?:my|our) (?P<noun>{OF_MINE})(?:'s name)?", what, re.IGNORECASE)
    if mine:
        return f"my:{mine['noun'].casefold()}"
    named = next((slot for pattern, slot in SLOTS if pattern.fullmatch(what)), "")
    said = re.sub(r"^that ", "", what, flags=re.IGNORECASE)
    fact = None if named else stated(said)
    return named or (fact.slot if fact else _note_slot(said) if said != what else "")
