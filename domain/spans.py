"""Which part of a log a batch is: what a sink keeps as its progress, and compares to know whether it has it already."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """The records of one partition with ``start <= offset < stop``. ``log`` names the topic and its life."""

    log: str
    partition: int
    start: int
    stop: int
