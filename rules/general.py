"""Laws of tensors that are known only at run time, whole: what TENSAT's published equations say, and what they follow from.

A model's program does without them, since they grow without end there: sums and products in every order and grouping, and every
operator taken apart over sums, concatenations and numbers. They are here so that conformance can be tested (``tests/test_tensat.py``),
and for whoever searches small graphs with all of algebra. Each takes terms towards one form: numbers outermost, then concatenations,
then sums, of convolutions and products that are of neither.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rewriter.move import transpose
from rewriter.rule import rule
from rewriter.terms import Reading, Term
from rewriter.window import Widening, Window, join

PLAIN = Window(2, 2, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
STRIDED = Window(3, 2, (2, 1), (2, 1), (0, 0, 1, 0), (1, 1), 1)
GROUPED = Window(4, 4, (1, 3), (1, 1), (0, 1, 0, 1), (1, 1), 2)
POOL = Window(2, 2, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2)
LINE = Window(3, 3, (3,), (2,), (1, 0), (1,), 3)
TURNED = str(transpose((2, 2), (1, 0)).anywhere())
STILL = str(transpose((2, 2), (0, 1)).anywhere())
ONE = "1>1 k1x1 s1x1 p0,0,0,0 d1x1 g1"
TWO_ONE = "2>1 k1x1 s1x1 p0,0,0,0 d1x1 g1"
OPEN = "1>1 k1x2 s1x1 p0,0,0,0 d1x1 g1"
ONE_TAP = [[[[1.0]]]]
TWO = [[[[1.0]], [[2.0]]]]
ROW = [[[[1.0, 2.0, 3.0]]]]
SQUARE = [[1.0, 2.0], [3.0, 4.0]]


def _image(draw: Any, windows: tuple[Window, ...] = (PLAIN, STRIDED, GROUPED)) -> dict[str, Any]:
    """A window, two images of one size, two kernels, a number, zeros to add."""
    w = draw.choice(windows)
    shape = (draw.integer(1, 2), w.inputs, *(draw.integer(2, 4) for _ in w.kernel))
    return {"w": str(w), "x": draw.tensor(shape), "y": draw.tensor(shape), "K": draw.tensor(w.shape), "L": draw.tensor(w.shape),
            "c": draw.tensor(()), "b": draw.tensor((w.outputs,)) * draw.choice([0, 0, 1]), "a": w.channel_axis,
            "z": str(w), "n": 1, "f": "Relu"}  # fmt: skip


def _pool(draw: Any) -> dict[str, Any]:
    return _image(draw, (POOL, LINE))


def _cut_outputs(draw: Any) -> dict[str, Any]:
    values = _image(draw, (PLAIN, STRIDED))
    return values | {"K": values["K"][:1], "L": values["K"][1:], "b": values["b"] * 0}


def _cut_inputs(draw: Any) -> dict[str, Any]:
    values = _image(draw, (PLAIN, STRIDED))
    x, k = values["x"], values["K"]
    return values | {"x": x[:, :1], "y": x[:, 1:], "K": k[:, :1], "L": k[:, 1:]}


def _widened(draw: Any) -> dict[str, Any]:
    values = _image(draw, (PLAIN, GROUPED))
    z = Window.parse(values["z"])
    point = Window(z.inputs, z.outputs, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), z.group)
    joined = join(point, z)
    assert joined is not None
    return values | {"K": draw.tensor(point.shape), "e": str(joined[1])}


def _unwidened(draw: Any) -> dict[str, Any]:
    values = _image(draw)
    w = Window.parse(values["w"])
    joined = join(w, w)
    assert joined is not None
    return values | {"p": str(joined[1])}


def _identity_kernel(draw: Any) -> dict[str, Any]:
    values = _image(draw, (PLAIN, GROUPED))
    z = Window.parse(values["z"])
    point = Window(z.inputs, z.inputs, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), z.inputs)
    joined = join(z, point)
    assert joined is not None
    return values | {"d": str(point), "q": str(joined[2]), "b": values["b"] * 0}


def _spread(draw: Any) -> dict[str, Any]:
    w = draw.choice((POOL, replace(POOL, kernel=(1, 5), pads=(0, 2, 0, 2))))
    around = tuple(k // 2 for k in w.kernel)
    point = Window(2, 2, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2)
    return {"w": str(w), "d": str(point), "q": str(Widening(around, around, 2, 1)), "p": str(Widening((0, 0), (0, 0), 2, 1))}


def _two_axes(draw: Any) -> dict[str, Any]:
    """Four tensors that make one, and the axis along which the first two meet."""
    a = draw.choice([-1, -2])
    i, j, k, m, n = (draw.integer(1, 2) for _ in range(5))
    shapes = {"x": (n, i, k), "y": (n, i, m), "z": (n, j, k), "t": (n, j, m)}
    order = (0, 1, 2) if a == -1 else (1, 2, 0)
    return {"a": a, "f": draw.choice(["Relu", "Abs"])} | {v: draw.tensor(s).transpose(order) for v, s in shapes.items()}


def _beside(draw: Any) -> dict[str, Any]:
    """x beside y and z beside t, of one shape each, along the last axis or the one before."""
    values = _two_axes(draw)
    return values | {"z": draw.tensor(values["x"].shape), "t": draw.tensor(values["y"].shape), "c": draw.tensor(()), "b": values["a"]}


def _parts(draw: Any) -> dict[str, Any]:
    values = _beside(draw)
    n, a = values["x"].shape[values["a"]], values["a"]
    return values | {"i": 0, "j": n, "p": n, "q": n + values["y"].shape[a]}


def _swapped(draw: Any, axis: int) -> dict[str, Any]:
    h, i, j, k = (draw.integer(1, 3) for _ in range(4))
    shapes = ((h, i, j), (h, i, k)) if axis == -1 else ((h, j, i), (h, k, i))
    m = transpose((2, 3, 4), (0, 2, 1)).anywhere()
    return {"m": str(m), "x": draw.tensor(shapes[0]), "y": draw.tensor(shapes[1])}


def _moved(draw: Any) -> dict[str, Any]:
    shape = (draw.integer(1, 3), draw.integer(1, 3))
    return {"m": str(transpose((2, 3), draw.choice([(0, 1), (1, 0)])).anywhere()), "x": draw.tensor(shape), "y": draw.tensor(shape)}


def _sums(draw: Any) -> dict[str, Any]:
    i, j, k, m = (draw.integer(1, 3) for _ in range(4))
    return {"x": draw.tensor((i, j)), "y": draw.tensor((i, k)), "z": draw.tensor((j, m)), "t": draw.tensor((k, m))}


def _square(draw: Any) -> dict[str, Any]:
    n = draw.integer(1, 3)
    eye = draw.tensor((n, n)) * 0
    eye[range(n), range(n)] += 1
    return {"x": draw.tensor((n, n)), "i": eye}


# Sums and products of elements.


@rule("x:nm y:nm z:nm", cite="TENSAT")
def sums_regroup(op: Reading, x: Term, y: Term, z: Term) -> tuple[Term, Term]:
    """(x + y) + z == x + (y + z)"""
    return op.add(op.add(x, y), z), op.add(x, op.add(y, z))


@rule("x:nm y:nm", cite="TENSAT")
def factors_commute(op: Reading, x: Term, y: Term) -> tuple[Term, Term]:
    """x * y == y * x"""
    return op.mul(x, y), op.mul(y, x)


@rule("x:nm y:nm z:nm", cite="TENSAT")
def factors_regroup(op: Reading, x: Term, y: Term, z: Term) -> tuple[Term, Term]:
    """(x * y) * z == x * (y * z)"""
    return op.mul(op.mul(x, y), z), op.mul(x, op.mul(y, z))


@rule("x:nm y:nm z:nm", cite="TENSAT")
def factor_of_a_sum(op: Reading, x: Term, y: Term, z: Term) -> tuple[Term, Term]:
    """x * (y + z) == x * y + x * z"""
    return op.mul(x, op.add(y, z)), op.add(op.mul(x, y), op.mul(x, z))


@rule("x:nm o:nm", given="one(o)", cite="TENSAT", sample=lambda draw: {"o": draw.ones("nm"), "x": draw.tensor(draw.shape("nm"))},
      breaks_at={"x": [1.0], "o": [2.0]})  # fmt: skip
def factor_of_ones(op: Reading, x: Term, o: Term) -> tuple[Term, Term]:
    """x * 1 == x"""
    return op.mul(x, o), x


@rule("f:map x:nm", given="idempotent(f)", equal="bits", cite="TENSAT", sample=lambda draw: {"f": draw.choice(["Relu", "Abs"])},
      breaks_at={"f": "Neg", "x": [1.0]})  # fmt: skip
def function_twice(op: Reading, f: Term, x: Term) -> tuple[Term, Term]:
    """f(f(x)) == f(x), f a projection"""
    return op.map(f, op.map(f, x)), op.map(f, x)


# Numbers come out of everything that is linear.


@rule("x:nm y:nm c:", cite="TENSAT")
def number_of_a_sum(op: Reading, x: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """c (x + y) == c x + c y"""
    return op.scalar(op.add(x, y), c), op.add(op.scalar(x, c), op.scalar(y, c))


@rule("x:nm y:nm c:", cite="TENSAT")
def number_out_of_a_factor(op: Reading, x: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """(c x) * y == c (x * y)"""
    return op.mul(op.scalar(x, c), y), op.scalar(op.mul(x, y), c)


@rule("x:nij y:njk c:", cite="TENSAT")
def number_out_of_the_left(op: Reading, x: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """(c x)·y == c (x·y)"""
    return op.product(op.scalar(x, c), y), op.scalar(op.product(x, y), c)


@rule("x:nij y:njk c:", cite="TENSAT")
def number_out_of_the_right(op: Reading, x: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """x·(c y) == c (x·y)"""
    return op.product(x, op.scalar(y, c)), op.scalar(op.product(x, y), c)


@rule("x: y: c: a:int", cite="TENSAT", sample=_beside)
def number_of_a_concatenation(op: Reading, x: Term, y: Term, c: Term, a: Term) -> tuple[Term, Term]:
    """c [x|y] == [c x|c y]"""
    return op.scalar(op.cat(x, y, a), c), op.cat(op.scalar(x, c), op.scalar(y, c), a)


@rule("x:nihw K:oihw w:window c:", cite="TENSAT", sample=_image)
def number_out_of_a_kernel(op: Reading, x: Term, K: Term, w: Term, c: Term) -> tuple[Term, Term]:
    """conv(x, c K) == c conv(x, K)"""
    kernel = op.scalar(K, c)
    return op.conv(x, kernel, op.zero_outputs(kernel), w), op.scalar(op.conv(x, K, op.zero_outputs(K), w), c)


@rule("x:nihw K:oihw w:window c:", cite="TENSAT", sample=_image)
def number_out_of_an_image(op: Reading, x: Term, K: Term, w: Term, c: Term) -> tuple[Term, Term]:
    """conv(c x, K) == c conv(x, K)"""
    return op.conv(op.scalar(x, c), K, op.zero_outputs(K), w), op.scalar(op.conv(x, K, op.zero_outputs(K), w), c)


@rule("K:oihw e:text c:", weights=True, cite="TENSAT", sample=_widened)
def number_out_of_a_widening(op: Reading, K: Term, e: Term, c: Term) -> tuple[Term, Term]:
    """widen(c K) == c widen(K)"""
    return op.kernel_widen(op.scalar(K, c), e), op.scalar(op.kernel_widen(K, e), c)


@rule("K:oihw e:text c:", cite="TENSAT", sample=_widened)
def number_into_a_widening(op: Reading, K: Term, e: Term, c: Term) -> tuple[Term, Term]:
    """c widen(K) == widen(c K)"""
    return op.scalar(op.kernel_widen(K, e), c), op.kernel_widen(op.scalar(K, c), e)


# Products of matrices.


@rule("x:hij y:hjk z:hjk", cite="TENSAT")
def product_of_a_right_sum(op: Reading, x: Term, y: Term, z: Term) -> tuple[Term, Term]:
    """x·(y + z) == x·y + x·z"""
    return op.product(x, op.add(y, z)), op.add(op.product(x, y), op.product(x, z))


@rule("x:hij z:hij y:hjk", cite="TENSAT")
def product_of_a_left_sum(op: Reading, x: Term, z: Term, y: Term) -> tuple[Term, Term]:
    """(x + z)·y == x·y + z·y"""
    return op.product(op.add(x, z), y), op.add(op.product(x, y), op.product(z, y))


@rule("x:hij y:hjk z:hjl", cite="TENSAT")
def product_of_columns(op: Reading, x: Term, y: Term, z: Term) -> tuple[Term, Term]:
    """x·[y|z] == [x·y|x·z]"""
    return op.product(x, op.cat(y, z, -1)), op.cat(op.product(x, y), op.product(x, z), -1)


@rule("x:hij z:hkj y:hjl", cite="TENSAT")
def product_of_rows(op: Reading, x: Term, z: Term, y: Term) -> tuple[Term, Term]:
    """[x/z]·y == [x·y/z·y]: one above the other"""
    return op.product(op.cat(x, z, -2), y), op.cat(op.product(x, y), op.product(z, y), -2)


@rule("x: y: z: t: n:int", when="length(x,-1,n)", given="length(z,-2,n)", cite="TENSAT", sample=_sums,
      breaks_at={"x": [[1.0]], "y": [[2.0, 3.0]], "z": [[4.0], [5.0]], "t": [[6.0]]})  # fmt: skip
def product_of_blocks(op: Reading, x: Term, y: Term, z: Term, t: Term, n: Term) -> tuple[Term, Term]:
    """[x|y]·[z/t] == x·z + y·t, where x is as wide as z is high"""
    return op.product(op.cat(x, y, -1), op.cat(z, t, -2)), op.add(op.product(x, z), op.product(y, t))


@rule("x: i:", given="identity(i)", cite="TENSAT", sample=_square, breaks_at={"x": [[1.0]], "i": [[2.0]]})
def product_with_identity(op: Reading, x: Term, i: Term) -> tuple[Term, Term]:
    """x·I == x"""
    return op.product(x, i), x


@rule("x: i:", given="identity(i)", cite="TENSAT", sample=_square, breaks_at={"x": [[1.0]], "i": [[2.0]]})
def identity_times_matrix(op: Reading, x: Term, i: Term) -> tuple[Term, Term]:
    """I·x == x"""
    return op.product(i, x), x


# Transposition.


@rule("m:move x: y:", equal="bits", cite="TENSAT", sample=_moved)
def move_of_a_sum(op: Reading, m: Term, x: Term, y: Term) -> tuple[Term, Term]:
    """move(x + y) == move(x) + move(y)"""
    return op.move(m, op.add(x, y)), op.add(op.move(m, x), op.move(m, y))


@rule("m:move x: y:", equal="bits", cite="TENSAT", sample=_moved)
def move_of_factors(op: Reading, m: Term, x: Term, y: Term) -> tuple[Term, Term]:
    """move(x * y) == move(x) * move(y)"""
    return op.move(m, op.mul(x, y)), op.mul(op.move(m, x), op.move(m, y))


@rule("m:move x: y:", given="turns_last_two(m)", equal="bits", cite="TENSAT", sample=lambda draw: _swapped(draw, -1),
      breaks_at={"m": STILL, "x": SQUARE, "y": SQUARE})  # fmt: skip
def transpose_of_columns(op: Reading, m: Term, x: Term, y: Term) -> tuple[Term, Term]:
    """[x|y]' == [x'/y']"""
    return op.move(m, op.cat(x, y, -1)), op.cat(op.move(m, x), op.move(m, y), -2)


