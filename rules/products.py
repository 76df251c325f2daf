"""Products of tensors that are known only at run time: R1, R2, R3 and R4 where a factor is no weight.

Reassociation is what makes linear attention linear, ``(q·k')·v == q·(k'·v)``, and what keeps a low-rank change of a weight factored;
which side is cheaper depends on the shapes, so extraction decides.
"""

from __future__ import annotations

from typing import Any

from rewriter.move import transpose
from rewriter.rule import rule
from rewriter.terms import Reading, Term, swap_move


def _swapped(draw: Any) -> dict[str, Any]:
    h, i, j, k = (draw.integer(2, 3) for _ in range(4))
    return {"m": str(swap_move((h, i, k)).anywhere()), "x": draw.tensor((h, i, j)), "y": draw.tensor((h, j, k))}


def _two_swapped(draw: Any) -> dict[str, Any]:
    values = _swapped(draw)
    return values | {"y": draw.tensor(values["x"].shape)}


@rule("x:hij y:hjk z:hkl", cite="R1 (12, 75; TENSAT)")
def products_associate(op: Reading, x: Term, y: Term, z: Term) -> tuple[Term, Term]:
    """(x·y)·z == x·(y·z)"""
    return op.product(op.product(x, y), z), op.product(x, op.product(y, z))


@rule("x:hij y:hjk z:hkl", cite="R1 (12, 75; TENSAT)")
def products_associate_back(op: Reading, x: Term, y: Term, z: Term) -> tuple[Term, Term]:
    """x·(y·z) == (x·y)·z"""
    return op.product(x, op.product(y, z)), op.product(op.product(x, y), z)


@rule("x:hij y:hjk A:kl b:l", when="const(A) const(b)", given="zero(b)", cite="R1 (4: values and output of one head)",
      sample=lambda draw: {"b": draw.zeros("l")}, breaks_at={"x": [[[2.0]]], "y": [[[1.0]]], "A": [[1.0]], "b": [1.0]})  # fmt: skip
def map_enters_right_factor(op: Reading, x: Term, y: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """(x·y)·A == x·(y·A)"""
    return op.linear(op.product(x, y), A, b), op.product(x, op.linear(y, A, b))


@rule("x:hij y:hjk A:kl b:l", when="const(A) const(b)", given="zero(b)", cite="R1 (75)",
      sample=lambda draw: {"b": draw.zeros("l")}, breaks_at={"x": [[[2.0]]], "y": [[[1.0]]], "A": [[1.0]], "b": [1.0]})  # fmt: skip
def map_leaves_right_factor(op: Reading, x: Term, y: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """x·(y·A) == (x·y)·A"""
    return op.product(x, op.linear(y, A, b)), op.linear(op.product(x, y), A, b)


@rule("x:hij y:hjk z:hjk", cite="R2 (75)")
def right_factors_add(op: Reading, x: Term, y: Term, z: Term) -> tuple[Term, Term]:
    """x·y + x·z == x·(y + z)"""
    return op.add(op.product(x, y), op.product(x, z)), op.product(x, op.add(y, z))


@rule("x:hij z:hij y:hjk", cite="R3")
def left_factors_add(op: Reading, x: Term, z: Term, y: Term) -> tuple[Term, Term]:
    """x·y + z·y == (x + z)·y"""
    return op.add(op.product(x, y), op.product(z, y)), op.product(op.add(x, z), y)


@rule("x:nj A:jk d:jk", when="const(A) live(d)", cite="R2 from right to left (75)")
def changed_weight_is_a_sum(op: Reading, x: Term, A: Term, d: Term) -> tuple[Term, Term]:
    """x·(A + d) == x·A + x·d, where the change d of a weight is known only at run time"""
    return op.product(x, op.add(A, d)), op.add(op.linear(x, A, op.zero_row(A)), op.product(x, d))


@rule("m:move x: y:", when="turns_last_two(m)", equal="bits", cite="R8 (75)", sample=_two_swapped)
def transpose_of_a_sum(op: Reading, m: Term, x: Term, y: Term) -> tuple[Term, Term]:
    """(x + y)' == x' + y'"""
    return op.move(m, op.add(x, y)), op.add(op.move(m, x), op.move(m, y))


@rule("m:move x: y:", given="turns_last_two(m)", cite="R8 (75; TENSAT)", sample=_swapped,
      breaks_at={"m": str(transpose((2, 2), (0, 1))), "x": [[1.0, 2.0], [0.0, 1.0]], "y": [[3.0, 4.0], [5.0, 6.0]]})  # fmt: skip
def transpose_of_a_product(op: Reading, m: Term, x: Term, y: Term) -> tuple[Term, Term]:
    """(x·y)' == y'·x'"""
    return op.move(m, op.product(x, y)), op.product(op.move(m, y), op.move(m, x))


def _left(draw: Any) -> dict[str, Any]:
    o, i, n = (draw.integer(2, 3) for _ in range(3))
    return {"A": draw.tensor((o, i)), "x": draw.tensor((2, i, n))}


@rule("A:oi x:hin m:move", when="const(A) swaps(x,m)", cite="R8 (a weight on the left)", sample=_left)
def weight_on_the_left(op: Reading, A: Term, x: Term, m: Term) -> tuple[Term, Term]:
    """A·x == (x'·A')', where A is one matrix for all of x"""
    swapped, turned = op.move(m, x), op.transposed(A)
    return op.product(A, x), op.move(m, op.linear(swapped, turned, op.zero_row(turned)))
