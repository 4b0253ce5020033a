"""The archive's sink in Postgres: our records as the rows of its tables."""

from collections.abc import Iterable, Mapping
from functools import partial

from adapters.turn_store import TurnStore
from domain.prices import FREE, Prices
from domain.spans import Span
from streams.records import Control, Feedback, Turn
from streams.turn_rows import citation_rows, converted, feedback_row, order_of, row_of


class PostgresSink:
    """See `streams.archiving.Sink`."""

    name = "postgres"

    def __init__(self, store: TurnStore, prices: Prices = FREE) -> None:
        self._store = store
        self._row_of = partial(row_of, prices=prices)

    async def prepare(self) -> None:
        """Bring the schema up to date."""
        await self._store.prepare()

    async def progress(self, log: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return the next offset of each partition."""
        return await self._store.progress(log, partitions)

    async def keep(self, span: Span, turns: Mapping[int, Turn], *, again: bool = False) -> None:
        """Write the turns of a span."""
        rows = converted(turns, self._row_of)
        citations = {offset: citation_rows(turn) for offset, turn in turns.items() if turn.citations}
        await self._store.keep(span, rows, citations, again=again)

    async def obey(self, span: Span, controls: Mapping[int, Control], turns_log: str, *, again: bool = False) -> None:
        """Carry out the controls of a span, all but those for running answers."""
        lasting = {offset: control for offset, control in controls.items() if control.action != "stop"}
        await self._store.obey(span, converted(lasting, order_of), turns_log, again=again)

    async def note(self, span: Span, feedback: Mapping[int, Feedback], turns_log: str, *, again: bool = False) -> None:
        """Write what a span says of turns."""
        await self._store.note(span, converted(feedback, feedback_row), turns_log, again=again)

    async def rewind(self, log: str, offsets: Mapping[int, int]) -> None:
        """Set the progress of partitions."""
        await self._store.rewind(log, offsets)
