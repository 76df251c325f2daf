"""Values for a rule's variables: exact, small, and of shapes that fit."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from rewriter.rule import KIND, Rule


class Draw:
    """What a rule's ``sample`` draws from. Tensors hold exact fractions; equal letters are equal lengths."""

    def __init__(self, data: Any) -> None:
        self._draw = data.draw
        self._sizes: dict[str, int] = {}

    def integer(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def choice(self, options: Sequence[Any]) -> Any:
        return self._draw(st.sampled_from(options))

    def tensor(self, shape: Sequence[int]) -> np.ndarray:
        count = int(np.prod(shape))
        values = self._draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
        out = np.empty(count, dtype=object)
        out[:] = [Fraction(v) for v in values]
        return out.reshape(tuple(shape))

    def shape(self, letters: str) -> tuple[int, ...]:
        return tuple(self._sizes.setdefault(c, self.integer(1, 3)) for c in letters)

    def zeros(self, letters: str) -> np.ndarray:
        return self.tensor(self.shape(letters)) * 0

    def ones(self, letters: str) -> np.ndarray:
        return self.zeros(letters) + Fraction(1)


class Seeded(Draw):
    """The same draws from a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._sizes = {}

    def integer(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def choice(self, options: Sequence[Any]) -> Any:
        return options[int(self._rng.integers(len(options)))]

    def tensor(self, shape: Sequence[int]) -> np.ndarray:
        out = np.empty(int(np.prod(shape)), dtype=object)
        out[:] = [Fraction(int(v)) for v in self._rng.integers(-3, 4, out.size)]
        return out.reshape(tuple(shape))


def sample(rule: Rule, draw: Draw) -> dict[str, Any]:
    """The free variables. An axis more in front of all activations shows that a law does not count them."""
    given = dict(rule.sample(draw)) if rule.sample else {}
    fixed = any(isinstance(v, np.ndarray) and rule.variables.get(n, "").startswith("n") for n, v in given.items())
    more = "m" if not fixed and draw.integer(0, 1) else ""
    values: dict[str, Any] = {}
    for name in rule.free:
        letters = rule.variables[name]
        if name in given:
            values[name] = given[name]
        elif letters not in KIND:
            values[name] = draw.tensor(draw.shape((more if letters.startswith("n") else "") + letters))
    return values
