"""Approximate rewrites under one error budget.

record the exact graph on calibration inputs -> propose candidates -> measure each alone (error) and its part (time) -> integer program ->
substitute -> saturate exactly again -> measure the whole on inputs that nothing was fitted to -> tighten and solve again. All-exact is
always an answer, and the one that stays where nothing else meets the budget or pays.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Approximation, Candidate, Refusal, Site, together
from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded, record, with_outputs
from passes.drop_dead import drop_dead
from rewriter.budget import Budget
from rewriter.calibration import CalibrationSet
from rewriter.choice import Option, Problem, solve
from rewriter.errors import BudgetError, RewriterError
from rewriter.graph import weight_bytes
from rewriter.metric import Judge, Worsening
from rewriter.trial import Trials
from rewriter.unit_cost import UnitCosts

Array = np.ndarray
Feed = dict[str, Array]

ROUNDS = 5
"""How often the program is solved and its answer measured."""
PATIENCE = 240.0
"""Seconds for measuring candidates one by one; what is left then does not compete."""
FITTED = 48
"""Batches that are recorded."""
SENSED = 32
"""Batches, over all splits, on which single candidates are measured; the choice is measured on all."""
SLOWER = 0.98
"""The choice must take less than this part of the exact graph's time, or it is not worth an error."""


@dataclass
class Measured:
    """A candidate with what it costs and loses. ``reason``: why it does not compete, or was not chosen; empty where it was."""

    candidate: Candidate
    latency: float = math.inf
    error: Worsening = field(default_factory=lambda: Worsening(math.inf, math.inf))
    drift: float = math.inf
    reason: str = ""

    def to_dict(self, chosen: bool) -> dict[str, Any]:
        c = self.candidate
        return {
            "rewrite": c.rewrite, "site": c.site, "error": _finite(self.error.mean), "upper": _finite(self.error.upper),
            "layer_error": _finite(c.layer_error), "bound": c.bound, "microseconds": _finite(self.latency), "bytes": c.bytes, "chosen": chosen,
            "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One answer of the program, measured. ``predicted``: the sum of its candidates' bounds."""

    chosen: frozenset[int]
    predicted: float
    error: Worsening
    bytes: int
    latency_ms: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "candidates": len(self.chosen), "predicted": _finite(self.predicted), "error": _finite(self.error.mean),
            "upper": _finite(self.error.upper), "weight_bytes": self.bytes, "latency_ms": _finite(self.latency_ms),
        }  # fmt: skip


@dataclass
class Approximated:
    """``model``: None where the exact graph stays. ``section``: what the report says under ``budget``."""

    model: ir.Model | None
    section: dict[str, Any]
    rewrites: list[dict[str, Any]] = field(default_factory=list)
    declined: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differs: Callable[[Callable[[Feed], list[Any]]], str] | None = None
    """Why what an engine computes loses more than the budget allows, or nothing."""


def approximate(
    exact: ir.Model, kinds: Sequence[Approximation], data: CalibrationSet, metric: Callable[[Any, Any], float] | None, budget: Budget,
    again: Callable[[ir.Model], ir.Model], *, memory: bool = False, example: Sequence[Array] | None = None,
    engine: str = "onnxruntime", threads: int | None = None, progress: Callable[[str], None] = lambda _: None,
) -> Approximated:  # fmt: skip
    """Choose approximations for ``exact`` and put them in. ``again``: the exact search, on a graph with approximations in it.

    ``engine``: what times are measured on. Raises ``BudgetError`` for a metric or calibration inputs that cannot be used; whatever else fails
    leaves the exact graph.
    """
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder, Trials(folder, engine=engine, threads=threads) as trials:
        work = _Work(exact, data, budget, trials, example, memory, progress)
        judge = Judge(metric, data, work.exact_outputs)
        try:
            return _approximate(work, judge, kinds, again)
        except BudgetError:
            raise
        except Exception as failure:  # noqa: BLE001 - all-exact is the answer whatever goes wrong
            reason = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
            return Approximated(
                None, {"chosen": 0, "stopped": reason}, notes=[f"approximate rewrites were given up, the exact graph stands: {reason}"]
            )