@rule("m:move x: y:", given="turns_last_two(m)", equal="bits", cite="TENSAT", sample=lambda draw: _swapped(draw, -2),
      breaks_at={"m": STILL, "x": SQUARE, "y": SQUARE})  # fmt: skip
def transpose_of_rows(op: Reading, m: Term, x: Term, y: Term) -> tuple[Term, Term]:
    """[x/y]' == [x'|y']"""
    return op.move(m, op.cat(x, y, -2)), op.cat(op.move(m, x), op.move(m, y), -1)


# Concatenations come out of everything that works on their parts.


@rule("f:map x: y: a:int", equal="bits", cite="TENSAT", sample=_beside)
def function_of_a_concatenation(op: Reading, f: Term, x: Term, y: Term, a: Term) -> tuple[Term, Term]:
    """f([x|y]) == [f(x)|f(y)]"""
    return op.map(f, op.cat(x, y, a)), op.cat(op.map(f, x), op.map(f, y), a)


@rule("x: y: z: t: a:int n:int", when="length(x,a,n)", given="length(z,a,n)", cite="TENSAT", sample=_beside,
      breaks_at={"x": [1.0], "y": [2.0, 3.0], "z": [4.0, 5.0], "t": [6.0], "a": -1})  # fmt: skip
def sum_of_concatenations(op: Reading, x: Term, y: Term, z: Term, t: Term, a: Term, n: Term) -> tuple[Term, Term]:
    """[x|y] + [z|t] == [x + z|y + t], where x and z are of one length"""
    return op.add(op.cat(x, y, a), op.cat(z, t, a)), op.cat(op.add(x, z), op.add(y, t), a)


