"""The standard's generated node cases, and how their results are compared."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

NOT_RUN = ("test_bernoulli", "test_scan_sum", "test_if_opt")  # random; Scan-8; onnx.reference nests optionals
_ROUNDED = ("_bf16", "_fp16", "bfloat16", "BFLOAT16")  # what is right within a few ulp of a half type


def node_cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case for case in collect_testcases(None) if not case.name.startswith(NOT_RUN)]


def plain(values: Any) -> list[Any]:
    return [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values]


def tolerance(case: Any) -> tuple[float, float]:
    if any(mark in case.name for mark in _ROUNDED):
        return 2e-2, 1e-2
    half = any(t.type.tensor_type.elem_type in (10, 16) for t in (*case.model.graph.input, *case.model.graph.output))
    return max(case.rtol or 1e-3, 5e-3 if half else 0.0), 1e-5


def same_kind(got: list[Any], want: list[Any]) -> bool:
    return all(
        g.dtype == w.dtype or w.dtype.kind in "OSU" for g, w in zip(got, want, strict=True) if isinstance(w, np.ndarray)
    )


def same(got: Any, want: Any, rtol: float, atol: float) -> bool:
    if isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(same(g, w, rtol, atol) for g, w in zip(got, want, strict=True))
    if want is None:
        return got is None
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return False
    if want.dtype.kind in "OSU":
        return bool((got.astype(str) == want.astype(str)).all())
    return bool(np.allclose(got.astype(np.float64), want.astype(np.float64), rtol, atol, equal_nan=True))


def with_constants(case: Any) -> tuple[onnx.ModelProto, list[Any]]:
    """The case with its shapes, axes and other small integer inputs made initializers; and the inputs that remain."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs = plain(case.data_sets[0][0])
    if len(inputs) != len(model.graph.input):
        return model, inputs
    for index in range(len(inputs) - 1, 0, -1):
        value = inputs[index]
        if isinstance(value, np.ndarray) and value.dtype == np.int64 and value.ndim <= 1:
            model.graph.initializer.append(numpy_helper.from_array(value, model.graph.input[index].name))
            del model.graph.input[index]
            del inputs[index]
    return model, inputs
