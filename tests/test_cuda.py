"""CUDA code without a GPU: what is generated, that what is lowered is right, and what is said where there is no device."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import apply, numbers

pytest.importorskip("tvm")

import rewriter
from backends import backend, onnxruntime
from backends.tvm import cuda
from backends.tvm.regions import fold_model
from backends.worker import Worker
from rewriter.errors import InvalidInput, RewriterError, UnsupportedModel


def toolkit() -> bool:
    """Are NVIDIA's compiler and runtime library here?"""
    found = False
    for name in ("libcudart.so.13", "libcudart.so.12", "libcudart.so"):
        try:
            ctypes.CDLL(name)
            found = True
        except OSError:
            pass
    return found and shutil.which("nvcc") is not None and shutil.which("cc") is not None


def device() -> bool:
    """Is there a driver, and so probably a GPU?"""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


with_toolkit = pytest.mark.skipif(not toolkit(), reason="needs nvcc and CUDA's runtime library")


def network(extra: str | None = None) -> onnx.ModelProto:
    """A convolution, a product, a norm and a softmax."""
    nodes = [
        apply("Conv", ["x", "k", "kb"], ["c"], pads=[1, 1, 1, 1]),
        apply("Relu", ["c"], ["r"]),
        apply("GlobalAveragePool", ["r"], ["g"]),
        apply("Flatten", ["g"], ["f"]),
        apply("MatMul", ["f", "w"], ["p"]),
        apply("LayerNormalization", ["p", "s", "b"], ["n"]),
        apply("Softmax", ["n"], ["y"]),
    ]
    if extra:
        nodes.append(apply(extra, ["y"], ["z"]))
    weights = {"k": numbers(8, 3, 3, 3), "kb": numbers(8), "w": numbers(8, 16), "s": numbers(16), "b": numbers(16)}
    ports = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["n", 3, 12, 12]), ("r", None), ("z" if extra else "y", None))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(v, n) for n, v in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def asked(function: str, tmp_path: Path, values: list[Any] | None = None, **options: Any) -> tuple[Any, list[Any]]:
    source, folded = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    onnx.save(network(), source)
    with Worker("tvm.cuda_compiler") as worker:
        fold_model(source, {"x": numbers(2, 3, 12, 12)}, folded, worker)
        return worker.call(function, values, source=str(folded), **options)


def test_source_is_generated_without_a_toolkit(tmp_path: Path) -> None:
    source, _ = asked("cuda_source", tmp_path, arch="sm_90")
    assert source.count("__global__") >= 4
    assert "conv2d" in source
    assert "blockIdx.x" in source


def test_what_is_lowered_is_right(tmp_path: Path) -> None:
    x = numbers(2, 3, 12, 12)
    _, got = asked("run_on_cpu", tmp_path, [x])
    for mine, theirs in zip(got, onnxruntime.build(network())(x), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@with_toolkit
def test_an_artefact_has_code_for_the_gpu(tmp_path: Path) -> None:
    x = numbers(2, 3, 12, 12)
    compiled = rewriter.compile(network(), (x,), target="cuda")
    assert compiled.backend == "tvm"
    assert any("sm_90" in note for note in compiled.report.notes)
    compiled.save(tmp_path / "a")
    made = tmp_path / "a" / cuda.FOLDER
    assert "__global__" in (made / "kernels.cu").read_text()
    assert ".target sm_90" in (made / "kernels.ptx").read_text()
    assert b"\x7fELF" in (made / "model.so").read_bytes()[64:]  # the GPU's own machine code is an ELF file within
    back = rewriter.load(tmp_path / "a")
    assert back.backend == "tvm"
    if device():
        np.testing.assert_allclose(back(x)[1], onnxruntime.build(network())(x)[1], rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(InvalidInput, match="compiled for CUDA.*target='cpu'") as caught:
        back(x)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInput, match="shape"):
        back(x[:1])


@with_toolkit
def test_another_architecture() -> None:
    program = backend("tvm").build(network(), target="cuda:sm_80", example_inputs=[numbers(1, 3, 12, 12)])
    assert program.target == "cuda:sm_80"


def test_what_is_not_for_cuda() -> None:
    x = numbers(2, 3, 12, 12)
    with pytest.raises(InvalidInput, match="'onnxruntime' has no target 'cuda'"):
        rewriter.compile(network(), (x,), target="cuda", backend="onnxruntime")
    with pytest.raises(InvalidInput, match="no target 'cuda:h100'"):
        rewriter.compile(network(), (x,), target="cuda:h100")
    with pytest.raises(InvalidInput, match="open sizes"):
        backend("tvm").build(network(), target="cuda")
    with pytest.raises(RewriterError, match="CUDA") as caught:  # nvcc or an importer for the operator is missing, or both
        backend("tvm").build(network("LpNormalization"), target="cuda", example_inputs=[x])
    assert isinstance(caught.value, UnsupportedModel)


def test_a_wrong_import_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Worker.call

    def spoilt(self: Worker, function: str, values: Any = None, **arguments: Any) -> Any:
        if function == "compile_cuda":
            return None, []
        reply, results = call(self, function, values, **arguments)
        return reply, [array + 1e-2 for array in results] if function == "run_on_cpu" else results

    monkeypatch.setattr(Worker, "call", spoilt)
    with pytest.raises(UnsupportedModel, match="not what the model computes: r is 0.01 off"):
        backend("tvm").build(network(), target="cuda", example_inputs=[numbers(2, 3, 12, 12)])