@rule("x: y: z: t: a:int n:int", when="length(x,a,n)", given="length(z,a,n)", cite="TENSAT", sample=_beside,
      breaks_at={"x": [1.0], "y": [2.0, 3.0], "z": [4.0, 5.0], "t": [6.0], "a": -1})  # fmt: skip
def factors_that_are_concatenations(op: Reading, x: Term, y: Term, z: Term, t: Term, a: Term, n: Term) -> tuple[Term, Term]:
    """[x|y] * [z|t] == [x * z|y * t], where x and z are of one length"""
    return op.mul(op.cat(x, y, a), op.cat(z, t, a)), op.cat(op.mul(x, z), op.mul(y, t), a)


@rule("x: y: z: t: a:int n:int", when="length(x,a,n)", given="length(z,a,n)", equal="bits", cite="TENSAT", sample=_two_axes,
      breaks_at={"x": [[1.0]], "y": [[2.0, 3.0]], "z": [[4.0, 5.0]], "t": [[6.0]], "a": -1})  # fmt: skip
def blocks_by_rows_or_columns(op: Reading, x: Term, y: Term, z: Term, t: Term, a: Term, n: Term) -> tuple[Term, Term]:
    """[[x|y]/[z|t]] == [[x/z]|[y/t]], where x and z are of one length"""
    down = op.less(a, 1)
    return op.cat(op.cat(x, y, a), op.cat(z, t, a), down), op.cat(op.cat(x, z, down), op.cat(y, t, down), a)


