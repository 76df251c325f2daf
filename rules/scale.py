"""Constant scales, numbers and biases among themselves: R4 and R5. Theories of linear maps take them in."""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("x:nijk b:i s:i a:int", when="const(b) const(s)", cite="R5", sample=lambda draw: {"a": -3})
def scale_over_bias(op: Reading, x: Term, b: Term, s: Term, a: Term) -> tuple[Term, Term]:
    """(x + b) * s == x * s + b * s"""
    return op.scale(op.bias(x, b, a), s, a), op.bias(op.scale(x, s, a), op.scale(b, s, -1), a)


@rule("x:nij b:i c: a:int", when="const(b) const(c)", cite="R5", sample=lambda draw: {"a": -2})
def number_over_bias(op: Reading, x: Term, b: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """c (x + b) == c x + c b"""
    return op.scalar(op.bias(x, b, a), c), op.bias(op.scalar(x, c), op.scalar(b, c), a)


@rule("x:nij s:i t:i a:int", when="const(s) const(t)", cite="R4", sample=lambda draw: {"a": -2})
def scales_multiply(op: Reading, x: Term, s: Term, t: Term, a: Term) -> tuple[Term, Term]:
    """(x * s) * t == x * (s * t)"""
    return op.scale(op.scale(x, s, a), t, a), op.scale(x, op.scale(s, t, -1), a)


@rule("x:nij s:i c: a:int", when="const(s) const(c)", cite="R4", sample=lambda draw: {"a": -2})
def number_into_scale(op: Reading, x: Term, s: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """c (x * s) == x * (c s)"""
    return op.scalar(op.scale(x, s, a), c), op.scale(x, op.scalar(s, c), a)


@rule("x:nij s:i c: a:int", when="const(s) const(c)", cite="R4", sample=lambda draw: {"a": -2})
def scale_takes_number(op: Reading, x: Term, s: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """(c x) * s == x * (c s)"""
    return op.scale(op.scalar(x, c), s, a), op.scale(x, op.scalar(s, c), a)


@rule("x:nij c: d:", when="const(c) const(d)", cite="R4")
def numbers_multiply(op: Reading, x: Term, c: Term, d: Term) -> tuple[Term, Term]:
    """d (c x) == (d c) x"""
    return op.scalar(op.scalar(x, c), d), op.scalar(x, op.scalar(c, d))


@rule("x:nij b:i c:i a:int", when="const(b) const(c) other(x)", cite="R5", sample=lambda draw: {"a": -2})
def biases_add(op: Reading, x: Term, b: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """(x + b) + c == x + (b + c), where x is no linear map (they take biases in by themselves)"""
    return op.bias(op.bias(x, b, a), c, a), op.bias(x, op.add(b, c), a)


@rule("x:nij y:nij b:i c:i a:int", when="const(b) const(c)", cite="R5", sample=lambda draw: {"a": -2})
def biases_of_a_sum_add(op: Reading, x: Term, y: Term, b: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """(x + y + b) + c == x + y + (b + c)"""
    return op.bias(op.bias(op.add(x, y), b, a), c, a), op.bias(op.add(x, y), op.add(b, c), a)


@rule("x:nij y:nij b:i c:i a:int", when="const(b) const(c)", cite="R5", sample=lambda draw: {"a": -2})
def biased_terms_add(op: Reading, x: Term, y: Term, b: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """(x + b) + (y + c) == x + y + (b + c)"""
    return op.add(op.bias(x, b, a), op.bias(y, c, a)), op.bias(op.add(x, y), op.add(b, c), a)


@rule("x:nij s:i t:i a:int", when="const(s) const(t)", cite="R2", sample=lambda draw: {"a": -2})
def scaled_copies_add(op: Reading, x: Term, s: Term, t: Term, a: Term) -> tuple[Term, Term]:
    """x * s + x * t == x * (s + t)"""
    return op.add(op.scale(x, s, a), op.scale(x, t, a)), op.scale(x, op.add(s, t), a)


@rule("x:nij y:nij c:", when="const(c)", cite="R4 (12, 65)")
def multiples_add(op: Reading, x: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """c x + c y == c (x + y)"""
    return op.add(op.scalar(x, c), op.scalar(y, c)), op.scalar(op.add(x, y), c)


@rule("x:nij c: d:", when="const(c) const(d)", cite="R5")
def shifts_add(op: Reading, x: Term, c: Term, d: Term) -> tuple[Term, Term]:
    """(x + c) + d == x + (c + d), numbers"""
    return op.shift(op.shift(x, c), d), op.shift(x, op.add(c, d))


@rule("x:nij b:i c: a:int", when="const(b) const(c)", cite="R5", sample=lambda draw: {"a": -2})
def shift_into_bias(op: Reading, x: Term, b: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """(x + b) + c == x + (b + c), a vector and a number"""
    return op.shift(op.bias(x, b, a), c), op.bias(x, op.shift(b, c), a)


@rule("x:nij c: d:", when="const(c) const(d)", cite="R5")
def number_over_shift(op: Reading, x: Term, c: Term, d: Term) -> tuple[Term, Term]:
    """d (x + c) == d x + d c"""
    return op.scalar(op.shift(x, c), d), op.shift(op.scalar(x, d), op.scalar(c, d))
