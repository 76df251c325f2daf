"""A convolution is a linear map: R2, R4, R5 and R10 of papers.md for kernels, and its geometry (``rewriter.window``)."""

from __future__ import annotations

from collections.abc import Mapping
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
        "s": draw.tensor((w.outputs,)),
        "t": draw.tensor((w.inputs,)),
        "a": w.channel_axis,
    }


def _any(draw: Any) -> Mapping[str, Any]:
    return _draw(draw, [PLAIN, GROUPED, POINT, DEPTHWISE, LINE, OPEN])


def _unpadded(draw: Any) -> Mapping[str, Any]:
    return _draw(draw, [POINT, OPEN])


def _two(draw: Any) -> Mapping[str, Any]:
    """Two kernels over one image, of joinable windows."""
    v = draw.choice([SQUARE, POINT, DEPTHWISE, TALL, WIDE, GROUPED])
    w = draw.choice([w for w in (SQUARE, POINT, DEPTHWISE, TALL, WIDE) if v is not GROUPED] or [GROUPED, POINT])
    values = _draw(draw, [w])
    return values | {"v": str(v), "A": draw.tensor(v.shape), "B": values["K"]}


def _skip(draw: Any) -> Mapping[str, Any]:
    return _draw(draw, [SQUARE, POINT, DEPTHWISE, TALL, WIDE, GROUPED])


def _chain(draw: Any) -> Mapping[str, Any]:
    """Two convolutions in a row, one of them pointwise."""
    first = draw.choice([PLAIN, POINT, GROUPED])
    then = {PLAIN: [Window(3, 2, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)], POINT: [SQUARE, GROUPED, DEPTHWISE, OPEN]}
    then[GROUPED] = [POINT, Window(4, 6, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2)]
    w = draw.choice(then[first])
    return _draw(draw, [first]) | {"v": str(first), "w": str(w), "A": draw.tensor(first.shape), "B": draw.tensor(w.shape)}


IMAGE = [[[[1.0, 2.0], [3.0, 4.0]]]]


@rule("x:nihw K:oihw w:window s:o a:int", when="const(K) const(s)", given="channels(w,a)", cite="papers.md R4, R10", sample=_any,
      breaks_at={"x": IMAGE, "K": [[[[2.0]]]], "w": "1>1 k1x1 s1x1 p0,0,0,0 d1x1 g1", "s": [1.0, 2.0], "a": -1})  # fmt: skip
def scale_after_convolution(op: Reading, x: Term, K: Term, w: Term, s: Term, a: Term) -> tuple[Term, Term]:
    """conv(x, K) * s == conv(x, K * s), s along the channels"""
    return op.scale(op.conv(x, K, w), s, a), op.conv(x, op.scale(K, s, op.less(a, 1)), w)


@rule("x:nihw t:i K:oihw w:window a:int", when="const(t) const(K)", given="channels(w,a)", cite="papers.md R4, R10", sample=_any,
      breaks_at={"x": IMAGE, "K": [[[[2.0]]]], "w": "1>1 k1x1 s1x1 p0,0,0,0 d1x1 g1", "t": [1.0, 2.0], "a": -1})  # fmt: skip
def scale_before_convolution(op: Reading, x: Term, t: Term, K: Term, w: Term, a: Term) -> tuple[Term, Term]:
    """conv(x * t, K) == conv(x, K diag(t)), t along the channels"""
    return op.conv(op.scale(x, t, a), K, w), op.conv(x, op.kernel_scale_inputs(K, t, w), w)


@rule("x:nihw K:oihw w:window c:", when="const(K) const(c)", cite="papers.md R4", sample=_any)
def number_after_convolution(op: Reading, x: Term, K: Term, w: Term, c: Term) -> tuple[Term, Term]:
    """c conv(x, K) == conv(x, c K)"""
    return op.scalar(op.conv(x, K, w), c), op.conv(x, op.scalar(K, c), w)


@rule("x:nihw c: K:oihw w:window", when="const(c) const(K)", cite="papers.md R4", sample=_any)
def number_before_convolution(op: Reading, x: Term, c: Term, K: Term, w: Term) -> tuple[Term, Term]:
    """conv(c x, K) == conv(x, c K)"""
    return op.conv(op.scalar(x, c), K, w), op.conv(x, op.scalar(K, c), w)


@rule("x:nihw t:i K:oihw w:window a:int", when="const(t) const(K) channels(w,a)", given="unpadded(w)", cite="papers.md R5, R10 (42, 72)",
      sample=_unpadded, declines="a bias before a padded convolution: the border pixels see zeros instead of the bias",
      breaks_at={"x": IMAGE, "t": [1.0], "K": [[[[1.0, 2.0, 3.0]]]], "w": "1>1 k1x3 s1x1 p0,1,0,1 d1x1 g1", "a": -3})  # fmt: skip
def bias_through_convolution(op: Reading, x: Term, t: Term, K: Term, w: Term, a: Term) -> tuple[Term, Term]:
    """conv(x + t, K) == conv(x, K) + conv(t, K), where there is no padding"""
    return op.conv(op.bias(x, t, a), K, w), op.bias(op.conv(x, K, w), op.kernel_sum_inputs(K, t, w), a)


