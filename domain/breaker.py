"""A circuit breaker: leaves a server alone that fails, and finds out carefully when it is back.

closed     it is asked as usual
open       after `OPENS_AFTER` failures in a row, or as long as it asked us to wait: it is not asked at all
half-open  after that: one request every `TRIAL_SECONDS`, until one is answered (closed) or fails (open, for longer)

A trial that is neither answered nor refused within a second blocks nobody: a long prompt takes longer to read.
"""

from typing import Final, Literal

from domain.backoff import pause

State = Literal["closed", "open", "half-open"]

OPENS_AFTER: Final = 5
FIRST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 5.0
"""Short, because turns wait for it: a person sees nothing meanwhile."""

LONGEST_WISH_SECONDS: Final = 60.0
"""However long a server wants to be left alone, one request a minute does no harm, and finds out that it is back."""

TRIAL_SECONDS: Final = 1.0
DOUBTFUL_SECONDS: Final = 10.0


class Breaker:
    """What is known of one server. ``now`` is the same monotonic clock's time in every call."""

    __slots__ = ("_doubtful_until", "_failures", "_on_trial", "_open", "_openings", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._openings = 0
        self._open = False
        self._on_trial = False
        self._until = 0.0
        self._doubtful_until = float("-inf")

    def state(self, now: float) -> State:
        """Return what the server is to us."""
        if not self._open:
            return "closed"
        return "half-open" if self._on_trial or now >= self._until else "open"

    def admits(self, now: float) -> bool:
        """Tell whether the server may be asked now."""
        return not self._open or now >= self._until

    def wait(self, now: float) -> float:
        """Return the seconds until it may be asked."""
        return max(0.0, self._until - now) if self._open else 0.0

    def doubtful(self, now: float) -> bool:
        """Tell whether its last answer failed, and so lately that any other server is the better choice."""
        return now < self._doubtful_until

    def asked(self, now: float) -> None:
        """Note a request; `admits` has allowed it."""
        if self._open:
            self._on_trial = True
            self._until = now + TRIAL_SECONDS

    def answered(self) -> None:
        """Note that an answer has begun. It can still break off: then one failure opens again."""
        if self._open:
            self._open = self._on_trial = False
            self._failures = OPENS_AFTER - 1

    def completed(self) -> None:
        """Note an answer that came to its end."""
        self._open = self._on_trial = False
        self._failures = self._openings = 0
        self._doubtful_until = float("-inf")

    def failed(self, now: float, *, retry_after: float | None = None) -> None:
        """Note a request that failed; ``retry_after`` are the seconds that the server wants to be left alone."""
        self._doubtful_until = now + DOUBTFUL_SECONDS
        if self._open and not self._on_trial and not retry_after:
            return  # it was asked before the breaker opened, and tells nothing new
        self._failures += 1
        if retry_after:
            self._leave_alone(now + min(retry_after, LONGEST_WISH_SECONDS))
        elif self._open or self._failures >= OPENS_AFTER:
            self._openings += 1
            self._leave_alone(now + pause(self._openings, first=FIRST_SECONDS, longest=LONGEST_SECONDS))

    def _leave_alone(self, until: float) -> None:
        self._until = until if self._on_trial else max(self._until, until)
        self._open, self._on_trial = True, False
