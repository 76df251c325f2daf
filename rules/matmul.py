"""Products with constant matrices: R1 to R3 of papers.md."""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("x:ni A:ij B:jk", when="const(A) const(B)", cite="papers.md R1 (6, 11, 21, 29, 40, 48, 57-59, 70, 75, 76)")
def product_associates(op: Reading, x: Term, A: Term, B: Term) -> tuple[Term, Term]:
    """(x·A)·B == x·(A·B)"""
    return op.matmul(op.matmul(x, A), B), op.matmul(x, op.matmul(A, B))


@rule("x:ni A:ij B:ij", when="const(A) const(B)", cite="papers.md R2 (5, 6, 11, 14, 16, 19, 29, 40, 57, 58, 60, 70)")
def weights_add(op: Reading, x: Term, A: Term, B: Term) -> tuple[Term, Term]:
    """x·A + x·B == x·(A + B)"""
    return op.add(op.matmul(x, A), op.matmul(x, B)), op.matmul(x, op.add(A, B))


@rule("x:ni A:ii", when="const(A)", cite="papers.md R2, with the identity as a matrix")
def skip_is_identity_matrix(op: Reading, x: Term, A: Term) -> tuple[Term, Term]:
    """x·A + x == x·(A + I)"""
    return op.add(op.matmul(x, A), x), op.matmul(x, op.add(A, op.eye_like(A)))


@rule("x:ni c:i A:ij", when="const(c) const(A)", cite="papers.md R5 (10, 17, 42, 54, 61, 62)")
def bias_through_product(op: Reading, x: Term, c: Term, A: Term) -> tuple[Term, Term]:
    """(x + c)·A == x·A + c·A"""
    return op.matmul(op.bias(x, c, -1), A), op.bias(op.matmul(x, A), op.matmul(c, A), -1)