@rule("x:nihw A:oihw v:window B:oihw w:window c:window p:text q:text", when="const(A) const(B)", given="joins(v,w,c,p,q)",
      cite="papers.md R2, R10 (73; RepVGG, MobileOne)", sample=_two,
      declines="two convolutions of one input whose windows do not fit into one: strides, dilations or tap positions differ",
      breaks_at={"x": IMAGE, "A": [[[[1.0]]]], "v": "1>1 k1x1 s1x1 p0,0,0,0 d1x1 g1", "B": [[[[1.0, 2.0]]]],
                 "w": "1>1 k1x2 s1x1 p0,0,0,1 d1x2 g1", "c": "1>1 k1x1 s1x1 p0,0,0,0 d1x1 g1", "p": "+0,0|0,0 g1>1",
                 "q": "+0,0|0,0 g1>1"})  # fmt: skip
def kernels_add(op: Reading, x: Term, A: Term, v: Term, B: Term, w: Term, c: Term, p: Term, q: Term) -> tuple[Term, Term]:
    """conv(x, A) + conv(x, B) == conv(x, A + B), both kernels padded with zeros to one size"""
    return op.add(op.conv(x, A, v), op.conv(x, B, w)), op.conv(x, op.add(op.kernel_widen(A, p), op.kernel_widen(B, q)), c)


@rule("x:nihw K:oihw w:window s:i a:int d:window", when="const(K) const(s) channels(w,a)", given="identity_window(w,d)",
      cite="papers.md R10 (RepVGG)", sample=lambda draw: _skip(draw),
      breaks_at={"x": IMAGE, "K": [[[[1.0]]]], "w": "1>1 k1x1 s2x2 p0,0,0,0 d1x1 g1", "s": [1.0], "a": -3, "d": ""})  # fmt: skip
def scaled_skip_is_a_convolution(op: Reading, x: Term, K: Term, w: Term, s: Term, a: Term, d: Term) -> tuple[Term, Term]:
    """conv(x, K) + x * s == conv(x, K) + conv(x, diag(s))"""
    skip = op.conv(x, op.kernel_diagonal(s, d), d)
    return op.add(op.conv(x, K, w), op.scale(x, s, a)), op.add(op.conv(x, K, w), skip)


@rule("x:nihw K:oihw w:window d:window", when="const(K)", given="identity_window(w,d)", cite="papers.md R10 (RepVGG)",
      sample=lambda draw: _skip(draw),
      breaks_at={"x": IMAGE, "K": [[[[1.0]]]], "w": "1>1 k1x1 s2x2 p0,0,0,0 d1x1 g1", "d": ""})  # fmt: skip
def skip_is_a_convolution(op: Reading, x: Term, K: Term, w: Term, d: Term) -> tuple[Term, Term]:
    """conv(x, K) + x == conv(x, K) + conv(x, I)"""
    return op.add(op.conv(x, K, w), x), op.add(op.conv(x, K, w), op.conv(x, op.kernel_ones(d), d))


@rule("x:nihw K:oihw w:window c: d:window", when="const(K) const(c)", given="identity_window(w,d)", cite="papers.md R10",
      sample=lambda draw: _skip(draw),
      breaks_at={"x": IMAGE, "K": [[[[1.0]]]], "w": "1>1 k1x1 s2x2 p0,0,0,0 d1x1 g1", "c": 1.0, "d": ""})  # fmt: skip
def multiple_skip_is_a_convolution(op: Reading, x: Term, K: Term, w: Term, c: Term, d: Term) -> tuple[Term, Term]:
    """conv(x, K) + c x == conv(x, K) + conv(x, c I)"""
    skip = op.conv(x, op.scalar(op.kernel_ones(d), c), d)
    return op.add(op.conv(x, K, w), op.scalar(x, c)), op.add(op.conv(x, K, w), skip)


@rule("x:nihw A:oihw v:window B:oihw w:window c:window", when="const(A) const(B)", given="composes(v,w,c)",
      cite="papers.md R10 (21, 51, 72)", sample=_chain,
      declines="two convolutions in a row, neither of them pointwise: one kernel for both is wrong at the borders",
      breaks_at={"x": IMAGE, "A": [[[[1.0, 2.0, 3.0]]]], "v": "1>1 k1x3 s1x1 p0,1,0,1 d1x1 g1", "B": [[[[1.0, 2.0, 3.0]]]],
                 "w": "1>1 k1x3 s1x1 p0,1,0,1 d1x1 g1", "c": "1>1 k1x3 s1x1 p0,1,0,1 d1x1 g1"})  # fmt: skip
def convolutions_compose(op: Reading, x: Term, A: Term, v: Term, B: Term, w: Term, c: Term) -> tuple[Term, Term]:
    """conv(conv(x, A), B) == conv(x, B∘A), where one of them is pointwise"""
    return op.conv(op.conv(x, A, v), B, w), op.conv(x, op.kernel_compose(A, B, v, w), c)


@rule("x:nihw w:window K:oihw v:window", when="const(K)", cite="papers.md R10 (73)",
      sample=lambda draw: _draw(draw, [DEPTHWISE]) | {"v": str(DEPTHWISE)})  # fmt: skip
def mean_pool_is_a_convolution(op: Reading, x: Term, w: Term, K: Term, v: Term) -> tuple[Term, Term]:
    """conv(x, K) + mean_pool(x) == conv(x, K) + conv(x, mean): where a convolution can take it in"""
    return op.add(op.conv(x, K, v), op.mean_pool(x, w)), op.add(op.conv(x, K, v), op.conv(x, op.kernel_mean(w), w))
