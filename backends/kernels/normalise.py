"""Normalisations and softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backends.kernels.registry import Array, Call, kernel, raised


def _channels(v: Array, rank: int) -> Array:
    return raised(v).reshape(-1, *(1,) * (rank - 2))


@kernel("BatchNormalization")
def batch_normalization(call: Call, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Any:
    if call.outputs > 1 or call.get("training_mode") or (call.opset < 9 and not call.get("spatial", 1)):
        return NotImplemented
    rank = max(x.ndim, 2)
    s, b, m, v = (_channels(p, rank) for p in (scale, bias, mean, variance))
    return ((raised(x) - m) / np.sqrt(v + call.get("epsilon", 1e-5)) * s + b).astype(x.dtype, copy=False)


@kernel("LayerNormalization")
def layer_normalization(call: Call, x: Array, scale: Array, bias: Array | None = None) -> Any:
    wide = raised(x)
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    mean = wide.mean(axis=axes, keepdims=True)
    centred = wide - mean
    inverse = 1 / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + call.get("epsilon", 1e-5))
    y = centred * inverse * raised(scale)
    y = y if bias is None else y + raised(bias)
    return (y.astype(x.dtype, copy=False), mean, inverse)[: call.outputs]


@kernel("RMSNormalization")
def rms_normalization(call: Call, x: Array, scale: Array) -> Any:
    wide = raised(x)
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    square = (wide * wide).mean(axis=axes, keepdims=True)
    return (wide / np.sqrt(square + call.get("epsilon", 1e-5)) * raised(scale)).astype(scale.dtype, copy=False)


@kernel("InstanceNormalization")
def instance_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Any:
    wide = raised(x)
    axes = tuple(range(2, x.ndim))
    centred = wide - wide.mean(axis=axes, keepdims=True)
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    y = centred / np.sqrt(variance + call.get("epsilon", 1e-5)) * _channels(scale, x.ndim) + _channels(bias, x.ndim)
    return y.astype(x.dtype, copy=False)


@kernel("GroupNormalization")
def group_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Any:
    groups, channels = call.get("num_groups"), x.shape[1]
    wide = raised(x).reshape(x.shape[0], groups, -1)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    y = (centred / np.sqrt(variance + call.get("epsilon", 1e-5))).reshape(x.shape)
    if scale.size != channels:  # opset 18: one number a group
        scale, bias = np.repeat(scale, channels // groups), np.repeat(bias, channels // groups)
    return (y * _channels(scale, x.ndim) + _channels(bias, x.ndim)).astype(x.dtype, copy=False)


@kernel("LRN")
def local_response_normalization(call: Call, x: Array) -> Any:
    size, alpha, beta, bias = call.get("size"), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    wide = raised(x)
    before, after = math.floor((size - 1) / 2), math.ceil((size - 1) / 2)
    squares = np.pad(wide * wide, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))
    total = np.lib.stride_tricks.sliding_window_view(squares, size, axis=1).sum(axis=-1)
    return (wide / (bias + alpha / size * total) ** beta).astype(x.dtype, copy=False)


def softmax(x: Array, axis: Any, log: bool = False) -> Array:
    """Softmax (or its logarithm) over ``axis``, shifted by the maximum."""
    if x.size == 0:
        return x
    shifted = x - x.max(axis=axis, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=axis, keepdims=True)
    result: Array = shifted - np.log(total) if log else e / total
    return result


@kernel("Softmax", "LogSoftmax")
def _softmax(call: Call, x: Array) -> Any:
    log = call.op == "LogSoftmax"
    if call.opset >= 13:
        return softmax(raised(x), call.get("axis", -1), log).astype(x.dtype, copy=False)
    axis = call.get("axis", 1) % max(x.ndim, 1)  # before opset 13: a matrix, the axes from `axis` on are its columns
    flat = raised(x).reshape(math.prod(x.shape[:axis]), -1)
    return softmax(flat, 1, log).reshape(x.shape).astype(x.dtype, copy=False)
