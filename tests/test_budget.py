"""The whole flow: nothing lost without a budget, the budget kept with one, the exact graph whatever goes wrong, and a report that says why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx_text import parse, run_ort

import rewriter
from backends.measure import Timing
from passes.approximate.candidate import Candidate, Refusal, Site, Wanted
from rewriter import candidate_costs, joint_choice, pipeline, race
from rewriter.budget import Budget
from rewriter.budget import parse as parse_budget
from rewriter.errors import BudgetError
from rewriter.front import correlation, pareto, plot, rows, write_plot
from rewriter.graph import weight_bytes
from rewriter.metric import Worsening
from rewriter.trial import Trials

RANDOM = np.random.default_rng(0)
ROWS, WIDTH, HIDDEN = 32, 192, 512


def network(seed: int = 0) -> onnx.ModelProto:
    """Two layers, the hidden channels mostly copies of each other: it can be made smaller, and be computed on 8 bits."""
    random = np.random.default_rng(seed)
    few = random.normal(size=(WIDTH, HIDDEN // 8)) / np.sqrt(WIDTH)
    w = np.repeat(few, 8, axis=1) + 0.003 * random.normal(size=(WIDTH, HIDDEN))
    v = random.normal(size=(HIDDEN, WIDTH)) / np.sqrt(HIDDEN)
    proto = parse(f"main (float[{ROWS},{WIDTH}] x) => (float[{ROWS},{WIDTH}] y) {{ h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }}")
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype("float32"), n) for n, a in (("w", w), ("v", v)))
    return proto


def samples(count: int = 24, seed: int = 1) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(ROWS, WIDTH)).astype("float32") for _ in range(count)]


def error(model: onnx.ModelProto, other: onnx.ModelProto, seed: int = 9) -> float:
    """On inputs that nobody has seen."""
    pairs = [(run_ort(model, {"x": x})[0], run_ort(other, {"x": x})[0]) for x in samples(8, seed)]
    return float(np.linalg.norm([a - b for a, b in pairs]) / np.linalg.norm([a for a, _ in pairs]))


def made_up(self: Trials, models: Mapping[str, tuple[ir.Model, Sequence[np.ndarray]]], seconds: float = 0.0) -> dict[str, float]:
    """Microseconds by what a model holds, so that no clock decides a test: fewer bytes of weights are faster."""
    return {name: 1.0 + weight_bytes(model) / 1e3 + len(model.graph) for name, (model, _) in models.items()}


@pytest.fixture(scope="module", autouse=True)
def no_clock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trials, "times", made_up)
        yield


@pytest.fixture(scope="module")
def found() -> rewriter.Optimized:
    return rewriter.optimize(network(), budget=0.05, calibration=samples())


def test_the_budget_is_kept_on_inputs_that_nobody_has_seen(found: rewriter.Optimized) -> None:
    assert found.report.budget is not None and found.report.budget["chosen"] > 0, str(found.report)
    assert 0 < error(network(), found.model) <= 0.05


def test_the_report_says_what_was_chosen_and_why_the_rest_was_not(found: rewriter.Optimized) -> None:
    data = json.loads(found.report.to_json())
    section = data["budget"]
    assert section["budget"] == {"metric": 0.05, "weight_bytes": None, "latency": None}
    assert section["metric"]["worsening"] <= section["metric"]["upper"] <= 0.05
    assert all(s["chosen"] or s["reason"] for s in section["sites"])
    assert sum(s["chosen"] for s in section["sites"]) == section["chosen"]
    assert any(r["equality"] == "approximate" and r["error"] > 0 for r in data["rewrites"])
    assert any(d["rule"].startswith(("prune", "quantise", "low-rank")) for d in data["declined"])
    assert any(r["verdict"] == "accepted" for r in section["rounds"])
    assert section["front"]
    assert any("approximate: " in n for n in data["notes"])
    assert rewriter.optimize(network()).report.budget is None


@pytest.mark.parametrize("budget", [None, 0, 0.0, {}, {"metric": 0}])
def test_without_a_budget_the_result_is_the_exact_one_bit_for_bit(budget: Any) -> None:
    exact = rewriter.optimize(network()).model
    assert rewriter.optimize(network(), budget=budget, calibration=samples(8)).model.SerializeToString() == exact.SerializeToString()


def test_a_budget_that_nothing_meets_leaves_the_exact_graph() -> None:
    result = rewriter.optimize(network(), budget=1e-9, calibration=samples(8))
    assert result.model.SerializeToString() == rewriter.optimize(network()).model.SerializeToString()
    assert result.report.budget is not None and result.report.budget["chosen"] == 0
    assert any("the exact graph stands" in n for n in result.report.notes)


class Broken:
    """A kind of rewrite whose candidates are wrong in every way there is."""

    name = "broken"

    def __init__(self, way: str) -> None:
        self.way = way

    def wants(self, model: Any) -> Wanted:
        return Wanted(frozenset({"x", "nobody"} if self.way == "wants" else {"x"}))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        if self.way == "propose":
            raise ValueError("no")
        output = site.model.graph.outputs[0].name or ""

        def apply(graph: Any) -> None:
            if self.way == "apply":
                raise KeyError("gone")
            graph.maker(output).replace_input_with(0, graph.value("x"))

        yield Candidate("broken", output, frozenset({output}), apply, unit=(("x",), output))


@pytest.mark.parametrize("way", ["wants", "propose", "apply", "shapes"])
def test_what_fails_in_a_candidate_never_reaches_the_user(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "competing", lambda *, for_bytes: (((Broken(way),),),))
    result = rewriter.optimize(network(), budget=0.05, calibration=samples(8))
    assert result.model.SerializeToString() == rewriter.optimize(network()).model.SerializeToString()
    assert any("exact graph stands" in n for n in result.report.notes)


class TooBold:
    """Claims nothing, halves everything: found out only when it is measured."""

    name = "bold"

    def wants(self, model: Any) -> Wanted:
        return Wanted(frozenset({"x"} | {o.name for o in model.graph.outputs}))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        output = site.model.graph.outputs[0].name or ""

        def apply(graph: Any) -> None:
            graph.replace(output, graph.value("x"))

        yield Candidate("bold", output, frozenset({output}), apply, unit=(("x",), output), lost=0.0)


def test_what_alone_is_over_the_budget_is_declined_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "competing", lambda *, for_bytes: (((TooBold(),),),))
    result = rewriter.optimize(network(), budget=0.05, calibration=samples(8))
    (declined,) = [d for d in result.report.declined if d["rule"] == "bold"]
    assert "alone it loses" in declined["reason"] and "the budget is 0.05" in declined["reason"]


class Renamed:
    """Another matrix of nearly the same numbers, known by its name: what it takes is up to who tells the time."""

    def __init__(self, name: str, place: int) -> None:
        self.name, self._place = name, place

    def wants(self, model: Any) -> Wanted:
        return Wanted(frozenset({v.name for n in model.graph for v in (*n.inputs[:1], *n.outputs)}))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        node = [n for n in site.model.graph if n.op_type == "MatMul"][self._place]
        output, weights = node.outputs[0].name or "", node.inputs[1].const_value.numpy() * np.float32(1.0001)  # type: ignore[union-attr]

        def apply(graph: Any) -> None:
            graph.maker(output).replace_input_with(1, graph.stored(weights, self.name))

        yield Candidate(self.name, output, frozenset({output}), apply, unit=((node.inputs[0].name or "",), output), lost=1e-8)  # type: ignore[union-attr]


def test_a_kind_that_slows_the_whole_is_found_out_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """By themselves both gain; in the whole graph the one that promises more takes time."""

    def times(self: Trials, models: Mapping[str, tuple[ir.Model, Any]], seconds: float = 0.0) -> dict[str, float]:
        def of(model: ir.Model) -> float:
            names = " ".join(model.graph.initializers)
            whole = sum(n.op_type == "MatMul" for n in model.graph) == 2
            return 100.0 - 20 * ("honest" in names) - 30 * ("boastful" in names) * (-10 if whole else 1)

        return {name: of(model) for name, (model, _) in models.items()}

    monkeypatch.setattr(Trials, "times", times)
    monkeypatch.setattr(pipeline, "competing", lambda *, for_bytes: (((Renamed("honest", 0), Renamed("boastful", 1)),),))
    section = rewriter.optimize(network(), budget=0.05, calibration=samples(8)).report.budget
    assert section is not None and [s["rewrite"] for s in section["sites"] if s["chosen"]] == ["honest"], section["rounds"]


@pytest.mark.parametrize("slower", [1, 2])
def test_an_answer_is_timed_in_another_process_too(slower: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answers are not faster there: the next one is taken, or none."""
    confirmed: list[bool] = []

    def times(self: Trials, models: Mapping[str, tuple[ir.Model, Any]], seconds: float = 0.0) -> dict[str, float]:
        if "answer" not in models:
            return {name: 100.0 - 20 * ("some" in " ".join(m.graph.initializers)) for name, (m, _) in models.items()}
        confirmed.append(len(confirmed) >= slower)
        return {"exact": 1.0, "answer": 0.9 if confirmed[-1] else 1.0}

    monkeypatch.setattr(Trials, "times", times)
    monkeypatch.setattr(pipeline, "competing", lambda *, for_bytes: (((Renamed("some", 0),),), ((Renamed("somewhat", 1),),)))
    result = rewriter.optimize(network(), budget=0.05, calibration=samples(8))
    section = result.report.budget
    assert section is not None and len(confirmed) == 2
    if slower == 2:
        assert section["chosen"] == 0 and "in another process" in section["stopped"]
        assert result.model.SerializeToString() == rewriter.optimize(network()).model.SerializeToString()
        return
    assert section["chosen"] == 1