@rule("x: y: a:int j:int", given="length(x,a,j)", equal="bits", cite="TENSAT", sample=_parts,
      breaks_at={"x": [1.0], "y": [2.0], "a": -1, "j": 2})  # fmt: skip
def first_part(op: Reading, x: Term, y: Term, a: Term, j: Term) -> tuple[Term, Term]:
    """[x|y][0:n] == x, n its length"""
    return op.slice(op.cat(x, y, a), a, 0, j), x


@rule("x: y: a:int p:int q:int", given="length(x,a,p)", equal="bits", cite="TENSAT", sample=_parts,
      breaks_at={"x": [1.0], "y": [2.0, 3.0], "a": -1, "p": 2, "q": 3})  # fmt: skip
def second_part(op: Reading, x: Term, y: Term, a: Term, p: Term, q: Term) -> tuple[Term, Term]:
    """[x|y][n:q] == y[0:q-n], n the length of x"""
    return op.slice(op.cat(x, y, a), a, p, q), op.slice(y, a, 0, op.minus(q, p))


@rule("x: a:int j:int", given="length(x,a,j)", equal="bits", cite="TENSAT", sample=_parts,
      breaks_at={"x": [1.0, 2.0], "a": -1, "j": 1})  # fmt: skip
def whole_part(op: Reading, x: Term, a: Term, j: Term) -> tuple[Term, Term]:
    """x[0:n] == x, n its length"""
    return op.slice(x, a, 0, j), x


