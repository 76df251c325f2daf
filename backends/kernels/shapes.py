"""Operators that move data or speak of shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backends.kernels.registry import Array, Call, kernel, widened


def _ints(values: Any) -> list[int]:
    return [int(v) for v in np.asarray(values).reshape(-1)]


@kernel("Constant")
def constant(call: Call) -> Any:
    for name, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32),
                        ("value_floats", np.float32)):  # fmt: skip
        if name in call.attributes:
            value = np.asarray(call.get(name), dtype=dtype)
            return widened(value) if call.float64 else value
    return call.get("value") if "value" in call.attributes else NotImplemented


@kernel("ConstantOfShape")
def constant_of_shape(call: Call, shape: Array) -> Any:
    value = call.get("value")
    if value is None:
        value = np.zeros(1, np.float64 if call.float64 else np.float32)
    return np.full(tuple(_ints(shape)), value.reshape(()))


@kernel("Shape")
def shape(call: Call, x: Array) -> Any:
    return np.asarray(x.shape[call.get("start", 0) : call.get("end")], dtype=np.int64)


@kernel("Size")
def size(call: Call, x: Array) -> Any:
    return np.asarray(x.size, dtype=np.int64)


@kernel("Reshape")
def reshape(call: Call, x: Array, target: Array | None = None) -> Any:
    dims = _ints(call.get("shape") if target is None else target)
    if not call.get("allowzero", 0):
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    return x.reshape(dims)


@kernel("Flatten")
def flatten(call: Call, x: Array) -> Any:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@kernel("Squeeze")
def squeeze(call: Call, x: Array, axes: Array | None = None) -> Any:
    chosen = call.get("axes") if axes is None else _ints(axes)
    return np.squeeze(x, axis=None if chosen is None else tuple(chosen))


@kernel("Unsqueeze")
def unsqueeze(call: Call, x: Array, axes: Array | None = None) -> Any:
    return np.expand_dims(x, tuple(call.get("axes") if axes is None else _ints(axes)))


@kernel("Transpose")
def transpose(call: Call, x: Array) -> Any:
    return np.transpose(x, call.get("perm"))


@kernel("Concat")
def concat(call: Call, *xs: Array) -> Any:
    return np.concatenate(xs, axis=call.get("axis", 1))


@kernel("Split")
def split(call: Call, x: Array, sizes: Array | None = None) -> Any:
    axis = call.get("axis", 0)
    parts = call.get("split") if sizes is None else _ints(sizes)
    if parts is None:
        count = call.get("num_outputs") or call.outputs
        step = math.ceil(x.shape[axis] / count)
        parts = [step] * (count - 1) + [x.shape[axis] - step * (count - 1)]
    return tuple(np.split(x, np.cumsum(parts)[:-1], axis=axis))


@kernel("Slice")
def slice_(call: Call, x: Array, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    first, last = (
        _ints(call.get("starts") if starts is None else starts),
        _ints(call.get("ends") if ends is None else ends),
    )
    axes = call.get("axes") if axes is None else axes
    over = range(len(first)) if axes is None else _ints(axes)
    by = [1] * len(first) if steps is None else _ints(steps)
    place: list[Any] = [slice(None)] * x.ndim
    for axis, a, b, s in zip(over, first, last, by, strict=True):
        place[axis] = slice(a, b, s)
    return x[tuple(place)]


@kernel("Gather")
def gather(call: Call, x: Array, indices: Array) -> Any:
    return np.take(x, indices, axis=call.get("axis", 0))


@kernel("GatherElements")
def gather_elements(call: Call, x: Array, indices: Array) -> Any:
    axis = call.get("axis", 0) % x.ndim
    trimmed = x[tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))]
    return np.take_along_axis(trimmed, np.where(indices < 0, indices + x.shape[axis], indices), axis)


@kernel("GatherND")
def gather_nd(call: Call, x: Array, indices: Array) -> Any:
    batch = call.get("batch_dims", 0)
    grids = np.meshgrid(*(np.arange(n) for n in x.shape[:batch]), indexing="ij", sparse=True) if batch else []
    tail = indices.ndim - 1 - batch
    place = [g.reshape(g.shape + (1,) * tail) for g in grids]
    return np.asarray(x[(*place, *np.moveaxis(indices, -1, 0))])


_AT = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(call: Call, x: Array, place: tuple[Any, ...], updates: Array) -> Array:
    y = x.copy()
    how = call.get("reduction", "none")
    if how == "none":
        y[place] = updates
    else:
        _AT[how].at(y, place, updates)
    return y


@kernel("ScatterND")
def scatter_nd(call: Call, x: Array, indices: Array, updates: Array) -> Any:
    return _scatter(call, x, tuple(np.moveaxis(indices, -1, 0)), updates)


@kernel("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Array, indices: Array, updates: Array) -> Any:
    axis = call.get("axis", 0) % x.ndim
    place: list[Any] = list(np.meshgrid(*(np.arange(n) for n in indices.shape), indexing="ij", sparse=True))
    place[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
    return _scatter(call, x, tuple(place), updates)


@kernel("Expand")
def expand(call: Call, x: Array, target: Array) -> Any:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_ints(target))))


@kernel("Tile")
def tile(call: Call, x: Array, repeats: Array) -> Any:
    return np.tile(x, _ints(repeats)) if call.opset >= 6 else NotImplemented


@kernel("Range")
def range_(call: Call, start: Array, limit: Array, delta: Array) -> Any:
    first, last, step = (v.reshape(()) for v in (start, limit, delta))
    count = max(0, math.ceil((float(last) - float(first)) / float(step)))
    return (first + np.arange(count) * step).astype(start.dtype)


@kernel("Pad")
def pad(call: Call, x: Array, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    amounts = _ints(call.get("pads", call.get("paddings")) if pads is None else pads)
    over = list(range(x.ndim)) if axes is None else [a % x.ndim for a in _ints(axes)]
    fill = call.get("value", 0.0) if value is None or not value.size else value.reshape(-1)[0]
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(over):
        widths[axis] = (amounts[i], amounts[i + len(over)])
    mode = call.get("mode", "constant")
    if mode != "constant" and any(min(w) < 0 for w in widths):
        return NotImplemented
    cut = tuple(slice(max(0, -a), n - max(0, -b)) for (a, b), n in zip(widths, x.shape, strict=True))
    more = [(max(0, a), max(0, b)) for a, b in widths]
    if mode == "constant":
        return np.pad(x[cut], more, constant_values=np.asarray(fill).astype(x.dtype))
    return np.pad(x, more, mode=mode)


@kernel("Trilu")
def trilu(call: Call, x: Array, k: Any = None) -> Any:
    offset = 0 if k is None else int(k.reshape(()))
    return np.triu(x, offset) if call.get("upper", 1) else np.tril(x, offset)


@kernel("NonZero")
def nonzero(call: Call, x: Array) -> Any:
    return np.asarray(np.nonzero(np.atleast_1d(x)), dtype=np.int64) if x.ndim else NotImplemented


@kernel("OneHot")
def one_hot(call: Call, indices: Array, depth: Array, values: Array) -> Any:
    count, axis = int(depth.reshape(-1)[0]), call.get("axis", -1)
    at = indices.astype(np.int64)
    at = np.where(at < 0, at + count, at)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    steps = np.arange(count).reshape((-1,) + (1,) * (indices.ndim - axis))
    return np.where(np.expand_dims(at, axis) == steps, values[1], values[0])


@kernel("DepthToSpace")
def depth_to_space(call: Call, x: Array) -> Any:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // b**2, h * b, w * b)


@kernel("SpaceToDepth")
def space_to_depth(call: Call, x: Array) -> Any:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    order = (0, 3, 5, 1, 2, 4) if call.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = x.reshape(n, c, h // b, b, w // b, b).transpose(order)
    return y.reshape(n, c * b * b, h // b, w // b)
