"""Affine maps x·A + b with constant A and b: R1 to R5 for matrices."""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("x:ni A:ij b:j B:jk c:k", when="const(A) const(b) const(B) const(c)", cite="R1, R5 (6, 11, 21, 29, 40, 48, 57-59, 70, 75, 76)")
def maps_compose(op: Reading, x: Term, A: Term, b: Term, B: Term, c: Term) -> tuple[Term, Term]:
    """(x·A + b)·B + c == x·(A·B) + (b·B + c)"""
    return op.linear(op.linear(x, A, b), B, c), op.linear(x, op.matmul(A, B), op.add(op.matmul(b, B), c))


@rule("x:ni A:ij b:j B:ij c:j", when="const(A) const(b) const(B) const(c)", cite="R2 (5, 6, 11, 14, 16, 19, 29, 40, 57, 58, 60, 70)")
def maps_add(op: Reading, x: Term, A: Term, b: Term, B: Term, c: Term) -> tuple[Term, Term]:
    """(x·A + b) + (x·B + c) == x·(A + B) + (b + c)"""
    return op.add(op.linear(x, A, b), op.linear(x, B, c)), op.linear(x, op.add(A, B), op.add(b, c))


@rule("x:ni A:ii b:i", when="const(A) const(b)", cite="R2, with the identity as a matrix")
def skip_is_a_matrix(op: Reading, x: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """(x·A + b) + x == x·(A + I) + b"""
    return op.add(op.linear(x, A, b), x), op.linear(x, op.add(A, op.eye_like(A)), b)


@rule("x:ni A:ii b:i s:i", when="const(A) const(b) const(s)", cite="R2, R4, with a diagonal matrix")
def scaled_skip_is_a_matrix(op: Reading, x: Term, A: Term, b: Term, s: Term) -> tuple[Term, Term]:
    """(x·A + b) + x * s == x·(A + diag(s)) + b"""
    skip = op.scale(op.eye_like(A), s, -1)
    return op.add(op.linear(x, A, b), op.scale(x, s, -1)), op.linear(x, op.add(A, skip), b)


@rule("x:ni A:ii b:i c:", when="const(A) const(b) const(c)", cite="R2, R4, with a multiple of the identity")
def multiple_skip_is_a_matrix(op: Reading, x: Term, A: Term, b: Term, c: Term) -> tuple[Term, Term]:
    """(x·A + b) + c x == x·(A + c I) + b"""
    skip = op.scalar(op.eye_like(A), c)
    return op.add(op.linear(x, A, b), op.scalar(x, c)), op.linear(x, op.add(A, skip), b)


@rule("x:ni A:io b:o s:o", when="const(A) const(b) const(s)", cite="R4 (4, 12, 14, 44, 47, 58, 62, 72)")
def scale_after_map(op: Reading, x: Term, A: Term, b: Term, s: Term) -> tuple[Term, Term]:
    """(x·A + b) * s == x·(A * s) + b * s"""
    return op.scale(op.linear(x, A, b), s, -1), op.linear(x, op.scale(A, s, -1), op.scale(b, s, -1))


@rule("x:ni s:i A:io b:o", when="const(A) const(b) const(s)", cite="R4 (12, 36, 54, 55, 59, 61, 62)")
def scale_before_map(op: Reading, x: Term, s: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """(x * s)·A + b == x·(diag(s)·A) + b"""
    return op.linear(op.scale(x, s, -1), A, b), op.linear(x, op.scale(A, s, -2), b)


@rule("x:ni A:io b:o c:", when="const(A) const(b) const(c)", cite="R4 (19, 71, 74)")
def number_after_map(op: Reading, x: Term, A: Term, b: Term, c: Term) -> tuple[Term, Term]:
    """c (x·A + b) == x·(c A) + c b"""
    return op.scalar(op.linear(x, A, b), c), op.linear(x, op.scalar(A, c), op.scalar(b, c))


@rule("x:ni c: A:io b:o", when="const(A) const(b) const(c)", cite="R4 (19, 71, 74)")
def number_before_map(op: Reading, x: Term, c: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """(c x)·A + b == x·(c A) + b"""
    return op.linear(op.scalar(x, c), A, b), op.linear(x, op.scalar(A, c), b)


@rule("x:ni A:io b:o c:o", when="const(A) const(b) const(c)", cite="R5")
def bias_after_map(op: Reading, x: Term, A: Term, b: Term, c: Term) -> tuple[Term, Term]:
    """(x·A + b) + c == x·A + (b + c)"""
    return op.bias(op.linear(x, A, b), c, -1), op.linear(x, A, op.add(b, c))


@rule("x:ni c:i A:io b:o", when="const(A) const(b) const(c)", cite="R5 (10, 17, 42, 54, 61, 62)")
def bias_before_map(op: Reading, x: Term, c: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """(x + c)·A + b == x·A + (c·A + b)"""
    return op.linear(op.bias(x, c, -1), A, b), op.linear(x, A, op.add(op.matmul(c, A), b))


@rule("x:ni A:io b:o y:no c:o", when="const(A) const(b) const(c) multiple(y,x)", cite="R5")
def bias_beside_map(op: Reading, x: Term, A: Term, b: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """(x·A + b) + (y + c) == (x·A + (b + c)) + y, where y is a multiple of x and so will be taken in too"""
    return op.add(op.linear(x, A, b), op.bias(y, c, -1)), op.add(op.linear(x, A, op.add(b, c)), y)


@rule("x:ni A:io b:o c:", when="const(A) const(b) const(c)", cite="R5")
def shift_after_map(op: Reading, x: Term, A: Term, b: Term, c: Term) -> tuple[Term, Term]:
    """(x·A + b) + c == x·A + (b + c), c a number"""
    return op.shift(op.linear(x, A, b), c), op.linear(x, A, op.shift(b, c))


@rule("x:ni A:io b:o y:ni c:o", when="const(A) const(b) const(c)", cite="R3 (10, 21, 48, 66)")
def inputs_add(op: Reading, x: Term, A: Term, b: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """(x·A + b) + (y·A + c) == (x + y)·A + (b + c): one product with a shared matrix instead of two"""
    return op.add(op.linear(x, A, b), op.linear(y, A, c)), op.linear(op.add(x, y), A, op.add(b, c))


@rule("x:ni A:io b:o y:no B:io c:o d:", when="const(A) const(b) const(B) const(c) const(d)", cite="R2, R4 (59: l + g (o - l), a number g)")
def maps_add_across_a_multiple(op: Reading, x: Term, A: Term, b: Term, y: Term, B: Term, c: Term, d: Term) -> tuple[Term, Term]:
    """(x·A + b) + d (y + (x·B + c)) == d y + (x·(A + d B) + (b + d c))"""
    merged = op.linear(x, op.add(A, op.scalar(B, d)), op.add(b, op.scalar(c, d)))
    return op.add(op.linear(x, A, b), op.scalar(op.add(y, op.linear(x, B, c)), d)), op.add(op.scalar(y, d), merged)


@rule("x:ni A:io b:o y:no B:io c:o s:o", when="const(A) const(b) const(B) const(c) const(s)", cite="R2, R4 (59: a gate for each channel)")
def maps_add_across_a_scale(op: Reading, x: Term, A: Term, b: Term, y: Term, B: Term, c: Term, s: Term) -> tuple[Term, Term]:
    """(x·A + b) + (y + (x·B + c)) * s == y * s + (x·(A + B * s) + (b + c * s))"""
    merged = op.linear(x, op.add(A, op.scale(B, s, -1)), op.add(b, op.scale(c, s, -1)))
    return op.add(op.linear(x, A, b), op.scale(op.add(y, op.linear(x, B, c)), s, -1)), op.add(op.scale(y, s, -1), merged)