def test_what_an_engine_leaves_to_another_does_not_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(self: Trials, models: Mapping[str, tuple[ir.Model, Any]], seconds: float = 0.0) -> dict[str, float]:
        self.left = {name: "there is no kernel for it" for name in models if "integers" in name}
        return made_up(self, models)

    monkeypatch.setattr(Trials, "times", times)
    report = rewriter.optimize(network(), budget=0.05, calibration=samples(8)).report
    reasons = {d["rule"]: d["reason"] for d in report.declined if d["rule"].startswith("quantise/int8-per")}
    assert "no kernel" in reasons["quantise/int8-per-channel-integers"] and "no kernel" not in reasons.get("quantise/int8-per-channel", "")


def cell() -> onnx.ModelProto:
    """One step of an LSTM."""
    random = np.random.default_rng(0)
    proto = parse(
        f"main (float[1,{ROWS},{WIDTH}] x, float[1,{ROWS},64] h, float[1,{ROWS},64] c) => (float[1,{ROWS},64] a, float[1,{ROWS},64] b) "
        "{ y, hn, cn = LSTM <hidden_size=64> (x, w, r, , , h, c) a = Neg(hn) b = Neg(cn) }"
    )
    weights = {"w": random.normal(size=(1, 256, WIDTH)), "r": random.normal(size=(1, 256, 64))}
    proto.graph.initializer.extend(numpy_helper.from_array((a / 8).astype("float32"), n) for n, a in weights.items())
    return proto


