"""Bad input: one line that says what, where and what to do; exit status 2; nothing half-written, nothing unpickled."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command import TWO_MAPS, Command, Done, assert_refused, command, tree, write
from onnx_text import parse

import rewriter
from rewriter import BudgetError, InvalidInput, InvalidModel, RewriterError, UnsupportedModel


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "in.onnx")


class Evil:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


# --- files that are no models


def _file(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(path.parent / "mark")))


def _truncated(path: Path) -> None:
    path.write_bytes(parse(TWO_MAPS).SerializeToString()[:-9])


NO_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no file"),
    "folder": (Path.mkdir, "is a folder"),
    "empty": (_file(b""), "is empty"),
    "truncated": (_truncated, "cut short"),
    "text": (_file(b"# Readme\n\nThis is no model.\n"), "is not an ONNX model"),
    "JSON": (_file(b'{"model": 1}'), "JSON"),
    "old .pt": (lambda path: path.write_bytes(pickle.dumps(Evil(path.parent / "mark"))), "pickle"),
    "new .pt": (_zipped, "zip archive"),
}


@pytest.mark.parametrize("kind", NO_MODELS)
def test_a_file_that_is_no_model(run: Command, tmp_path: Path, kind: str) -> None:
    make, said = NO_MODELS[kind]
    make(tmp_path / "in.pt")
    before = tree(tmp_path)
    assert_refused(run("optimize", tmp_path / "in.pt", tmp_path / "out.onnx", "--report", tmp_path / "r.json"), "in.pt", said)
    assert tree(tmp_path) == before
    with pytest.raises(RewriterError, match=said) as caught:
        rewriter.compile(tmp_path / "in.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


EVERY = ("optimize IN OUT", "compile IN -o OUT", "bench IN", "check IN GOOD", "check GOOD IN", "explain IN", "why-not maps-add IN")


@pytest.mark.parametrize("arguments", EVERY)
def test_every_command_refuses_it_the_same_way(run: Command, tmp_path: Path, model: Path, arguments: str) -> None:
    (tmp_path / "bad.onnx").write_text("no model")
    before = tree(tmp_path)
    words = {"IN": tmp_path / "bad.onnx", "GOOD": model, "OUT": tmp_path / "out"}
    assert_refused(run(*(words.get(a, a) for a in arguments.split())), "bad.onnx' is not an ONNX model")
    assert tree(tmp_path) == before


# --- models that break the standard


def _undefined(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].input[0] = "nowhere"


def _twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = "t"


def _cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "u"


def _misfit(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 3), "float32"), "v"))


def _unknown_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[2].op_type = "Rleu"


def _negative(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -3


def _declared_otherwise(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


def _no_such_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "z"


def _unimported(proto: onnx.ModelProto) -> None:
    proto.graph.node[2].domain = "acme"


def _short_weight(proto: onnx.ModelProto) -> None:
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[3, 3], raw_data=b"\0" * 12)
    proto.graph.initializer[0].CopyFrom(weight)


DEFECTS: dict[str, tuple[Callable[[onnx.ModelProto], None], tuple[str, ...]]] = {
    "undefined name": (_undefined, ("nowhere",)),
    "name made twice": (_twice, ("'t'",)),
    "cycle": (_cycle, ("cycle",)),
    "shapes that do not fit": (_misfit, ("MatMul",)),
    "unknown operator": (_unknown_operator, ("Rleu",)),
    "negative size": (_negative, ("'x'", "-3")),
    "output of another shape": (_declared_otherwise, ("'y'",)),
    "output that nothing makes": (_no_such_output, ("'z'",)),
    "domain that is not imported": (_unimported, ("acme",)),
    "weight with too few bytes": (_short_weight, ("'w'",)),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_model_that_breaks_the_standard(run: Command, tmp_path: Path, kind: str) -> None:
    spoil, said = DEFECTS[kind]
    proto = parse(TWO_MAPS)
    spoil(proto)
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    before = tree(tmp_path)
    assert_refused(run("optimize", tmp_path / "in.onnx", tmp_path / "out.onnx"), *said)
    assert tree(tmp_path) == before
    with pytest.raises(InvalidModel) as caught:
        rewriter.optimize(proto)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in said)


# --- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--disable", "maps-compse"], "no rule 'maps-compse'; did you mean 'maps-compose'?"),
        (["--disable", "xyzzy"], "no rule 'xyzzy'; `rewriter rules` lists them"),
        (["--input-shape", "x=1,3"], "'x=1,3' is not NAME:SIZE"),
        (["--input-shape", "x:1,three"], "is not NAME:SIZE"),
        (["--input-shape", "x:1,,3"], "is not NAME:SIZE"),
        (["--input-shape", "x:-1,3"], "is not NAME:SIZE"),
        (["--input-shape", ":1,3"], "is not NAME:SIZE"),
        (["--input-shape", "x:1,3", "--input-shape", "x:2,3"], "names 'x' twice"),
        (["--input-shape", "z:1,3"], "no input 'z'; it has 'x'"),
        (["--input-shape", "x:1,4"], "[1, 4] does not fit"),
        (["--input-shape", "x:3"], "[3] does not fit"),
    ],
)
def test_options_that_do_not_fit_the_model(run: Command, model: Path, tmp_path: Path, options: list[str], said: str) -> None:
    before = tree(tmp_path)
    for start in (["optimize", model, tmp_path / "out.onnx"], ["compile", model, "-o", tmp_path / "out"]):
        assert_refused(run(*start, *options), said)
    assert tree(tmp_path) == before


# --- outputs that cannot be written


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("missing/out.onnx", "there is no folder"),
        ("a folder", "is a folder"),
        ("in.onnx/out.onnx", "there is no folder"),
        ("x" * 300 + ".onnx", "name too long"),
    ],
)
def test_an_output_that_cannot_be_written(run: Command, model: Path, tmp_path: Path, out: str, said: str) -> None:
    (tmp_path / "a folder").mkdir()
    before = tree(tmp_path)
    done = run("optimize", model, tmp_path / out)
    assert_refused(Done(done.status, done.out, done.err.replace("File name", "name")), said)
    for option in (["optimize", model, tmp_path / "out.onnx"], ["compile", model, "-o", tmp_path / "out"]):
        done = run(*option, "--report", tmp_path / out)
        assert_refused(Done(done.status, done.out, done.err.replace("File name", "name")), said)
    assert tree(tmp_path) == before
    with pytest.raises(RewriterError) as caught:
        rewriter.optimize(model).save(tmp_path / out)
    assert "\n" not in str(caught.value) and tree(tmp_path) == before


def test_a_folder_without_permission(run: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != locked)  # root would be let in
    for arguments in (["optimize", model, locked / "out.onnx"], ["compile", model, "-o", locked / "out"]):
        assert_refused(run(*arguments), "locked", "cannot be written")


def test_devices_are_not_replaced(run: Command, model: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert_refused(run("optimize", model, pipe), "device or a pipe")
    assert_refused(run("optimize", model, tmp_path / "out.onnx", "--report", pipe), "device or a pipe")
    with pytest.raises(RewriterError, match="device or a pipe"):
        rewriter.optimize(model).save(pipe)
    assert pipe.is_fifo() and sorted(os.listdir(tmp_path)) == ["in.onnx", "pipe"]


def test_a_report_does_not_take_the_place_of_a_model(run: Command, model: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    for path in (model, tmp_path / "out.onnx"):
        assert_refused(run("optimize", model, tmp_path / "out.onnx", "--report", path), "is named twice")
    assert tree(tmp_path) == before


def test_an_artefact_does_not_take_the_place_of_other_things(run: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    before = tree(tmp_path)
    assert_refused(run("compile", model, "-o", model), "is a file")
    assert_refused(run("compile", model, "-o", tmp_path / "thesis"), "other things in it")
    assert_refused(run("compile", model, "-o", tmp_path / "no" / "where"), "there is no folder")
    assert tree(tmp_path) == before


def test_a_disk_that_fails_halfway_leaves_the_old_files(run: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.onnx").write_text("old model")
    (tmp_path / "r.json").write_text("old report")
    before = tree(tmp_path)

    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rewriter.pipeline.optimize", _without_work(rewriter.optimize(model)))
    monkeypatch.setattr("onnx_ir.save", full)
    assert_refused(run("optimize", model, tmp_path / "out.onnx", "--report", tmp_path / "r.json"), "out.onnx", "No space left on device")
    assert tree(tmp_path) == before


def _without_work(result: rewriter.Optimized) -> Callable[..., rewriter.Optimized]:
    return lambda *_, **__: result


# --- an artefact that is none


def test_bench_of_a_folder_that_is_no_artefact(run: Command, tmp_path: Path) -> None:
    assert_refused(run("bench", tmp_path), "no manifest.json")
    with pytest.raises(InvalidModel, match="no such directory"):
        rewriter.load(tmp_path / "no")


# --- the API


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(3, 4)
        self.b = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


ONE = np.ones((2, 3), "float32")


def refused(kind: type[RewriterError], said: str, call: Callable[[], object]) -> None:
    """The call raises that type, in one line that says so."""
    __tracebackhide__ = True
    with pytest.raises(RewriterError) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, kind), f"{type(caught.value).__name__}: {message}"
    assert "\n" not in message and said in message, message


def test_a_module_in_training_mode() -> None:
    net = Net()
    refused(RewriterError, "eval()", lambda: rewriter.optimize(net, (torch.ones(2, 3),)))
    assert net.training and net.a.training


def test_modules_need_inputs_that_fit() -> None:
    net = Net().eval()
    refused(InvalidInput, "example_inputs", lambda: rewriter.optimize(net))
    refused(RewriterError, "", lambda: rewriter.optimize(net, (torch.ones(2, 5),)))
    refused(RewriterError, "", lambda: rewriter.optimize(net, (torch.ones(2, 3), torch.ones(2, 3))))
    refused(RewriterError, "", lambda: rewriter.optimize(net, {"z": torch.ones(2, 3)}))


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ((np.ones((2, 4), "float32"),), "'x' has shape (2, 4)"),
        ((np.ones(3, "float32"),), "'x' has shape (3,)"),
        ((np.ones((2, 3)),), "'x' is float64"),
        ((ONE, ONE), "takes 1 positional inputs, not 2"),
        ((), "input 'x' is missing"),
        ({"z": ONE}, "no input 'z'; it has 'x'"),
        ({"x": None}, "not an array"),
        (({"x": ONE},), "not an array"),
        (("text",), "not an array"),
    ],
)
def test_example_inputs_of_onnx_models(example: Any, said: str) -> None:
    refused(InvalidInput, said, lambda: rewriter.optimize(parse(TWO_MAPS), example))


@pytest.mark.parametrize(
    ("kind", "said", "options"),
    [
        (InvalidInput, "no rule 'maps-compse'; did you mean 'maps-compose'?", {"disable": ["maps-compse"]}),
        (InvalidInput, "no rule set 'wild'", {"rules": "wild"}),
        (InvalidInput, "no objective 'beauty'", {"objective": "beauty"}),
        (InvalidInput, "no limit 'node'", {"limits": {"node": 1}}),
        (InvalidInput, "no input 'z'", {"constants": {"z": 1.0}}),
        (InvalidInput, "no input 'z'", {"input_shapes": {"z": (1, 3)}}),
        (InvalidInput, "does not fit", {"input_shapes": {"x": (1, 4)}}),
        (BudgetError, "give some dozens of inputs", {"budget": 0.01}),
        (BudgetError, "is no bound", {"budget": -0.01, "calibration": [(ONE,)]}),
        (BudgetError, "give a function", {"metric": "accuracy"}),
    ],
)
def test_options_of_the_api(kind: type[RewriterError], said: str, options: dict[str, Any]) -> None:
    for function in (rewriter.optimize, rewriter.compile):
        refused(kind, said, lambda function=function: function(parse(TWO_MAPS), **options))


@pytest.mark.parametrize(
    ("said", "options"),
    [("no backend 'abacus'", {"backend": "abacus"}), ("no target 'tpu'", {"target": "tpu"}), ("not a number of trials", {"tune": -1}),
     ("threads", {"threads": 0}), ("threads", {"threads": "two"})],
)  # fmt: skip
def test_options_of_compile(said: str, options: dict[str, Any]) -> None:
    refused(InvalidInput, said, lambda: rewriter.compile(parse(TWO_MAPS), **options))


def test_what_is_no_model() -> None:
    for thing in (3, None, {"w": ONE}, lambda x: x, Net):
        refused(RewriterError, "cannot read", lambda thing=thing: rewriter.optimize(thing))
    refused(UnsupportedModel, "", lambda: rewriter.optimize(parse(TWO_MAPS.replace("float[n, 3]", "float[n, 3]"), 6)))


def test_calls_that_do_not_fit() -> None:
    compiled = rewriter.compile(parse(TWO_MAPS), backend="onnxruntime", threads=1)
    np.testing.assert_array_equal(compiled(ONE), compiled(x=ONE))
    refused(InvalidInput, "'x' is missing", compiled)
    refused(InvalidInput, "not 2", lambda: compiled(ONE, ONE))
    refused(InvalidInput, "x", lambda: compiled(np.ones((2, 4), "float32")))
    refused(InvalidInput, "x", lambda: compiled(ONE.astype("int64")))
    refused(InvalidInput, "'x'", lambda: compiled("no"))
    refused(InvalidInput, "no input 'z'", lambda: compiled(z=ONE))
    refused(InvalidInput, "given twice", lambda: compiled(ONE, x=ONE))
