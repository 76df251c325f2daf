"""Small models from their ONNX text, and whether two models compute the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx.reference import ReferenceEvaluator

from rewriter.read_onnx import read_onnx

Array = npt.NDArray[Any]
Engine = Callable[[onnx.ModelProto | ir.Model, Mapping[str, Array]], list[Array]]


def parse(body: str, opset: int = 20) -> onnx.ModelProto:
    """`main (float[2] x) => (float[2] y) <float one = {1.0}> { y = Add(x, one) }` as a model."""
    model: onnx.ModelProto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{body}')
    return model


def read(body: str, opset: int = 20, **options: Any) -> ir.Model:
    """The model as the passes get it."""
    return read_onnx(parse(body, opset), **options)


def run(model: onnx.ModelProto | ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """What the ONNX reference evaluator computes."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return [np.asarray(each) for each in ReferenceEvaluator(proto).run(None, dict(feeds))]


def run_ort(model: onnx.ModelProto | ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """What ONNX Runtime computes without its optimiser: it keeps the meaning of old opsets, the reference does not."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, dict(feeds))]


def feeds(model: onnx.ModelProto, seed: int, **sizes: int) -> dict[str, Array]:
    """Random inputs; symbolic dims take their size from `sizes`."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else sizes[dim.dim_param] for dim in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        found[value.name] = np.asarray(rng.standard_normal(shape) * (3 if dtype.kind in "iu" else 1)).astype(dtype)
    return found


def assert_same(
    before: onnx.ModelProto, after: ir.Model, rtol: float, seed: int = 0, *, engine: Engine = run, **sizes: int
) -> None:
    """Both compute the same, within `rtol` of the largest number; names and order of inputs and outputs are kept."""
    assert [value.name for value in before.graph.input] == [value.name for value in after.graph.inputs]
    assert [value.name for value in before.graph.output] == [value.name for value in after.graph.outputs]
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    inputs = feeds(before, seed, **sizes)
    for want, got in zip(engine(before, inputs), engine(after, inputs), strict=True):
        assert want.shape == got.shape and want.dtype == got.dtype
        assert want.size and np.isfinite(want.astype(np.float64)).all()
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * max(1e-30, float(np.abs(want).max())))
