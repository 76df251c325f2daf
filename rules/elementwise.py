"""Sums commute: of run-time tensors (where order is all that e-matching lacks), and of weights (so that equal folds are one fold)."""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("x:nm y:nm", equal="bits", cite="IEEE 754: addition commutes")
def sum_commutes(op: Reading, x: Term, y: Term) -> tuple[Term, Term]:
    """x + y == y + x"""
    return op.add(x, y), op.add(y, x)


@rule("c:nm d:nm", weights=True, when="const(c) const(d)", equal="bits", cite="IEEE 754: addition commutes")
def sum_of_weights_commutes(op: Reading, c: Term, d: Term) -> tuple[Term, Term]:
    """c + d == d + c, so that a fold found in two orders is one fold"""
    return op.add(c, d), op.add(d, c)
