"""Resize by nearest neighbour or linear interpolation, one axis after another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backends.kernels.registry import Array, Call, kernel, raised

_MODES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


def _coordinates(mode: str, size: int, out: int, scale: float) -> Array:
    at = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        # the standard divides by the unrounded length; where the length was given, scale * size is that length
        return at * (size - 1) / (scale * size - 1) if out > 1 else np.zeros(out)
    if mode == "pytorch_half_pixel" and out <= 1:
        return np.zeros(out)
    return (at + 0.5) / scale - 0.5


def _nearest(at: Array, how: str) -> Array:
    if how == "floor":
        return np.floor(at)
    if how == "ceil":
        return np.ceil(at)
    return np.ceil(at - 0.5) if how == "round_prefer_floor" else np.floor(at + 0.5)


def _along(x: Array, axis: int, at: Array, linear: bool, how: str) -> Array:
    top = x.shape[axis] - 1
    if not linear:
        return np.take(x, np.clip(_nearest(at, how), 0, top).astype(np.int64), axis=axis)
    at = np.clip(at, 0, top)
    low = np.floor(at).astype(np.int64)
    part = (at - low).reshape(-1, *(1,) * (x.ndim - 1 - axis)).astype(x.dtype)
    return np.take(x, low, axis=axis) * (1 - part) + np.take(x, np.minimum(low + 1, top), axis=axis) * part


@kernel("Resize", "Upsample")
def resize(call: Call, x: Array, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    mode = call.get("coordinate_transformation_mode", "half_pixel")
    if call.op == "Upsample" or call.opset < 11:
        scales = call.get("scales") if roi is None and scales is None else roi if scales is None else scales
        mode, how = "asymmetric", "floor"
    else:
        how = call.get("nearest_mode", "round_prefer_floor")
    kind = call.get("mode", "nearest")
    odd = call.get("antialias", 0) or call.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    if mode not in _MODES or kind not in ("nearest", "linear", "bilinear") or odd:
        return NotImplemented
    axes = call.get("axes")
    over = range(x.ndim) if axes is None else [a % x.ndim for a in axes]
    given = np.asarray(scales).reshape(-1) if scales is not None and np.size(scales) else None
    y = raised(x)
    for i, axis in enumerate(over):
        size = x.shape[axis]
        out = math.floor(size * given[i]) if given is not None else int(sizes[i])
        scale = float(given[i]) if given is not None else out / size
        if out != size or scale != 1:
            y = _along(y, axis, _coordinates(mode, size, out, scale), kind != "nearest", how)
    return y.astype(x.dtype, copy=False)
