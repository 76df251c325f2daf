"""The rule base: every law of every theory, found by looking."""

from __future__ import annotations

from rewriter.rule import Rule
from rules import convolution, elementwise, general, identity, layout, matmul, norms, pieces, products, scale, selection, side_by_side

THEORIES = (matmul, scale, convolution, layout, norms, pieces, products, selection, side_by_side, elementwise, identity)
ALL: tuple[Rule, ...] = tuple(r for theory in THEORIES for r in vars(theory).values() if isinstance(r, Rule))
GENERAL: tuple[Rule, ...] = tuple(r for r in vars(general).values() if isinstance(r, Rule))
"""Laws that no model's program loads, since they grow without end: see ``rules.general``."""
