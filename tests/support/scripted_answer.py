"""What the scripted model server says: a known function of the question, so that any reader can be checked.

A question may carry directives in brackets, e.g. ``hello [tokens=80 pace=0]``:

tokens=40       how long the answer is, in tokens
pace=50         tokens a second; 0 is as fast as the connection takes them
wait=0          seconds before the first token, as if the prompt were long
fault=…         what goes wrong, on the first ``times`` requests with this question:
                an HTTP status, `refuse` (connection dropped unanswered), `reset` (connection reset), `stall`
                (silence), `comments` (nothing but comments), `end` (a clean end without an end mark),
                `malformed` (broken JSON), `error` (an error event); these six come ``after`` so many tokens
after=0         see fault
times=1         see fault; `times=all` for every request
retry_after=…   the Retry-After header of a status
message=…       the message of a status, one word
prefill=yes     `no`: a text so far is not continued, the answer begins anew
flags=          `needed`: nor is it without the flags of vLLM; `refused`: a request with them is answered 400
limit=yes       `no`: max_tokens is not kept
tool=a,b        call these tools, both at once, instead of answering
cut=1           cut every multi-byte character in two between writes
crlf=1          end lines in CR LF, with comments in between
say=…           answer with this text instead, in URL quoting, a few characters a token
stamp=1         each token is the time of its writing instead: " t=" and CLOCK_MONOTONIC in seconds
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Any
from urllib.parse import unquote
from zlib import crc32

DIRECTIVES = re.compile(r"\[((?:\w+=[^\s\]]+\s*)+)\]")

WORDS = (
    "stream",
    "Kafka",
    "offset,",
    "the",
    "of",
    "partition",
    "élan",
    "naïve",
    "日本語",
    "🙂",
    "Größe",
    "**log**",
    "…",
)

FAULTS = frozenset({"refuse", "reset", "stall", "comments", "end", "malformed", "error"})


@dataclass(frozen=True, slots=True)
class Script:
    """How a question wants to be answered."""

    tokens: int = 40
    pace: float = 50.0
    wait: float = 0.0
    fault: str = ""
    after: int = 0
    times: float = 1
    retry_after: str = ""
    message: str = ""
    prefill: bool = True
    flags: str = ""
    limit: bool = True
    tool: str = ""
    cut: bool = False
    crlf: bool = False
    stamp: bool = False
    say: str = ""

    def __post_init__(self) -> None:
        if self.fault and self.fault not in FAULTS and not re.fullmatch(r"[45]\d\d", self.fault):
            raise ValueError(f"there is no fault {self.fault!r}")

    @property
    def status(self) -> int:
        """The HTTP status that the fault is, 0 if it is another one."""
        return int(self.fault) if self.fault.isdecimal() else 0


def script_of(question: str, default: Script | None = None) -> Script:
    """Return the question's directives over the defaults; raises ValueError for one that does not exist."""
    base = default or Script()
    given: dict[str, str] = {}
    for group in DIRECTIVES.findall(question):
        given |= dict(directive.split("=", 1) for directive in group.split())
    known = {field.name: getattr(base, field.name) for field in fields(Script)}
    if unknown := given.keys() - known.keys():
        raise ValueError(f"there is no directive {', '.join(sorted(unknown))}")
    return Script(**known | {name: _value(text, known[name]) for name, text in given.items()})


def _value(text: str, like: object) -> object:
    if isinstance(like, bool):
        return text in {"1", "yes"}
    if text == "all":
        return float("inf")
    return type(like)(text)  # type: ignore[call-arg] # int, float or str, each of which takes a str


def expected_answer(question: str, tokens: int | None = None) -> list[str]:
    """Return the tokens of the answer. Each says its number, so that one lost, doubled or moved is seen."""
    script = script_of(question)
    if script.say:
        text = unquote(script.say)
        return [text[start : start + 3] for start in range(0, len(text), 3)]
    count = script.tokens if tokens is None else tokens
    seed = crc32(question.encode())
    return [f"{number}:{WORDS[crc32(b'%d %d' % (seed, number)) % len(WORDS)]} " for number in range(count)]


