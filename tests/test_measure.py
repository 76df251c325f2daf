"""Comparisons of programs: nothing here asserts which is faster."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import apply

from backends.measure import Candidate, compare, example_arrays
from backends.program import Port, model_inputs
from rewriter.errors import InvalidInput


def square(op: str = "MatMul") -> onnx.ModelProto:
    graph = helper.make_graph(
        [apply(op, ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_candidates_are_timed_and_failures_are_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(square().SerializeToString())
    candidates = {
        "proto": Candidate("onnxruntime", square()),
        "file": Candidate("onnxruntime", path, options={"optimised": False}),
        "saved": Candidate("onnxruntime", saved=_saved(tmp_path / "dir")),
        "oracle": Candidate("reference", square()),
        "broken": Candidate("onnxruntime", square("NoSuchOp")),
    }
    inputs = example_arrays(model_inputs(square().graph), {"n": 8})
    timings = compare(candidates, inputs, rounds=2, threads=1, seconds=0.1)
    assert list(timings) == list(candidates)
    for name in ("proto", "file", "saved", "oracle"):
        assert timings[name].failure is None, timings[name].failure
        assert timings[name].calls >= 2
        assert 0 < timings[name].min_ms <= timings[name].median_ms < math.inf
    assert "NoSuchOp" in str(timings["broken"].failure)
    assert timings["broken"].median_ms == math.inf


def _saved(directory: Path) -> Path:
    from backends import backend

    directory.mkdir()
    backend("onnxruntime").build(square(), threads=1).save(directory)
    return directory


def test_nothing_to_compare() -> None:
    with pytest.raises(InvalidInput, match="nothing to compare"):
        compare({}, [])


def test_example_arrays_fit_their_ports() -> None:
    ports = [Port("x", "float32", ("n", 3)), Port("ids", "int64", ("n", None)), Port("m", "bool", (2,)),
             Port("h", "bfloat16", ()), Port("q", "uint8", ("n",))]  # fmt: skip
    arrays = example_arrays(ports, {"n": 4})
    assert [a.shape for a in arrays] == [(4, 3), (4, 1), (2,), (), (4,)]
    assert [a.dtype.name for a in arrays] == [p.dtype for p in ports]
    np.testing.assert_array_equal(arrays[0], example_arrays(ports, {"n": 4})[0])
    with pytest.raises(InvalidInput, match="'s'"):
        example_arrays([Port("s", "", None)])
