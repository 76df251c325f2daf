"""Parts of tensors: slices, concatenations, rows of tables, and a number for each row. R3, R6, R8 and R4 for rows.

A function of a row of a constant table is a row of the function of the table: ``f(E[i]) == f(E)[i]``, computed once for all rows.
"""

from __future__ import annotations

from typing import Any

from rewriter.rule import rule
from rewriter.terms import Reading, Term


def _cut(draw: Any) -> dict[str, Any]:
    """Two vectors side by side, and a slice that lies in the first, or in the second."""
    n, m, k = draw.integer(1, 3), draw.integer(1, 3), draw.integer(1, 2)
    i = draw.integer(0, n - 1)
    j = draw.integer(i + 1, n)
    p = draw.integer(0, m - 1)
    return {"x": draw.tensor((k, n)), "y": draw.tensor((k, m)), "i": i, "j": j, "n": n, "p": n + p, "q": n + draw.integer(p + 1, m)}


def _columns(draw: Any) -> dict[str, Any]:
    n = draw.integer(1, 4)
    i = draw.integer(0, n - 1)
    return {"A": draw.tensor((draw.shape("k")[0], n)), "b": draw.tensor((n,)), "i": i, "j": draw.integer(i + 1, n), "E": draw.tensor((3, n)),
            "x": draw.tensor((2, draw.shape("k")[0])), "y": draw.tensor((2, n)), "z": draw.tensor((2, n)), "a": -1}  # fmt: skip


def _table(draw: Any) -> dict[str, Any]:
    rows = draw.integer(1, 4)
    index = draw.tensor((draw.integer(1, 3), draw.integer(1, 2)))
    for place in range(index.size):
        index.flat[place] = abs(index.flat[place]) % rows
    return {"i": index, "E": draw.tensor((rows, *draw.shape("d"))), "F": draw.tensor((rows, *draw.shape("d"))), "f": draw.choice(["Relu", "Abs"]),
            "k": draw.choice(["layer", "rms"]), "e": draw.ones(""), "a": -1}  # fmt: skip


def _two(draw: Any) -> dict[str, Any]:
    n, m, k, o = draw.integer(1, 3), draw.integer(1, 3), draw.integer(1, 2), draw.integer(1, 3)
    return {"u": draw.tensor((k, n)), "v": draw.tensor((k, m)), "C": draw.tensor((n + m, o)), "c": draw.tensor((o,))}


@rule("x:kn A:kn b:n i:int j:int", when="const(A) const(b)", cite="R6, R8", sample=_columns)
def slice_of_a_map(op: Reading, x: Term, A: Term, b: Term, i: Term, j: Term) -> tuple[Term, Term]:
    """(x·A + b)[i:j] == x·A[:, i:j] + b[i:j]"""
    return op.slice(op.linear(x, A, b), -1, i, j), op.linear(x, op.slice(A, -1, i, j), op.slice(b, -1, i, j))


@rule("x:kn y:km i:int j:int n:int", when="last(x,n)", given="at_most(j,n)", equal="bits", cite="R6, R8 (TENSAT)", sample=_cut,
      breaks_at={"x": [[1.0]], "y": [[2.0]], "i": 0, "j": 2, "n": 1})  # fmt: skip
def slice_of_the_first(op: Reading, x: Term, y: Term, i: Term, j: Term, n: Term) -> tuple[Term, Term]:
    """[x|y][i:j] == x[i:j], where it ends within x"""
    return op.slice(op.cat(x, y, -1), -1, i, j), op.slice(x, -1, i, j)


@rule("x:kn y:km p:int q:int n:int", when="last(x,n)", given="at_most(n,p)", equal="bits", cite="R6, R8 (TENSAT)", sample=_cut,
      breaks_at={"x": [[1.0]], "y": [[2.0]], "p": 0, "q": 1, "n": 1})  # fmt: skip
def slice_of_the_second(op: Reading, x: Term, y: Term, p: Term, q: Term, n: Term) -> tuple[Term, Term]:
    """[x|y][p:q] == y[p-n:q-n], where it begins after x"""
    return op.slice(op.cat(x, y, -1), -1, p, q), op.slice(y, -1, op.minus(p, n), op.minus(q, n))


