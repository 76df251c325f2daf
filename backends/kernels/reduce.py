"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from backends.kernels.registry import Array, Call, kernel, raised


def _logsumexp(x: Array, **k: Any) -> Array:
    peak = x.max(axis=k["axis"], keepdims=True, initial=-np.inf)
    safe = np.where(np.isfinite(peak), peak, 0)
    total = np.log(np.exp(x - safe).sum(axis=k["axis"], keepdims=True)) + safe
    return total if k["keepdims"] else total.squeeze(axis=k["axis"])


def _least(x: Array) -> Any:
    return -np.inf if x.dtype.kind not in "iub" else False if x.dtype.kind == "b" else np.iinfo(x.dtype).min


def _most(x: Array) -> Any:
    return np.inf if x.dtype.kind not in "iub" else True if x.dtype.kind == "b" else np.iinfo(x.dtype).max


_REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceProd": np.prod,
    "ReduceMax": lambda x, **k: np.max(x, initial=_least(x), **k),
    "ReduceMin": lambda x, **k: np.min(x, initial=_most(x), **k),
    "ReduceL1": lambda x, **k: np.abs(x).sum(**k),
    "ReduceL2": lambda x, **k: np.sqrt((raised(x) * x).sum(**k)),
    "ReduceSumSquare": lambda x, **k: (x * x).sum(**k),
    "ReduceLogSum": lambda x, **k: np.log(x.sum(**k)),
    "ReduceLogSumExp": lambda x, **k: _logsumexp(x.astype(np.float64) if x.dtype.kind in "iu" else x, **k),
}  # fmt: skip


@kernel(*_REDUCE)
def reduction(call: Call, x: Array, axes: Array | None = None) -> Any:
    chosen = call.get("axes") if axes is None else axes.tolist()
    if not chosen:
        if call.get("noop_with_empty_axes", 0):
            return (
                x if call.op in ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin") else NotImplemented
            )
        chosen = range(x.ndim)
    over = tuple(axis % x.ndim for axis in chosen)
    return np.asarray(_REDUCE[call.op](raised(x), axis=over, keepdims=bool(call.get("keepdims", 1)))).astype(x.dtype)


@kernel("ArgMax", "ArgMin")
def arg(call: Call, x: Array) -> Any:
    axis, last = call.get("axis", 0), call.get("select_last_index", 0)
    pick = np.argmax if call.op == "ArgMax" else np.argmin
    index = pick(np.flip(x, axis) if last else x, axis=axis)
    index = x.shape[axis] - 1 - index if last else index
    return (np.expand_dims(index, axis) if call.get("keepdims", 1) else np.asarray(index)).astype(np.int64)


@kernel("CumSum")
def cumsum(call: Call, x: Array, axis: Array) -> Any:
    at = int(axis.reshape(()))
    turned = np.flip(x, at) if call.get("reverse", 0) else x
    y = np.cumsum(raised(turned), axis=at)
    if call.get("exclusive", 0):
        y = y - raised(turned)
    return (np.flip(y, at) if call.get("reverse", 0) else y).astype(x.dtype)


@kernel("TopK")
def top_k(call: Call, x: Array, k: Array | None = None) -> Any:
    count = call.get("k") if k is None else int(k.reshape(()))
    axis = call.get("axis", -1)
    if not call.get("sorted", 1):
        return NotImplemented
    if call.get("largest", 1):  # a stable sort from the far end keeps the lower index first among equals
        order = np.flip(x.shape[axis] - 1 - np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    index = np.take(order, np.arange(count), axis=axis).astype(np.int64)
    return np.take_along_axis(x, index, axis), index
