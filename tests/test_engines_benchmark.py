"""The table of engines, from made-up times."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from backends.measure import Timing
from benchmarks import engines
from benchmarks.engines import Row
from benchmarks.subjects import Subject
from zoo.onnx_models import Feed


def test_ratios_are_the_best_rivals_time_over_ours() -> None:
    failed = Timing(math.inf, math.inf, 0, "refused")
    rows = [
        Row("a", {"ONNX Runtime": Timing(4, 3, 9), "OpenVINO": Timing(2, 1.5, 9), "auto: all": Timing(1, 1, 9)}, {"auto: all": "tvm"}),
        Row("b", {"ONNX Runtime": Timing(1, 1, 9), "OpenVINO": failed, "auto: all": Timing(2, 1, 9)}, {"auto: all": "tvm"}),
    ]
    head, cells = engines.rows_of(rows, ["ONNX Runtime", "OpenVINO", "auto: all"])
    assert head[-2:] == ["ratio, auto: all", "of minima, auto: all"] and all(len(row) == len(head) for row in cells)
    assert cells[0] == ["a", "4 (3)", "2 (1.5)", "1 (1) (tvm)", "2.00x", "1.50x"]
    assert cells[1] == ["b", "1 (1)", "-", "2 (1) (tvm)", "0.50x", "1.00x"]
    assert cells[2] == ["geometric mean", "", "", "", "1.00x", "1.22x"]
    assert Row("c", {"ONNX Runtime": Timing(1, 1, 9), "auto: all": failed}, {}).cells() == ["c", "1 (1)", "-", "-", "-"]
    record = json.loads(json.dumps(engines._record(rows, 2), allow_nan=False))
    assert record["models"][1]["times"]["OpenVINO"] == {"median_ms": None, "min_ms": None, "calls": 0, "failure": "refused"}


def test_a_subject_is_written_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def write(stem: Path) -> Feed:
        calls.append(stem)
        stem.with_suffix(".onnx").write_bytes(b"")
        return {"x": np.zeros(2), "y": np.ones(3)}

    subject = Subject("one", write)
    first, second = subject.files(tmp_path), subject.files(tmp_path)
    assert len(calls) == 1 and first.model == second.model == tmp_path / "one.onnx" and first.program is None
    assert list(second.feed) == ["x", "y"]


def test_engines_by_name() -> None:
    assert engines._engines("auto: all,ONNX Runtime") == ["ONNX Runtime", "auto: all"]
    assert set(engines._engines("rivals")) <= set(engines.RIVALS)
    with pytest.raises(Exception, match="no engine 'abacus'"):
        engines._engines("abacus")
