"""Time for what takes a clock."""


class Clock:
    """Time that passes when a test says so."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now
