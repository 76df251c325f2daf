"""Measuring tells how far it is, and goes on from where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import apply, numbers

pytest.importorskip("tvm")

from backends import backend
from backends.tvm import tune
from backends.tvm.database import Database
from backends.tvm.graph import read
from backends.tvm.lower import lower
from backends.tvm.machine import detect

Interrupted = KeyboardInterrupt


def products() -> onnx.ModelProto:
    nodes = [apply("MatMul", ["x", "a"], ["p"]), apply("MatMul", ["p", "b"], ["y"]), apply("Relu", ["y"], ["z"])]
    weights = {"a": numbers(128, 256), "b": numbers(256, 192)}
    ports = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [64, 128]), ("z", [64, 192]))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(v, n) for n, v in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_is_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, database = detect(1), Database(tmp_path / "kernels.sqlite")
    low = lower(read(products()), machine)
    monkeypatch.setattr(tune, "_CHUNK", 1)  # a kernel at a time
    measure, measured = tune._timed, []

    def once(*arguments: Any) -> Iterator[Any]:
        if measured:
            raise Interrupted
        for kernel, times in measure(*arguments):
            measured.append(kernel)
            yield kernel, times

    monkeypatch.setattr(tune, "_timed", once)
    with pytest.raises(Interrupted):
        tune.choose(low, database, tune=4)
    assert len(measured) == 1
    first = measured[0]
    told: list[str] = []

    def others(*arguments: Any) -> Iterator[Any]:
        for kernel, times in measure(*arguments):
            measured.append(kernel)
            yield kernel, times

    monkeypatch.setattr(tune, "_timed", others)
    tune.choose(low, database, tune=4, progress=told.append)
    assert len(measured) == 2 and measured[1] != first
    assert told == [f"0 of {told[0].split()[2]} configurations measured"]


def test_the_time_that_is_left() -> None:
    assert tune._so_far(0, 30, 0.0) == "0 of 30 configurations measured"
    assert tune._so_far(10, 30, 5.0) == "10 of 30 configurations measured, about 10 s left"


def test_progress_comes_out_of_the_compilers_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRITER_DATABASE", str(tmp_path / "own.sqlite"))
    told: list[str] = []
    backend("tvm").build(products(), threads=1, tune=40, progress=told.append)
    assert any("configurations measured" in text for text in told)
