"""Constant scales and biases move to where they are free: R4 and R5 of papers.md."""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("x:ni A:io s:o", when="const(A) const(s)", cite="papers.md R4 (4, 12, 14, 44, 47, 58, 62, 72)")
def scale_after_product(op: Reading, x: Term, A: Term, s: Term) -> tuple[Term, Term]:
    """(x·A) * s == x·(A * s)"""
    return op.scale(op.matmul(x, A), s, -1), op.matmul(x, op.scale(A, s, -1))


@rule("x:ni s:i A:io", when="const(A) const(s)", cite="papers.md R4 (12, 36, 54, 55, 59, 61, 62)")
def scale_before_product(op: Reading, x: Term, s: Term, A: Term) -> tuple[Term, Term]:
    """(x * s)·A == x·(diag(s)·A)"""
    return op.matmul(op.scale(x, s, -1), A), op.matmul(x, op.scale(A, s, -2))


@rule("x:ni A:io c:", when="const(A) const(c)", cite="papers.md R4 (19, 71, 74)")
def number_after_product(op: Reading, x: Term, A: Term, c: Term) -> tuple[Term, Term]:
    """c (x·A) == x·(c A)"""
    return op.scalar(op.matmul(x, A), c), op.matmul(x, op.scalar(A, c))


@rule("x:ni A:io c:", when="const(A) const(c)", cite="papers.md R4 (19, 71, 74)")
def number_before_product(op: Reading, x: Term, A: Term, c: Term) -> tuple[Term, Term]:
    """(c x)·A == x·(c A)"""
    return op.matmul(op.scalar(x, c), A), op.matmul(x, op.scalar(A, c))


@rule("x:nijk b:i s:i a:int", when="const(b) const(s)", cite="papers.md R5", sample=lambda draw: {"a": -3})
def scale_over_bias(op: Reading, x: Term, b: Term, s: Term, a: Term) -> tuple[Term, Term]:
    """(x + b) * s == x * s + b * s"""
    return op.scale(op.bias(x, b, a), s, a), op.bias(op.scale(x, s, a), op.scale(b, s, -1), a)


@rule("x:nij b:i c: a:int", when="const(b) const(c)", cite="papers.md R5", sample=lambda draw: {"a": -2})
def number_over_bias(op: Reading, x: Term, b: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """c (x + b) == c x + c b"""
    return op.scalar(op.bias(x, b, a), c), op.bias(op.scalar(x, c), op.scalar(b, c), a)


@rule("x:nij s:i t:i a:int", when="const(s) const(t)", cite="papers.md R4", sample=lambda draw: {"a": -2})
def scales_multiply(op: Reading, x: Term, s: Term, t: Term, a: Term) -> tuple[Term, Term]:
    """(x * s) * t == x * (s * t)"""
    return op.scale(op.scale(x, s, a), t, a), op.scale(x, op.scale(s, t, -1), a)


@rule("x:nij s:i c: a:int", when="const(s) const(c)", cite="papers.md R4", sample=lambda draw: {"a": -2})
def number_into_scale(op: Reading, x: Term, s: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """c (x * s) == x * (c s)"""
    return op.scalar(op.scale(x, s, a), c), op.scale(x, op.scalar(s, c), a)


@rule("x:nij s:i c: a:int", when="const(s) const(c)", cite="papers.md R4", sample=lambda draw: {"a": -2})
def scale_takes_number(op: Reading, x: Term, s: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """(c x) * s == x * (c s)"""
    return op.scale(op.scalar(x, c), s, a), op.scale(x, op.scalar(s, c), a)


@rule("x:nij c: d:", when="const(c) const(d)", cite="papers.md R4")
def numbers_multiply(op: Reading, x: Term, c: Term, d: Term) -> tuple[Term, Term]:
    """d (c x) == (d c) x"""
    return op.scalar(op.scalar(x, c), d), op.scalar(x, op.scalar(c, d))


@rule("x:nij b:i c:i a:int", when="const(b) const(c)", cite="papers.md R5", sample=lambda draw: {"a": -2})
def biases_add(op: Reading, x: Term, b: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """(x + b) + c == x + (b + c)"""
    return op.bias(op.bias(x, b, a), c, a), op.bias(x, op.add(b, c), a)


@rule("x:nij b:i y:nij c:i a:int", when="const(b) const(c)", cite="papers.md R5", sample=lambda draw: {"a": -2})
def biases_of_a_sum(op: Reading, x: Term, b: Term, y: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """(x + b) + (y + c) == (x + y) + (b + c)"""
    return op.add(op.bias(x, b, a), op.bias(y, c, a)), op.bias(op.add(x, y), op.add(b, c), a)


@rule(
    "u:nij b:i v:nij x:nk a:int",
    when="const(b) reads(u,x) reads(v,x)",
    cite="papers.md R5",
    sample=lambda draw: {"a": -2},
)
def bias_leaves_a_sum(op: Reading, u: Term, b: Term, v: Term, x: Term, a: Term) -> tuple[Term, Term]:
    """(u + b) + v == (u + v) + b, where u and v are affine in one x: elsewhere biases would drift down the residual stream"""
    return op.add(op.bias(u, b, a), v), op.bias(op.add(u, v), b, a)


@rule("u:nij b:i x:nij a:int", when="const(b) reads(u,x)", cite="papers.md R5", sample=lambda draw: {"a": -2})
def bias_leaves_a_skip(op: Reading, u: Term, b: Term, x: Term, a: Term) -> tuple[Term, Term]:
    """(u + b) + x == (u + x) + b, where u is affine in x"""
    return op.add(op.bias(u, b, a), x), op.bias(op.add(u, x), b, a)


@rule("x:nij s:i t:i a:int", when="const(s) const(t)", cite="papers.md R2", sample=lambda draw: {"a": -2})
def scaled_copies_add(op: Reading, x: Term, s: Term, t: Term, a: Term) -> tuple[Term, Term]:
    """x * s + x * t == x * (s + t)"""
    return op.add(op.scale(x, s, a), op.scale(x, t, a)), op.scale(x, op.add(s, t), a)


@rule("u:nij v:nij s:i x:nk a:int", when="const(s) reads(u,x) reads(v,x)", cite="papers.md R4", sample=lambda draw: {"a": -2})
def scale_enters_a_sum(op: Reading, u: Term, v: Term, s: Term, x: Term, a: Term) -> tuple[Term, Term]:
    """(u + v) * s == u * s + v * s, where both are affine in one x and so can take the scale"""
    return op.scale(op.add(u, v), s, a), op.add(op.scale(u, s, a), op.scale(v, s, a))


@rule("u:nij v:nij c: x:nk", when="const(c) reads(u,x) reads(v,x)", cite="papers.md R4")
def number_enters_a_sum(op: Reading, u: Term, v: Term, c: Term, x: Term) -> tuple[Term, Term]:
    """c (u + v) == c u + c v, where both are affine in one x and so can take the number"""
    return op.scalar(op.add(u, v), c), op.add(op.scalar(u, c), op.scalar(v, c))
