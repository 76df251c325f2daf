"""Branches written side by side: R6 and R7 of papers.md (scaled parallel adapters, and any two layers beside each other).

Two laws seed it (a sum of two products is one product with stacked weights); the others move the concatenation towards the
common input, where it becomes a concatenation of weights and so disappears. If one of them cannot move (two branches with
different activations) the sum as it was stays cheapest.
"""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("u:ni A:io v:nj B:jo", when="const(A) const(B) siblings(u,v)", cite="papers.md R7 (6, 13, 41, 48, 75)")
def products_stack(op: Reading, u: Term, A: Term, v: Term, B: Term) -> tuple[Term, Term]:
    """u·A + v·B == [u|v]·[A;B]"""
    return op.add(op.matmul(u, A), op.matmul(v, B)), op.matmul(op.cat(u, v, -1), op.cat(A, B, -2))


@rule("f:map u:ni g:map v:nj a:int", given="same(f,g)", cite="papers.md R7 (6)",
      sample=lambda draw: {"a": -1, "f": (f := draw.choice(["Relu", "Abs", "Neg"])), "g": f},
      declines="two branches side by side with different activations",
      breaks_at={"f": "Relu", "g": "Abs", "u": [[-1.0, 2.0]], "v": [[-1.0]], "a": -1})  # fmt: skip
def concatenation_enters_map(op: Reading, f: Term, u: Term, g: Term, v: Term, a: Term) -> tuple[Term, Term]:
    """[f(u)|g(v)] == f([u|v]), where f and g are one function"""
    return op.cat(op.map(f, u), op.map(g, v), a), op.map(f, op.cat(u, v, a))


@rule("p:ni q:ni u:nj v:nj a:int", cite="papers.md R7: gated units and x * sigmoid(x)", sample=lambda draw: {"a": -1})
def concatenation_enters_product(op: Reading, p: Term, q: Term, u: Term, v: Term, a: Term) -> tuple[Term, Term]:
    """[p * q|u * v] == [p|u] * [q|v]"""
    return op.cat(op.mul(p, q), op.mul(u, v), a), op.mul(op.cat(p, u, a), op.cat(q, v, a))


@rule("u:ni b:i v:nj c:j", when="const(b) const(c)", cite="papers.md R6")
def concatenation_enters_bias(op: Reading, u: Term, b: Term, v: Term, c: Term) -> tuple[Term, Term]:
    """[u + b|v + c] == [u|v] + [b|c]"""
    return op.cat(op.bias(u, b, -1), op.bias(v, c, -1), -1), op.bias(op.cat(u, v, -1), op.cat(b, c, -1), -1)


@rule("x:nk A:ki b:i B:kj", when="const(A) const(b) const(B)", cite="papers.md R6")
def concatenation_takes_one_bias(op: Reading, x: Term, A: Term, b: Term, B: Term) -> tuple[Term, Term]:
    """[x·A + b|x·B] == [x·A|x·B] + [b|0]"""
    left, right = op.matmul(x, A), op.matmul(x, B)
    return op.cat(op.bias(left, b, -1), right, -1), op.bias(op.cat(left, right, -1), op.cat(b, op.zero_row(B), -1), -1)


@rule("x:nk A:ki B:kj c:j", when="const(A) const(B) const(c)", cite="papers.md R6")
def concatenation_takes_other_bias(op: Reading, x: Term, A: Term, B: Term, c: Term) -> tuple[Term, Term]:
    """[x·A|x·B + c] == [x·A|x·B] + [0|c]"""
    left, right = op.matmul(x, A), op.matmul(x, B)
    return op.cat(left, op.bias(right, c, -1), -1), op.bias(op.cat(left, right, -1), op.cat(op.zero_row(A), c, -1), -1)


@rule("x:nk A:ki B:kj", when="const(A) const(B)", cite="papers.md R6 (4, 6, 12, 13, 36, 46, 55, 65)")
def products_sit_side_by_side(op: Reading, x: Term, A: Term, B: Term) -> tuple[Term, Term]:
    """[x·A|x·B] == x·[A|B]"""
    return op.cat(op.matmul(x, A), op.matmul(x, B), -1), op.matmul(x, op.cat(A, B, -1))
