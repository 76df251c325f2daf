"""Numbers pass through what only moves data, and through products of two run-time tensors: R4 and R8.

So the 1/sqrt(d) of attention ends in the projection of the queries, whichever way it was spelled: on the queries, on both sides, or
on the scores, which are the largest tensor of a block.
"""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("f:move x:nijk c: d:", when="const(d) absorbs(x)", cite="R8, R4 (71)", equal="bits",
      sample=lambda draw: {"f": draw.choice(["swap", "flat", "reverse"])})  # fmt: skip
def number_through_move(op: Reading, f: Term, x: Term, c: Term, d: Term) -> tuple[Term, Term]:
    """d move(x) == move(d x), where x comes from a linear map that will take d in"""
    return op.scalar(op.move(f, x, c), d), op.move(f, op.scalar(x, d), c)


@rule("x:hij y:hjk c:", when="const(c) absorbs(x)", cite="R4 (71)")
def number_into_left_factor(op: Reading, x: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """c (x·y) == (c x)·y, where x comes from a linear map that will take c in"""
    return op.scalar(op.product(x, y), c), op.product(op.scalar(x, c), y)


@rule("x:hij y:hjk c:", when="const(c) absorbs(y)", cite="R4 (71)")
def number_into_right_factor(op: Reading, x: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """c (x·y) == x·(c y), where y comes from a linear map that will take c in"""
    return op.scalar(op.product(x, y), c), op.product(x, op.scalar(y, c))
