"""When frames of tokens go out: on a beat that all partitions share, and that a slow Kafka slows down.

On one beat, eight partitions go to the broker that leads them in one request. Kafka costs per record and
request, so where it takes long for a frame, more of them would only make it take longer: then beats are left out, and
frames are larger.
"""

from math import ceil
from typing import Final

# Between two frames of a partition lie at most so many beats.
MOST_BEATS: Final = 4
# How much the latest frame counts in the mean of what one takes: about the last 20 do.
LATEST_SHARE: Final = 0.05


class Pace:
    """The beat of all partitions, ``beat`` seconds long; 0 for none, when every frame may go at once."""

    def __init__(self, beat: float) -> None:
        self._beat = beat
        self._takes = 0.0
        self.gap = beat

    def took(self, seconds: float) -> None:
        """Learn how long Kafka took for a frame: about half of the time one may be under way, and no more."""
        # An outage is no pace, so that little has to be unlearned after it.
        self._takes += LATEST_SHARE * (min(seconds, MOST_BEATS * self._beat) - self._takes)
        if self._beat:
            self.gap = self._beat * min(max(round(2 * self._takes / self._beat), 1), MOST_BEATS)

    def after(self, sent_at: float) -> float:
        """Return when a broker that was sent to at this time is sent to again: a gap later on average, on the beat.

        One that fell off the beat (a lone token, a claim) joins it again after half a gap at least.
        """
        return ceil(sent_at / self.gap + 0.5) * self.gap if self.gap else sent_at
