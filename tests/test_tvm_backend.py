"""Models on TVM with the rest on ONNX Runtime: the same numbers, whatever compiles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import parse as model_of
from small_models import apply, f32, numbers

pytest.importorskip("tvm_ffi")

import backends
import rewriter
from backends import backend, onnxruntime
from backends.tvm import regions, runtime
from backends.tvm.program import TvmProgram
from rewriter import artefact
from rewriter.errors import InvalidInput, InvalidModel, UnsupportedModel

ROOT = Path(backends.__file__).resolve().parent.parent


def mixed(batch: int | str = "batch") -> onnx.ModelProto:
    """Convolution and products around an LSTM, a Loop, an If and an operator of another domain."""
    step = helper.make_graph(
        [apply("Identity", ["go"], ["go2"]), apply("Mul", ["v", "half"], ["v2"])],
        "step",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", 7, []), ("go", 9, []), ("v", 1, None))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("go2", 9, []), ("v2", 1, None))],
    )

    def branch(op: str, name: str) -> onnx.GraphProto:
        body = [apply(op, ["looped"], [name])]
        return helper.make_graph(body, name, [], [helper.make_tensor_value_info(name, 1, None)])

    nodes = [
        apply("Conv", ["x", "k", "kb"], ["c"], pads=[1, 1]),
        apply("Relu", ["c"], ["r"]),
        apply("Transpose", ["r"], ["t"], perm=[2, 0, 1]),
        apply("LSTM", ["t", "w", "rw"], ["", "h"], hidden_size=5),
        apply("Squeeze", ["h", "zero"], ["hs"]),
        apply("MatMul", ["hs", "m"], ["p"]),
        apply("Softmax", ["p"], ["s"]),
        apply("Loop", ["three", "", "s"], ["looped"], body=step),
        apply("ReduceMax", ["looped"], ["top"], keepdims=0),
        apply("Greater", ["top", "half"], ["large"]),
        apply("If", ["large"], ["chosen"], then_branch=branch("Neg", "n"), else_branch=branch("Exp", "e")),
        apply("QuickGelu", ["chosen"], ["q"], domain="com.microsoft"),
        apply("Shape", ["q"], ["qs"]),
        apply("Reshape", ["q", "qs"], ["same"]),
        apply("Sigmoid", ["same"], ["sig"]),
        apply("Mul", ["sig", "m0"], ["y"]),
    ]
    weights = {
        "k": numbers(4, 3, 3), "kb": numbers(4), "w": numbers(1, 20, 4), "rw": numbers(1, 20, 5), "zero": np.array([0]),
        "m": numbers(5, 6), "half": np.float32(0.5), "three": np.int64(3), "m0": numbers(6),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None), helper.make_tensor_value_info("r", 1, None)],
        initializer=[numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture(scope="module")
def program() -> TvmProgram:
    before = "tvm" in sys.modules  # some other test may have needed it
    made: TvmProgram = backend("tvm").build(mixed(), threads=1, example_inputs=[numbers(2, 3, 8)])
    assert ("tvm" in sys.modules) == before  # the compiler has a process of its own
    return made


@pytest.fixture
def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database in which nothing is known yet."""
    monkeypatch.setenv("REWRITER_DATABASE", str(tmp_path / "own.sqlite"))


def agree(program: TvmProgram, x: Any, model: onnx.ModelProto | None = None) -> None:
    want = onnxruntime.build(model or mixed(), threads=1)(x)
    got = program(x)
    assert [g.dtype for g in got] == [w.dtype for w in want]
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_what_tvm_takes_is_compiled_and_the_rest_runs(program: TvmProgram) -> None:
    [running] = program._plans.values()
    assert running.compiled >= 2, program.notes
    kinds = {step["kind"] for step in running._steps}
    assert kinds == {"tvm", "onnxruntime"}
    agree(program, numbers(2, 3, 8, seed=5))


