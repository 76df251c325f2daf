"""Which engine is chosen, on made-up times: nothing here measures."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_text import parse as model_of

import rewriter
from backends.measure import Timing
from rewriter import race
from rewriter.errors import InvalidInput
from rewriter.race import Outputs, Race

pytestmark = pytest.mark.clock


class Stub:
    """A comparison that knows its times, and in which every engine gives its own name."""

    def __init__(self, times: Mapping[str, float | str]) -> None:
        self.times = times
        self.asked: dict[str, Any] = {}

    def run(self, example: Sequence[Any], **options: Any) -> dict[str, Timing]:
        self.asked = options
        return {k: Timing(t, t, 5) if isinstance(t, float) else Timing(math.inf, math.inf, 0, t) for k, t in self.times.items()}

    def outputs(self, key: str, inputs: Sequence[Any]) -> list[Any]:
        return [key]

    def save(self, key: str, folder: str) -> None:
        assert os.listdir(folder) == []

    def close(self) -> None:
        pass

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def outcome(
    times: Mapping[str, float | str], wrong: Sequence[str] = (), again: Mapping[str, float | str] | None = None, *, small: bool = False
) -> race.Outcome:
    """``again``: the times in other processes; the same where there are none."""
    engines = list(dict.fromkeys(key.split()[0] for key in times))

    def differs(run: Outputs, usual: Outputs | None) -> str:
        assert usual is None or usual({})[0].startswith("onnxruntime")
        return "other numbers" if run({})[0] in wrong else ""

    def others(candidates: Mapping[str, Any], **_: Any) -> Stub:
        return Stub({key: (again or times)[key] for key in candidates})

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "Comparison", others)
        held = Race([], "", "", os.path.join(folder, "saved"), threads=None, tune=0, small=small)
        held._engines, held._alone, held._candidates, held._comparison = engines, len(engines) == 1, dict.fromkeys(times), Stub(times)  # type: ignore[assignment]
        return held.run([np.zeros(1)], differs)


def test_the_fastest_engine_runs_the_result() -> None:
    found = outcome({"onnxruntime before": 2.0, "onnxruntime after": 1.5, "openvino before": 1.4, "openvino after": 1.0})
    assert (found.engine, found.kept, found.notes) == ("openvino", "", [])
    assert found.latency == {"onnxruntime": {"before_ms": 2.0, "after_ms": 1.5}, "openvino": {"before_ms": 1.4, "after_ms": 1.0}}


def test_onnx_runtime_is_chosen_where_it_is_as_good() -> None:
    assert outcome({"onnxruntime after": 1.02, "openvino after": 1.0}).engine == "onnxruntime"
    assert outcome({"onnxruntime after": 1.04, "openvino after": 1.0}).engine == "openvino"


def test_the_model_is_kept_on_the_engine_that_runs_it_best() -> None:
    found = outcome({"onnxruntime before": 2.0, "onnxruntime after": 1.5, "openvino before": 1.0, "openvino after": 1.2})
    assert found.engine == "openvino" and found.kept == "it took 1.2 ms where the model takes 1"
    again = outcome({"onnxruntime before": 2.0, "onnxruntime after": 1.5, "openvino before": 1.45, "openvino after": 3.0})
    assert (again.engine, again.kept) == ("onnxruntime", "")


def test_a_small_result_that_seems_slower_is_timed_in_other_processes() -> None:
    times: dict[str, float | str] = {"onnxruntime before": 0.010, "onnxruntime after": 0.011}
    found = outcome(times, again={"onnxruntime before": 0.010, "onnxruntime after": 0.009})
    assert (found.engine, found.kept) == ("onnxruntime", "")
    assert found.latency == {"onnxruntime": {"before_ms": 0.010, "after_ms": 0.009}}
    assert outcome(times, again={"onnxruntime before": 0.010, "onnxruntime after": 0.012}).kept == "it took 0.012 ms where the model takes 0.01"
    assert outcome(times, again={"onnxruntime before": 0.010, "onnxruntime after": "died"}).kept == "it took 0.011 ms where the model takes 0.01"
    large: dict[str, float | str] = {key: 1000 * float(time) for key, time in times.items()}
    assert outcome(large, again={"onnxruntime before": 10.0, "onnxruntime after": 9.0}).kept == "it took 11 ms where the model takes 10"


def test_a_result_for_its_bytes_is_not_given_up_for_its_time() -> None:
    times: dict[str, float | str] = {"onnxruntime before": 1.0, "onnxruntime after": 3.0, "tvm after": 2.0}
    found = outcome(times, small=True)
    assert (found.engine, found.kept) == ("tvm", "") and outcome(times).kept
    alone = outcome({"onnxruntime before": 1.0, "onnxruntime after": "died"}, small=True)
    assert (alone.engine, alone.kept) == ("onnxruntime", "died")


@pytest.mark.parametrize(
    ("times", "engine"),
    [
        ({"onnxruntime": 1.0, "tvm": 1.05}, "tvm"),
        ({"onnxruntime": 1.0, "tvm": 1.2}, "onnxruntime"),
        ({"onnxruntime": 1.0, "tvm": 0.9, "openvino": 0.7}, "openvino"),
        ({"onnxruntime": 1.0, "tvm": "no GRU"}, "onnxruntime"),
        ({"onnxruntime": "died", "tvm": "died"}, "onnxruntime"),
    ],
)
def test_what_approximations_are_timed_on(monkeypatch: pytest.MonkeyPatch, times: dict[str, float | str], engine: str) -> None:
    monkeypatch.setattr(race, "Comparison", lambda candidates, **_: Stub({name: times[name] for name in candidates}))
    assert race.fastest_as_it_is([*times, "inductor"], "exact.onnx", [np.zeros(1)], threads=1) == engine
    assert race.fastest_as_it_is(["inductor"], "exact.onnx", [np.zeros(1)], threads=1) == "inductor"
    assert race.fastest_as_it_is(list(times), "exact.onnx", None, threads=1) == "onnxruntime"


def test_engines_that_fail_are_notes() -> None:
    found = outcome({"onnxruntime before": 2.0, "onnxruntime after": 1.5, "tvm after": "no Loop"})
    assert found.engine == "onnxruntime" and found.notes == ["tvm did not compete: no Loop"]
    assert found.latency is not None and "tvm" not in found.latency
    nothing = outcome({"onnxruntime before": "died", "onnxruntime after": "died"})
    assert (nothing.engine, nothing.kept, nothing.latency, nothing.notes) == ("onnxruntime", "", {}, [])
    alone = outcome({"onnxruntime before": 2.0, "onnxruntime after": "died"})
    assert (alone.engine, alone.kept) == ("onnxruntime", "died")


def test_an_engine_whose_results_differ_gives_way() -> None:
    times = {"onnxruntime before": 2.0, "onnxruntime after": 1.5, "openvino before": 1.1, "openvino after": 0.5, "tvm after": 1.0}
    found = outcome(times, wrong=["openvino after", "openvino before"])
    assert found.engine == "tvm" and found.notes == ["openvino was fastest and was not used: other numbers"]
    found = outcome(times, wrong=["openvino after", "tvm after", "openvino before"])
    assert (found.engine, found.kept) == ("onnxruntime", "")
    found = outcome({"onnxruntime before": 1.0, "onnxruntime after": 3.0, "tvm after": 0.5}, wrong=["tvm after"])
    assert (found.engine, found.kept) == ("onnxruntime", "it took 3 ms where the model takes 1")


def test_names_and_lists_of_engines() -> None:
    assert race.parse("tvm") == ("tvm",) and race.parse("onnxruntime, torch,onnxruntime") == ("onnxruntime", "torch")
    assert race.parse("auto")[0] == "onnxruntime" and set(race.parse("auto")) <= set(race.AUTO)
    assert "torch" in race.parse("auto", tune=1)
    for wrong in ("", "abacus", "onnxruntime,abacus", ",", "onnxruntime,auto"):
        with pytest.raises(InvalidInput, match="no backend"):
            race.parse(wrong)


@pytest.mark.usefixtures("without_race")
def test_a_list_restricts_the_race() -> None:
    model = model_of("main (float[4, 4] x) => (float[4, 4] y) { t = MatMul(x, x)  y = Relu(t) }")
    compiled = rewriter.compile(model, backend="onnxruntime,torch", threads=1)
    assert compiled.backend in ("onnxruntime", "torch")
    latency = compiled.report.to_dict()["latency"]
    assert set(latency) == {"onnxruntime", "torch"} and latency["torch"]["before_ms"] is None
    x = np.arange(16, dtype="float32").reshape(4, 4)
    np.testing.assert_allclose(compiled(x), np.maximum(x @ x, 0))


def test_an_engine_that_cannot_take_the_model_is_a_note() -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:]), opset_imports=opsets, ir_version=10)
    compiled = rewriter.compile(model, backend="onnxruntime,torch", threads=1)
    assert compiled.backend == "onnxruntime" and compiled(np.float32([0, 9])).tolist() == [0, 9]
    assert len(compiled.report.notes) == 1 and compiled.report.notes[0].startswith("torch did not compete: ")
    assert "\n" not in compiled.report.notes[0]


def test_a_model_that_fills_the_memory_is_measured_on_one_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "_free_memory", lambda: 5000.0)
    (tmp_path / "before.onnx").write_bytes(bytes(1000))
    with Race(["onnxruntime", "torch"], str(tmp_path / "before.onnx"), "", "", threads=1, tune=0) as held:
        assert list(held._candidates) == ["onnxruntime before", "onnxruntime after", "torch after"]
        held.load_before()
        assert list(held._candidates) == ["onnxruntime before", "onnxruntime after"]
        assert len(held._notes) == 1 and held._notes[0].startswith("torch did not compete: ")
