"""Branches written side by side: R6 and R7 (scaled parallel adapters, and any two layers beside each other).

One law seeds it (a sum of two maps is one map with stacked weights); the others move the concatenation towards the
common input, where it becomes a concatenation of weights and so disappears. If one of them cannot move (two branches with
different activations) the sum as it was stays cheapest.
"""

from __future__ import annotations

from rewriter.rule import rule
from rewriter.terms import Reading, Term


@rule("u:ni A:io b:o v:nj B:jo c:o", when="const(A) const(b) const(B) const(c) siblings(u,v)", cite="R7 (6, 13, 41, 48, 75)")
def maps_stack(op: Reading, u: Term, A: Term, b: Term, v: Term, B: Term, c: Term) -> tuple[Term, Term]:
    """(u·A + b) + (v·B + c) == [u|v]·[A;B] + (b + c)"""
    sum_ = op.add(op.linear(u, A, b), op.linear(v, B, c))
    return sum_, op.linear(op.cat(u, v, -1), op.cat(A, B, -2), op.add(b, c))


@rule("f:map u:ni g:map v:nj a:int", given="same(f,g)", cite="R7 (6)",
      sample=lambda draw: {"a": -1, "f": (f := draw.choice(["Relu", "Abs", "Neg"])), "g": f},
      declines="two branches side by side with different activations",
      breaks_at={"f": "Relu", "g": "Abs", "u": [[-1.0, 2.0]], "v": [[-1.0]], "a": -1})  # fmt: skip
def concatenation_enters_map(op: Reading, f: Term, u: Term, g: Term, v: Term, a: Term) -> tuple[Term, Term]:
    """[f(u)|g(v)] == f([u|v]), where f and g are one function"""
    return op.cat(op.map(f, u), op.map(g, v), a), op.map(f, op.cat(u, v, a))


@rule("p:ni q:ni u:nj v:nj a:int", cite="R7: gated units and x * sigmoid(x)", sample=lambda draw: {"a": -1})
def concatenation_enters_product(op: Reading, p: Term, q: Term, u: Term, v: Term, a: Term) -> tuple[Term, Term]:
    """[p * q|u * v] == [p|u] * [q|v]"""
    return op.cat(op.mul(p, q), op.mul(u, v), a), op.mul(op.cat(p, u, a), op.cat(q, v, a))


@rule("x:nk A:ki b:i B:kj c:j", when="const(A) const(b) const(B) const(c)", cite="R6 (4, 6, 12, 13, 36, 46, 55, 65)")
def maps_sit_side_by_side(op: Reading, x: Term, A: Term, b: Term, B: Term, c: Term) -> tuple[Term, Term]:
    """[x·A + b|x·B + c] == x·[A|B] + [b|c]"""
    return op.cat(op.linear(x, A, b), op.linear(x, B, c), -1), op.linear(x, op.cat(A, B, -1), op.cat(b, c, -1))