def test_unaligned_and_odd_memory_goes_in(program: TvmProgram) -> None:
    x = numbers(2, 3, 8, seed=6)
    room = np.zeros(x.nbytes + 68, np.uint8)
    start = -room.ctypes.data % 64 + 4
    crooked = room[start : start + x.nbytes].view("float32").reshape(x.shape)
    crooked[...] = x
    assert crooked.ctypes.data % 64 == 4
    frozen = x.copy()
    frozen.flags.writeable = False
    for value in (crooked, frozen, np.asfortranarray(x), np.repeat(x, 2, axis=2)[:, :, ::2]):
        agree(program, value)


def test_aligned_copies_only_when_it_must() -> None:
    room = np.zeros(1024, np.uint8)
    good = room[-room.ctypes.data % 64 :][:256].view("float32")
    assert runtime.aligned(good) is good
    for odd in (good[1:], good[::2], np.broadcast_to(np.float32(3), (4, 4))):
        copy = runtime.aligned(odd)
        assert copy.ctypes.data % 64 == 0
        assert copy.flags.c_contiguous
        np.testing.assert_array_equal(copy, odd)


def test_other_shapes_work_too(program: TvmProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.tvm.program.PLANS", len(program._plans))  # as if the bound were reached: no compiling
    agree(program, numbers(5, 3, 8, seed=7))
    with pytest.raises(InvalidInput, match=r"shape \[5, 2, 8\]"):
        program(numbers(5, 2, 8))
    with pytest.raises(InvalidInput, match="float64"):
        program(np.zeros((2, 3, 8)))


def test_reloading_needs_no_compiler_and_no_torch(program: TvmProgram, tmp_path: Path) -> None:
    program.save(tmp_path)
    assert len(list((tmp_path / "tvm" / "0").glob("*.so"))) >= 2
    x = numbers(2, 3, 8, seed=8)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", program(x)[0])
    code = (
        "import sys, numpy as np; from backends import backend\n"
        f"d = {str(tmp_path)!r}\n"
        "p = backend('tvm').restore(d, threads=1); x = np.load(d + '/x.npy')\n"
        "[r] = p._plans.values(); assert r.compiled >= 2\n"
        "np.testing.assert_allclose(p(x)[0], np.load(d + '/y.npy'), rtol=1e-6)\n"
        "assert p(x[:1])[0].shape == (1, 6)\n"
        "print([m for m in ('tvm', 'torch', 'egglog') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=_bare()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def _bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TVM_")}


def test_artefacts_carry_the_libraries(program: TvmProgram, tmp_path: Path) -> None:
    contents = artefact.Contents(ir.from_proto(mixed()), program, "tvm", {}, {}, {})
    artefact.write(tmp_path / "a", contents)
    back = artefact.read(tmp_path / "a", threads=1)
    assert type(back.program) is type(program)
    agree(back.program, numbers(2, 3, 8, seed=4))
    library = next((tmp_path / "a" / "tvm" / "0").glob("*.so"))
    library.write_bytes(b"")
    with pytest.raises(InvalidModel, match=f"{library.name} is not what was written"):
        artefact.read(tmp_path / "a")


def test_another_processor_is_refused(program: TvmProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.save(tmp_path)
    monkeypatch.setattr("backends.tvm.program.processor", lambda: {"machine": "x86_64", "flags": []})
    with pytest.raises(UnsupportedModel, match="which this one lacks"):
        backend("tvm").restore(tmp_path)


def test_a_warm_compile_compares_nothing_again(forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    judge = regions._difference

    def counted(proto: onnx.ModelProto, *rest: Any) -> str | None:
        judged.append(proto.graph.output[0].name)
        return judge(proto, *rest)

    monkeypatch.setattr(regions, "_difference", counted)
    backend("tvm").build(mixed(2), threads=1)
    assert len(judged) >= 2
    count = len(judged)
    again = backend("tvm").build(mixed(2), threads=1)
    assert len(judged) == count
    agree(again, numbers(2, 3, 8, seed=3), mixed(2))
    other = mixed(2)  # the same machine code, other weights: nothing is known of them
    weight = next(t for t in other.graph.initializer if t.name == "k")
    weight.CopyFrom(numpy_helper.from_array(numbers(4, 3, 3, seed=11), "k"))
    agree(backend("tvm").build(other, threads=1), numbers(2, 3, 8, seed=3), other)
    assert len(judged) > count


def test_large_weights_stay_in_a_file(forgetful: None) -> None:
    """Those of 1 KB and more are not in the folded model's message: of what TVM takes, of what it leaves, and of a result."""
    nodes = [apply("MatMul", ["x", "a"], ["p"]), apply("Relu", ["p"], ["r"]), apply("Add", ["r", "b"], ["s"]), apply("Det", ["s"], ["d"]),
             apply("MatMul", ["a", "a"], ["folded"]), apply("Mul", ["d", "c"], ["t"])]  # fmt: skip
    weights = {"a": numbers(40, 40), "b": numbers(40, 40), "c": numbers(300)}
    ports = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["n", 40]), ("t", None), ("folded", [40, 40]), ("b", [40, 40]))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(v, n) for n, v in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    program = backend("tvm").build(model, threads=1, example_inputs=[numbers(40, 40)])
    [running] = program._plans.values()
    assert {step["kind"] for step in running._steps} == {"tvm", "onnxruntime"}
    assert not list(running.folder.glob("*.data"))
    agree(program, numbers(40, 40, seed=3) * np.float32(0.2), model)


