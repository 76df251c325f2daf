"""One model of several that were trained from the same one: merging by parameter competition balancing.

Du et al. 2024 ("Parameter Competition Balancing for Model Merging"): what each checkpoint changed, t_i = w_i - w, competes with itself
(exp(n norm(|t_i|)^2), its large changes count) and with the others (tanh(t_i * sum of all), what agrees counts). Of each the
``ratio`` that scores highest is kept, and the merged change is the average of what is kept, weighted by its scores:

    w + sum_i scale_i s_i t_i / max(sum_i s_i, 1e-12)        s_i = norm(max(score_i, its (1 - ratio)-quantile))

norm maps to [0, 1] over all weights together. The result has one model's size and latency. It is no equality: how good it is on
each task is for the caller to measure, on data of that task.
"""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.errors import InvalidInput

Array = np.ndarray[Any, Any]
Weights = Mapping[str, Array]


def merge(
    models: Sequence[Any],
    *,
    base: Any,
    ratio: float = 0.1,
    scale: float | Sequence[float] = 1.0,
    keep: Sequence[str] = (),
) -> Any:
    """What ``models`` learned beyond ``base``, in one model of the same kind as ``base``.

    All are torch modules, or ONNX models (a path, onnx.ModelProto or onnx_ir.Model; the result is an onnx_ir.Model), or mappings of
    arrays, with weights of the same names and shapes. ``ratio``: the part of each model's weights that may change the base's, in
    (0, 1]. ``scale``: factor of the changes, or one for each model. ``keep``: patterns ("head.*") of weights that stay the base's.
    Statistics of batch norms are averaged, with a warning: they should be measured again. Nothing given is changed. Raises
    ``InvalidInput`` where the models are not of one family, ``InvalidModel`` for a file that is none.
    """
    if not models:
        raise InvalidInput("there is nothing to merge: give at least one model that was trained from base")
    scales = _scales(scale, len(models))
    if not 0.0 < ratio <= 1.0:
        raise InvalidInput(f"ratio={ratio!r} is no part of the weights: give a number above 0 and at most 1")
    if isinstance(base, Mapping):
        given = [_arrays(m) for m in (base, *models)]
        return _merged(given[0], given[1:], ratio, scales, keep, ())
    if hasattr(base, "state_dict"):
        return _merged_modules(base, models, ratio, scales, keep)
    return _merged_onnx(base, models, ratio, scales, keep)


def _scales(scale: float | Sequence[float], count: int) -> Array:
    scales = np.asarray(scale, np.float64)
    if scales.ndim > 1 or (scales.ndim == 1 and len(scales) != count) or not np.isfinite(scales).all():
        raise InvalidInput(f"scale={scale!r}: give a finite number, or one for each of the {count} models")
    return np.broadcast_to(scales, (count,))


def _arrays(weights: Any) -> dict[str, Array]:
    from backends.arrays import as_numpy

    if not isinstance(weights, Mapping):
        raise InvalidInput(f"base is a mapping of arrays and a model is a {type(weights).__name__}: give models of one kind")
    return {str(name): as_numpy(value) for name, value in weights.items()}


def _merged_modules(base: Any, models: Sequence[Any], ratio: float, scales: Array, keep: Sequence[str]) -> Any:
    import torch

    for number, model in enumerate(models, 1):
        if type(model) is not type(base):
            raise InvalidInput(f"model {number} is a {type(model).__name__} and base a {type(base).__name__}: give models of one kind")
    states = [m.state_dict() for m in (base, *models)]
    statistics = [n for n in states[0] if n.rpartition(".")[2] in ("running_mean", "running_var")]
    first, *others = ({n: _numbers(v) for n, v in state.items()} for state in states)
    result = copy.deepcopy(base)
    merged = _merged(first, others, ratio, scales, keep, statistics)
    result.load_state_dict({n: torch.as_tensor(np.asarray(merged[n])).to(v.dtype) for n, v in states[0].items()})
    return result


def _numbers(tensor: Any) -> Array:
    """A torch tensor as an array; bfloat16, which NumPy lacks, as float32."""
    plain = tensor.detach().cpu()
    return np.asarray(plain.float() if plain.is_floating_point() and plain.element_size() < 4 else plain)


