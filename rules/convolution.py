"""A convolution is a linear map: R2, R4, R5 and R10 for kernels, and its geometry (``rewriter.window``)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rewriter.rule import rule
from rewriter.terms import Reading, Term
from rewriter.window import Window

PLAIN = Window(2, 3, (3, 2), (1, 2), (1, 0, 1, 1), (1, 1), 1)
GROUPED = Window(4, 4, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 2)
POINT = Window(4, 4, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
DEPTHWISE = Window(4, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4)
SQUARE = Window(4, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
TALL = Window(4, 4, (3, 1), (1, 1), (1, 0, 1, 0), (1, 1), 1)
WIDE = Window(4, 4, (1, 5), (1, 1), (0, 2, 0, 2), (1, 1), 2)
LINE = Window(2, 4, (3,), (2,), (1, 1), (1,), 2)
OPEN = Window(4, 2, (2, 3), (1, 1), (0, 0, 0, 0), (1, 1), 2)


def _draw(draw: Any, windows: list[Window]) -> dict[str, Any]:
    """A window and an image, kernel, and vectors that fit it. ``draw.tensor(shape)`` gives values."""
    w = draw.choice(windows)
    spatial = tuple(draw.integer(3, 6) for _ in w.kernel)
    return {
        "w": str(w),
        "x": draw.tensor((draw.integer(1, 2), w.inputs, *spatial)),
        "K": draw.tensor(w.shape),
        "b": draw.tensor((w.outputs,)),
        "s": draw.tensor((w.outputs,)),
        "t": draw.tensor((w.inputs,)),
        "a": w.channel_axis,
    }


def _any(draw: Any) -> dict[str, Any]:
    return _draw(draw, [PLAIN, GROUPED, POINT, DEPTHWISE, LINE, OPEN])


def _unpadded(draw: Any) -> dict[str, Any]:
    return _draw(draw, [POINT, OPEN])


def _two(draw: Any) -> dict[str, Any]:
    """Two kernels over one image, of joinable windows."""
    v = draw.choice([SQUARE, POINT, DEPTHWISE, TALL, WIDE, GROUPED])
    w = draw.choice([w for w in (SQUARE, POINT, DEPTHWISE, TALL, WIDE) if v is not GROUPED] or [GROUPED, POINT])
    values = _draw(draw, [w])
    return values | {"v": str(v), "A": draw.tensor(v.shape), "B": values["K"], "c": draw.tensor((w.outputs,))}


def _skip(draw: Any) -> dict[str, Any]:
    return _draw(draw, [SQUARE, POINT, DEPTHWISE, TALL, WIDE, GROUPED])


def _chain(draw: Any, padded: bool) -> dict[str, Any]:
    """Two convolutions in a row, one of them pointwise."""
    narrow = Window(4, 6, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2)
    pairs = [(PLAIN, replace(POINT, inputs=3, outputs=2)), (POINT, OPEN), (GROUPED, POINT), (GROUPED, narrow), (POINT, POINT)]
    pairs += [(POINT, SQUARE), (POINT, GROUPED), (POINT, DEPTHWISE)] if padded else []
    v, w = draw.choice(pairs)
    tensors = {"A": v.shape, "b": (v.outputs,), "B": w.shape, "c": (w.outputs,)}
    return _draw(draw, [v]) | {"v": str(v), "w": str(w)} | {k: draw.tensor(shape) for k, shape in tensors.items()}


IMAGE = [[[[1.0, 2.0], [3.0, 4.0]]]]
ONE = "1>1 k1x1 s1x1 p0,0,0,0 d1x1 g1"
STRIDED = "1>1 k1x1 s2x2 p0,0,0,0 d1x1 g1"
PADDED = "1>1 k1x3 s1x1 p0,1,0,1 d1x1 g1"
ROW = [[[[1.0, 2.0, 3.0]]]]


@rule("x:nihw K:oihw b:o w:window s:o a:int", when="const(K) const(b) const(s)", given="channels(w,a)", cite="R4, R10", sample=_any,
      breaks_at={"x": IMAGE, "K": [[[[2.0]]]], "b": [0.0], "w": ONE, "s": [1.0, 2.0], "a": -1})  # fmt: skip
def scale_after_convolution(op: Reading, x: Term, K: Term, b: Term, w: Term, s: Term, a: Term) -> tuple[Term, Term]:
    """conv(x, K, b) * s == conv(x, K * s, b * s), s along the channels"""
    return op.scale(op.conv(x, K, b, w), s, a), op.conv(x, op.scale(K, s, op.less(a, 1)), op.scale(b, s, -1), w)


@rule("x:nihw t:i K:oihw b:o w:window a:int", when="const(t) const(K) const(b)", given="channels(w,a)", cite="R4, R10", sample=_any,
      breaks_at={"x": IMAGE, "K": [[[[2.0]]]], "b": [0.0], "w": ONE, "t": [1.0, 2.0], "a": -1})  # fmt: skip
def scale_before_convolution(op: Reading, x: Term, t: Term, K: Term, b: Term, w: Term, a: Term) -> tuple[Term, Term]:
    """conv(x * t, K, b) == conv(x, K diag(t), b), t along the channels"""
    return op.conv(op.scale(x, t, a), K, b, w), op.conv(x, op.kernel_scale_inputs(K, t, w), b, w)


@rule("x:nihw K:oihw b:o w:window c:", when="const(K) const(b) const(c)", cite="R4", sample=_any)
def number_after_convolution(op: Reading, x: Term, K: Term, b: Term, w: Term, c: Term) -> tuple[Term, Term]:
    """c conv(x, K, b) == conv(x, c K, c b)"""
    return op.scalar(op.conv(x, K, b, w), c), op.conv(x, op.scalar(K, c), op.scalar(b, c), w)


@rule("x:nihw c: K:oihw b:o w:window", when="const(c) const(K) const(b)", cite="R4", sample=_any)
def number_before_convolution(op: Reading, x: Term, c: Term, K: Term, b: Term, w: Term) -> tuple[Term, Term]:
    """conv(c x, K, b) == conv(x, c K, b)"""
    return op.conv(op.scalar(x, c), K, b, w), op.conv(x, op.scalar(K, c), b, w)


@rule("x:nihw K:oihw b:o w:window s:o a:int", when="const(K) const(b) const(s)", given="channels(w,a)", cite="R5, R10", sample=_any,
      breaks_at={"x": IMAGE, "K": [[[[2.0]]]], "b": [0.0], "w": ONE, "s": [1.0, 2.0], "a": -1})  # fmt: skip
def bias_after_convolution(op: Reading, x: Term, K: Term, b: Term, w: Term, s: Term, a: Term) -> tuple[Term, Term]:
    """conv(x, K, b) + s == conv(x, K, b + s), s along the channels"""
    return op.bias(op.conv(x, K, b, w), s, a), op.conv(x, K, op.add(b, s), w)


@rule("x:nihw K:oihw b:o w:window y:nohw s:o a:int", when="const(K) const(b) const(s) multiple(y,x)", given="channels(w,a)", cite="R5",
      sample=lambda draw: (v := _any(draw)) | {"y": draw.tensor((v["x"].shape[0], len(v["b"]), *Window.parse(v["w"]).size(v["x"].shape[2:])))},
      breaks_at={"x": IMAGE, "K": [[[[2.0]]]], "b": [0.0], "w": ONE, "y": IMAGE, "s": [1.0, 2.0], "a": -1})  # fmt: skip
def bias_beside_convolution(op: Reading, x: Term, K: Term, b: Term, w: Term, y: Term, s: Term, a: Term) -> tuple[Term, Term]:
    """conv(x, K, b) + (y + s) == conv(x, K, b + s) + y, where y is a multiple of x and so will be taken in too"""
    return op.add(op.conv(x, K, b, w), op.bias(y, s, a)), op.add(op.conv(x, K, op.add(b, s), w), y)


@rule("x:nihw t:i K:oihw b:o w:window a:int", when="const(t) const(K) const(b) channels(w,a)", given="unpadded(w)", cite="R5, R10 (42, 72)",
      sample=_unpadded, declines="a bias before a padded convolution: the border pixels see zeros instead of the bias",
      breaks_at={"x": IMAGE, "t": [1.0], "K": ROW, "b": [0.0], "w": PADDED, "a": -3})  # fmt: skip
def bias_before_convolution(op: Reading, x: Term, t: Term, K: Term, b: Term, w: Term, a: Term) -> tuple[Term, Term]:
    """conv(x + t, K, b) == conv(x, K, b + conv(t, K)), where there is no padding"""
    return op.conv(op.bias(x, t, a), K, b, w), op.conv(x, K, op.add(b, op.kernel_sum_inputs(K, t, w)), w)


@rule("x:nihw A:oihw b:o v:window B:oihw c:o w:window z:window p:text q:text", when="const(A) const(b) const(B) const(c)", given="joins(v,w,z,p,q)",
      cite="R2, R10 (73; RepVGG, MobileOne)", sample=_two,
      declines="two convolutions of one input whose windows do not fit into one: strides, dilations or tap positions differ",
      breaks_at={"x": IMAGE, "A": [[[[1.0]]]], "b": [0.0], "v": ONE, "B": [[[[1.0, 2.0]]]], "c": [0.0],
                 "w": "1>1 k1x2 s1x1 p0,0,0,1 d1x2 g1", "z": ONE, "p": "+0,0|0,0 g1>1", "q": "+0,0|0,0 g1>1"})  # fmt: skip
def kernels_add(op: Reading, x: Term, A: Term, b: Term, v: Term, B: Term, c: Term, w: Term, z: Term, p: Term, q: Term) -> tuple[Term, Term]:
    """conv(x, A, b) + conv(x, B, c) == conv(x, A + B, b + c), both kernels padded with zeros to one size"""
    kernel = op.add(op.kernel_widen(A, p), op.kernel_widen(B, q))
    return op.add(op.conv(x, A, b, v), op.conv(x, B, c, w)), op.conv(x, kernel, op.add(b, c), z)


@rule("x:nihw K:oihw b:o w:window s:i a:int d:window z:window p:text q:text", when="const(K) const(b) const(s) channels(w,a)",
      given="identity_window(w,d) joins(w,d,z,p,q)", cite="R10 (RepVGG)", sample=_skip,
      breaks_at={"x": IMAGE, "K": [[[[1.0]]]], "b": [0.0], "w": STRIDED, "s": [1.0], "a": -3, "d": ONE, "z": ONE, "p": "+0,0|0,0 g1>1",
                 "q": "+0,0|0,0 g1>1"})  # fmt: skip
def scaled_skip_is_a_kernel(
    op: Reading, x: Term, K: Term, b: Term, w: Term, s: Term, a: Term, d: Term, z: Term, p: Term, q: Term
) -> tuple[Term, Term]:
    """conv(x, K, b) + x * s == conv(x, K + diag(s), b)"""
    kernel = op.add(op.kernel_widen(K, p), op.kernel_widen(op.kernel_diagonal(s, d), q))
    return op.add(op.conv(x, K, b, w), op.scale(x, s, a)), op.conv(x, kernel, b, z)


@rule("x:nihw K:oihw b:o w:window d:window z:window p:text q:text", when="const(K) const(b)", given="identity_window(w,d) joins(w,d,z,p,q)",
      cite="R10 (RepVGG)", sample=_skip,
      breaks_at={"x": IMAGE, "K": [[[[1.0]]]], "b": [0.0], "w": STRIDED, "d": ONE, "z": ONE, "p": "+0,0|0,0 g1>1", "q": "+0,0|0,0 g1>1"})  # fmt: skip
def skip_is_a_kernel(op: Reading, x: Term, K: Term, b: Term, w: Term, d: Term, z: Term, p: Term, q: Term) -> tuple[Term, Term]:
    """conv(x, K, b) + x == conv(x, K + I, b)"""
    kernel = op.add(op.kernel_widen(K, p), op.kernel_widen(op.kernel_ones(d), q))
    return op.add(op.conv(x, K, b, w), x), op.conv(x, kernel, b, z)


@rule("x:nihw K:oihw b:o w:window c: d:window z:window p:text q:text", when="const(K) const(b) const(c)",
      given="identity_window(w,d) joins(w,d,z,p,q)", cite="R10", sample=_skip,
      breaks_at={"x": IMAGE, "K": [[[[1.0]]]], "b": [0.0], "w": STRIDED, "c": 1.0, "d": ONE, "z": ONE, "p": "+0,0|0,0 g1>1",
                 "q": "+0,0|0,0 g1>1"})  # fmt: skip
def multiple_skip_is_a_kernel(op: Reading, x: Term, K: Term, b: Term, w: Term, c: Term, d: Term, z: Term, p: Term, q: Term) -> tuple[Term, Term]:
    """conv(x, K, b) + c x == conv(x, K + c I, b)"""
    kernel = op.add(op.kernel_widen(K, p), op.kernel_widen(op.scalar(op.kernel_ones(d), c), q))
    return op.add(op.conv(x, K, b, w), op.scalar(x, c)), op.conv(x, kernel, b, z)


@rule("x:nihw A:oihw b:o v:window B:oihw c:o w:window z:window", when="const(A) const(b) const(B) const(c)", given="composes(v,w,z) unpadded(w)",
      cite="R10 (21, 51, 72)", sample=lambda draw: _chain(draw, padded=False),
      breaks_at={"x": IMAGE, "A": [[[[1.0]]]], "b": [1.0], "v": ONE, "B": ROW, "c": [0.0], "w": PADDED, "z": PADDED})  # fmt: skip
def convolutions_compose(op: Reading, x: Term, A: Term, b: Term, v: Term, B: Term, c: Term, w: Term, z: Term) -> tuple[Term, Term]:
    """conv(conv(x, A, b), B, c) == conv(x, B∘A, c + conv(b, B)), where one is pointwise and the second unpadded"""
    bias = op.add(c, op.kernel_sum_inputs(B, b, w))
    return op.conv(op.conv(x, A, b, v), B, c, w), op.conv(x, op.kernel_compose(A, B, v, w), bias, z)


@rule("x:nihw A:oihw b:o v:window B:oihw c:o w:window z:window", when="const(A) const(b) const(B) const(c)", given="composes(v,w,z) zero(b)",
      cite="R10 (21, 51, 72)", sample=lambda draw: (v := _chain(draw, padded=True)) | {"b": v["b"] * 0},
      declines="two convolutions in a row that are not one: neither is pointwise, or a bias between them meets padding",
      breaks_at={"x": IMAGE, "A": [[[[1.0]]]], "b": [1.0], "v": ONE, "B": ROW, "c": [0.0], "w": PADDED, "z": PADDED})  # fmt: skip
def bare_convolutions_compose(op: Reading, x: Term, A: Term, b: Term, v: Term, B: Term, c: Term, w: Term, z: Term) -> tuple[Term, Term]:
    """conv(conv(x, A), B, c) == conv(x, B∘A, c), where one of them is pointwise"""
    return op.conv(op.conv(x, A, b, v), B, c, w), op.conv(x, op.kernel_compose(A, B, v, w), c, z)


@rule("x:nihw w:window K:oihw b:o v:window z:window p:text q:text", when="const(K) const(b)", given="joins(v,w,z,p,q)", cite="R10 (73)",
      sample=lambda draw: _draw(draw, [DEPTHWISE, SQUARE]) | {"v": str(DEPTHWISE), "K": draw.tensor(DEPTHWISE.shape), "w": str(DEPTHWISE)},
      breaks_at={"x": IMAGE, "w": ONE, "K": ROW, "b": [0.0], "v": "1>1 k1x3 s1x2 p0,1,0,1 d1x1 g1", "z": ONE, "p": "+0,0|0,0 g1>1",
                 "q": "+0,0|0,0 g1>1"})  # fmt: skip
def mean_pool_is_a_kernel(op: Reading, x: Term, w: Term, K: Term, b: Term, v: Term, z: Term, p: Term, q: Term) -> tuple[Term, Term]:
    """conv(x, K, b) + mean_pool(x) == conv(x, K + mean, b): where a convolution can take it in"""
    kernel = op.add(op.kernel_widen(K, p), op.kernel_widen(op.kernel_mean(w), q))
    return op.add(op.conv(x, K, b, v), op.mean_pool(x, w)), op.conv(x, kernel, b, z)


@rule("x:nihw K:oihw b:o w:window c:", when="const(K) const(b) const(c)", cite="R5", sample=_any)
def shift_after_convolution(op: Reading, x: Term, K: Term, b: Term, w: Term, c: Term) -> tuple[Term, Term]:
    """conv(x, K, b) + c == conv(x, K, b + c), c a number"""
    return op.shift(op.conv(x, K, b, w), c), op.conv(x, K, op.shift(b, c), w)


def _two_images(draw: Any) -> dict[str, Any]:
    values = _skip(draw)
    return values | {"y": draw.tensor(values["x"].shape), "c": draw.tensor(values["b"].shape)}


@rule("x:nihw K:oihw b:o w:window y:nihw c:o", when="const(K) const(b) const(c)", given="unit_stride(w)", cite="R3, R10",
      sample=_two_images, declines="one kernel over two images whose sizes a stride may hide",
      breaks_at={"x": [[[[1.0, 2.0]]]], "K": [[[[1.0]]]], "b": [0.0], "w": "1>1 k1x1 s1x2 p0,0,0,0 d1x1 g1", "y": [[[[1.0]]]],
                 "c": [0.0]})  # fmt: skip
def images_add(op: Reading, x: Term, K: Term, b: Term, w: Term, y: Term, c: Term) -> tuple[Term, Term]:
    """conv(x, K, b) + conv(y, K, c) == conv(x + y, K, b + c), where the strides are 1 and so the images are of one size"""
    return op.add(op.conv(x, K, b, w), op.conv(y, K, c, w)), op.conv(op.add(x, y), K, op.add(b, c), w)


def _padded_twice(draw: Any) -> dict[str, Any]:
    """A window with as much padding on both sides of the last axis as the kernel reaches, and that axis' length."""
    lines = [Window(2, 2, (3,), (1,), (2, 2), (1,), 2), Window(2, 3, (2,), (1,), (2, 2), (2,), 1)]
    values = _draw(draw, [*lines, Window(1, 2, (2, 3), (2, 1), (0, 2, 1, 2), (1, 1), 1)])
    return values | {"l": values["x"].shape[-1]}


@rule("x:nihw K:oihw b:o w:window l:int v:window", when="const(K) const(b)", given="last(x,l) causal(w,v)", cite="R10, R8 (26)", sample=_padded_twice,
      breaks_at={"x": [[[1.0, 2.0]]], "K": [[[1.0, 1.0]]], "b": [0.0], "w": "1>1 k2 s1 p1,1 d1 g1", "l": 1, "v": "1>1 k2 s1 p1,0 d1 g1"})  # fmt: skip
def only_the_past_is_read(op: Reading, x: Term, K: Term, b: Term, w: Term, l: Term, v: Term) -> tuple[Term, Term]:  # noqa: E741
    """conv(x, K)[0:l] == conv'(x, K), l the length of x: padded on both sides and cut, or padded in front alone"""
    return op.slice(op.conv(x, K, b, w), -1, 0, l), op.conv(x, K, b, v)
