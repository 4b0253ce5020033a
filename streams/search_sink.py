"""The archive's sink in Elasticsearch: our records as documents that search finds."""

from collections.abc import Iterable, Mapping
from functools import partial

from adapters.search_index import Erasure, SearchIndex
from domain.prices import FREE, Prices
from domain.spans import Span
from streams.records import Control, Feedback, Turn
from streams.turn_rows import converted, order_of, row_of, storable


class SearchSink:
    """See `streams.archiving.Sink`."""

    name = "elasticsearch"

    def __init__(self, index: SearchIndex, prices: Prices = FREE) -> None:
        self._index = index
        self._row_of = partial(row_of, prices=prices)

    async def prepare(self) -> None:
        """Make what is missing."""
        await self._index.prepare()

    async def progress(self, log: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return the next offset of each partition."""
        return await self._index.progress(log, partitions)

    async def keep(self, span: Span, turns: Mapping[int, Turn], *, again: bool = False) -> None:
        """Write the turns of a span."""
        rows = converted(turns, self._row_of)
        documents = {
            offset: list(dict.fromkeys(storable(each.document_id) for each in turn.citations))
            for offset, turn in turns.items()
        }
        await self._index.keep(span, rows, documents, again=again)

    async def obey(self, span: Span, controls: Mapping[int, Control], turns_log: str, *, again: bool = False) -> None:
        """Erase what a span erases. Titles are in Postgres alone."""
        erasing = {offset: control for offset, control in controls.items() if control.action == "erase"}
        orders = converted(erasing, order_of).values()
        gone = [Erasure(order.tenant, order.user_id, order.conversation_id) for order in orders]
        await self._index.erase(span, gone, again=again)

    async def note(self, span: Span, feedback: Mapping[int, Feedback], turns_log: str, *, again: bool = False) -> None:
        """Go on: what was said of turns is in Postgres alone."""
        await self._index.erase(span, [], again=again)

    async def rewind(self, log: str, offsets: Mapping[int, int]) -> None:
        """Set the progress of partitions."""
        await self._index.rewind(log, offsets)