class _Work:
    """The exact graph, its outputs on the measuring splits, and what variants of it are measured with."""

    def __init__(
        self, exact: ir.Model, data: CalibrationSet, budget: Budget, trials: Trials, example: Sequence[Array] | None, memory: bool,
        progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.data, self.budget, self.trials, self.memory, self.progress = data, budget, trials, memory, progress
        self.exact = trials.stored(exact)
        self.bytes = weight_bytes(exact)
        names = [v.name or "" for v in exact.graph.inputs]
        self.recorded: dict[str, Recorded] = {}
        self.costs = UnitCosts(self.exact, self.recorded, trials)
        first = data.feed(data.measuring[0])
        self.example = list(example) if example is not None else [first[n] for n in names]
        progress("running the exact graph on the calibration inputs")
        try:
            self.exact_outputs = self.outputs(self.exact, data.measuring)
        except RewriterError as failure:
            raise BudgetError(f"the model does not run on the calibration inputs: {failure}") from None

    def outputs(self, model: ir.Model, places: Sequence[int]) -> list[list[Array]]:
        return self.trials.outputs(model, self.data.feeds(places))

    def substituted(self, candidates: Sequence[Candidate]) -> ir.Model:
        """A copy of the exact graph with these in it."""
        copy = self.exact.clone()
        graph = Substitution(copy)
        for candidate in candidates:
            candidate.apply(graph)
        drop_dead(copy)
        copy.graph.sort()
        return copy


def _approximate(work: _Work, judge: Judge, kinds: Sequence[Approximation], again: Callable[[ir.Model], ir.Model]) -> Approximated:
    candidates, refusals = _proposed(work, kinds)
    measured = _measured(work, judge, candidates)
    problem, places = _problem(work, measured)
    search = _Search(work, judge, measured, problem, places, again)
    model, point = search.run()
    return _told(work, judge, measured, refusals, search, model, point)


def _proposed(work: _Work, kinds: Sequence[Approximation]) -> tuple[list[Candidate], list[Refusal]]:
    wanted = together([k.wants(work.exact) for k in kinds])
    names = sorted(wanted.values | wanted.grams)
    probe = with_outputs(work.exact, names)
    key = work.trials.load(probe)
    inputs = [v.name or "" for v in work.exact.graph.inputs]
    feeds = work.data.feeds(work.data.fitting[:FITTED])
    try:
        recorded = record(
            work.exact, names, wanted.grams, feeds, lambda feed: work.trials.call(key, [feed[n] for n in inputs]),
            lambda n: work.progress(f"recording batch {n} of {min(FITTED, len(work.data.fitting))}"),
        )  # fmt: skip
    finally:
        work.trials.drop(key)
    site = Site(work.exact, recorded)
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    for kind in kinds:
        work.progress(f"proposing {kind.name}")
        try:
            for found in kind.propose(site):
                if isinstance(found, Candidate):
                    candidates.append(found)
                else:
                    refusals.append(found)
        except Exception as failure:  # noqa: BLE001 - one kind's failure is not the others'
            refusals.append(Refusal(kind.name, "the whole model", f"it failed: {type(failure).__name__}: {' '.join(str(failure).split())}"))
    work.recorded = recorded
    return candidates, refusals


def _measured(work: _Work, judge: Judge, candidates: Sequence[Candidate]) -> list[Measured]:
    """Time first, then errors of what could pay, the largest gains first."""
    work.costs = costs = UnitCosts(work.exact, work.recorded, work.trials)
    found: list[Measured] = []
    for place, candidate in enumerate(candidates):
        work.progress(f"timing candidate {place + 1} of {len(candidates)}")
        one = Measured(candidate)
        try:
            one.latency = costs.gain(candidate)
        except RewriterError as failure:
            one.reason = f"its part does not run: {failure}"
        if not one.reason and not math.isfinite(one.latency):
            one.reason = "its part does not run"
        if not one.reason and not _pays(work, one):
            one.reason = f"slower here: {one.latency:+.1f} µs"
        found.append(one)
    _without_slower_twins(found)
    _sense(work, judge, [m for m in found if not m.reason])
    return found


def _without_slower_twins(measured: Sequence[Measured]) -> None:
    """Of candidates that compute the same numbers by other operators, the fastest competes."""
    best: dict[tuple[str, str], Measured] = {}
    for one in measured:
        key = one.candidate.site, one.candidate.numbers
        if one.reason or not one.candidate.numbers:
            continue
        other = best.setdefault(key, one)
        if other is not one:
            slower, best[key] = (other, one) if one.latency < other.latency else (one, other)
            slower.reason = f"the same numbers take {best[key].latency - slower.latency:.1f} µs less by other operators"


def _pays(work: _Work, one: Measured) -> bool:
    """Could it be part of any answer?"""
    wants_bytes = work.memory or work.budget.weight_bytes is not None
    return one.latency < 0 or (wants_bytes and one.candidate.bytes < 0)


def _sense(work: _Work, judge: Judge, competing: Sequence[Measured]) -> None:
    """The error of each candidate alone."""
    end = time.monotonic() + PATIENCE
    order = sorted(competing, key=lambda m: m.candidate.bytes if work.memory else m.latency)
    for place, one in enumerate(order):
        if time.monotonic() > end:
            one.reason = "not measured: time was up"
            continue
        work.progress(f"measuring candidate {place + 1} of {len(order)}")
        try:
            outputs = work.outputs(work.substituted([one.candidate]), work.data.measuring)
        except RewriterError as failure:
            one.reason = f"the graph with it does not run: {failure}"
            continue
        one.error, one.drift = judge.worsening(outputs), judge.drift(outputs)
        if one.error.upper > work.budget.metric:
            one.reason = f"alone it loses {one.error.upper:.3g} (95 % bound), more than the budget of {work.budget.metric:.3g}"


def _problem(work: _Work, measured: Sequence[Measured]) -> tuple[Problem, list[int]]:
    """The program's numbers; ``places``: which of ``measured`` its options are."""
    places = [k for k, m in enumerate(measured) if not m.reason]
    options = [
        Option(m.latency, m.error.upper, m.candidate.bytes, m.candidate.covers, m.candidate.reads, m.candidate.writes)
        for m in (measured[k] for k in places)
    ]
    coded = frozenset().union(*(o.reads | o.writes for o in options))
    conversions = {v: work.costs.conversion(v) for v in coded}
    values = {v.name or "": v for n in work.exact.graph for v in n.outputs} | {v.name or "": v for v in work.exact.graph.inputs}
    readers = {v: [o.name or "" for o in _outputs_of_readers(values[v])] for v in coded}
    enter, leave = ({v: pair[k] for v, pair in conversions.items()} for k in (0, 1))
    return Problem(options, enter, leave, readers, memory=work.memory), places


def _outputs_of_readers(value: ir.Value) -> list[ir.Value]:
    return [use.node.outputs[0] for use in value.uses()]


class _Search:
    """Solve, substitute, measure, tighten."""

    def __init__(
        self, work: _Work, judge: Judge, measured: Sequence[Measured], problem: Problem, places: Sequence[int], again: Callable[[ir.Model], ir.Model]
    ) -> None:  # fmt: skip
        self._work, self._judge, self._measured, self._problem, self._places, self._again = work, judge, measured, problem, places, again
        self.rounds: list[dict[str, Any]] = []
        self.points: list[Point] = []
        self.scale = 1.0
        self.reason = ""

    def run(self) -> tuple[ir.Model | None, Point | None]:
        """The first answer that meets the budget, measured as a whole, and is faster (or smaller); None: the exact graph."""
        bound = self._work.budget.metric
        for number in range(ROUNDS):
            self._work.progress(f"choosing, round {number + 1}")
            taken = solve(self._scaled(), self._room(bound), self._most_bytes())
            if not taken:
                self.reason = "no set of candidates meets the budget and pays" if taken is not None or number else self._no_answer()
                return None, None
            model = self._again(self._materialised(taken))
            point = self._point(taken, model)
            said = self._verdict(point, bound)
            self.rounds.append({**point.to_dict(), "verdict": said or "accepted"})
            self.points.append(point)
            if not said:
                return model, point
            self._tighten(taken, point, bound)
        self.reason = f"none of {ROUNDS} answers met the budget when measured as a whole"
        return None, None

    def _no_answer(self) -> str:
        return f"no set of candidates has at most {self._work.budget.weight_bytes} of the exact graph's weight bytes within the budget"

    def _most_bytes(self) -> float | None:
        part = self._work.budget.weight_bytes
        return None if part is None else (part - 1.0) * self._work.bytes

    def _room(self, bound: float) -> float:
        return bound if self._judge.additive else bound**2

    def predicted(self, taken: frozenset[int]) -> float:
        """What the program thinks a set loses."""
        total = sum(self._scaled().floored(k) for k in taken)
        return total if self._judge.additive else math.sqrt(total)

    def _scaled(self) -> Problem:
        """Errors as they add: norms in squares; all of them times what joint measurements have taught."""
        options = [replace(o, error=self._additive(k)) for k, o in enumerate(self._problem.options)]
        return replace(self._problem, options=options)

    def _additive(self, k: int) -> float:
        one = self._measured[self._places[k]]
        alone = one.error.upper if self._judge.additive else one.error.upper**2
        return max(alone, self._floor * one.drift) * self.scale

    _floor = 0.0
    """How much of the metric a unit of drift was seen to be worth."""

    def _materialised(self, taken: frozenset[int]) -> ir.Model:
        model = self._work.substituted([self._measured[self._places[k]].candidate for k in sorted(taken)])
        return ir.external_data.load_to_model(model)

    def _point(self, taken: frozenset[int], model: ir.Model) -> Point:
        work = self._work
        stored = work.trials.stored(model)
        error = self._judge.worsening(work.outputs(stored, work.data.measuring))
        times = work.trials.times({"exact": (work.exact, work.example), "other": (stored, work.example)}, turn=0.05)
        self.exact_ms = times["exact"] / 1e3
        return Point(taken, self.predicted(taken), error, weight_bytes(model), times["other"] / 1e3)

    def _verdict(self, point: Point, bound: float) -> str:
        """Why an answer will not do."""
        budget = self._work.budget
        if not point.error.upper <= bound:
            return f"it loses {point.error.mean:.3g}, {point.error.upper:.3g} at 95 %, and the budget is {bound:.3g}"
        if budget.weight_bytes is not None and point.bytes > budget.weight_bytes * self._work.bytes:
            return f"its weights take {point.bytes / self._work.bytes:.3f} of the exact graph's bytes"
        if budget.latency is not None and point.latency_ms > budget.latency * self.exact_ms:
            return f"it takes {point.latency_ms / self.exact_ms:.3f} of the exact graph's time"
        pays = point.bytes < self._work.bytes if self._work.memory or budget.weight_bytes is not None else False
        if not pays and point.latency_ms > SLOWER * self.exact_ms:
            return f"as a whole it is not faster: {point.latency_ms:.3f} ms, the exact graph {self.exact_ms:.3f} ms"
        return ""

    def _tighten(self, taken: frozenset[int], point: Point, bound: float) -> None:
        """This set is out; and where its error was above the prediction, so are others that rest on the same hope."""
        self._problem = replace(self._problem, excluded=[*self._problem.excluded, taken])
        missed = point.error.upper
        if not missed > bound:
            return
        if not math.isfinite(missed):
            self.scale *= 4.0
            return
        total = sum(self._measured[self._places[k]].drift for k in taken)
        lost = missed if self._judge.additive else missed**2
        if self._judge.additive and total > 0:
            self._floor = max(self._floor, lost / total)
        known = sum(self._additive(k) for k in taken)
        self.scale *= max(1.1, lost / known if known > 0 else 1.1)


def _told(
    work: _Work, judge: Judge, measured: Sequence[Measured], refusals: Sequence[Refusal], search: _Search, model: ir.Model | None, point: Point | None
) -> Approximated:
    chosen = {search._places[k] for k in point.chosen} if point is not None else set()
    for k, one in enumerate(measured):
        if k not in chosen and not one.reason:
            one.reason = "not part of the best answer within the budget" if point is not None else search.reason
    section = {
        "budget": {"metric": work.budget.metric, "weight_bytes": work.budget.weight_bytes, "latency": work.budget.latency},
        "metric": {
            "exact": judge.base, "worsening": None if point is None else point.error.mean, "upper": None if point is None else point.error.upper,
        },
        "samples": work.data.samples, "splits": [len(s) for s in work.data.splits], "chosen": len(chosen), "rounds": search.rounds,
        "stopped": search.reason, "sites": [m.to_dict(k in chosen) for k, m in enumerate(measured)],
        "refused": [{"rule": r.rewrite, "site": r.site, "reason": r.reason} for r in refusals],
    }  # fmt: skip
    counts: dict[str, list[Measured]] = {}
    for k in sorted(chosen):
        counts.setdefault(measured[k].candidate.rewrite, []).append(measured[k])
    rewrites = [{"rule": name, "count": len(ms), "equality": "approximate", "error": max(m.error.mean for m in ms)} for name, ms in counts.items()]
    declined = [{"rule": m.candidate.rewrite, "site": m.candidate.site, "reason": m.reason} for m in measured if m.reason]
    declined += [{"rule": r.rewrite, "site": r.site, "reason": r.reason} for r in refusals]
    notes = [*work.data.warnings, *judge.notes]
    if point is not None:
        notes.append(
            f"approximate: {len(chosen)} of {len(measured)} candidates; the metric is worse by {point.error.mean:.3g} "
            f"({point.error.upper:.3g} at 95 %) on inputs that nothing was fitted to; the budget is {work.budget.metric:.3g}"
        )
    else:
        notes.append(f"approximate: none, the exact graph stands: {search.reason or 'no candidate pays'}")
    return Approximated(model, section, rewrites, declined, notes, None if model is None else _engine_check(work, judge))


def _engine_check(work: _Work, judge: Judge) -> Callable[[Callable[[Feed], list[Any]]], str]:
    data, bound = work.data, work.budget.metric

    def differs(run: Callable[[Feed], list[Any]]) -> str:
        error = judge.worsening([[np.asarray(o) for o in run(feed)] for feed in data.feeds(data.measuring)])
        return "" if error.upper <= bound else f"there the metric is worse by {error.mean:.3g} ({error.upper:.3g} at 95 %), more than {bound:.3g}"

    return differs


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