@pytest.mark.parametrize("slower", [0.0, 1.0])
def test_the_weights_of_an_lstm_are_reached_where_it_is_as_fast_spelled_out(slower: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def times(self: Trials, models: Mapping[str, tuple[ir.Model, Any]], seconds: float = 0.0) -> dict[str, float]:
        gates = {n: any(node.op_type == "Sigmoid" for node in model.graph) for n, (model, _) in models.items()}
        return {n: (1.0 + weight_bytes(model) / 1e3) * (1 + slower * gates[n]) for n, (model, _) in models.items()}

    monkeypatch.setattr(Trials, "times", times)
    random = np.random.default_rng(1)
    sizes = {"x": WIDTH, "h": 64, "c": 64}
    feeds = [{n: random.uniform(-1, 1, (1, ROWS, size)).astype("float32") for n, size in sizes.items()} for _ in range(16)]
    result = rewriter.optimize(cell(), budget=0.05, calibration=feeds[:12])
    left = [node.op_type for node in result.model.graph.node]
    if slower:
        assert left.count("LSTM") == 1
        return
    assert "LSTM" not in left and result.report.budget is not None and result.report.budget["chosen"] == 1
    for feed in feeds[12:]:
        for want, got in zip(run_ort(cell(), feed), run_ort(result.model, feed), strict=True):
            assert 0 < np.linalg.norm(got - want) <= 0.05 * np.linalg.norm(want)


def test_what_time_does_not_allow_to_measure_does_not_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate_costs, "PATIENCE", 0.0)
    result = rewriter.optimize(network(), budget=0.05, calibration=samples(8))
    assert any(d["reason"] == "not timed: time was up" for d in result.report.declined)
    assert result.model.SerializeToString() == rewriter.optimize(network()).model.SerializeToString()


