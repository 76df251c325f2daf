"""OpenVINO and Inductor: engines that compete where the user has them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import apply, f32, model_of, numbers

from backends import backend, reference
from backends.program import Program
from rewriter.errors import InvalidInput, UnsupportedModel

FLOAT, HALF, DOUBLE, INT64, STRING, BRAIN = 1, 10, 11, 7, 8, 16


def _engines() -> list[Any]:
    lacking = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
    return [pytest.param("openvino", marks=lacking), "inductor"]


every = pytest.mark.parametrize("engine", _engines())
openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


def build(engine: str, model: onnx.ModelProto | Path, **options: Any) -> Program:
    """Skips where Inductor finds no C++ compiler."""
    try:
        program: Program = backend(engine).build(model, **options)
    except InvalidInput as error:
        if "C++ compiler" in str(error):
            pytest.skip(str(error))
        raise
    return program


@cache
def built(engine: str) -> Program:
    """``network()``, compiled once: Inductor takes seconds."""
    return build(engine, network(), threads=2)


def network() -> onnx.ModelProto:
    """A strided convolution, a residual, a mean, a product and a softmax, batch open."""
    nodes = [
        apply("Conv", ["x", "k", "b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        apply("Relu", ["c"], ["r"]), apply("Conv", ["r", "k2"], ["d"], pads=[1, 1, 1, 1], group=4), apply("Add", ["r", "d"], ["s"]),
        apply("ReduceMean", ["s", "axes"], ["m"], keepdims=0), apply("MatMul", ["m", "w"], ["p"]), apply("Softmax", ["p"], ["y"], axis=-1),
    ]  # fmt: skip
    weights = [("k", numbers(8, 3, 3, 3)), ("b", numbers(8)), ("k2", numbers(8, 2, 3, 3, seed=1)), ("w", numbers(8, 5, seed=2))]
    axes = np.array([2, 3])
    return model_of(nodes, [("x", FLOAT, ["n", 3, 9, 9])], [("s", FLOAT, None), ("y", FLOAT, ["n", 5])], [*weights, ("axes", axes)])


def exact(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    return reference.build(model, float64=True)(*inputs)


def check(got: Sequence[Any], want: Sequence[Any]) -> None:
    __tracebackhide__ = True
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert isinstance(a, np.ndarray) and a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * max(1, np.abs(b).max()))


@every
def test_right_results_for_every_shape_and_layout(engine: str) -> None:
    model, program = network(), built(engine)
    assert [p.name for p in program.inputs] == ["x"] and [p.name for p in program.outputs] == ["s", "y"]
    x = numbers(2, 3, 9, 9)
    check(program(x), exact(model, [x]))
    check(program(numbers(1, 3, 9, 9, seed=5)), exact(model, [numbers(1, 3, 9, 9, seed=5)]))
    bytes_ = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = bytes_[1:].view("float32").reshape(x.shape)
    unaligned[:] = x
    strided = np.repeat(x, 2, axis=3)[..., ::2]
    frozen = x.copy()
    frozen.flags.writeable = False
    assert not strided.flags.c_contiguous and not unaligned.flags.aligned
    for same in (unaligned, strided, frozen, np.asfortranarray(x)):
        before = same.copy()
        check(program(same), exact(model, [x]))
        np.testing.assert_array_equal(same, before)


@every
def test_results_are_the_callers(engine: str) -> None:
    program = built(engine)
    first = program(numbers(1, 3, 9, 9))
    kept = [a.copy() for a in first]
    program(numbers(1, 3, 9, 9, seed=3))
    for a, b in zip(first, kept, strict=True):
        np.testing.assert_array_equal(a, b)


@every
def test_tensors_of_torch_go_in(engine: str) -> None:
    torch = pytest.importorskip("torch")
    x = numbers(1, 3, 9, 9)
    check(built(engine)(torch.from_numpy(x)), exact(network(), [x]))


@every
def test_wrong_inputs_are_told(engine: str) -> None:
    program = built(engine)
    for inputs, said in (
        ((), "0 inputs were given; the model takes 1"),
        ((numbers(1, 3, 9, 9).astype("float64"),), "input 'x' is float64; the model takes float32"),
        ((numbers(1, 4, 9, 9),), "has shape"),
    ):
        with pytest.raises(InvalidInput, match=said) as caught:
            program(*inputs)
        assert "\n" not in str(caught.value)


@every
def test_targets_and_files_that_are_not_there(engine: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no target 'cuda'"):
        build(engine, network(), target="cuda")
    with pytest.raises(Exception, match="no such file"):
        build(engine, tmp_path / "absent.onnx")


@every
def test_unknown_operators_are_one_line(engine: str) -> None:
    for node in (apply("NoSuch", ["x"], ["y"]), apply("Foo", ["x"], ["y"], domain="foreign")):
        model = model_of([node], [("x", FLOAT, [2])], [("y", FLOAT, [2])], domains=["foreign"])
        with pytest.raises(UnsupportedModel, match="NoSuch|Foo") as caught:
            build(engine, model)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@every
def test_the_projects_own_functions_are_inlined(engine: str) -> None:
    body = [apply("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("rewriter", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    model = model_of([apply("Twice", ["x"], ["y"], domain="rewriter")], [("x", FLOAT, [2])], [("y", FLOAT, [2])], domains=["rewriter"],
                     functions=[twice])  # fmt: skip
    check(build(engine, model)(f32([1, -3])), [f32([2, -6])])


@every
def test_inputs_that_nothing_reads_and_outputs_that_are_inputs(engine: str) -> None:
    ports = [("x", FLOAT, [2]), ("unused", FLOAT, ["n"])]
    model = model_of([apply("Neg", ["x"], ["y"]), apply("Identity", ["x"], ["z"])], ports, [("z", FLOAT, [2]), ("y", FLOAT, [2])])
    check(build(engine, model)(f32([1, 2]), f32([0, 0, 0])), [f32([1, 2]), f32([-1, -2])])


@every
def test_saved_and_restored(engine: str, tmp_path: Path) -> None:
    x = numbers(2, 3, 9, 9)
    built(engine).save(tmp_path)
    assert (tmp_path / "model.onnx").is_file()
    restored = backend(engine).restore(tmp_path, threads=1)
    (tmp_path / "model.onnx").unlink()
    check(restored(x), exact(network(), [x]))


@openvino
@pytest.mark.parametrize("kind", [DOUBLE, BRAIN, STRING])
def test_types_that_openvino_would_change_are_refused(kind: int) -> None:
    model = model_of([apply("Identity", ["x"], ["y"])], [("x", kind, [2])], [("y", kind, [2])])
    with pytest.raises(UnsupportedModel, match="'x'"):
        build("openvino", model)
    inner = [apply("Cast", ["x"], ["d"], to=DOUBLE), apply("Sin", ["d"], ["s"]), apply("Cast", ["s"], ["y"], to=FLOAT)]
    with pytest.raises(UnsupportedModel, match="float64"):
        build("openvino", model_of(inner, [("x", FLOAT, [2])], [("y", FLOAT, [2])]))


@openvino
def test_openvino_computes_in_float32_and_not_in_bfloat16() -> None:
    a, b = numbers(64, 256), numbers(256, 64, seed=1)
    model = model_of([apply("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, [64, 256])], [("y", FLOAT, [64, 64])], [("w", b)])
    want = a.astype("float64") @ b
    assert np.abs(build("openvino", model)(a)[0] - want).max() < 1e-4  # bfloat16: 0.2


@openvino
def test_openvino_reads_weights_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = numbers(1, 3, 9, 9)
    program = build("openvino", path)
    (tmp_path / "a").mkdir()
    program.save(tmp_path / "a")
    check(backend("openvino").restore(tmp_path / "a")(x), exact(network(), [x]))


@openvino
def test_calls_from_several_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    program, model = build("openvino", network(), threads=1), network()
    inputs = [numbers(1, 3, 9, 9, seed=i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(program, inputs))
    for x, got in zip(inputs, results, strict=True):
        check(got, exact(model, [x]))


@openvino
def test_openvino_uses_the_threads_it_is_given() -> None:
    program: Any = build("openvino", network(), threads=1)  # of more it takes as many as there are processors
    assert program._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_without_a_compiler_inductor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(InvalidInput, match="needs a C\\+\\+ compiler") as caught:
        backend("inductor").build(network())
    assert "\n" not in str(caught.value)


def test_without_the_package_openvino_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "backends.openvino", raising=False)
    with pytest.raises(InvalidInput, match="'openvino' cannot be imported"):
        backend("openvino")


assert TensorProto.BFLOAT16 == BRAIN
