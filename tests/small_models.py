"""Small ONNX models and arrays for the tests of backends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]
Port = tuple[str, int, Sequence[int | str | None] | None]  # name, ONNX type number, shape


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Iterable[Port],
    outputs: Iterable[Port],
    initializers: Iterable[tuple[str, Any]] = (),
    *,
    domains: Iterable[str] = (),
    functions: Iterable[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*port) for port in outputs],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in initializers],
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def apply(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, **attributes)


def f32(values: Any) -> Array:
    return np.array(values, dtype="float32")


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")
