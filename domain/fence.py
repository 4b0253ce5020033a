"""Whose rows count: the fence around a table's changelog.

A new owner of a partition claims its changelog with the generation of the group as its epoch, and reads it up to the
claim. In log order the highest epoch so far owns the partition; a row of a lower one was written by a worker that
had slept through its own replacement, and is dropped by everyone who reads the log, at every time, alike.
"""


class Fence:
    """The epoch that owns a partition after some prefix of its changelog; -1 before any record."""

    __slots__ = ("epoch",)

    def __init__(self, epoch: int = -1) -> None:
        self.epoch = epoch

    def admits(self, epoch: int) -> bool:
        """Take the next record's epoch; return whether the record counts."""
        if epoch < self.epoch:
            return False
        self.epoch = epoch
        return True
