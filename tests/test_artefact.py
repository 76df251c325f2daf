"""Artefacts: what is saved comes back in a fresh process, damage is named, and nothing half-written stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import apply

from backends import backend
from backends.onnxruntime import OnnxRuntimeProgram
from rewriter import artefact
from rewriter.errors import InvalidModel, RewriterError

W = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
X = np.ones((2, 4), "float32")


def proto() -> onnx.ModelProto:
    graph = helper.make_graph(
        [apply("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        initializer=[numpy_helper.from_array(W, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def contents(name: str = "onnxruntime", weights: onnx.ModelProto | None = None) -> artefact.Contents:
    return artefact.Contents(
        ir.from_proto(proto()),
        backend(name).build(proto(), threads=1),
        name,
        {"arguments": [["x", {"leaf": None}]], "positional": 1},
        {"leaf": None},
        {"notes": ["a note"]},
        weights,
        {"w": ["zero"]},
        {"v": "w"},
    )


@pytest.mark.parametrize("name", ["onnxruntime", "torch", "reference"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    artefact.write(tmp_path / "a", contents(name, weights=proto()))
    assert sorted(os.listdir(tmp_path)) == ["a"]
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest.json", "model.onnx", "weights.onnx"]
    back = artefact.read(tmp_path / "a", threads=1)
    np.testing.assert_allclose(back.program(X)[0], X @ W, rtol=1e-5)
    given = contents(name)
    assert (back.backend, back.inputs, back.outputs) == (name, given.inputs, given.outputs)
    assert (back.report, back.facts, back.shared) == (given.report, given.facts, given.shared)
    assert back.weights == proto()
    stored = back.model.graph.initializers["w"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), W)
    inputs, outputs = artefact.ports(tmp_path / "a")
    assert [(p.name, p.dtype, p.shape) for p in (*inputs, *outputs)] == [
        ("x", "float32", ("n", 4)),
        ("y", "float32", ("n", 4)),
    ]


def test_large_weights_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact, "APART", 10)
    monkeypatch.setattr("onnx_ir.save_safetensors", _any_size(ir.save_safetensors))
    artefact.write(tmp_path / "a", contents())
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(tmp_path / "a" / "model.safetensors")["w"], W)
    np.testing.assert_allclose(artefact.read(tmp_path / "a", threads=1).program(X)[0], X @ W, rtol=1e-5)


def _any_size(save: Any) -> Any:
    return lambda model, path: save(model, path, size_threshold_bytes=0)


def test_loading_needs_neither_torch_nor_egglog(tmp_path: Path) -> None:
    artefact.write(tmp_path / "a", contents())
    program = (
        "import sys, rewriter.compiled; from rewriter import artefact; import numpy as np\n"
        f"c = artefact.read({str(tmp_path / 'a')!r}, threads=1)\n"
        "print(c.program(np.ones((2, 4), 'float32'))[0].sum())\n"
        "print([m for m in ('torch', 'egglog', 'tvm', 'onnxscript', 'scipy') if m in sys.modules])\n"
    )
    root = Path(artefact.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    total, modules = done.stdout.split("\n")[:2]
    assert modules == "[]"
    assert abs(float(total) - (X @ W).sum()) < 1e-4


def test_an_artefact_is_replaced_and_other_folders_are_not(tmp_path: Path) -> None:
    artefact.write(tmp_path / "a", contents())
    (tmp_path / "a" / "left over").write_text("")
    artefact.write(tmp_path / "a", contents("reference"))
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest.json", "model.onnx"]
    assert artefact.read(tmp_path / "a").backend == "reference"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RewriterError, match="other things"):
        artefact.write(tmp_path / "mine", contents())
    with pytest.raises(RewriterError, match="is a file"):
        artefact.write(tmp_path / "mine" / "thesis.txt", contents())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    artefact.write(tmp_path / "empty", contents())
    assert sorted(os.listdir(tmp_path)) == ["a", "empty", "mine"]


def test_a_failure_leaves_the_old_artefact_and_nothing_else(tmp_path: Path) -> None:
    artefact.write(tmp_path / "a", contents())
    before = (tmp_path / "a" / "manifest.json").read_bytes()

    class Full(OnnxRuntimeProgram):
        def save(self, directory: str | os.PathLike[str]) -> None:
            (Path(directory) / "part").write_text("half")
            raise OSError(28, "No space left on device")

    broken = contents()
    broken.program = Full.__new__(Full)
    with pytest.raises(RewriterError, match="No space left") as caught:
        artefact.write(tmp_path / "a", broken)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["a"]
    assert (tmp_path / "a" / "manifest.json").read_bytes() == before
    with pytest.raises(RewriterError, match="cannot write"):
        artefact.write(tmp_path / "no" / "such" / "place", contents())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        manifest = json.loads(path.read_text())
        manifest.update(changes)
        path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.onnx", Path.unlink, "model.onnx is missing"),
        ("model.onnx", truncate, "model.onnx is not what was written"),
        ("model.onnx", flip, "model.onnx is not what was written"),
        ("manifest.json", Path.unlink, "no manifest.json"),
        ("manifest.json", truncate, "cannot be read"),
        ("manifest.json", lambda p: p.write_text("[]"), "not that of an artefact"),
        ("manifest.json", edit(version=99), "version 99"),
        ("manifest.json", edit(facts=None), "lacks 'facts'"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path: Path, name: str, damage: Callable[[Path], object], words: str) -> None:
    artefact.write(tmp_path / "a", contents())
    damage(tmp_path / "a" / name)
    with pytest.raises(InvalidModel, match=words) as caught:
        artefact.read(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_no_directory() -> None:
    with pytest.raises(InvalidModel, match="no such directory"):
        artefact.read("/no/such/artefact")


def test_a_backend_that_cannot_run_here_is_replaced(tmp_path: Path) -> None:
    artefact.write(tmp_path / "a", contents())
    edit(backend="cerebras")(tmp_path / "a" / "manifest.json")
    back = artefact.read(tmp_path / "a", threads=1)
    np.testing.assert_allclose(back.program(X)[0], X @ W, rtol=1e-5)
    assert "cerebras" in back.report["notes"][-1]
    assert back.report["backend"] == "onnxruntime"
