"""Normalisation of vectors: R9. A norm does not see the scale of what it normalises; its own scale and bias belong to the next map.

``scale`` and ``bias`` after a norm are terms of their own (``rewriter.encode``), so that R4 and R5 move them on; an operator that has
them built in is written again where they stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter.rule import rule
from rewriter.terms import Reading, Term


def _vectors(draw: Any) -> dict[str, Any]:
    e, c = draw.choice([0.1, 1.0]), draw.choice([-3.0, -1.0, 2.0, 5.0])
    return {"k": draw.choice(["layer", "rms"]), "e": np.array(e), "c": np.array(c)}


@rule("k:text x:ni c: e:", when="const(c) const(e)", given="nonzero(c)", equal="limit", cite="R9 (12, 45, 55, 65)", sample=_vectors,
      breaks_at={"k": "rms", "x": [[1.0, 2.0]], "c": 0.0, "e": 0.0})  # fmt: skip
def number_before_norm(op: Reading, k: Term, x: Term, c: Term, e: Term) -> tuple[Term, Term]:
    """norm(c x, e) == sign(c) norm(x, e / c^2)"""
    return op.norm(k, op.scalar(x, c), e), op.scalar(op.norm(k, x, op.divide(e, op.mul(c, c))), op.sign(c))


@rule("k:text x:ni c: e:", when="const(c) const(e)", given="centres(k)", equal="limit", cite="R9",
      sample=lambda draw: {"k": "layer", "e": draw.ones("")}, breaks_at={"k": "rms", "x": [[1.0, 2.0]], "c": 1.0, "e": 1.0})  # fmt: skip
def shift_before_layer_norm(op: Reading, k: Term, x: Term, c: Term, e: Term) -> tuple[Term, Term]:
    """norm(x + c) == norm(x), c a number, for a norm that takes the mean away"""
    return op.norm(k, op.shift(x, c), e), op.norm(k, x, e)


@rule("k:text x:ni e: g:i b:i", when="const(e) const(g) const(b) centres(k)", equal="limit", cite="R9, R4, R5 (45, 61, 62)",
      sample=lambda draw: {"k": "layer", "e": draw.ones("")})  # fmt: skip
def scale_and_bias_are_built_in(op: Reading, k: Term, x: Term, e: Term, g: Term, b: Term) -> tuple[Term, Term]:
    """norm(x) * g + b == normed(x, g, b): one operator, for a norm that takes the mean away"""
    return op.bias(op.scale(op.norm(k, x, e), g, -1), b, -1), op.normed(k, x, e, g, b)
