"""Sums and products of two run-time tensors."""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("x:nm y:nm", equal="bits", cite="IEEE 754: addition commutes")
def sum_commutes(op: Reading, x: Term, y: Term) -> tuple[Term, Term]:
    """x + y == y + x"""
    return op.add(x, y), op.add(y, x)