def test_a_joint_error_above_the_budget_is_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single errors are made to look small: the first answers miss when measured as a whole, and what is returned does not."""
    original = joint_choice.Search._error
    monkeypatch.setattr(joint_choice.Search, "_error", lambda self, k: original(self, k) / 1000)
    result = rewriter.optimize(network(), budget=0.011, calibration=samples(12))
    section = result.report.budget
    assert section is not None
    assert all("it loses" in r["verdict"] or r["verdict"] == "accepted" or "not faster" in r["verdict"] for r in section["rounds"])
    assert error(network(), result.model) <= 0.011


def test_parts_of_a_set_that_missed_are_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program has learnt of the set rules all of it out; the one that gains most is within the budget."""
    answers = iter([frozenset({0, 1})])
    monkeypatch.setattr(joint_choice, "solve", lambda *_: next(answers, frozenset()))

    def judged(self: Any, model: ir.Model) -> tuple[ir.Model, Worsening]:
        names = " ".join(model.graph.initializers)
        lost = 0.1 if "small" in names else 0.01
        return self._work.trials.stored(model), Worsening(lost, lost)

    def times(self: Trials, models: Mapping[str, tuple[ir.Model, Any]], seconds: float = 0.0) -> dict[str, float]:
        return {name: 100.0 - sum(gain for n, gain in (("small", 2), ("large", 40)) if n in " ".join(m.graph.initializers)) for name, (m, _) in models.items()}

    monkeypatch.setattr(joint_choice.Search, "_judged", judged)
    monkeypatch.setattr(Trials, "times", times)
    monkeypatch.setattr(pipeline, "competing", lambda *, for_bytes: (((Renamed("small", 0), Renamed("large", 1)),),))
    section = rewriter.optimize(network(), budget=0.05, calibration=samples(8)).report.budget
    assert section is not None and [s["rewrite"] for s in section["sites"] if s["chosen"]] == ["large"], section["rounds"]
    assert [r["candidates"] for r in section["rounds"]] == [2, 1]


