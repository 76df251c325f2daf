"""compile, call, update, save and load: the same numbers in the user's own structure, whatever runs underneath."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx_text import parse
from torch import nn

import rewriter
from rewriter import Compiled, InvalidInput, RewriterError

ROOT = Path(rewriter.__file__).resolve().parent.parent
X = torch.linspace(-2, 2, 30).reshape(5, 6)


class Adapted(nn.Module):
    """A layer with a low-rank adapter beside it, and a branch that a zero switches off."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Linear(6, 8)
        self.down = nn.Linear(6, 2, bias=False)
        self.up = nn.Linear(2, 8, bias=False)
        self.off = nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x) + 0.5 * self.up(self.down(x))
        return torch.relu(y) + self.off


def adapted(seed: int = 0) -> Adapted:
    return Adapted(seed).eval()


def wanted(module: nn.Module, *inputs: torch.Tensor) -> Any:
    with torch.no_grad():
        return module(*inputs)


def close(got: Any, want: Any) -> None:
    __tracebackhide__ = True
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return rewriter.compile(adapted(), (X,), backend="onnxruntime", threads=1)


# --- calling


def test_the_adapter_is_merged(compiled: Compiled) -> None:
    ops = compiled.report.after.ops
    assert ops.get("MatMul", 0) + ops.get("Gemm", 0) == 1 and compiled.report.before.nodes > compiled.report.after.nodes
    assert compiled.report.verification.passed is True
    close(compiled(X), wanted(adapted(), X))


def test_tensors_in_tensors_out_and_arrays_in_arrays_out(compiled: Compiled) -> None:
    tensor, array = compiled(X), compiled(X.numpy())
    assert isinstance(tensor, torch.Tensor) and isinstance(array, np.ndarray)
    close(tensor, array)
    for by_name in (compiled(x=X), compiled({"x": X})):
        assert isinstance(by_name, torch.Tensor)
        close(by_name, tensor)


def test_results_do_not_share_memory(compiled: Compiled) -> None:
    first = compiled(X)
    kept = first.clone()
    compiled(X + 1)
    assert torch.equal(first, kept)
    first.zero_()
    close(compiled(X), kept)


def test_inputs_need_not_be_contiguous_and_are_not_changed(compiled: Compiled) -> None:
    wide = torch.linspace(-1, 1, 60).reshape(6, 10)
    view, before = wide.T[::2], wide.clone()
    assert not view.is_contiguous()
    close(compiled(view), wanted(adapted(), view))
    close(compiled(view.numpy()), wanted(adapted(), view))
    assert torch.equal(wide, before)


class Pair(NamedTuple):
    low: torch.Tensor
    high: torch.Tensor


class Nested(nn.Module):
    """Takes and returns nested containers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor], *, extra: dict[str, torch.Tensor]) -> dict[str, Any]:
        y = self.b(self.a(pair[0])) + pair[1]
        return {"y": y, "both": Pair(y - 1, y + extra["shift"]), "list": [y * 2]}


def test_structures_are_kept() -> None:
    module = Nested().eval()
    inputs = {"pair": (X, X + 1), "extra": {"shift": X - 1}}
    want = wanted_of(module, inputs)
    compiled = rewriter.compile(module, inputs, backend="onnxruntime", threads=1)
    got = compiled(inputs["pair"], extra=inputs["extra"])
    assert list(got) == ["y", "both", "list"] and type(got["both"]) is Pair and type(got["list"]) is list
    for mine, its in ((got["y"], want["y"]), *zip(got["both"], want["both"], strict=True), (got["list"][0], want["list"][0])):
        assert isinstance(mine, torch.Tensor)
        close(mine, its)
    with pytest.raises(InvalidInput, match="shift"):
        compiled(inputs["pair"], extra={})


def wanted_of(module: nn.Module, inputs: Mapping[str, Any]) -> Any:
    with torch.no_grad():
        return module(**inputs)


# --- update


def test_new_weights_give_what_the_module_gives(tmp_path: Path) -> None:
    compiled = rewriter.compile(adapted(0), (X,), backend="onnxruntime", threads=1)
    for seed, kind in ((7, "tensors"), (8, "arrays")):
        other = adapted(seed)
        state = other.state_dict()
        compiled.update(state if kind == "tensors" else {k: v.numpy() for k, v in state.items()})
        close(compiled(X), wanted(other, X))
    compiled.save(tmp_path / "a")
    loaded = rewriter.load(tmp_path / "a")
    close(loaded(X.numpy()), wanted(adapted(8), X))
    loaded.update(adapted(9).state_dict())
    close(loaded(X.numpy()), wanted(adapted(9), X))
    close(compiled(X), wanted(adapted(8), X))


def without(state: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if k != name}


def test_an_update_that_does_not_fit_changes_nothing() -> None:
    compiled = rewriter.compile(adapted(0), (X,), backend="onnxruntime", threads=1)
    state = adapted(5).state_dict()
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        (without(state, "down.weight"), "lack 'down.weight'"),
        ({**state, "base.weight": torch.zeros(8, 7)}, "base.weight"),
        ({**state, "off": torch.ones(8)}, "'off' was zero throughout"),
        ({}, "none of the 0 weights|lack"),
        ({"unheard.of": torch.zeros(1)}, "none of the 1 weights|lack"),
    ]
    for given, said in cases:
        with pytest.raises(RewriterError, match=said) as caught:
            compiled.update(given)
        assert "\n" not in str(caught.value)
        close(compiled(X), wanted(adapted(0), X))


def test_equal_weights_that_part_are_refused() -> None:
    """They are stored once: new ones must still be equal."""
    body = "main (float[2] x) => (float[2] y) <float[2] a = {2, 3}, float[2] b = {2, 3}> { t = Mul(x, a)  s = Sin(t)  y = Mul(s, b) }"
    compiled = rewriter.compile(parse(body), backend="onnxruntime", threads=1)
    x = np.array([0.5, -1], "float32")
    new = np.array([4, 5], "float32")
    compiled.update({"a": new, "b": new})
    close(compiled(x), np.sin(x * new) * new)
    with pytest.raises(RewriterError, match="were equal"):
        compiled.update({"a": new, "b": new + 1})
    close(compiled(x), np.sin(x * new) * new)


# --- backends


class Small(nn.Module):
    """Convolution with batch norm, a residual, a pooled head: what all backends can run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.skip = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(image)) + self.skip(image))
        return torch.softmax(self.head(y.mean((2, 3))), -1)


