"""Zeros and ones: R14. The facts come from the weights' values, or follow from other facts."""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("x:nij s:i a:int", given="one(s)", equal="bits", cite="R14", sample=lambda draw: {"a": -2, "s": draw.ones("i")},
      breaks_at={"x": [[[1.0]]], "s": [2.0], "a": -2})  # fmt: skip
def scale_by_one(op: Reading, x: Term, s: Term, a: Term) -> tuple[Term, Term]:
    """x * 1 == x"""
    return op.scale(x, s, a), x


@rule("x:nij c:", given="one(c)", equal="bits", cite="R14", sample=lambda draw: {"c": draw.ones("")},
      breaks_at={"x": [[[1.0]]], "c": 2.0})  # fmt: skip
def one_times(op: Reading, x: Term, c: Term) -> tuple[Term, Term]:
    """1 x == x"""
    return op.scalar(x, c), x


@rule("x:nij b:i a:int", given="zero(b)", cite="R14", sample=lambda draw: {"a": -2, "b": draw.zeros("i")},
      breaks_at={"x": [[[1.0]]], "b": [2.0], "a": -2})  # fmt: skip
def bias_of_zero(op: Reading, x: Term, b: Term, a: Term) -> tuple[Term, Term]:
    """x + 0 == x (but -0 + 0 is 0: not the same bits)"""
    return op.bias(x, b, a), x


@rule("x:nij c:", given="zero(c)", cite="R14 (a sum that a program starts from 0)", sample=lambda draw: {"c": draw.zeros("")},
      breaks_at={"x": [[[1.0]]], "c": 2.0})  # fmt: skip
def shift_by_zero(op: Reading, x: Term, c: Term) -> tuple[Term, Term]:
    """x + 0 == x"""
    return op.shift(x, c), x


@rule("x:nm y:nm", given="zero(y)", cite="R14", sample=lambda draw: {"y": draw.zeros("nm")},
      breaks_at={"x": [[1.0]], "y": [[2.0]]})  # fmt: skip
def sum_with_zero(op: Reading, x: Term, y: Term) -> tuple[Term, Term]:
    """x + 0 == x"""
    return op.add(x, y), x


@rule("u:nk x:ni A:ik b:k", when="const(A) const(b)", given="zero(A)", cite="R14: finite x", replaces=True,
      sample=lambda draw: {"A": draw.zeros("ik")}, breaks_at={"u": [[1.0]], "x": [[1.0]], "A": [[2.0]], "b": [1.0]})  # fmt: skip
def sum_with_zero_map(op: Reading, u: Term, x: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """u + (x·0 + b) == u + b, for finite x"""
    return op.add(u, op.linear(x, A, b)), op.bias(u, b, -1)


@rule("u:nk x:ni A:ik b:k", when="const(A) const(b)", given="zero(A)", cite="R14: finite x", replaces=True,
      sample=lambda draw: {"A": draw.zeros("ik")}, breaks_at={"u": [[1.0]], "x": [[1.0]], "A": [[2.0]], "b": [1.0]})  # fmt: skip
def zero_map_with_sum(op: Reading, u: Term, x: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """(x·0 + b) + u == u + b, for finite x"""
    return op.add(op.linear(x, A, b), u), op.bias(u, b, -1)


@rule("u:nij x:nij c:", given="zero(c)", cite="R14 (44, 76: a branch that is switched off): finite x", sample=lambda draw: {"c": draw.zeros("")},
      breaks_at={"u": [[[1.0]]], "x": [[[1.0]]], "c": 2.0})  # fmt: skip
def sum_with_zero_times(op: Reading, u: Term, x: Term, c: Term) -> tuple[Term, Term]:
    """u + 0 x == u, for finite x"""
    return op.add(u, op.scalar(x, c)), u


@rule("c:nm", weights=True, when="const(c)", cite="R14 (DoRA takes a bias away and puts it back)")
def difference_with_itself(op: Reading, c: Term) -> tuple[Term, Term]:
    """c - c == 0"""
    return op.add(c, op.scalar(c, op.minus_one)), op.zero_like(c)


@rule("c:nm d:nm", weights=True, when="const(c) const(d)", given="zero(d)", cite="R14", sample=lambda draw: {"d": draw.zeros("nm")},
      breaks_at={"c": [[1.0]], "d": [[2.0]]})  # fmt: skip
def weights_with_zero(op: Reading, c: Term, d: Term) -> tuple[Term, Term]:
    """c + 0 == c"""
    return op.add(c, d), c
