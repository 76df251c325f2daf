"""What the user allows to be lost: ``budget=`` as bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewriter.errors import BudgetError

NAMES = ("metric", "weight_bytes", "latency")


@dataclass(frozen=True)
class Budget:
    """``metric``: how much worse it may get. ``weight_bytes``, ``latency``: at most this part of the exact result's (None: no bound)."""

    metric: float
    weight_bytes: float | None = None
    latency: float | None = None


def parse(budget: Any) -> Budget | None:
    """A number bounds the metric's worsening; a dict bounds several things by name. None or 0: nothing may be lost. Raises ``BudgetError``."""
    if budget is None:
        return None
    given = dict(budget) if isinstance(budget, Mapping) else {"metric": budget}
    for name in given:
        if name not in NAMES:
            raise BudgetError(f"budget names {name!r}; there are {', '.join(map(repr, NAMES))}")
    bounds = {name: _number(name, value) for name, value in given.items()}
    if not bounds.get("metric"):
        if any(name != "metric" for name in bounds):
            raise BudgetError("a budget of bytes or latency needs one of the metric too: {'metric': 0.01, ...} says how much may be lost for it")
        return None
    return Budget(**bounds)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise BudgetError(f"budget {name}={value!r} is no bound: give a number from 0 up")
    if name != "metric" and not 0 < value <= 1:
        raise BudgetError(f"budget {name}={value!r} is no part of the exact result's {name}: give a number above 0 and up to 1")
    return float(value)
