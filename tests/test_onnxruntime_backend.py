"""ONNX Runtime as a backend: what goes in and out, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_models import apply, f32

from backends import NAMES, backend
from backends import onnxruntime as ort
from backends.program import Port
from rewriter.errors import InvalidInput, InvalidModel, UnsupportedModel


def scale(kind: int = TensorProto.FLOAT, factor: Any = None) -> onnx.ModelProto:
    factor = f32([2.0]) if factor is None else factor
    graph = helper.make_graph(
        [apply("Mul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [helper.make_tensor_value_info("y", kind, ["n", 2])],
        initializer=[numpy_helper.from_array(factor, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_numpy_torch_and_views_go_in() -> None:
    program = ort.build(scale(), threads=1)
    assert program.inputs == (Port("x", "float32", ("n", 2)),)
    assert program.outputs == (Port("y", "float32", ("n", 2)),)
    x = np.arange(6, dtype="float32").reshape(3, 2)
    for value in (x, torch.from_numpy(x), torch.from_numpy(x).requires_grad_(), np.asfortranarray(x), x[::-1][::-1]):
        [y] = program(value)
        assert isinstance(y, np.ndarray)
        np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_array_equal(program(x.T[:2].T)[0], 2 * x[:, :2])


def test_half_types() -> None:
    for name, kind in (("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)):
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        graph = helper.make_graph(
            [apply("Cast", ["x"], ["f"], to=1), apply("Cast", ["f"], ["y"], to=kind)],
            "g",
            [helper.make_tensor_value_info("x", kind, [3])],
            [helper.make_tensor_value_info("y", kind, [3])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        x = np.array([0.5, -3, 100]).astype(dtype)
        program = ort.build(model, threads=1)
        assert program.inputs[0].dtype == name
        for value in (x, torch.tensor([0.5, -3, 100], dtype=getattr(torch, name))):
            [y] = program(value)
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, x)


def test_large_models_go_by_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort, "LARGE", 1000)
    model = scale(factor=np.random.default_rng(0).normal(size=(1000, 2)).astype("float32"))
    before = model.SerializeToString()
    program = ort.build(model, threads=1)
    assert model.SerializeToString() == before  # the caller's weights are where they were
    x = np.ones((1, 2), "float32")
    [want] = program(x)
    assert want.shape == (1000, 2)
    program.save(tmp_path)
    del program
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    np.testing.assert_array_equal(ort.restore(tmp_path)(x)[0], want)


def test_results_outlive_the_program() -> None:
    program = ort.build(scale(), threads=1)
    [y] = program(np.ones((1000, 2), "float32"))
    program(np.zeros((1000, 2), "float32"))
    del program
    assert (y == 2).all()


def test_errors_are_one_line_and_typed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no model")
    missing = onnx.ModelProto()
    missing.CopyFrom(scale())
    missing.graph.node[0].op_type = "NoSuchOp"
    for kind, source in ((InvalidModel, broken), (InvalidModel, tmp_path / "none.onnx"),
                         ((InvalidModel, UnsupportedModel), missing)):  # fmt: skip
        with pytest.raises(kind) as caught:
            ort.build(source)
        assert "\n" not in str(caught.value)
    program = ort.build(scale(), threads=1)
    with pytest.raises(InvalidInput, match="takes 1"):
        program()
    with pytest.raises(InvalidInput, match="float"):
        program(np.zeros((1, 2)))
    with pytest.raises(InvalidInput, match="no target 'tpu'"):
        ort.build(scale(), target="tpu")


def test_backends_by_name() -> None:
    assert backend("onnxruntime") is ort
    for name in NAMES:  # tvm: its compiler is imported when something is built
        if name == "openvino" and importlib.util.find_spec(name) is None:
            continue
        assert callable(backend(name).build)
        assert callable(backend(name).restore)
        assert callable(backend(name).refuses)
    with pytest.raises(InvalidInput, match="no backend 'tpu'; there are onnxruntime, tvm, openvino, inductor, torch, reference"):
        backend("tpu")


def test_sessions_leave_each_other_the_cores() -> None:
    """They stop spinning after a run, and a session of one thread starts none."""

    def threads_here() -> int:
        return len(os.listdir("/proc/self/task"))

    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted in /proc")
    ort.build(scale(), threads=1)  # whatever the runtime starts once
    before = threads_here()
    first, second = ort.build(scale(), threads=1), ort.build(scale(), threads=1)
    assert threads_here() == before
    for program in (first, second):
        options = program._session.get_session_options()
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 0)
        program(f32([[1, 2]]))
    more = ort.build(scale(), threads=3)
    assert threads_here() == before + 2 and more(f32([[1, 2]]))[0].tolist() == [[2, 4]]
