"""Quantisation: to and from 8- and 16-bit integers with a scale for a tensor, an axis or a block."""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.kernels.registry import Array, Call, kernel, raised
from backends.kernels.windows import convolve

_PLAIN = ("int8", "uint8", "int16", "uint16", "int32", "int4", "uint4")
_RANGES = {"int4": (-8, 7), "uint4": (0, 15)}


def _spread(call: Call, v: Array, x: Array) -> Array:
    """A scale or zero point as an array that broadcasts against ``x``."""
    if v.ndim == 0 or v.size == 1 and x.ndim != v.ndim:
        return v.reshape(())
    axis = call.get("axis", 1) % max(x.ndim, 1)
    if v.ndim == 1 and not call.get("block_size", 0):
        return v.reshape(tuple(-1 if i == axis else 1 for i in range(x.ndim)))
    spread: Array = np.repeat(v, call.get("block_size"), axis=axis)
    return spread[tuple(slice(n) for n in x.shape)]


def _quantise(x: Array, scale: Array, zero: Array) -> Array:
    name = zero.dtype.name
    low, high = _RANGES.get(name) or (np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max)
    return np.clip(np.rint(x / scale) + zero.astype(x.dtype), low, high).astype(np.int32).astype(zero.dtype)


@kernel("QuantizeLinear")
def quantize_linear(call: Call, x: Array, scale: Array, zero: Array | None = None) -> Any:
    if call.get("precision", 0) or x.dtype.kind != "f" or x.dtype.name == "float16":
        return NotImplemented
    if zero is None:
        code = call.get("output_dtype", 0)
        zero = np.zeros(scale.shape, call.dtype(code) if code else np.uint8)
    if zero.dtype.name not in _PLAIN:
        return NotImplemented
    return _quantise(x, _spread(call, scale, x).astype(x.dtype), _spread(call, zero, x))


@kernel("DequantizeLinear")
def dequantize_linear(call: Call, x: Array, scale: Array, zero: Array | None = None) -> Any:
    if x.dtype.name not in _PLAIN:
        return NotImplemented
    code = call.get("output_dtype", 0)
    wide = x.astype(np.int32)
    if zero is not None:
        wide = wide - _spread(call, zero, x).astype(np.int32)
    y = wide.astype(raised(scale).dtype) * raised(_spread(call, scale, x))
    return y.astype(call.dtype(code) if code else scale.dtype)


@kernel("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: Array) -> Any:
    low, high = np.minimum(0, x.min(initial=0)), np.maximum(0, x.max(initial=0))
    scale = np.asarray((high - low) / x.dtype.type(255), dtype=x.dtype)
    scale = scale if scale else np.ones_like(scale)
    zero = np.asarray(np.clip(np.rint(-low / scale), 0, 255), dtype=np.uint8)
    return _quantise(x, scale, zero), scale, zero


@kernel("QLinearMatMul")
def qlinear_matmul(
    call: Call,
    a: Array,
    a_scale: Array,
    a_zero: Array,
    b: Array,
    b_scale: Array,
    b_zero: Array,
    scale: Array,
    zero: Array,
) -> Any:
    if a.dtype.name not in _PLAIN or b.dtype.name not in _PLAIN or a_scale.size > 1:
        return NotImplemented
    exact = (a.astype(np.float64) - a_zero.astype(np.float64)) @ (b.astype(np.float64) - b_zero.astype(np.float64))
    return _quantise(exact * (a_scale.astype(np.float64) * b_scale / scale), np.asarray(1.0), zero)


@kernel("QLinearConv")
def qlinear_conv(
    call: Call, x: Array, x_scale: Array, x_zero: Array, w: Array, w_scale: Array, w_zero: Array, scale: Array,
    zero: Array, b: Array | None = None,
) -> Any:  # fmt: skip
    out = (-1, *(1,) * (w.ndim - 1))
    wide, weights = (
        x.astype(np.float64) - float(x_zero.reshape(())),
        w.astype(np.float64) - w_zero.reshape(out).astype(np.float64),
    )
    exact = convolve(call, wide, weights, None if b is None else b.astype(np.float64))
    factor = (x_scale.astype(np.float64) * w_scale / scale).reshape(-1, *(1,) * (x.ndim - 2))
    return _quantise(exact * factor, np.asarray(1.0), zero.reshape(()))
