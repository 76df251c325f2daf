"""The rule base: every law of every theory, found by looking."""

from __future__ import annotations

from rewriter.rule import Rule
from rules import convolution, elementwise, identity, layout, matmul, norms, pieces, products, scale, selection, side_by_side

THEORIES = (matmul, scale, convolution, layout, norms, pieces, products, selection, side_by_side, elementwise, identity)
ALL: tuple[Rule, ...] = tuple(r for theory in THEORIES for r in vars(theory).values() if isinstance(r, Rule))