@rule("x:kn j:int", given="last(x,j)", equal="bits", cite="R14", sample=lambda draw: {"x": draw.tensor((2, n := draw.integer(1, 3))), "j": n},
      breaks_at={"x": [[1.0, 2.0]], "j": 1})  # fmt: skip
def slice_of_everything(op: Reading, x: Term, j: Term) -> tuple[Term, Term]:
    """x[0:n] == x, n its length"""
    return op.slice(x, -1, 0, j), x


@rule("y:kn z:kn i:int j:int", equal="bits", cite="R8", sample=_columns)
def slice_of_a_sum(op: Reading, y: Term, z: Term, i: Term, j: Term) -> tuple[Term, Term]:
    """(y + z)[i:j] == y[i:j] + z[i:j]"""
    return op.slice(op.add(y, z), -1, i, j), op.add(op.slice(y, -1, i, j), op.slice(z, -1, i, j))


@rule("y:kn b:n i:int j:int", when="const(b)", equal="bits", cite="R8, R4", sample=_columns)
def slice_of_a_scale(op: Reading, y: Term, b: Term, i: Term, j: Term) -> tuple[Term, Term]:
    """(y * s)[i:j] == y[i:j] * s[i:j]"""
    return op.slice(op.scale(y, b, -1), -1, i, j), op.scale(op.slice(y, -1, i, j), op.slice(b, -1, i, j), -1)


@rule("y:kn b:n i:int j:int", when="const(b)", equal="bits", cite="R8, R5", sample=_columns)
def slice_of_a_bias(op: Reading, y: Term, b: Term, i: Term, j: Term) -> tuple[Term, Term]:
    """(y + b)[i:j] == y[i:j] + b[i:j]"""
    return op.slice(op.bias(y, b, -1), -1, i, j), op.bias(op.slice(y, -1, i, j), op.slice(b, -1, i, j), -1)


@rule("u:kn v:km C:po c:o n:int m:int", when="const(C) const(c) joinable(v) last(u,n) last(v,m)", cite="R3 (10, 21, 48)", sample=_two)
def map_of_the_second_apart(op: Reading, u: Term, v: Term, C: Term, c: Term, n: Term, m: Term) -> tuple[Term, Term]:
    """[u|v]·C + c == u·C[:n] + (v·C[n:] + c), where v may join what C does to it"""
    upper, lower = op.slice(C, -2, 0, n), op.slice(C, -2, n, op.plus(n, m))
    return op.linear(op.cat(u, v, -1), C, c), op.add(op.linear(u, upper, op.zero_row(upper)), op.linear(v, lower, c))


@rule("u:kn v:km C:po c:o n:int m:int", when="const(C) const(c) joinable(u) last(u,n) last(v,m)", cite="R3 (10, 21, 48)", sample=_two)
def map_of_the_first_apart(op: Reading, u: Term, v: Term, C: Term, c: Term, n: Term, m: Term) -> tuple[Term, Term]:
    """[u|v]·C + c == (u·C[:n] + c) + v·C[n:], where u may join what C does to it"""
    upper, lower = op.slice(C, -2, 0, n), op.slice(C, -2, n, op.plus(n, m))
    return op.linear(op.cat(u, v, -1), C, c), op.add(op.linear(u, upper, c), op.linear(v, lower, op.zero_row(lower)))


def _zeros_beside(draw: Any) -> dict[str, Any]:
    i, o, n = draw.integer(1, 3), draw.integer(1, 3), draw.integer(1, 2)
    return {"x": draw.tensor((2, i)), "A": draw.tensor((i, o)), "b": draw.tensor((o,)), "z": draw.tensor((2, n)) * 0, "n": n}


@rule("x:ki A:io b:o z:kn n:int", when="const(A) const(b) const(z) last(z,n)", given="zero(z)", cite="R6, R14 (29: deltas of q and v alone)",
      sample=_zeros_beside, breaks_at={"x": [[1.0]], "A": [[1.0]], "b": [0.0], "z": [[1.0]], "n": 1})  # fmt: skip
