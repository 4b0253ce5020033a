"""What a plain English statement in the first person says about whoever makes it.

A reading is a pattern that a whole statement has to match, and what it comes to: a sentence in the third person, and
the slot that it is a value of. The first one that fits counts.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from domain.memory import Kind, words

Match = re.Match[str]


@dataclass(frozen=True, slots=True)
class Told:
    """A fact, as a sentence about the user, and the slot that it is a value of."""

    text: str
    slot: str
    kind: Kind


def stated(statement: str) -> Told | None:
    """Return what a statement says of the user, None if nothing that is known here."""
    if NEGATED.search(statement):
        return None
    for pattern, reading in READINGS:
        match = pattern.fullmatch(statement)
        fact = reading(match) if match else None
        if fact is not None:
            return replace(fact, text=MY.sub("their", fact.text))
    return None


def topic(text: str) -> str:
    """Return the words that a text is about, for the name of a slot."""
    return "-".join(sorted(words(text))[:6]) or "-".join(text.casefold().split()[:6])


NEGATED: Final = re.compile(
    r"\b(?:not|no longer|never|nobody|nothing|none|neither|without|cannot)\b|n't\b", re.IGNORECASE
)
THAN: Final = re.compile(r"\b(?:over|to|instead of|rather than)\b", re.IGNORECASE)
MY: Final = re.compile(r"\b(?:my|our)\b", re.IGNORECASE)

# -- words

_NO_NAME = """
a an the on in at of not no my your his her their it that this what when where how why if or so to too very back later
now again tomorrow soon maybe hard difficult long short spelled spelt pronounced taken missing wrong right unknown out
off up here there just still also as is was crazy old new fine good great okay ok sorry sure ready done glad happy sad
tired busy lost stuck confused curious afraid interested aware looking trying going using working getting having german
french english american british italian spanish dutch polish swiss austrian danish swedish norwegian finnish greek
turkish russian ukrainian chinese japanese korean indian canadian australian mexican brazilian african european asian
irish scottish welsh portuguese hungarian czech romanian bulgarian vegan vegetarian christian muslim jewish catholic
buddhist hindu atheist deaf blind pregnant male female gay monday tuesday wednesday thursday friday saturday sunday
"""
_NO_TOOL = """
it this that these those them they the a an your you to for as our my his her their only both all some each one two
more less most in on with and or such what which how when there here
"""
_NO_TRADE = "bit fan user customer member person number beginner winner loser believer lover hater newcomer"
_VAGUE = "it this that these those them they you your to on how what when where who"

NO_NAME: Final = frozenset(_NO_NAME.split())
NO_TOOL: Final = frozenset(_NO_TOOL.split())
NO_TRADE: Final = frozenset(_NO_TRADE.split())
VAGUE: Final = frozenset(_VAGUE.split())
NO_EMPLOYER: Final = frozenset({"home", "night", "least", "all", "me", "now", *VAGUE})

# What follows "I am a": a trade, and not a state ("a bit lost").
TRADE: Final = re.compile(
    r"\w+(?:er|or|ist|ian|ant|ect|eer|yst|man|woman)"
    r"|student|nurse|chef|cto|ceo|cfo|cio|sre|dba|admin|lead|devops|intern|phd|pilot|judge|clerk|priest",
    re.IGNORECASE,
)
AS_NAME: Final = re.compile(r"[A-ZÀ-Þ][^\W\d_A-ZÀ-Þ][\w'-]*")

I_AM: Final = r"(?:i am|i'm|im)"
WE_ARE: Final = r"(?:i am|i'm|im|we are|we're)"
LANGUAGE: Final = (
    r"(?:english|german|french|spanish|italian|portuguese|dutch|polish|czech|danish|swedish|norwegian|finnish|greek"
    r"|turkish|russian|ukrainian|chinese|mandarin|japanese|korean|hindi|arabic|hebrew|hungarian|romanian|bulgarian"
    r"|catalan|croatian|serbian|slovak|slovenian|thai|vietnamese|indonesian|persian|latin)"
)
ANSWERS: Final = r"(?:answers?|replies|reply|responses?|explanations?)"
LENGTH: Final = r"(?:short(?:er)?|brief|concise|long(?:er)?|detailed|simple|formal)"
MANNER: Final = (
    r"(?:in (?:short|brief|detail|bullet points|bullets|simple words|plain english|one sentence|metric units|markdown"
    r"|plain text)|briefly|concisely|shortly|formally|informally|step by step|with (?:examples|code|sources|emojis))"
)
OF_MINE: Final = (
    r"(?:birthday|time ?zone|team|manager|boss|wife|husband|partner|son|daughter|dog|cat|deadline|native language"
    r"|first language|editor|operating system|distribution|shell|hometown|project|favou?rite [\w-]+(?: [\w-]+)?)"
)
DOING: Final = (
    r"(?:migrating|building|developing|designing|preparing|learning|studying|planning|porting|rewriting|upgrading"
    r"|writing|moving|working on|responsible for|in charge of)"
)

# -- readings


def name(match: Match) -> Told | None:
    """Read a name, however it is written."""
    said = re.split(r"\s+(?:and|but|from|by|or|with|for|at|in)\s", match["x"])[0].strip(" .-")
    parts = said.split()
    if not 1 <= len(parts) <= 4 or any(part.casefold() in NO_NAME for part in parts):
        return None
    shown = said.title() if said == said.lower() else said
    return Told(f"The user's name is {shown}.", "name", "identity")


def introduction(match: Match) -> Told | None:
    """Read "I'm Ann" as a name only where it is written as one."""
    parts = match["x"].split()
    if len(parts) > 3 or not all(AS_NAME.fullmatch(part) for part in parts):
        return None
    return None if parts[0].casefold().endswith(("ing", "ish", "ese")) else name(match)


def role(match: Match) -> Told | None:
    """Read a trade."""
    said = re.split(r"\s+(?:at|for|in|with|from|on|of|who|and|by)\b", match["x"])[0]
    parts = said.casefold().split()
    if not 1 <= len(parts) <= 5 or not TRADE.fullmatch(parts[-1]) or NO_TRADE & {*parts}:
        return None
    article = "an" if said[0].casefold() in "aeiou" else "a"
    return Told(f"The user works as {article} {said}.", "role", "identity")


def employer(match: Match) -> Told | None:
    """Read whom somebody works for."""
    said = re.split(r"\s+(?:as|and|in|on|since|with|where|which)\b", match["x"])[0]
    if not said or _first(said) in NO_EMPLOYER:
        return None
    return Told(f"The user works at {said}.", "employer", "identity")


def tool(match: Match) -> Told | None:
    """Read what somebody uses; another version of it takes its place."""
    said = match["x"]
    if _first(said) in NO_TOOL or len(said.split()) > 8:
        return None
    return Told(f"The user uses {said}.", f"tool:{_first(said)}", "work")


def ongoing(match: Match) -> Told | None:
    """Read what somebody is at for a while."""
    said = match["x"]
    if _first(said) in VAGUE:
        return None
    return Told(f"The user is {match['verb'].casefold()} {said}.", f"ongoing:{topic(said)}", "work")


def liking(match: Match) -> Told | None:
    """Read a taste. Of the two in "tabs over spaces", the order of the words is no part of the slot."""
    said, verb = match["x"], match["verb"].casefold()
    if _first(said) in VAGUE:
        return None
    return Told(f"The user {verb}s {said}.", f"preference:{topic(THAN.sub(' ', said))}", "preference")


def wish(match: Match) -> Told:
    """Read what shall always be done."""
    said = match["x"]
    language = re.search(rf"\bin ({LANGUAGE})\b", said, re.IGNORECASE)
    if language:
        return Told(f"The user wants answers in {language[1].title()}.", "language", "preference")
    return Told(f"The user asks to always {said}.", f"wish:{topic(said)}", "preference")


def _first(text: str) -> str:
    return text.split(maxsplit=1)[0].casefold().strip(",")


def _value(kind: Kind, slot: str, text: str) -> Callable[[Match], Told | None]:
    """Return a reading that puts the parts of a match into a sentence and into the name of a slot."""

    def read(match: Match) -> Told:
        parts = match.groupdict()
        folded = {key: value.casefold() for key, value in parts.items()}
        return Told(text.format(**parts), slot.format(topic=topic(parts["x"]), **folded), kind)

    return read


def _language(match: Match) -> Told:
    return Told(f"The user wants answers in {match['x'].title()}.", "language", "preference")


_style = _value("preference", "answer style", "The user wants {x} answers.")
_manner = _value("preference", "answer style", "The user wants answers {x}.")
_home = _value("identity", "location", "The user lives in {x}.")
_NAME = r"(?P<x>[^\W\d_][\w'.-]*(?: [^\W\d_][\w'.-]*){0,3})"
_TO_ME = r"(?: to me| with me| me)?"
_ASKED = r"(?:from now on,? )?(?:please )?(?:always )?(?:only )?"
_FROM_NOW = r"(?: please| from now on| only| always)*"

READINGS: Final[tuple[tuple[re.Pattern[str], Callable[[Match], Told | None]], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), reading)
    for pattern, reading in (
        (rf"my (?:first |full |nick)?name(?: is|'s) {_NAME}", name),
        (rf"(?:i am|i'm) called {_NAME}", name),
        (rf"(?:you can |you may |just )?call me {_NAME}", name),
        (rf"{I_AM} {_NAME}", introduction),
        (r"i live (?:in|near) (?P<x>.+)", _home),
        (rf"{I_AM} (?:based|located) in (?P<x>.+)", _home),
        (rf"{I_AM} from (?P<x>.+)", _value("identity", "origin", "The user is from {x}.")),
        (r"i (?:work|am employed) (?:at|for) (?P<x>.+)", employer),
        (r"my (?:employer|company) is (?:called )?(?P<x>.+)", employer),
        (r"i work (?:full-time |part-time )?as an? (?P<x>.+)", role),
        (rf"(?:{I_AM}|my (?:job|role|profession) is) (?:an?|the) (?P<x>.+)", role),
        (
            rf"{_ASKED}(?:answer|reply|respond|write|speak|talk){_TO_ME} (?:in )?(?P<x>{LANGUAGE}){_TO_ME}{_FROM_NOW}",
            _language,
        ),
        (rf"i(?: would|'d)? prefer (?P<x>{LANGUAGE})", _language),
        (rf"i(?: would|'d)? prefer (?:to have )?{ANSWERS} in (?P<x>{LANGUAGE})", _language),
        (rf"i(?: would|'d)? prefer (?P<x>{LANGUAGE}) {ANSWERS}", _language),
        (rf"{_ASKED}(?:answer|reply|respond|explain){_TO_ME} (?P<x>{MANNER}){_FROM_NOW}", _manner),
        (rf"i (?:prefer|like|want) (?P<x>{LENGTH}) {ANSWERS}", _style),
        (rf"{_ASKED}keep (?:your|the|all) {ANSWERS} (?P<x>{LENGTH})", _style),
        (
            rf"(?:my|our) (?P<noun>{OF_MINE})(?:'s name)? (?:is|are)(?: called| named)? (?P<x>.+)",
            _value("note", "my:{noun}", "The user's {noun} is {x}."),
        ),
        (r"i (?:want you to|'d like you to) always (?P<x>.+)", wish),
        (r"i always want you to (?P<x>.+)", wish),
        (r"i always want (?P<x>.+)", _value("preference", "wish:{topic}", "The user always wants {x}.")),
        (r"from now on,? (?:please )?(?:always )?(?P<x>.+)", wish),
        (
            r"(?:please )?always (?P<x>(?:answer|reply|respond|use|write|give|show|include|explain|add|call|keep) .+)",
            wish,
        ),
        (r"i (?:really |much |strongly )?(?P<verb>prefer|like|love|hate|dislike) (?P<x>.+)", liking),
        (r"(?:we|i|(?:my|our) (?:team|company))(?: (?:mostly|mainly|usually|currently|all))? uses? (?P<x>.+)", tool),
        (rf"{WE_ARE} (?:currently |now |still )?using (?P<x>.+)", tool),
        (
            r"(?:my|our) (?P<noun>[\w-]+(?: [\w-]+)?) (?:runs?|is running|uses?)(?: on)? (?P<x>.+)",
            _value("work", "runs:{noun}", "The user's {noun} runs {x}."),
        ),
        (rf"{WE_ARE} (?:currently |now |still |just |busy )*(?P<verb>{DOING}) (?P<x>.+)", ongoing),
        (r"i work on (?P<x>.+)", _value("work", "ongoing:{topic}", "The user works on {x}.")),
    )
)