IMAGE = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize("name", ["onnxruntime", "torch", "tvm", "reference"])
def test_every_backend_gives_the_same(tmp_path: Path, name: str) -> None:
    module = Small().eval()
    compiled = rewriter.compile(module, (IMAGE,), backend=name, threads=2)
    assert compiled.backend == name and compiled.report.after.ops["Conv"] == 1
    close(compiled(IMAGE), wanted(module, IMAGE))
    compiled.save(tmp_path / "a")
    loaded = rewriter.load(tmp_path / "a")
    assert loaded.backend == name
    close(loaded(IMAGE.numpy()), wanted(module, IMAGE))
    close(loaded(image=IMAGE), wanted(module, IMAGE))
    other = Small().eval()
    with torch.no_grad():
        other.conv.weight.mul_(2)
    loaded.update(other.state_dict())
    close(loaded(IMAGE.numpy()), wanted(other, IMAGE))


def test_auto_measures_and_says_so(tmp_path: Path) -> None:
    compiled = rewriter.compile(Small().eval(), (IMAGE,), threads=1)
    close(compiled(IMAGE), wanted(Small().eval(), IMAGE))
    report = compiled.report.to_dict()
    assert "onnxruntime" in report["latency"] and report["backend"] == compiled.backend and compiled.backend in report["latency"]
    assert report["latency"]["onnxruntime"]["before_ms"] > 0
    for pair in report["latency"].values():  # of every engine that is installed
        assert pair["after_ms"] > 0
    compiled.save(tmp_path / "a")
    assert rewriter.load(tmp_path / "a").report.to_dict() == report


def test_two_compiled_models_live_side_by_side() -> None:
    one = rewriter.compile(adapted(0), (X,), backend="onnxruntime", threads=1)
    two = rewriter.compile(adapted(1), (X,), backend="torch")
    for _ in range(2):
        close(one(X), wanted(adapted(0), X))
        close(two(X), wanted(adapted(1), X))
    one.update(adapted(2).state_dict())
    close(two(X), wanted(adapted(1), X))


# --- in other processes


def python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_load_imports_neither_torch_nor_egglog(tmp_path: Path, compiled: Compiled) -> None:
    compiled.save(tmp_path / "a")
    program = f"""
import sys, numpy as np, rewriter
c = rewriter.load({str(tmp_path / "a")!r})
y = c(x=np.load({str(tmp_path / "x.npy")!r}))
c.update({{n: np.load({str(tmp_path)!r} + "/" + n + ".npy") for n in ("base.weight", "base.bias", "down.weight", "up.weight", "off")}})
z = c(np.load({str(tmp_path / "x.npy")!r}))
np.savez({str(tmp_path / "out.npz")!r}, y=y, z=z)
print(sorted({{"torch", "egglog", "highspy", "onnxscript", "tvm", "rich", "click"}} & {{m.split(".")[0] for m in sys.modules}}), c.report.after.nodes)
"""
    np.save(tmp_path / "x.npy", X.numpy())
    for name, tensor in adapted(3).state_dict().items():
        np.save(tmp_path / f"{name}.npy", tensor.numpy())
    assert python(program).split() == ["[]", str(compiled.report.after.nodes)]
    with np.load(tmp_path / "out.npz") as results:
        close(results["y"], wanted(adapted(0), X))
        close(results["z"], wanted(adapted(3), X))


BRANCHES = """main (float[n, 4] x) => (float[n, 4] y, float[n, 2] z)
    <float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2},
     float[4, 4] v = {0, 1, 0, 2, 0, 3, 0, 4, 1, 0, 1, 0, 2, 0, 2, 0}, float[4] s = {1, 2, 3, 4},
     float[4, 2] a = {1, 0, 2, 0, 3, 0, 4, 0}, float[2, 4] b = {1, 2, 3, 4, 5, 6, 7, 8}> {
        p = MatMul(x, w)  q = MatMul(x, v)  r = Mul(q, s)  t = MatMul(x, a)  u = MatMul(t, b)
        pq = Add(p, r)  y1 = Add(pq, u)  y = Relu(y1)  z = Tanh(t)
    }"""


def test_the_same_model_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """In this process, and in two others that hash strings differently."""
    onnx.save(parse(BRANCHES), tmp_path / "in.onnx")
    here = [rewriter.optimize(tmp_path / "in.onnx").model.SerializeToString() for _ in range(2)]
    assert here[0] == here[1]
    program = f"import rewriter; rewriter.optimize({str(tmp_path / 'in.onnx')!r}).save({str(tmp_path)!r} + '/OUT.onnx')"
    for seed in ("1", "2"):
        python(program.replace("OUT", seed), PYTHONHASHSEED=seed)
        assert (tmp_path / f"{seed}.onnx").read_bytes() == here[0]


def test_saved_twice_is_the_same_file(tmp_path: Path) -> None:
    result = rewriter.optimize(parse(BRANCHES))
    result.save(tmp_path / "1.onnx")
    result.save(tmp_path / "2.onnx")
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes() == result.model.SerializeToString()
