"""What only moves data commutes with what works on each element, or on each vector along the last axis: R8.

Moves travel towards the outputs, where they meet: two in a row are one, and one that is undone is none. Numbers travel the other way,
into a linear map that will take them in: the 1/sqrt(d) of attention ends in the projection of the queries, whichever way it was
spelled: on the queries, on both sides, or on the scores, which are the largest tensor of a block.
"""

from __future__ import annotations

from typing import Any

from rewriter.move import Move, compose, expand, reshape, transpose
from rewriter.rule import rule
from rewriter.terms import Reading, Term
from rewriter.window import Window

CROSSED = str(transpose((2, 3, 2), (1, 0, 2)))
TURNED = str(transpose((2, 2), (1, 0)).anywhere())
REPEATED = str(expand((1, 2), (3, 2)))


def _any_move(draw: Any, shape: tuple[int, ...]) -> Move:
    """A move of a tensor of this shape."""
    order = draw.choice([tuple(range(len(shape))), tuple(reversed(range(len(shape)))), (*range(1, len(shape)), 0)])
    moves = [transpose(shape, order), reshape(shape, (-1,)), reshape(shape, (*shape[:-2], -1)), reshape(shape, (shape[0], 1, *shape[1:])),
             expand((1, *shape), (2, *shape)), expand(shape, (2, *shape))]  # fmt: skip
    return draw.choice([m for m in moves if m is not None and len(m.source) == len(shape)])


def _moved(draw: Any) -> dict[str, Any]:
    shape = tuple(draw.integer(1, 3) for _ in range(draw.integer(2, 3)))
    return {"m": str(_any_move(draw, shape)), "x": draw.tensor(shape), "y": draw.tensor(shape), "f": draw.choice(["Relu", "Abs", "Neg"])}