# Convolutions are linear in the image and in the kernel.


@rule("x:nihw K:oihw b:o w:window", given="zero(b)", cite="TENSAT", sample=_image,
      breaks_at={"x": [[[[1.0]]]], "K": [[[[1.0]]]], "b": [1.0], "w": "1>1 k1x1 s1x1 p0,0,0,0 d1x1 g1"})  # fmt: skip
def bias_of_zeros(op: Reading, x: Term, K: Term, b: Term, w: Term) -> tuple[Term, Term]:
    """conv(x, K, 0) == conv(x, K), the zeros in one form"""
    return op.conv(x, K, b, w), op.conv(x, K, op.zero_outputs(K), w)


@rule("x:nihw K:oihw L:oihw w:window", cite="TENSAT", sample=_image)
def convolution_with_a_sum(op: Reading, x: Term, K: Term, L: Term, w: Term) -> tuple[Term, Term]:
    """conv(x, K + L) == conv(x, K) + conv(x, L)"""
    kernel = op.add(K, L)
    lhs = op.conv(x, kernel, op.zero_outputs(kernel), w)
    return lhs, op.add(op.conv(x, K, op.zero_outputs(K), w), op.conv(x, L, op.zero_outputs(L), w))


@rule("x:nihw y:nihw K:oihw w:window", cite="TENSAT", sample=_image)
def convolution_of_a_sum(op: Reading, x: Term, y: Term, K: Term, w: Term) -> tuple[Term, Term]:
    """conv(x + y, K) == conv(x, K) + conv(y, K)"""
    bias = op.zero_outputs(K)
    return op.conv(op.add(x, y), K, bias, w), op.add(op.conv(x, K, bias, w), op.conv(y, K, bias, w))