def _merged_onnx(base: Any, models: Sequence[Any], ratio: float, scales: Array, keep: Sequence[str]) -> ir.Model:
    from rewriter.edit import graphs
    from rewriter.read_onnx import read_onnx

    read = [read_onnx(m) for m in (base, *models)]
    for number, model in enumerate(read[1:], 1):
        ours, theirs = ([n.op_type for g in graphs(m) for n in g] for m in (read[0], model))
        if ours != theirs:
            raise InvalidInput(f"model {number} has other operators than base ({len(theirs)} nodes, not {len(ours)}, or in another order)")
    weights = [
        {f"{k}/{name}": value.const_value.numpy() for k, g in enumerate(graphs(m)) for name, value in g.initializers.items() if value.const_value}
        for m in read
    ]
    statistics = [
        f"{k}/{v.name}" for k, g in enumerate(graphs(read[0])) for n in g if n.op_type == "BatchNormalization" for v in n.inputs[3:5] if v is not None
    ]
    short = [f"*/{pattern}" for pattern in keep]
    merged = _merged(weights[0], weights[1:], ratio, scales, short, statistics)
    for k, graph in enumerate(graphs(read[0])):
        for name, value in graph.initializers.items():
            if f"{k}/{name}" in merged:
                value.const_value = ir.tensor(merged[f"{k}/{name}"], name=name)
    return read[0]


def _merged(
    base: Weights, models: Sequence[Weights], ratio: float, scales: Array, keep: Sequence[str], statistics: Sequence[str]
) -> dict[str, Array]:
    """The merged weights by name, each of the type that it has in ``base``."""
    for number, weights in enumerate(models, 1):
        _same_family(base, weights, number, keep)
    kept = {name for name in base if any(fnmatch.fnmatchcase(name, pattern) for pattern in keep)}
    differing = {name for name, value in base.items() if name not in kept and any(not np.array_equal(value, m[name]) for m in models)}
    counted = differing & set(statistics)
    changing = [name for name, value in base.items() if name in differing - counted and _floating(value)]
    result = {name: np.array(value) for name, value in base.items()}
    for name in counted:
        result[name] = np.mean([m[name].astype(np.float64) for m in models], axis=0).astype(base[name].dtype)
    if counted:
        warnings.warn(f"statistics of batch norms ({len(counted)} weights) were averaged: measure them again on data of all tasks", stacklevel=3)
    if not changing:
        return result
    changes = np.stack([np.concatenate([_change(base[n], m[n]).reshape(-1) for n in changing]) for m in models])
    change, start = balanced(changes, ratio, scales), 0
    for name in changing:
        value = base[name]
        result[name] = (value.astype(np.float64) + change[start : start + value.size].reshape(value.shape)).astype(value.dtype)
        start += value.size
    return result


def balanced(changes: Array, ratio: float, scales: Array) -> Array:
    """The merged change [weights] of ``changes`` [models, weights], float32; see the module."""
    total = changes.sum(axis=0)
    weighted, weight = (np.zeros(changes.shape[1], np.float64) for _ in range(2))
    for change, scale in zip(changes, scales, strict=True):
        score = np.exp(len(changes) * _normed(np.abs(change)) ** 2) * np.tanh(change * total)
        score = _normed(np.maximum(score, np.quantile(score, 1.0 - ratio)))
        weighted += scale * score * change
        weight += score
    return weighted / np.maximum(weight, 1e-12)


def _normed(values: Array) -> Array:
    """Moved and scaled to [0, 1]; zeros where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _change(before: Array, after: Array) -> Array:
    return after.astype(np.float32) - before.astype(np.float32)


def _floating(value: Array) -> bool:
    return value.dtype.kind == "f" or value.dtype.name in ("bfloat16",)


def _same_family(base: Weights, weights: Weights, number: int, keep: Sequence[str]) -> None:
    for name, value in base.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in keep):
            continue
        label = name.partition("/")[2] or name
        if name not in weights:
            raise InvalidInput(f"model {number} has no weight {label!r}, which base has: merge models of one architecture, trained from base")
        other = weights[name]
        if other.shape != value.shape:
            raise InvalidInput(
                f"weight {label!r} is {list(other.shape)} in model {number} and {list(value.shape)} in base: heads of different tasks stay "
                f"apart; keep=[{label!r}] leaves base's"
            )
        if not _floating(value) and not np.array_equal(value, other):
            raise InvalidInput(f"weight {label!r} holds no real numbers and differs in model {number}: it cannot be merged")
        if _floating(value) and not np.isfinite(other.astype(np.float32)).all():
            raise InvalidInput(f"weight {label!r} of model {number} has values that are not finite")
    for name in weights:
        if name not in base:
            label = name.partition("/")[2] or name
            raise InvalidInput(f"model {number} has a weight {label!r} that base does not have: merge models of one architecture")
