"""Run an ONNX model on ONNX Runtime, its own optimiser off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]


def run(model: onnx.ModelProto | Path | str, feed: Mapping[str, Any]) -> list[Any]:
    """Outputs in the model's order."""
    return session(model).run(None, {name: np.asarray(value) for name, value in feed.items()})


def session(model: onnx.ModelProto | Path | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def feed_of(model: onnx.ModelProto, arrays: Any) -> dict[str, Any]:
    """Arrays by the names of the model's inputs, in order."""
    return {port.name: np.asarray(array) for port, array in zip(model.graph.input, arrays, strict=True)}


def relative(got: Any, want: Any) -> float:
    """The largest difference, relative to the largest value."""
    got, want = np.asarray(got, "float64"), np.asarray(want, "float64")
    assert got.shape == want.shape, f"shape {got.shape}, not {want.shape}"
    scale = float(np.abs(want).max())
    assert scale > 0, "an all-zero output proves nothing"
    return float(np.abs(got - want).max() / scale)