def _after(m: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return Move.parse(m).shape(shape) or ()


def _two_moves(draw: Any) -> dict[str, Any]:
    values = _moved(draw)
    return values | {"n": str(_any_move(draw, _after(values["m"], values["x"].shape)))}


def _still(draw: Any) -> dict[str, Any]:
    shape = (draw.integer(2, 3), draw.integer(2, 3))
    return {"m": str(transpose(shape, draw.choice([(0, 1), (0, 1), (1, 0)]))), "x": draw.tensor(shape)}


def _leading(draw: Any) -> dict[str, Any]:
    """A move that leaves the last axis alone, and a map of that axis."""
    a, b, c, i, o = (draw.integer(2, 3) for _ in range(5))
    shape = (a, b, c, i)
    moves = [transpose(shape, (1, 0, 2, 3)), reshape(shape, (a * b, c, i)), reshape(shape, (-1, i)), transpose(shape, (0, 2, 1, 3)),
             expand(shape, (2, a, b, c, i))]  # fmt: skip
    move = draw.choice([m for m in moves if m is not None])
    return {"m": str(move.anywhere()), "x": draw.tensor(shape),
            "A": draw.tensor((i, o)), "b": draw.tensor((o,)), "f": draw.choice(["total", "reverse"]),
            "k": draw.choice(["layer", "rms"]), "e": draw.ones("")}  # fmt: skip


def _axis(draw: Any) -> dict[str, Any]:
    """A move, an axis of its result that is one of its input's, and a vector along it."""
    shape = (draw.integer(2, 3), draw.integer(2, 3), draw.integer(2, 3))
    moves = [transpose(shape, (1, 0, 2)), transpose(shape, (2, 0, 1)), reshape(shape, (shape[0] * shape[1], shape[2])), expand(shape, (2, *shape))]
    move = draw.choice([m for m in moves if m is not None])
    i, o = draw.choice([(i, o) for i, o, p, q in move.axes() if p == q == 1])
    return {"m": str(move), "x": draw.tensor(shape), "a": o, "s": draw.tensor((shape[i],))}


def _turned_and_joined(shape: tuple[int, ...]) -> Move | None:
    """[a, b, c] -> [a, c b]"""
    joined = reshape((shape[0], shape[2], shape[1]), (shape[0], -1))
    return None if joined is None else compose(transpose(shape, (0, 2, 1)), joined)


def _merged(draw: Any) -> dict[str, Any]:
    """A move that puts several copies of an axis into one."""
    shape = (2, draw.integer(2, 3), draw.integer(2, 3))
    moves = [reshape(shape, (2, -1)), reshape(shape, (-1,)), _turned_and_joined(shape)]
    move = draw.choice([m for m in moves if m is not None])
    i = draw.choice([a[0] for a in move.axes() if a[2] * a[3] > 1])
    return {"m": str(move), "x": draw.tensor(shape), "a": i, "s": draw.tensor((shape[i],))}


def _blocks(draw: Any) -> dict[str, Any]:
    """A map, a move that joins its last axis with others, and a map of what that gives."""
    r, d, i, o = (draw.integer(2, 3) for _ in range(4))
    shape = (2, r, d)
    move = draw.choice([reshape(shape, (2, -1)), _turned_and_joined(shape)])
    shapes = {"x": (2, r, i), "A": (i, d), "b": (d,), "B": (r * d, o), "c": (o,)}
    return {"m": str(move.anywhere())} | {name: draw.tensor(s) for name, s in shapes.items()}


def _repeated_vector(draw: Any) -> dict[str, Any]:
    d = draw.integer(2, 3)
    shape = (draw.integer(1, 3), draw.integer(1, 3), d)
    return {"x": draw.tensor(shape), "m": str(expand((d,), shape)), "c": draw.tensor((d,))}


def _pointwise(draw: Any) -> dict[str, Any]:
    n, t, i, o = draw.integer(1, 2), draw.integer(2, 3), draw.integer(2, 3), draw.integer(1, 3)
    w = Window(i, o, (1,), (1,), (0, 0), (1,), 1)
    move = transpose((n, t, i), (0, 2, 1)).anywhere()
    return {"x": draw.tensor((n, t, i)), "m": str(move), "w": str(w), "K": draw.tensor(w.shape), "b": draw.tensor((o,))}


def _covered(draw: Any) -> dict[str, Any]:
    n, i, o, kernel = draw.integer(1, 2), draw.integer(1, 2), draw.integer(1, 3), draw.choice([(3,), (2, 2), (1, 3)])
    zeros, ones = (0,) * len(kernel), (1,) * len(kernel)
    w = Window(i, o, kernel, ones, zeros + zeros, ones, 1)
    return {"x": draw.tensor((n, i, *kernel)), "w": str(w), "K": draw.tensor(w.shape), "b": draw.tensor((o,))}


@rule("m:move x:", given="stays(m)", equal="bits", cite="R8", sample=_still, breaks_at={"m": TURNED, "x": [[1.0, 2.0], [3.0, 4.0]]})
def standing_still(op: Reading, m: Term, x: Term) -> tuple[Term, Term]:
    """move(x) == x, where it moves nothing"""
    return op.move(m, x), x


@rule("m:move x: k:move", when="fits_all(m,k)", equal="bits", cite="R8", sample=_moved)
def move_of_any_length(op: Reading, m: Term, x: Term, k: Term) -> tuple[Term, Term]:
    """m(x) == k(x), k the same for tensors of other lengths: the form that laws about linear maps speak of"""
    return op.move(m, x), op.move(k, x)


@rule("m:move x: n:move k:move", when="follows(m,n,k)", equal="bits", cite="R8", sample=_two_moves)
def moves_compose(op: Reading, m: Term, x: Term, n: Term, k: Term) -> tuple[Term, Term]:
    """n(m(x)) == k(x): two moves in a row are one"""
    return op.move(n, op.move(m, x)), op.move(k, x)


@rule("f:map m:move x:", equal="bits", cite="R8 (43, 65, 73)", sample=_moved)
def move_after_map(op: Reading, f: Term, m: Term, x: Term) -> tuple[Term, Term]:
    """f(move(x)) == move(f(x)), f element-wise"""
    return op.map(f, op.move(m, x)), op.move(m, op.map(f, x))


@rule("m:move x: y:", equal="bits", cite="R8", sample=_moved)
def move_after_sum(op: Reading, m: Term, x: Term, y: Term) -> tuple[Term, Term]:
    """move(x) + move(y) == move(x + y), by the same move"""
    return op.add(op.move(m, x), op.move(m, y)), op.move(m, op.add(x, y))


@rule("m:move x: y:", equal="bits", cite="R8", sample=_moved)
def move_after_product(op: Reading, m: Term, x: Term, y: Term) -> tuple[Term, Term]:
    """move(x) * move(y) == move(x * y), by the same move"""
    return op.mul(op.move(m, x), op.move(m, y)), op.move(m, op.mul(x, y))


@rule("f:rowmap m:move x:", given="keeps_last(m)", equal="bits", cite="R8 (43)", sample=_leading,
      breaks_at={"f": "reverse", "m": TURNED, "x": [[1.0, 2.0], [3.0, 4.0]]})  # fmt: skip
def move_after_rowmap(op: Reading, f: Term, m: Term, x: Term) -> tuple[Term, Term]:
    """f(move(x)) == move(f(x)), f a function of each vector along the last axis, which stays whole"""
    return op.rowmap(f, op.move(m, x)), op.move(m, op.rowmap(f, x))


@rule("k:text m:move x: e:", when="const(e)", given="keeps_last(m)", equal="limit", cite="R8 (43)", sample=_leading,
      breaks_at={"k": "rms", "m": TURNED, "x": [[1.0, 2.0], [3.0, 4.0]], "e": 1.0})  # fmt: skip
def move_after_norm(op: Reading, k: Term, m: Term, x: Term, e: Term) -> tuple[Term, Term]:
    """norm(move(x)) == move(norm(x)), where the last axis stays whole"""
    return op.norm(k, op.move(m, x), e), op.move(m, op.norm(k, x, e))


@rule("m:move x: A:io b:o", when="const(A) const(b)", given="keeps_last(m)", cite="R8 (21, 43, 51)", sample=_leading,
      breaks_at={"m": TURNED, "x": [[1.0, 2.0], [3.0, 4.0]], "A": [[1.0, 0.0], [0.0, 2.0]], "b": [0.0, 0.0]})  # fmt: skip
def move_after_linear_map(op: Reading, m: Term, x: Term, A: Term, b: Term) -> tuple[Term, Term]:
    """move(x)·A + b == move(x·A + b), where the last axis stays whole: repeated rows are multiplied once"""
    return op.linear(op.move(m, x), A, b), op.move(m, op.linear(x, A, b))


@rule("m:move x: s:i i:int a:int", when="const(s)", given="takes_axis(m,i,a)", equal="bits", cite="R8, R4", sample=_axis,
      breaks_at={"m": str(reshape((2, 2), (4,))), "x": [[1.0, 2.0], [3.0, 4.0]], "s": [1.0, 2.0, 3.0, 4.0], "i": -1, "a": -1})  # fmt: skip
def scale_before_move(op: Reading, m: Term, x: Term, s: Term, i: Term, a: Term) -> tuple[Term, Term]:
    """move(x) * s == move(x * s), along the axis of x that moved there"""
    return op.scale(op.move(m, x), s, a), op.move(m, op.scale(x, s, i))


@rule("m:move x: s:i i:int a:int", when="const(s)", given="takes_axis(m,i,a)", equal="bits", cite="R8, R5", sample=_axis,
      breaks_at={"m": str(reshape((2, 2), (4,))), "x": [[1.0, 2.0], [3.0, 4.0]], "s": [1.0, 2.0, 3.0, 4.0], "i": -1, "a": -1})  # fmt: skip
def bias_before_move(op: Reading, m: Term, x: Term, s: Term, i: Term, a: Term) -> tuple[Term, Term]:
    """move(x) + b == move(x + b), along the axis of x that moved there"""
    return op.bias(op.move(m, x), s, a), op.move(m, op.bias(x, s, i))


@rule("m:move x: s:i a:int o:int", when="const(s)", given="takes_axis(m,a,o)", equal="bits", cite="R8, R4",
      sample=lambda draw: (v := _axis(draw)) | {"a": next(i for i, o, p, q in Move.parse(v["m"]).axes() if o == v["a"] and p == q == 1)},
      breaks_at={"m": str(reshape((2, 2), (4,))), "x": [[1.0, 2.0], [3.0, 4.0]], "s": [1.0, 2.0], "a": -1, "o": -1})  # fmt: skip
def scale_after_move(op: Reading, m: Term, x: Term, s: Term, a: Term, o: Term) -> tuple[Term, Term]:
    """move(x * s) == move(x) * s, along the axis that it became"""
    return op.move(m, op.scale(x, s, a)), op.scale(op.move(m, x), s, o)


@rule("m:move x: s:i a:int o:int p:int q:int", when="const(s)", given="spreads_axis(m,a,o,p,q)", equal="bits",
      cite="R8, R4 (55: the weight of a norm of each head)", sample=_merged,
      breaks_at={"m": TURNED, "x": [[1.0, 2.0], [3.0, 4.0]], "s": [1.0, 2.0], "a": -1, "o": -1, "p": 1, "q": 1})  # fmt: skip
def scale_after_merging_move(op: Reading, m: Term, x: Term, s: Term, a: Term, o: Term, p: Term, q: Term) -> tuple[Term, Term]:
    """move(x * s) == move(x) * [s|s|...], where the axis of s is joined with others"""
    return op.move(m, op.scale(x, s, a)), op.scale(op.move(m, x), op.tile(s, p, q), o)


@rule("m:move x: c:", when="const(c) absorbs(x)", cite="R8, R4 (71)", equal="bits", sample=_moved)
def number_through_move(op: Reading, m: Term, x: Term, c: Term) -> tuple[Term, Term]:
    """c move(x) == move(c x), where x comes from a linear map that will take c in"""
    return op.scalar(op.move(m, x), c), op.move(m, op.scalar(x, c))


@rule("m:move x: c:", when="const(c)", cite="R8, R4 (12)", equal="bits", sample=_moved)
def number_after_move(op: Reading, m: Term, x: Term, c: Term) -> tuple[Term, Term]:
    """move(c x) == c move(x): on to the next linear map, which will take it in"""
    return op.move(m, op.scalar(x, c)), op.scalar(op.move(m, x), c)


@rule("x:hij y:hjk c:", when="const(c) absorbs(x)", cite="R4 (71)")
def number_into_left_factor(op: Reading, x: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """c (x·y) == (c x)·y, where x comes from a linear map that will take c in"""
    return op.scalar(op.product(x, y), c), op.product(op.scalar(x, c), y)


@rule("x:hij y:hjk c:", when="const(c) absorbs(y)", cite="R4 (71)")
def number_into_right_factor(op: Reading, x: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """c (x·y) == x·(c y), where y comes from a linear map that will take c in"""
    return op.scalar(op.product(x, y), c), op.product(x, op.scalar(y, c))


@rule("m:move x: A:id b:d B:ko c:o p:int q:int", when="const(A) const(b) const(B) const(c)", given="makes_blocks(m,p,q)",
      cite="R1, R8 (21: two convolutions in a row, each as long as its axis)", sample=_blocks,
      breaks_at={"m": TURNED, "x": [[1.0], [3.0]], "A": [[1.0, 2.0]], "b": [0.0, 0.0], "B": [[1.0], [5.0]], "c": [0.0], "p": 1, "q": 1})  # fmt: skip
def blocks_compose(op: Reading, m: Term, x: Term, A: Term, b: Term, B: Term, c: Term, p: Term, q: Term) -> tuple[Term, Term]:
    """move(x·A + b)·B + c == move(x)·((I⊗A⊗I)·B) + (b·B + c), where the move joins blocks of the last axis into one"""
    bias = op.add(c, op.block_sum(b, B, p, q))
    return op.linear(op.move(m, op.linear(x, A, b)), B, c), op.linear(op.move(m, x), op.block_compose(A, B, p, q), bias)


@rule("x: m:move c:i", when="const(c)", given="repeats_vector(m)", equal="bits", cite="R5 (10)", sample=_repeated_vector,
      breaks_at={"x": [[1.0, 2.0]], "m": str(reshape((2, 1), (1, 2))), "c": [[1.0], [2.0]]})  # fmt: skip
def repeated_vector_is_a_bias(op: Reading, x: Term, m: Term, c: Term) -> tuple[Term, Term]:
    """x + [c, c, ...] == x + c"""
    return op.add(x, op.move(m, c)), op.bias(x, c, -1)


@rule("m:move x: K:oihw b:o w:window", when="const(K) const(b)", given="makes_channels(m,w)", cite="R8, R10 (51)", sample=_pointwise,
      breaks_at={"m": str(transpose((1, 2, 2), (0, 1, 2))), "x": [[[1.0, 2.0], [3.0, 4.0]]], "K": [[[1.0], [5.0]], [[0.0], [1.0]]], "b": [0.0, 0.0],
                 "w": "2>2 k1 s1 p0,0 d1 g1"})  # fmt: skip
def pointwise_convolution_is_a_map(op: Reading, m: Term, x: Term, K: Term, b: Term, w: Term) -> tuple[Term, Term]:
    """conv1x1(move(x), K, b) == move(x·K' + b), where the move makes the last axis of x the channels"""
    return op.conv(op.move(m, x), K, b, w), op.move(m, op.linear(x, op.flat_kernel(K), b))


@rule("x:nihw K:oihw b:o w:window m:move u:move", when="const(K) const(b)", given="covers(x,w,m,u)", cite="R10 (21)", sample=_covered,
      breaks_at={"x": [[[1.0, 2.0, 3.0]]], "K": [[[1.0, 2.0]]], "b": [0.0], "w": "1>1 k2 s1 p0,0 d1 g1", "m": str(reshape((1, 1, 3), (1, -1))),
                 "u": str(reshape((1, 1), (1, 1, 1)))})  # fmt: skip
def covering_convolution_is_a_map(op: Reading, x: Term, K: Term, b: Term, w: Term, m: Term, u: Term) -> tuple[Term, Term]:
    """conv(x, K, b) == flat(x)·K' + b, where the kernel is as large as the image"""
    return op.conv(x, K, b, w), op.move(u, op.linear(op.move(m, x), op.flat_kernel(K), b))