@rule("x:nihw y:nihw K:oihw b:o w:window a:int", given="channels(w,a)", cite="TENSAT", sample=_image,
      breaks_at={"x": [[[[1.0]]]], "y": [[[[2.0]]]], "K": [[[[1.0, 1.0]]]], "b": [0.0], "a": 0, "w": "1>1 k1x2 s1x1 p0,0,0,0 d1x1 g1"})  # fmt: skip
def convolution_of_two_batches(op: Reading, x: Term, y: Term, K: Term, b: Term, w: Term, a: Term) -> tuple[Term, Term]:
    """conv([x/y], K, b) == [conv(x, K, b)/conv(y, K, b)], one batch after the other"""
    batch = op.less(a, 1)
    return op.conv(op.cat(x, y, batch), K, b, w), op.cat(op.conv(x, K, b, w), op.conv(y, K, b, w), batch)


@rule("x:nihw K:oihw L:oihw z:window n:int v:window w:window", given="length(K,-4,n) splits_outputs(z,n,v,w)", cite="TENSAT",
      sample=_cut_outputs, breaks_at={"x": TWO, "K": [[[[1.0]]]], "L": [[[[1.0]]]], "z": "2>2 k1x1 s1x1 p0,0,0,0 d1x1 g2",
                                      "v": TWO_ONE, "w": TWO_ONE})  # fmt: skip
def convolution_of_more_outputs(op: Reading, x: Term, K: Term, L: Term, z: Term, n: Term, v: Term, w: Term) -> tuple[Term, Term]:
    """conv(x, [K/L]) == [conv(x, K)|conv(x, L)] along the channels"""
    kernel = op.cat(K, L, -4)
    lhs = op.conv(x, kernel, op.zero_outputs(kernel), z)
    return lhs, op.cat(op.conv(x, K, op.zero_outputs(K), v), op.conv(x, L, op.zero_outputs(L), w), -3)


@rule("x:nihw y:nihw K:oihw L:oihw z:window n:int v:window w:window", when="length(x,-3,n)",
      given="length(K,-3,n) splits_inputs(z,n,v,w)", cite="TENSAT", sample=_cut_inputs,
      breaks_at={"x": TWO, "y": ONE_TAP, "K": ONE_TAP, "L": TWO, "z": "3>1 k1x1 s1x1 p0,0,0,0 d1x1 g1", "v": TWO_ONE, "w": ONE})  # fmt: skip
def convolution_of_more_inputs(op: Reading, x: Term, y: Term, K: Term, L: Term, z: Term, n: Term, v: Term, w: Term) -> tuple[Term, Term]:
    """conv([x|y], [K|L]) == conv(x, K) + conv(y, L), where x has as many channels as K reads"""
    kernel = op.cat(K, L, -3)
    lhs = op.conv(op.cat(x, y, -3), kernel, op.zero_outputs(kernel), z)
    return lhs, op.add(op.conv(x, K, op.zero_outputs(K), v), op.conv(y, L, op.zero_outputs(L), w))