def test_an_answer_is_judged_on_the_engine_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding there may lose what the reference run does not."""
    asked: list[bool] = []
    original = Trials.running

    def running(self: Trials, model: ir.Model, feeds: Any, *, timed: bool = False) -> Iterator[list[list[np.ndarray]]]:
        asked.append(timed)
        for several in original(self, model, feeds):
            yield [[1.5 * a for a in outs] for outs in several] if timed else several

    monkeypatch.setattr(Trials, "running", running)
    monkeypatch.setattr(pipeline, "fastest_as_it_is", lambda *_, **__: "reference")
    report = rewriter.compile(network(), backend="onnxruntime,reference", budget=0.05, calibration=samples(8)).report
    assert any(asked) and report.budget is not None and report.budget["chosen"] == 0
    assert "it loses 0.5" in report.budget["rounds"][0]["verdict"], report.budget["rounds"]


@pytest.mark.clock
def test_an_approximate_graph_that_is_slower_than_the_model_leaves_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the model as it was: what the exact search found does not depend on approximations."""
    model = parse(f"main (float[{ROWS},{WIDTH}] x) => (float[{ROWS},{WIDTH}] y) {{ h = MatMul(x, w) r = Relu(h) s = MatMul(r, v) y = MatMul(s, u) }}")
    u = np.random.default_rng(3).normal(size=(WIDTH, WIDTH)).astype("float32") / 14
    model.graph.initializer.extend([*network().graph.initializer, numpy_helper.from_array(u, "u")])
    raced: list[int] = []

    def fastest(timings: Mapping[str, Timing], keys: Sequence[str]) -> str:
        raced.append(len(keys))
        return next(key for key in keys if key.endswith(race.BEFORE if len(raced) == 1 else race.AFTER))

    monkeypatch.setattr(race, "_fastest", fastest)
    compiled = rewriter.compile(model, backend="onnxruntime", budget=0.05, calibration=samples(8))
    report = compiled.report
    assert report.after.ops == {"MatMul": 2, "Relu": 1} and len(raced) == 2
    assert [r["equality"] for r in report.rewrites] and all(r["equality"] != "approximate" for r in report.rewrites)
    assert report.budget is not None and report.budget["chosen"] == 0 and not any(site["chosen"] for site in report.budget["sites"])
    assert any(n.startswith("the approximate graph was not kept: it took ") for n in report.notes), report.notes
    assert any(d["site"] == "the whole model" and d["reason"].startswith("slower when measured") for d in report.declined)
    x = samples(1, seed=5)[0]
    np.testing.assert_allclose(compiled(x), run_ort(model, {"x": x})[0], rtol=1e-4, atol=1e-4)


def test_a_metric_that_does_not_change_says_how_little_was_seen() -> None:
    def wrong(y: np.ndarray, r: np.ndarray) -> float:
        return float(np.mean(np.abs(y - r) > 100))

    report = rewriter.optimize(network(), budget=0.05, metric=wrong, calibration=samples(24)).report
    assert report.budget is not None and report.budget["chosen"] > 0
    assert any(f"on any of {12 * ROWS} samples" in n and "0.0078" in n for n in report.notes), report.notes


def test_a_bound_of_bytes_is_kept() -> None:
    exact = rewriter.optimize(network()).report.after.weight_bytes
    result = rewriter.optimize(network(), budget={"metric": 0.2, "weight_bytes": 0.3}, calibration=samples(8))
    assert result.report.after.weight_bytes <= 0.3 * exact
    assert error(network(), result.model) <= 0.2


def test_memory_is_an_objective() -> None:
    exact = rewriter.optimize(network(), objective="memory").report.after.weight_bytes
    result = rewriter.optimize(network(), objective="memory", budget=0.1, calibration=samples(8))
    assert result.report.after.weight_bytes < 0.3 * exact
    assert error(network(), result.model) <= 0.1


@pytest.mark.usefixtures("without_race")
def test_compiled_saved_and_loaded(tmp_path: Path) -> None:
    compiled = rewriter.compile(network(), backend="onnxruntime", budget=0.05, calibration=samples())
    x = samples(1, seed=5)[0]
    compiled.save(tmp_path / "model")
    loaded = rewriter.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded(x), compiled(x))
    assert loaded.report.budget == json.loads(compiled.report.to_json())["budget"]
    with pytest.raises(rewriter.RewriterError, match="compile again|none of the"):
        compiled.update({"w": np.zeros((WIDTH, HIDDEN), "float32"), "v": np.zeros((HIDDEN, WIDTH), "float32")})


def test_the_metric_is_the_users() -> None:
    x = samples(16)
    calls: list[tuple[Any, Any]] = []

    def mean_square(outputs: Any, reference: Any) -> float:
        calls.append((outputs, reference))
        return float(np.mean((outputs - reference) ** 2))

    result = rewriter.optimize(network(), budget=0.01, calibration=x, metric=mean_square)
    assert calls and all(o.shape[1:] == (WIDTH,) and o.shape == r.shape for o, r in calls)
    assert result.report.budget is not None and result.report.budget["metric"]["exact"] == 0.0


# Options


def test_budgets() -> None:
    assert parse_budget(0.01) == Budget(0.01)
    assert parse_budget({"metric": 0.01, "weight_bytes": 0.3, "latency": 0.5}) == Budget(0.01, 0.3, 0.5)
    assert parse_budget(None) is parse_budget(0) is parse_budget({"metric": 0.0}) is None


