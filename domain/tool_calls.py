"""Puts streamed tool calls together, so that a call is in the log as a whole or not at all.

A reader never sees half a call, and a worker that dies in the middle of one leaves nothing behind that a resumed
answer would have to continue in the middle of a JSON string: the model makes the call once more.
"""

import json
from typing import Any


class ToolCalls:
    """The calls of one stream so far."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}

    def take(self, deltas: str) -> None:
        """Take the JSON array of OpenAI's tool-call deltas: heads first, then the arguments in pieces."""
        for delta in json.loads(deltas):
            index = delta.get("index") or 0
            call = self._calls.setdefault(index, {"index": index, "function": {"name": "", "arguments": ""}})
            function = delta.pop("function", None) or {}
            call |= {name: value for name, value in delta.items() if value is not None}
            call["function"]["name"] = function.get("name") or call["function"]["name"]
            call["function"]["arguments"] += function.get("arguments") or ""

    def whole(self) -> str:
        """Return all calls as one delta each, in one JSON array, and begin anew; "" if there are none."""
        calls = [call for _, call in sorted(self._calls.items())]
        self._calls = {}
        return json.dumps(calls, ensure_ascii=False, separators=(",", ":")) if calls else ""