@rule("x:nihw K:oihw b:o z:window e:text v:window q:text", when="core(z,v)", given="joins(v,z,z,e,q)", cite="TENSAT",
      sample=_widened, breaks_at={"x": ROW, "K": ONE_TAP, "b": [0.0], "z": OPEN, "e": "+0,0|0,1 g1>1", "v": ONE, "q": "+0,0|0,0 g1>1"})  # fmt: skip
def kernel_in_zeros(op: Reading, x: Term, K: Term, b: Term, z: Term, e: Term, v: Term, q: Term) -> tuple[Term, Term]:
    """conv(x, widen(K), b) == conv(x, K, b), the kernel of one tap with zeros around it"""
    return op.conv(x, op.kernel_widen(K, e), b, z), op.conv(x, K, b, v)


@rule("x:nihw K:oihw b:o w:window p:text", given="joins(w,w,w,p,p)", cite="TENSAT", sample=_unwidened,
      breaks_at={"x": ROW, "K": ONE_TAP, "b": [0.0], "w": OPEN, "p": "+0,0|0,1 g1>1"})  # fmt: skip
def kernel_in_nothing(op: Reading, x: Term, K: Term, b: Term, w: Term, p: Term) -> tuple[Term, Term]:
    """conv(x, widen(K), b) == conv(x, K, b), widened by nothing"""
    return op.conv(x, op.kernel_widen(K, p), b, w), op.conv(x, K, b, w)


@rule("x:nihw d:window q:text b:o z:window p:text", given="zero(b) identity_window(z,d) joins(z,d,z,p,q)", cite="TENSAT",
      sample=_identity_kernel, breaks_at={"x": ROW, "d": ONE, "q": "+0,0|0,1 g1>1", "b": [0.0], "z": OPEN, "p": "+0,0|0,0 g1>1"})  # fmt: skip
def identity_kernel(op: Reading, x: Term, d: Term, q: Term, b: Term, z: Term, p: Term) -> tuple[Term, Term]:
    """conv(x, I) == x, I the kernel of a one on the diagonal and zeros around it"""
    return op.conv(x, op.kernel_widen(op.kernel_ones(d), q), b, z), x


# Pools.


@rule("x:nihw w:window z:window q:text", when="ungrouped(w,z,q)", cite="TENSAT", sample=_pool)
def mean_is_a_convolution(op: Reading, x: Term, w: Term, z: Term, q: Term) -> tuple[Term, Term]:
    """mean_pool(x) == conv(x, C), C the kernel of equal numbers on the diagonal"""
    kernel = op.kernel_widen(op.kernel_mean(w), q)
    return op.mean_pool(x, w), op.conv(x, kernel, op.zero_outputs(kernel), z)


@rule("d:window q:text w:window p:text", given="spreads(w,d,q,p)", weights=True, cite="TENSAT", sample=_spread,
      breaks_at={"d": ONE, "q": "+0,2|0,2 g1>1", "w": "1>1 k1x3 s1x1 p0,1,0,1 d1x1 g1", "p": "+0,0|0,0 g1>1"})  # fmt: skip
def mean_of_the_identity_kernel(op: Reading, d: Term, q: Term, w: Term, p: Term) -> tuple[Term, Term]:
    """mean_pool(I) == C: the kernel of the identity is an image whose mean, everywhere, reaches its one"""
    return op.mean_pool(op.kernel_widen(op.kernel_ones(d), q), w), op.kernel_widen(op.kernel_mean(w), p)


@rule("x:nihw y:nihw w:window a:int", given="channels(w,a)", equal="bits", cite="TENSAT", sample=_pool,
      breaks_at={"x": [[[[1.0]]]], "y": [[[[2.0]]]], "a": 0, "w": "1>1 k1x2 s1x1 p0,0,0,0 d1x1 g1"})  # fmt: skip
def maximum_of_two_batches(op: Reading, x: Term, y: Term, w: Term, a: Term) -> tuple[Term, Term]:
    """max_pool([x/y]) == [max_pool(x)/max_pool(y)], one batch after the other"""
    batch = op.less(a, 1)
    return op.max_pool(op.cat(x, y, batch), w), op.cat(op.max_pool(x, w), op.max_pool(y, w), batch)
