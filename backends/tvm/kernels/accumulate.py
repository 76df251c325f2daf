"""Sums and their like over vectors: what an accumulator starts from, takes in, and gives at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SUM, PRODUCT, MAXIMUM, MINIMUM = "sum", "product", "maximum", "minimum"
LARGEST = "largest"  # a maximum that may lose NaN, where it shows elsewhere: one instruction instead of five
_SMALLEST = {"int8": -(2**7), "uint8": 0, "int32": -(2**31), "int64": -(2**63)}
_LARGEST = {"int8": 2**7 - 1, "uint8": 2**8 - 1, "int32": 2**31 - 1, "int64": 2**63 - 1}


def neutral(how: str, dtype: str, lanes: int) -> Any:
    """What changes nothing that it is combined with."""
    from backends.tvm.vector_operators import fixed

    low = _SMALLEST.get(dtype, float("-inf"))
    edges = {MAXIMUM: low, LARGEST: low, MINIMUM: _LARGEST.get(dtype, float("inf"))}
    return fixed({SUM: 0, PRODUCT: 1, **edges}[how], dtype, lanes)


def combined(how: str, total: Any, value: Any) -> Any:
    """One more; both must have been bound. NaN stays in maxima and minima."""
    from backends.tvm.vector_math import element, is_nan, where

    if how == SUM:
        return total + value
    if how == PRODUCT:
        return total * value
    if how == LARGEST:
        return where(total > value, total, value)
    chosen = where(total > value, total, value) if how == MAXIMUM else where(total < value, total, value)
    return where(is_nan(total), total, chosen) if element(total).startswith("float") else chosen


def folded(e: Any, how: str, vector: Any) -> Any:
    """The elements of one vector as one number, by halves."""
    from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

    from backends.tvm.emit import lanes_of

    value = e.bind(vector)
    while (lanes := lanes_of(value)) > 1:
        low, high = (e.bind(tirx.Shuffle([value], list(range(start, start + lanes // 2)))) for start in (0, lanes // 2))
        value = e.bind(combined(how, low, high))
    return value


class Accumulators:
    """Several running totals, which hide the latency of additions; all of one width, in registers."""

    def __init__(self, e: Any, how: str, dtype: str, lanes: int, count: int) -> None:
        self.e, self.how, self.lanes, self.count = e, how, lanes, count
        self._places = [e.local(lanes, dtype, "total") for _ in range(count)]
        for place in self._places:
            e.store(place, 0, neutral(how, dtype, lanes))

    def take(self, number: int, value: Any) -> None:
        """Into total ``number``, modulo their count."""
        place = self._places[number % self.count]
        total = self.e.bind(self.e.load(place, 0, self.lanes))
        self.e.store(place, 0, combined(self.how, total, self.e.bind(value)))

    def vector(self) -> Any:
        """All totals together."""
        return _paired(self.e, self.how, [self.e.bind(self.e.load(place, 0, self.lanes)) for place in self._places])


def _paired(e: Any, how: str, values: Sequence[Any]) -> Any:
    """Combined as a tree, which keeps sums of like sizes together."""
    values = list(values)
    while len(values) > 1:
        pairs = [e.bind(combined(how, a, b)) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + (values[-1:] if len(values) % 2 else [])
    return values[0]