def rest_of(tokens: Sequence[str], so_far: str) -> list[str] | None:
    """Return the tokens that follow a text so far, the first of them cut if need be; None if it is another text."""
    if not "".join(tokens).startswith(so_far):
        return None
    ends = accumulate(map(len, tokens))
    rest = [(token, end - len(so_far)) for token, end in zip(tokens, ends, strict=True) if end > len(so_far)]
    left_over = [token[-left:] if left < len(token) else token for token, left in rest]
    if len(left_over) > 1 and left_over[0].isspace():  # a model's own tokens begin with their space
        left_over[:2] = ["".join(left_over[:2])]
    return left_over


def tool_calls(question: str, names: str) -> list[dict[str, Any]]:
    """Return the calls that ``tool=a,b`` makes, whole."""
    return [
        {
            "id": f"call_{crc32(f'{number} {question}'.encode()):08x}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps({"city": "Zürich", "n": number}, ensure_ascii=False)},
        }
        for number, name in enumerate(names.split(","))
    ]


def tool_deltas(calls: Iterable[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the calls as deltas: their heads in one, then a few characters of all their arguments in each."""
    known = list(calls)
    heads = [
        {"index": index, **call, "function": {"name": call["function"]["name"], "arguments": ""}}
        for index, call in enumerate(known)
    ]
    deltas: list[list[dict[str, Any]]] = [heads]
    longest = max(len(call["function"]["arguments"]) for call in known)
    for start in range(0, longest, 6):
        parts = [(index, call["function"]["arguments"][start : start + 6]) for index, call in enumerate(known)]
        deltas.append([{"index": index, "function": {"arguments": part}} for index, part in parts if part])
    return deltas


class Chunks:
    """The events of one answer, in the shape that OpenAI publishes."""

    def __init__(self, completion_id: str, model: str, created: int, *, crlf: bool = False) -> None:
        self._head = {"id": completion_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._end = "\r\n" if crlf else "\n"
        self._comment = ": still here\r\n\r\n" if crlf else ""
        empty = self._choice({"content": ""}, None)
        before, _, after = self._event(self._head | {"system_fingerprint": "fp_script", "choices": [empty]}).partition(
            b'"content":""'
        )
        self._before, self._after = before + b'"content":', after

    def text(self, text: str) -> bytes:
        """Return the event of one token. It comes once a token, so only the text is encoded."""
        return self._before + json.dumps(text, ensure_ascii=False).encode() + self._after

    def delta(self, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        """Return any other step."""
        return self._event(self._head | {"system_fingerprint": "fp_script", "choices": [self._choice(delta, finish)]})

    def usage(self, usage: Mapping[str, int]) -> bytes:
        """Return the chunk at the end that has no choice."""
        return self._event(self._head | {"choices": [], "usage": usage})

    def error(self, message: str, kind: str, code: int) -> bytes:
        """Return an error in mid-stream, as vLLM and llama.cpp write it."""
        return self._event({"error": {"message": message, "type": kind, "param": None, "code": code}})

    def broken(self) -> bytes:
        """Return an event that is no JSON."""
        return f'data: {{"id": "broken, "choices": [{{{self._end}{self._end}'.encode()

    def done(self) -> bytes:
        """Return the end mark."""
        return f"data: [DONE]{self._end}{self._end}".encode()

    def _event(self, body: Mapping[str, Any]) -> bytes:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        return f"{self._comment}data: {text}{self._end}{self._end}".encode()

    @staticmethod
    def _choice(delta: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def cut_characters(pieces: Iterable[bytes]) -> list[bytes]:
    """Return the same bytes, cut anew: within every multi-byte character rather than between events."""
    whole = b"".join(pieces)
    cuts = [0, *(match.start() + 1 for match in re.finditer(rb"[\xc0-\xff]", whole)), len(whole)]
    return [whole[start:end] for start, end in pairwise(cuts) if end > start]