def zeros_after_map(op: Reading, x: Term, A: Term, b: Term, z: Term, n: Term) -> tuple[Term, Term]:
    """[x·A + b|0] == x·[A|0] + [b|0]"""
    return op.cat(op.linear(x, A, b), z, -1), op.linear(x, op.padded(A, 0, n), op.padded(b, 0, n))


@rule("x:ki A:io b:o z:kn n:int", when="const(A) const(b) const(z) last(z,n)", given="zero(z)", cite="R6, R14 (29)",
      sample=_zeros_beside, breaks_at={"x": [[1.0]], "A": [[1.0]], "b": [0.0], "z": [[1.0]], "n": 1})  # fmt: skip
def zeros_before_map(op: Reading, x: Term, A: Term, b: Term, z: Term, n: Term) -> tuple[Term, Term]:
    """[0|x·A + b] == x·[0|A] + [0|b]"""
    return op.cat(z, op.linear(x, A, b), -1), op.linear(x, op.padded(A, n, 0), op.padded(b, n, 0))


@rule("E:nd i: A:dk b:k", when="const(E) const(A) const(b)", cite="R8 (54, 25)", sample=_table)
def row_of_a_map(op: Reading, E: Term, i: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """E[i]·A + b == (E·A + b)[i]"""
    return op.linear(op.pick(E, i), A, b), op.pick(op.linear(E, A, b), i)


@rule("f:map E:nd i:", when="const(E)", equal="bits", cite="R8 (54)", sample=_table)
def row_of_a_function(op: Reading, f: Term, E: Term, i: Term) -> tuple[Term, Term]:
    """f(E[i]) == f(E)[i], f element-wise"""
    return op.map(f, op.pick(E, i)), op.pick(op.map(f, E), i)


@rule("k:text E:nd i: e:", when="const(E) const(e)", equal="limit", cite="R8 (54, 13)", sample=_table)
def row_of_a_norm(op: Reading, k: Term, E: Term, i: Term, e: Term) -> tuple[Term, Term]:
    """norm(E[i]) == norm(E)[i]"""
    return op.norm(k, op.pick(E, i), e), op.pick(op.norm(k, E, e), i)


@rule("E:nd i: s:d", when="const(E) const(s)", equal="bits", cite="R8, R4 (54)", sample=_table)
def row_of_a_scale(op: Reading, E: Term, i: Term, s: Term) -> tuple[Term, Term]:
    """E[i] * s == (E * s)[i]"""
    return op.scale(op.pick(E, i), s, -1), op.pick(op.scale(E, s, -1), i)


@rule("E:nd i: s:d", when="const(E) const(s)", equal="bits", cite="R8, R5 (54)", sample=_table)
def row_of_a_bias(op: Reading, E: Term, i: Term, s: Term) -> tuple[Term, Term]:
    """E[i] + b == (E + b)[i]"""
    return op.bias(op.pick(E, i), s, -1), op.pick(op.bias(E, s, -1), i)


@rule("E:nd i: c:", when="const(E) const(c)", equal="bits", cite="R8, R4 (54)", sample=_table)
def row_of_a_multiple(op: Reading, E: Term, i: Term, c: Term) -> tuple[Term, Term]:
    """c E[i] == (c E)[i]"""
    return op.scalar(op.pick(E, i), c), op.pick(op.scalar(E, c), i)


@rule("E:nd i: c:", when="const(E) const(c)", equal="bits", cite="R8, R5 (54)", sample=_table)
def row_of_a_shift(op: Reading, E: Term, i: Term, c: Term) -> tuple[Term, Term]:
    """E[i] + c == (E + c)[i]"""
    return op.shift(op.pick(E, i), c), op.pick(op.shift(E, c), i)


@rule("E:nd F:nd i:", when="const(E) const(F)", equal="bits", cite="R8 (54)", sample=_table)
def row_of_a_sum(op: Reading, E: Term, F: Term, i: Term) -> tuple[Term, Term]:
    """E[i] + F[i] == (E + F)[i]"""
    return op.add(op.pick(E, i), op.pick(F, i)), op.pick(op.add(E, F), i)


@rule("E:nd F:nd i:", when="const(E) const(F)", equal="bits", cite="R8 (54)", sample=_table)
def row_of_a_product(op: Reading, E: Term, F: Term, i: Term) -> tuple[Term, Term]:
    """E[i] * F[i] == (E * F)[i]"""
    return op.mul(op.pick(E, i), op.pick(F, i)), op.pick(op.mul(E, F), i)


@rule("E:kn i: p:int q:int", when="const(E)", equal="bits", cite="R8 (54: halves of an embedding)",
      sample=lambda draw: (v := _columns(draw)) | {"i": _table(draw)["i"] * 0, "p": v["i"], "q": v["j"]})  # fmt: skip
def row_of_a_slice(op: Reading, E: Term, i: Term, p: Term, q: Term) -> tuple[Term, Term]:
    """E[i][p:q] == E[:, p:q][i]"""
    return op.slice(op.pick(E, i), -1, p, q), op.pick(op.slice(E, -1, p, q), i)


def _rows(draw: Any) -> dict[str, Any]:
    n, i = draw.choice([(2,), (1, 3)]), draw.shape("i")
    return {"x": draw.tensor((*n, *i)), "y": draw.tensor((*n, *i)), "g": draw.tensor((*n, 1)), "h": draw.tensor((*n, 1)), "b": draw.zeros("o")}


@rule("x:ni g: A:io b:o", when="const(A) const(b)", given="zero(b)", cite="R4, a number for each row (36, 48, 4, 13)", sample=_rows,
      breaks_at={"x": [[1.0]], "g": [[2.0]], "A": [[1.0]], "b": [1.0]})  # fmt: skip
def numbers_after_map(op: Reading, x: Term, g: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """(g x)·A == g (x·A), g a number for each row"""
    return op.linear(op.rows(x, g), A, b), op.rows(op.linear(x, A, b), g)


@rule("x:ni g: s:i", when="const(s)", cite="R4, a number for each row", sample=_rows)
def numbers_after_scale(op: Reading, x: Term, g: Term, s: Term) -> tuple[Term, Term]:
    """(g x) * s == g (x * s)"""
    return op.scale(op.rows(x, g), s, -1), op.rows(op.scale(x, s, -1), g)


@rule("x:ni g: c:", when="const(c)", cite="R4, a number for each row", sample=_rows)
def numbers_after_number(op: Reading, x: Term, g: Term, c: Term) -> tuple[Term, Term]:
    """c (g x) == g (c x)"""
    return op.scalar(op.rows(x, g), c), op.rows(op.scalar(x, c), g)


@rule("x:ni g: s:i", when="const(s)", cite="R4, a number for each row", sample=_rows)
def scale_after_numbers(op: Reading, x: Term, g: Term, s: Term) -> tuple[Term, Term]:
    """g (x * s) == (g x) * s"""
    return op.rows(op.scale(x, s, -1), g), op.scale(op.rows(x, g), s, -1)


@rule("x:ni g: c:", when="const(c)", cite="R4, a number for each row", sample=_rows)
def number_after_numbers(op: Reading, x: Term, g: Term, c: Term) -> tuple[Term, Term]:
    """g (c x) == c (g x)"""
    return op.rows(op.scalar(x, c), g), op.scalar(op.rows(x, g), c)


@rule("x:ni g: h:", cite="R4", sample=_rows)
def numbers_multiply_up(op: Reading, x: Term, g: Term, h: Term) -> tuple[Term, Term]:
    """h (g x) == (g h) x, numbers for each row"""
    return op.rows(op.rows(x, g), h), op.rows(x, op.mul(g, h))


@rule("x:ni y:ni g:", cite="R4", sample=_rows)
def rows_add(op: Reading, x: Term, y: Term, g: Term) -> tuple[Term, Term]:
    """g x + g y == g (x + y)"""
    return op.add(op.rows(x, g), op.rows(y, g)), op.rows(op.add(x, y), g)
