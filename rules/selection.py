"""Functions that keep an order, or a scale: R13, and what of R4 passes through a nonlinearity."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from rewriter.rule import rule
from rewriter.terms import Reading, Term
from rewriter.window import Window


def _pooled(draw: Any) -> dict[str, Any]:
    kernel, stride, pad = draw.choice([((2, 2), 2, 0), ((3, 3), 1, 1), ((3, 2), 2, 1)])
    w = Window(2, 2, kernel, (stride, stride), (pad, pad, pad, pad), (1, 1), 2)
    return {"w": str(w), "x": draw.tensor((draw.integer(1, 2), 2, draw.integer(3, 5), draw.integer(3, 4))), "f": draw.choice(["Relu", "LeakyRelu"])}


def _quantised(draw: Any) -> dict[str, Any]:
    """Numbers that lie between codes, and no ties."""
    x = draw.tensor(draw.shape("nij"))
    return {"f": "Round", "a": -2, "x": x + Fraction(1, draw.choice([3, 5, 7])), "z": draw.tensor(x.shape[-2:-1])}


def _scaled(draw: Any) -> dict[str, Any]:
    s = draw.tensor(draw.shape("i"))
    return {"f": draw.choice(["Relu", "Abs", "Neg", "LeakyRelu"]), "a": -2, "s": s * s + 1, "c": np.array(draw.integer(1, 3), dtype=object)}


@rule("f:map x:ncsp w:window", given="monotone(f)", equal="bits", cite="R13 (73); never decreasing f: not GELU", sample=_pooled,
      declines="a maximum does not commute with a function that decreases somewhere (GELU, SiLU)",
      breaks_at={"f": "Square", "x": [[[[-3.0, 1.0]]]], "w": "1>1 k1x2 s1x2 p0,0,0,0 d1x1 g1"})  # fmt: skip
def maximum_before_map(op: Reading, f: Term, x: Term, w: Term) -> tuple[Term, Term]:
    """max_pool(f(x)) == f(max_pool(x)), f never decreasing: it is applied to the fewer"""
    return op.max_pool(op.map(f, x), w), op.map(f, op.max_pool(x, w))


@rule("f:map x:nij z:i a:int", when="const(z)", given="rounds(f) integer(z)", cite="R16, R5 (62): whole numbers pass through rounding; but for ties",
      sample=_quantised, declines="a zero point that is no whole number does not pass through rounding: codes would differ",
      breaks_at={"f": "Round", "x": [[[0.25]]], "z": [0.5], "a": -2})  # fmt: skip
def channels_are_rounded_as_one(op: Reading, f: Term, x: Term, z: Term, a: Term) -> tuple[Term, Term]:
    """round(x) + z == round(x + (z - m)) + m, m the middle of z: what is left after rounding is a number (equal but for ties)"""
    middle = op.middle(z)
    apart = op.shift(z, op.scalar(middle, op.minus_one))
    return op.bias(op.map(f, x), z, a), op.shift(op.map(f, op.bias(x, apart, a)), middle)


@rule("f:map x:nij s:i a:int", when="const(s)", given="positive(s) homogeneous(f)", cite="R4 (45): relu(s x) = s relu(x), s > 0", sample=_scaled,
      declines="a scale that is not positive does not pass through an activation",
      breaks_at={"f": "Relu", "x": [[[-1.0]]], "s": [-2.0], "a": -2})  # fmt: skip
def scale_after_map_of_rays(op: Reading, f: Term, x: Term, s: Term, a: Term) -> tuple[Term, Term]:
    """f(x * s) == f(x) * s, s > 0, for f with f(c x) = c f(x)"""
    return op.map(f, op.scale(x, s, a)), op.scale(op.map(f, x), s, a)


@rule("f:map x:nij c:", when="const(c)", given="positive(c) homogeneous(f)", cite="R4 (45, 47)", sample=_scaled,
      declines="a number that is not positive does not pass through an activation",
      breaks_at={"f": "Relu", "x": [[[-1.0]]], "c": -2.0})  # fmt: skip
def number_after_map_of_rays(op: Reading, f: Term, x: Term, c: Term) -> tuple[Term, Term]:
    """f(c x) == c f(x), c > 0, for f with f(c x) = c f(x)"""
    return op.map(f, op.scalar(x, c)), op.scalar(op.map(f, x), c)


@rule("f:map x:nij s:i a:int", when="const(s) absorbs(x)", given="positive(s) homogeneous(f)", cite="R4 (47): relu(x) s = relu(s x), s > 0",
      sample=_scaled, breaks_at={"f": "Relu", "x": [[[-1.0]]], "s": [-2.0], "a": -2})  # fmt: skip
def scale_before_map_of_rays(op: Reading, f: Term, x: Term, s: Term, a: Term) -> tuple[Term, Term]:
    """f(x) * s == f(x * s), s > 0, where x comes from a linear map that will take s in"""
    return op.scale(op.map(f, x), s, a), op.map(f, op.scale(x, s, a))


@rule("f:map x:nij c:", when="const(c) absorbs(x)", given="positive(c) homogeneous(f)", cite="R4 (47)", sample=_scaled,
      breaks_at={"f": "Relu", "x": [[[-1.0]]], "c": -2.0})  # fmt: skip
def number_before_map_of_rays(op: Reading, f: Term, x: Term, c: Term) -> tuple[Term, Term]:
    """c f(x) == f(c x), c > 0, where x comes from a linear map that will take c in"""
    return op.scalar(op.map(f, x), c), op.map(f, op.scalar(x, c))