REFUSED = {
    "negative": ({"budget": -1}, "budget metric=-1 is no bound"),
    "text": ({"budget": "1%"}, "budget metric='1%' is no bound"),
    "nan": ({"budget": float("nan")}, "is no bound"),
    "name": ({"budget": {"accuracy": 0.1}}, "budget names 'accuracy'; there are 'metric', 'weight_bytes', 'latency'"),
    "bytes": ({"budget": {"metric": 0.1, "weight_bytes": 3000}}, "weight_bytes=3000 is no part of the exact result's"),
    "alone": ({"budget": {"weight_bytes": 0.5}}, "needs one of the metric too"),
    "calibration": ({"budget": 0.1}, "budget= needs calibration="),
    "metric": ({"budget": 0.1, "calibration": [], "metric": "accuracy"}, "metric is a str: give a function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    options, said = REFUSED[name]
    with pytest.raises(BudgetError, match=said) as caught:
        rewriter.optimize(network(), **options)
    assert "\n" not in str(caught.value)


# The front

POINTS = [
    {"candidates": n, "predicted": p, "error": e, "upper": e, "latency_ms": ms, "weight_bytes": b}
    for n, p, e, ms, b in ((3, 0.02, 0.015, 2.0, 300), (1, 0.01, 0.008, 3.0, 400), (2, 0.02, 0.02, 2.5, 350), (9, 0.05, 0.04, 1.0, 100))
]


def test_the_front_has_what_nothing_beats() -> None:
    assert [p["candidates"] for p in pareto(POINTS)] == [1, 3, 9]
    assert len(pareto([POINTS[0], POINTS[0]])) == 1
    assert correlation(POINTS) == pytest.approx(np.corrcoef([0.02, 0.01, 0.02, 0.05], [0.015, 0.008, 0.02, 0.04])[0, 1])
    assert correlation(POINTS[:2]) is None


def test_the_front_as_a_table_and_a_picture(tmp_path: Path) -> None:
    assert rows(POINTS)[0] == ("3", "0.02", "0.015", "0.015", "2", "300")
    write_plot(pareto(POINTS), tmp_path / "front.svg")
    text = (tmp_path / "front.svg").read_text()
    assert text == plot(pareto(POINTS)) and text.count("<circle") == 6
    with pytest.raises(rewriter.RewriterError, match="cannot write the front"):
        write_plot(POINTS, tmp_path / "nowhere" / "front.svg")


# The command line


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rewriter.__main__ import main

    onnx.save(network(), tmp_path / "in.onnx")
    np.savez(tmp_path / "c.npz", x=np.stack(samples(12)))
    source, target, report, front = (str(tmp_path / n) for n in ("in.onnx", "out.onnx", "r.json", "f.svg"))
    options = ["--budget", "0.05", "--calibration", str(tmp_path / "c.npz"), "--report", report, "--front", front]
    assert main(["optimize", source, target, *options]) == 0, capsys.readouterr().err
    assert "measured error" in capsys.readouterr().out
    assert error(network(), onnx.load(target)) <= 0.05
    assert json.loads(Path(report).read_text())["budget"]["chosen"] > 0
    assert Path(front).read_text().startswith("<svg")
    assert main(["optimize", source, target, "--budget", "0.05"]) == 2
    assert "budget= needs calibration=" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["quantise", "quantise/int8", "int8"])
def test_an_approximation_that_is_disabled_is_not_proposed(name: str) -> None:
    kinds = [kind.name for plan in pipeline._rules("exact", [name]).plans(for_bytes=True) for stage in plan for kind in stage]
    assert "quantise/int8" not in kinds and "dropped-block" in kinds
    assert ("quantise/weights" in kinds) == (name != "quantise")
    assert "quantise/int8" in [kind.name for plan in pipeline._rules("exact", []).plans(for_bytes=False) for stage in plan for kind in stage]
    with pytest.raises(rewriter.errors.InvalidInput, match="did you mean 'quantise"):
        pipeline._rules("exact", ["quantize/int8"])
