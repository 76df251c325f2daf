"""A child process that runs models: right answers, and a living parent when it dies."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import apply, model_of, numbers

from backends.isolated import CrashedError, Isolated, RuntimeRefused, TimedOut


def addition() -> onnx.ModelProto:
    return model_of(
        [apply("Add", ["x", "y"], ["z"])],
        [("x", TensorProto.FLOAT, ["n", 3]), ("y", TensorProto.FLOAT, [3])],
        [("z", TensorProto.FLOAT, ["n", 3])],
    )


def dividing_overflow() -> onnx.ModelProto:
    """INT64_MIN / -1 of constants: ONNX Runtime folds it while loading, which is a SIGFPE."""
    smallest = np.array([np.iinfo(np.int64).min], dtype=np.int64)
    return model_of(
        [apply("Div", ["a", "b"], ["q"]), apply("Add", ["x", "q"], ["z"])],
        [("x", TensorProto.INT64, [1])],
        [("z", TensorProto.INT64, [1])],
        [("a", smallest), ("b", np.array([-1]))],
    )


@pytest.fixture(scope="module")
def child() -> Iterator[Isolated]:
    with Isolated(threads=1, timeout=60) as isolated:
        yield isolated


@pytest.mark.parametrize("optimised", [True, False])
def test_runs_a_model_on_several_inputs(child: Isolated, optimised: bool) -> None:
    feeds = [{"y": np.ones(3, "float32"), "x": np.full((n, 3), n, "float32")} for n in (1, 4, 0)]
    results = child.run(addition(), feeds, optimised=optimised)
    assert [r[0].shape for r in results] == [(1, 3), (4, 3), (0, 3)]
    np.testing.assert_array_equal(results[1][0], np.full((4, 3), 5, "float32"))


def test_a_crash_is_an_exception_and_the_next_call_works(child: Isolated) -> None:
    with pytest.raises(CrashedError, match="SIGFPE") as caught:
        child.run(dividing_overflow(), [{"x": np.array([1])}], optimised=True)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, TimedOut)
    x = np.zeros((2, 3), "float32")
    np.testing.assert_array_equal(child.run(addition(), [{"x": x, "y": x[0]}], optimised=True)[0][0], x)


def test_refusals_name_their_reason_in_one_line(child: Isolated) -> None:
    unknown = model_of([apply("NoSuchOp", ["x"], ["z"])], [("x", 1, [1])], [("z", 1, [1])])
    with pytest.raises(RuntimeRefused, match="NoSuchOp") as caught:
        child.run(unknown, [], optimised=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeRefused, match=r"missing \['y'\]"):
        child.run(addition(), [{"x": np.zeros((1, 3), "float32")}], optimised=True)
    with pytest.raises(RuntimeRefused, match="float"):
        child.run(addition(), [{"x": np.zeros((1, 3)), "y": np.zeros(3)}], optimised=True)


def test_a_path_with_external_data(child: Isolated, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    model = model_of(
        [apply("MatMul", ["x", "w"], ["z"])],
        [("x", 1, [1, 64])],
        [("z", 1, [1, 64])],
        [("w", weight)],
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").stat().st_size == weight.nbytes
    x = np.ones((1, 64), "float32")
    [[z]] = child.run(path, [{"x": x}], optimised=True)
    np.testing.assert_allclose(z, x @ weight, rtol=1e-4, atol=1e-5)


def test_a_model_too_large_for_the_pipe_goes_by_file(child: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = numbers(64, 64)
    product = model_of([apply("MatMul", ["x", "w"], ["z"])], [("x", 1, [1, 64])], [("z", 1, [1, 64])], [("w", weight)])
    monkeypatch.setattr("backends.onnxruntime.LARGE", 1000)
    x = np.ones((1, 64), "float32")
    results = child.run(product, [{"x": x}, {"x": -x}], optimised=True)
    np.testing.assert_allclose(results[0][0], x @ weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(results[1][0], -results[0][0])


def test_every_kind_of_value_crosses_the_pipe(child: Isolated) -> None:
    kinds = ["float16", "float64", "int8", "uint8", "int16", "int32", "int64", "uint64", "bool"]
    types = [helper.np_dtype_to_tensor_dtype(np.dtype(k)) for k in kinds] + [TensorProto.BFLOAT16]
    model = model_of(
        [apply("Identity", [f"x{i}"], [f"y{i}"]) for i in range(len(types))],
        [(f"x{i}", t, ["n"]) for i, t in enumerate(types)],
        [(f"y{i}", t, ["n"]) for i, t in enumerate(types)],
    )
    import ml_dtypes

    values = [np.array([0, 1, 1]).astype(k) for k in kinds] + [np.array([0, 1.5, -2]).astype(ml_dtypes.bfloat16)]
    [results] = child.run(model, [{f"x{i}": v for i, v in enumerate(values)}], optimised=False)
    for got, value in zip(results, values, strict=True):
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(got, value)


def test_strings_and_sequences_cross_the_pipe(child: Isolated) -> None:
    nodes = [apply("Identity", ["x"], ["y"]), apply("SequenceConstruct", ["x", "x"], ["s"])]
    model = model_of(nodes, [("x", TensorProto.STRING, [1, 3])], [("y", TensorProto.STRING, [1, 3])])
    model.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.STRING, None))
    texts = np.array([["a", "", "ü"]], dtype=object)
    [[result, sequence]] = child.run(model, [{"x": texts}], optimised=False)
    np.testing.assert_array_equal(result, texts)
    assert len(sequence) == 2
    np.testing.assert_array_equal(sequence[1], texts)


def test_a_hanging_model_times_out() -> None:
    body = helper.make_graph(
        [apply("Identity", ["c"], ["c2"]), apply("Identity", ["v"], ["v2"])],
        "body",
        [helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("c", 9), ("v", 1))],
        [helper.make_tensor_value_info(n, t, []) for n, t in (("c2", 9), ("v2", 1))],
    )
    forever = model_of(
        [apply("Loop", ["", "go", "x"], ["z"], body=body)],
        [("x", TensorProto.FLOAT, []), ("go", TensorProto.BOOL, [])],
        [("z", TensorProto.FLOAT, [])],
    )
    with Isolated(threads=1, timeout=3) as isolated:
        one = np.float32(1)
        with pytest.raises(TimedOut, match="3 s"):
            isolated.run(forever, [{"x": one, "go": np.array(True)}], optimised=False)
        [[z]] = isolated.run(forever, [{"x": one, "go": np.array(False)}], optimised=False)
        assert z == one


def test_closing_ends_the_process() -> None:
    isolated = Isolated(threads=1)
    isolated.start()
    process = isolated._worker._process
    isolated.close()
    assert process is not None and process.returncode == -signal.SIGKILL
