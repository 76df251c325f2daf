"""What is remembered from one compile to the next: the same answers, sooner; never another model's; and a broken file is done without."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import rewriter
from backends.isolated import Isolated
from rewriter import store
from rewriter.egraph import Saturator
from rewriter.store import Answers
from rewriter.verdicts import Verdicts
from rewriter.verify import Verification


def lora(seed: int = 0) -> onnx.ModelProto:
    made = parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]>
        g (float[3,8] x) => (float[3,8] y) { p = MatMul (x, w)\n l = MatMul (x, a)\n r = MatMul (l, b)\n y = Add (p, r) }"""
    )
    rng = np.random.default_rng(seed)
    for name, shape in (("w", (8, 8)), ("a", (8, 2)), ("b", (2, 8))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return made


@pytest.fixture(autouse=True)
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own.sqlite"
    monkeypatch.setenv("REWRITER_DATABASE", str(path))
    return path


def test_a_search_is_answered_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    first = rewriter.optimize(lora())

    def never(*_: Any) -> str:
        raise AssertionError("it was searched again")

    monkeypatch.setattr(Saturator, "_asked", never)
    again = rewriter.optimize(lora())
    assert again.model == first.model and again.report.after.ops == {"MatMul": 1}
    assert not any("search" in note for note in again.report.notes)


def test_a_model_that_was_verified_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    first = rewriter.optimize(lora(), (x,))
    runs: list[Any] = []
    kept = Isolated.run
    monkeypatch.setattr(Isolated, "run", lambda self, *a, **k: (runs.append(a[0]), kept(self, *a, **k))[1])
    assert rewriter.optimize(lora(), (x,)).report.verification == first.report.verification and not runs
    assert rewriter.optimize(lora(1), (x,)).report.verification.passed and len(runs) >= 2, "other weights are another model"
    runs.clear()
    assert rewriter.optimize(lora(), (x + 1,)).report.verification.passed and len(runs) >= 2, "other inputs are another question"


def test_a_verdict_is_of_both_files_and_of_the_inputs(tmp_path: Path) -> None:
    before, after = str(tmp_path / "before.onnx"), str(tmp_path / "after.onnx")
    Path(before).write_bytes(b"before")
    Path(after).write_bytes(b"after")
    known = Verification(True, 1e-7, 2e-7, 3)
    told = Verdicts(before, [np.ones(2)], None)
    assert not told.any and told.find(after) is None
    told.keep(known)
    assert Verdicts(before, [np.ones(2)], None).find(after) == known
    assert not Verdicts(before, [np.ones(3)], None).any
    assert not Verdicts(before, [np.ones(2)], [np.ones(1)]).any
    Path(f"{after}.data").write_bytes(b"weights")
    assert Verdicts(before, [np.ones(2)], None).find(after) is None
    Path(before).write_bytes(b"another")
    assert not Verdicts(before, [np.ones(2)], None).any


def test_what_was_not_used_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ROOM", 3000)
    answers = Answers()
    noise = [np.random.default_rng(i).bytes(1000).hex() for i in range(3)]  # 1,000 bytes each once compressed, and a little more
    answers.keep("0", noise[0])
    answers.keep("1", noise[1])
    assert answers.find("0") == noise[0]
    answers.keep("2", noise[2])
    assert (answers.find("0"), answers.find("1"), answers.find("2")) == (noise[0], None, noise[2])


@pytest.mark.parametrize("broken", ["no database", "a folder", "half an answer"])
def test_a_broken_file_is_done_without(broken: str, own_file: Path) -> None:
    if broken == "a folder":
        own_file.mkdir()
    elif broken == "no database":
        own_file.write_bytes(b"no database" * 1000)
    else:
        rewriter.optimize(lora())
        with sqlite3.connect(own_file) as connection:
            connection.execute("UPDATE answers SET code = substr(code, 1, 40)")
    assert rewriter.optimize(lora()).report.after.ops == {"MatMul": 1}
