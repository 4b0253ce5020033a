"""What model tokens cost. Sums of it are exact: money is a whole number of billionths."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Final, NamedTuple

NANO: Final = 10**9


class Prices(NamedTuple):
    """What a million model tokens cost, read and written: by a model's name, and under "" for all that have no own."""

    input: Mapping[str, float] = {}
    output: Mapping[str, float] = {}

    def of(self, model: str, input_tokens: int, output_tokens: int) -> int | None:
        """Return what tokens cost, in billionths; None where the model has no price."""
        read, written = (each.get(model, each.get("")) for each in self)
        if read is None and written is None:
            return None
        # Three decimals of a price make a whole number of billionths a token.
        return round((read or 0) * 1000) * input_tokens + round((written or 0) * 1000) * output_tokens


FREE: Final = Prices()


def money(nano: int) -> Decimal:
    """Return billionths as the number that they are."""
    return Decimal(nano).scaleb(-9)