def test_an_invalid_model_is_refused(tmp_path: Path) -> None:
    broken = mixed(2)
    broken.graph.node[0].input[0] = "nowhere"
    with pytest.raises(InvalidModel, match="^ONNX Runtime refuses the model: .*nowhere"):
        backend("tvm").build(broken, threads=1)
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(InvalidModel, match="not an ONNX model"):
        backend("tvm").build(tmp_path / "bad.onnx")


def test_on_another_processor_onnx_runtime_runs_the_artefact(program: TvmProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = rewriter.compile(mixed(2), backend="tvm", threads=1)
    compiled.save(tmp_path / "a")
    x = numbers(2, 3, 8, seed=12)
    expected = compiled(x)
    monkeypatch.setattr("backends.tvm.program.processor", lambda: {"machine": "x86_64", "flags": []})
    back = rewriter.load(tmp_path / "a", threads=1)
    assert back.backend == "onnxruntime"
    [note] = [note for note in back.report.notes if "ONNX Runtime runs the model instead" in note]
    assert "which this one lacks" in note
    for got, want in zip(back(x), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_model_is_read_from_what_was_loaded(tmp_path: Path) -> None:
    """Whatever takes the artefact's place before it is asked for."""
    compiled = rewriter.compile(mixed(2), backend="onnxruntime", threads=1)
    compiled.save(tmp_path / "a")
    back = rewriter.load(tmp_path / "a", threads=1)
    rewriter.compile(mixed(3), backend="onnxruntime", threads=1).save(tmp_path / "a")
    assert back.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert [n.op_type for n in back.model.graph.node] == [n.op_type for n in compiled.model.graph.node]


def test_regions_that_differ_or_time_out_go_to_onnx_runtime(forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_difference", lambda *_: "it is off by one")
    program = backend("tvm").build(mixed(2), threads=1)
    [running] = program._plans.values()
    assert running.compiled == 0
    assert any("off by one" in note for note in program.notes)
    agree(program, numbers(2, 3, 8, seed=9), mixed(2))
    hurried = backend("tvm").build(mixed(2), threads=1, seconds=0.0)
    assert any("time for compiling was spent" in note for note in hurried.notes)
    agree(hurried, numbers(2, 3, 8, seed=9), mixed(2))


def test_a_failing_region_is_halved_until_the_rest_compiles(forgetful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["x", *(f"v{i}" for i in range(8))]
    ops = ["Relu", "Neg", "Sigmoid", "Neg", "Tanh", "Relu", "Neg", "Exp"]
    nodes = [apply(op, [names[i]], [names[i + 1]]) for i, op in enumerate(ops)]
    ports = [helper.make_tensor_value_info(n, 1, [2, 3]) for n in ("x", "v7")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    judge = regions._difference

    def bad(proto: onnx.ModelProto, *rest: Any) -> str | None:
        return "Exp is wrong" if any(n.op_type == "Exp" for n in proto.graph.node) else judge(proto, *rest)

    monkeypatch.setattr(regions, "_difference", bad)
    program = backend("tvm").build(model, threads=1)
    [running] = program._plans.values()
    assert [step["kind"] for step in running._steps] == ["tvm", "onnxruntime"]
    assert program.notes == ["4 nodes from Tanh 'v4' to Exp 'v7' run on ONNX Runtime: Exp is wrong"]
    agree(program, numbers(2, 3), model)


def test_differences_are_judged_by_the_float64_result() -> None:
    node = apply("Exp", ["x"], ["y"])
    x = helper.make_tensor_value_info("x", 1, [2])
    graph = helper.make_graph([node], "g", [x], [helper.make_tensor_value_info("y", 1, [2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    right = np.exp(f32([1, 2]))
    exact = np.exp(np.array([1.0, 2.0]))

    def judged(got: Any) -> str:
        return str(regions._difference(model, [got], [right], [exact], 4.0))

    assert judged(right) == "None"
    assert judged(right * np.float32(1 + 1.2e-7)) == "None"
    assert "off" in judged(right * np.float32(1 + 1e-5))
    assert "finite" in judged(right * np.float32("nan"))
    assert "float64" in judged(right.astype("float64"))


def test_codes_that_were_rounded_the_other_way_are_no_difference() -> None:
    """A few of many, where there is a quantiser; not all of them, and not where there is none."""
    body = "main (float[1000] x) => (float[1000] y) <float s = {0.1}, uint8 z = {7}> { "
    coded = model_of(body + "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }")
    plain = model_of(body + "y = Exp(x) }")
    right = np.random.default_rng(0).integers(-50, 50, 1000).astype(np.float32) / 10
    few, many = right.copy(), right + np.float32(0.1)
    few[17] += np.float32(0.1)
    args = ([right], [right.astype(np.float64)], regions.FAR)
    assert regions._difference(coded, [few], *args) is None
    assert "off" in (regions._difference(coded, [many], *args) or "")
    assert "off" in (regions._difference(plain, [few], *args) or "")
    codes = np.random.default_rng(1).integers(60, 200, 1000).astype(np.uint8)
    given = model_of("main (float[1000] x) => (uint8[1000] y) <float s = {0.1}, uint8 z = {7}> { y = QuantizeLinear(x, s, z) }")
    whole = model_of("main (uint8[1000] x) => (uint8[1000] y) { y = Identity(x) }")
    one, all_, far = codes.copy(), codes + np.uint8(1), codes.copy()
    one[17] += np.uint8(1)
    far[17] ^= np.uint8(128)
    args = ([codes], [codes], regions.FAR)
    assert regions._difference(given, [one], *args) is None
    for wrong in (all_, far):
        assert "differs" in (regions._difference(given, [wrong], *args) or "")
    assert "differs" in (regions._difference(whole, [one], *args) or "")


def test_refusals() -> None:
    tvm = backend("tvm")
    assert tvm.refuses(ir.node("Conv", [None, None])) is None
    assert "GRU" in tvm.refuses(ir.node("GRU", [None] * 3))
    assert "com.microsoft" in tvm.refuses(ir.node("Conv", [None], domain="com.microsoft"))
    with pytest.raises(InvalidInput, match="no target"):
        tvm.build(mixed(), target="tpu")


def test_a_model_of_one_node_is_compiled_and_a_small_region_beside_others_is_not() -> None:
    """A region that is all there is has no border to be paid for."""
    alone = model_of("g (float[3,8] x) => (float[3,5] y) { y = MatMul (x, w) }")
    alone.graph.initializer.append(numpy_helper.from_array(numbers(8, 5), "w"))
    program = backend("tvm").build(alone)
    assert program.compiled == 1 and all(r.compiled == 1 for r in program._plans.values())
    beside = model_of("g (float[3,8] x) => (float[3,5] y) { a = MatMul (x, w)\n d = Det (s)\n y = Add (a, d) }")
    beside.graph.initializer.extend([numpy_helper.from_array(numbers(8, 5), "w")])
    beside.graph.input.append(helper.make_tensor_value_info("s", 1, [2, 2]))
    program = backend("tvm").build(beside)
    assert all(r.compiled == 0 for r in program._plans.values())
