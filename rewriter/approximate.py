"""Approximate rewrites under one error budget.

record the exact graph on calibration inputs -> propose candidates -> measure each alone (error) and its part (time) -> integer program ->
substitute -> saturate exactly again -> measure the whole on inputs that nothing was fitted to -> tighten and solve again. All-exact is
always an answer, and the one that stays where nothing else meets the budget or pays.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from backends.instructions import saturating
from passes.approximate.candidate import Approximation, Candidate, Refusal, Site, Wanted, substituted, together
from passes.calibrate import Recorded, record, with_outputs
from rewriter.budget import Budget
from rewriter.calibration import CalibrationSet
from rewriter.choice import Option, Problem, solve
from rewriter.cut import kind as structure
from rewriter.errors import BudgetError, RewriterError
from rewriter.front import correlation, pareto
from rewriter.graph import weight_bytes
from rewriter.metric import Judge, Worsening
from rewriter.trial import Trials
from rewriter.unit_cost import UnitCosts

Array = np.ndarray
Feed = Mapping[str, Any]
Engine = Callable[[Feed], list[Any]]
Plan = Sequence[Sequence[Approximation]]

ROUNDS = 5
"""How often the program is solved and its answer measured."""
PATIENCE = 120.0
"""Seconds for measuring candidates one by one; what is left then does not compete. After as many no further plan is begun."""
FITTED = 48
"""Batches that are recorded."""
SENSED = 4
"""Batches of each split on which single candidates are measured; the choice is measured on all."""
STRUCTURES = 0.5
"""The part of the budget that changes of structure may use; numbers in fewer bits come after them, and may use what is left."""
ROOM = 0.6
"""An answer that uses less of the budget than this leaves room for another plan."""
SLACK = 0.7
"""An answer that uses less of its bound than this is not the last one."""
WORTH = 0.1
"""What a unit of drift (the squared normalised error of the outputs) is taken to be worth of any metric at least, until a whole is measured."""
FRONT = (0.15, 0.5)
"""Parts of what the answer is thought to lose, for which the last program is solved again, to see what else could be had."""
BEYOND = 2.0
"""And of the budget."""
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
            "layer_error": _finite(c.told_error), "bound": c.bound, "microseconds": _finite(self.latency), "bytes": c.bytes, "chosen": chosen,
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
    differs: Callable[[Engine, Engine | None], str] | None = None
    """Why what an engine computes loses more than the budget allows, or nothing."""


def approximate(
    exact: ir.Model, plans: Sequence[Plan], data: CalibrationSet, metric: Callable[[Any, Any], float] | None, budget: Budget,
    again: Callable[[ir.Model], ir.Model], *, memory: bool = False, example: Sequence[Array] | None = None,
    engine: str = "onnxruntime", threads: int | None = None, progress: Callable[[str], None] = lambda _: None,
) -> Approximated:  # fmt: skip
    """Choose approximations for ``exact`` and put them in. Of the ``plans`` (stages of kinds of rewrites) the best answer stands.

    ``again``: the exact search, on a graph with approximations in it. ``memory``: bytes are what is to be small, not time.
    ``engine``: what times are measured on. Raises ``BudgetError`` for a metric or calibration inputs that cannot be used; whatever else fails
    leaves the exact graph.
    """
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder, Trials(folder, engine=engine, threads=threads) as trials:
        work = _Work(exact, data, metric, budget, trials, example, memory, progress)
        try:
            return _approximate(work, plans, again)
        except BudgetError:
            raise
        except Exception as failure:  # noqa: BLE001 - all-exact is the answer whatever goes wrong
            reason = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
            return Approximated(
                None, {"chosen": 0, "stopped": reason}, notes=[f"approximate rewrites were given up, the exact graph stands: {reason}"]
            )


class _Work:
    """The exact graph, what it gives on the measuring splits, and what variants of it are measured with.

    ``graph``: the graph that candidates are put into, the exact one at first; ``lost``: what that has lost already.
    """

    def __init__(
        self, exact: ir.Model, data: CalibrationSet, metric: Callable[[Any, Any], float] | None, budget: Budget, trials: Trials,
        example: Sequence[Array] | None, memory: bool, progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.data, self.budget, self.trials, self.memory, self.progress = data, budget, trials, memory, progress
        self.exact = self.graph = trials.stored(exact)
        self.exact_bytes = weight_bytes(exact)
        self.lost = Worsening(0.0, 0.0)
        self.start = time.monotonic()
        self._sites: dict[int, _Seen] = {}
        names = [v.name or "" for v in exact.graph.inputs]
        first = data.feed(data.measuring[0])
        self.example = list(example) if example is not None else [first[n] for n in names]
        progress("running the exact graph on the calibration inputs")
        try:
            outputs = self.outputs(self.exact, data.measuring)
        except RewriterError as failure:
            raise BudgetError(f"the model does not run on the calibration inputs: {failure}") from None
        self.judge = Judge(metric, data, outputs)
        self.sensed = data.fewer(SENSED)
        known = dict(zip(data.measuring, outputs, strict=True))
        self.quick = Judge(metric, self.sensed, [known[p] for p in self.sensed.measuring])
        """Judges single candidates."""

    @property
    def bytes(self) -> int:
        return weight_bytes(self.graph)

    @property
    def wants_bytes(self) -> bool:
        return self.memory or self.budget.weight_bytes is not None

    def go_on_from(self, model: ir.Model, lost: Worsening) -> None:
        """The next stage changes this graph."""
        self.graph, self.lost = self.trials.stored(model), lost

    @property
    def known(self) -> _Seen:
        """What is known of the graph as it is."""
        if id(self.graph) not in self._sites:
            recorded: dict[str, Recorded] = {}
            self._sites[id(self.graph)] = _Seen(self.graph, recorded, UnitCosts(self.graph, recorded, self.trials))
        return self._sites[id(self.graph)]

    def seen(self, kinds: Sequence[Approximation]) -> _Seen:
        """What was recorded, proposed and timed of the graph as it is: kept for every plan that comes to the same graph."""
        found = self.known
        wanted = together([k.wants(self.graph) for k in kinds])
        if not wanted.values | wanted.grams <= found.recorded.keys():
            found.recorded.update(self._recorded(wanted, found.recorded))
        return found

    def _recorded(self, wanted: Wanted, known: Mapping[str, Recorded]) -> dict[str, Recorded]:
        inputs = [v.name or "" for v in self.graph.graph.inputs]
        names = sorted((wanted.values | wanted.grams).union(inputs) - known.keys())
        key = self.trials.load(with_outputs(self.graph, names))
        places = self.data.fitting[:FITTED]
        try:
            return record(
                self.graph, names, wanted.grams, self.data.feeds(places), lambda feed: self.trials.call(key, [feed[n] for n in inputs]),
                lambda n: self.progress(f"recording batch {n} of {len(places)}"),
            )  # fmt: skip
        finally:
            self.trials.drop(key)

    def outputs(self, model: ir.Model, places: Sequence[int]) -> list[list[Array]]:
        return self.trials.outputs(model, self.data.feeds(places))

    def substituted(self, candidates: Sequence[Candidate]) -> ir.Model:
        """A copy of the graph with these in it."""
        return substituted(self.graph, candidates)


@dataclass
class _Seen:
    """Of one graph. ``proposed``: by kind. ``sensed``: by candidate, its error and drift alone."""

    graph: ir.Model
    recorded: dict[str, Recorded]
    costs: UnitCosts
    proposed: dict[str, tuple[list[Candidate], list[Refusal]]] = field(default_factory=dict)
    sensed: dict[int, tuple[Worsening, float]] = field(default_factory=dict)


@dataclass
class _Answer:
    """What one plan came to: its last model and how that was measured; ``stages``: everything that was tried on the way."""

    stages: list[_Stage] = field(default_factory=list)
    model: ir.Model | None = None
    point: Point | None = None


@dataclass
class _Stage:
    measured: list[Measured]
    refusals: list[Refusal]
    search: _Search
    chosen: set[int]


def _approximate(work: _Work, plans: Sequence[Plan], again: Callable[[ir.Model], ir.Model]) -> Approximated:
    """The best answer of all plans; one after the first is tried only while much of the budget is left."""
    best = _Answer()
    tried: list[_Answer] = []
    omitted: list[Refusal] = []
    work.seen(list(dict.fromkeys(kind for plan in plans for stage in plan for kind in stage)))  # all that is recorded of it, in one pass
    for plan in plans:
        if reason := _enough(work, best.point):
            omitted = [Refusal(kind.name, "the whole model", reason) for kind in dict.fromkeys(k for stage in plan for k in stage)]
            break
        work.graph, work.lost = work.exact, Worsening(0.0, 0.0)
        answer = _follow(work, plan, again, alone=not tried)
        tried.append(answer)
        if answer.point is not None and (best.point is None or _better(work, answer.point, best.point)):
            best = answer
    return _Told(work, tried, best, omitted).result()


def _enough(work: _Work, best: Point | None) -> str:
    """Why no other plan is tried after this answer, or nothing."""
    if best is not None and best.error.upper > ROOM * work.budget.metric:
        return f"not tried: an answer without it uses {best.error.upper / work.budget.metric:.0%} of the budget"
    spent = time.monotonic() - work.start
    return f"not tried: {spent:.0f} seconds had gone by" if spent > PATIENCE else ""


def _follow(work: _Work, plan: Plan, again: Callable[[ir.Model], ir.Model], *, alone: bool) -> _Answer:
    """One stage after the other, each on what the one before left; the last may use all that is left of the budget.

    ``alone``: no other plan has tried the last stage by itself.
    """
    answer = _Answer()
    for number, kinds in enumerate(plan):
        last = number == len(plan) - 1
        candidates, refusals = _proposed(work, kinds)
        measured = _measured(work, candidates)
        problem, places = _problem(work, measured)
        search = _Search(work, measured, problem, places, again, work.budget.metric * (1.0 if last else STRUCTURES), last=last)
        model, point = search.run()
        if last and model is not None and point is not None:
            model, point = search.compared(model, point)
        answer.stages.append(_Stage(measured, refusals, search, {places[k] for k in point.chosen} if point is not None else set()))
        if model is not None and point is not None:
            answer.model, answer.point = model, point
            work.go_on_from(model, point.error)
        elif not last and not alone:
            break  # the rest would be what another plan does
    part = work.budget.weight_bytes
    if answer.point is not None and part is not None and answer.point.bytes > part * work.exact_bytes:
        answer.model = answer.point = None
    return answer


def _better(work: _Work, a: Point, b: Point) -> bool:
    return a.bytes < b.bytes if work.memory else a.latency_ms < SLOWER * b.latency_ms


def _proposed(work: _Work, kinds: Sequence[Approximation]) -> tuple[list[Candidate], list[Refusal]]:
    seen = work.seen(kinds)
    site = Site(work.graph, seen.recorded, saturating=saturating())
    for kind in kinds:
        if kind.name not in seen.proposed:
            work.progress(f"proposing {kind.name}")
            seen.proposed[kind.name] = _proposals(kind, site)
    found = [seen.proposed[kind.name] for kind in kinds]
    return [c for candidates, _ in found for c in candidates], [r for _, refusals in found for r in refusals]


def _proposals(kind: Approximation, site: Site) -> tuple[list[Candidate], list[Refusal]]:
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    try:
        for found in kind.propose(site):
            if isinstance(found, Candidate):
                candidates.append(found)
            else:
                refusals.append(found)
    except Exception as failure:  # noqa: BLE001 - one kind's failure is not the others'
        refusals.append(Refusal(kind.name, "the whole model", f"it failed: {type(failure).__name__}: {' '.join(str(failure).split())}"))
    return candidates, refusals


def _measured(work: _Work, candidates: Sequence[Candidate]) -> list[Measured]:
    """Time first, then errors of what could pay, the largest gains first."""
    found: list[Measured] = []
    work.known.costs.measure(candidates, lambda place, count: work.progress(f"timing part {place + 1} of {count}"))
    for candidate in candidates:
        one = Measured(candidate)
        try:
            one.latency = work.known.costs.gain(candidate)
        except Exception as failure:  # noqa: BLE001 - a candidate that cannot be put in does not compete
            one.reason = f"its part does not run: {type(failure).__name__}: {' '.join(str(failure).split())}"
        if not one.reason and not math.isfinite(one.latency):
            one.reason = "its part does not run"
        if not one.reason and not _pays(work, one):
            one.reason = f"slower here: {one.latency:+.1f} µs"
        found.append(one)
    _without_slower_twins(found)
    _without_dominated(work, found)
    _sense(work, [m for m in found if not m.reason])
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


PREFERRED = 0.05
"""Part of all gains that the whole budget must be worth: what gains less is not worth its error."""
NOISE = 0.1
"""Part of a gain that measurements differ by."""


def _without_dominated(work: _Work, measured: Sequence[Measured]) -> None:
    """Of candidates for the same values, one that gains no more, saves no more and distorts its site more does not compete."""
    sites: dict[str, list[Measured]] = {}
    for one in measured:
        if not one.reason:
            sites.setdefault(one.candidate.site, []).append(one)
    for group in sites.values():
        for one in group:
            better = (o for o in group if o is not one and not o.reason and _dominates(work, o, one))
            if (other := next(better, None)) is not None:
                one.reason = f"no faster than {other.candidate.rewrite}, and less exact"


def _dominates(work: _Work, a: Measured, b: Measured) -> bool:
    same = a.candidate.covers <= b.candidate.covers
    exact = a.candidate.layer_error < b.candidate.layer_error
    small = not work.wants_bytes or a.candidate.bytes <= b.candidate.bytes * (1 - NOISE)
    return same and exact and small and a.latency <= b.latency * (1 - NOISE)


def _pays(work: _Work, one: Measured) -> bool:
    """Could it be part of any answer?"""
    return one.latency < 0 or (work.wants_bytes and one.candidate.bytes < 0)


def _sense(work: _Work, competing: Sequence[Measured]) -> None:
    """The error of each candidate alone. Of a family at one site one is measured, and the others are taken to lose in proportion to what
    they do to the site itself: the joint measurement has the last word. The most promising first.
    """
    families: dict[tuple[str, str], list[Measured]] = {}
    for one in competing:
        families.setdefault((one.candidate.site, _family(one.candidate)), []).append(one)
    order = sorted(families.values(), key=lambda group: min(_promise(work, m) for m in group))
    end = time.monotonic() + PATIENCE
    for place, group in enumerate(order):
        if time.monotonic() > end:
            for one in group:
                one.reason = "not measured: time was up"
            continue
        work.progress(f"measuring site {place + 1} of {len(order)}")
        _sense_family(work, sorted(group, key=lambda m: m.candidate.layer_error))


def _family(candidate: Candidate) -> str:
    """``prune/channels`` of ``prune/channels-50%``; a candidate that does not know its own error is a family by itself."""
    return re.split(r"-(?=\d|per-)", candidate.rewrite)[0] if math.isfinite(candidate.layer_error) else candidate.rewrite


def _promise(work: _Work, one: Measured) -> float:
    return one.candidate.bytes if work.memory else one.latency


def _sense_family(work: _Work, group: Sequence[Measured]) -> None:
    """``group``: by the error at the site. The one in the middle is measured, or the next that runs."""
    middle = len(group) // 2
    for known in [*group[middle:], *group[:middle]]:
        try:
            known.error, known.drift = _alone(work, known.candidate)
        except Exception as failure:  # noqa: BLE001 - a candidate that cannot be put in does not compete
            known.reason = f"the graph with it does not run: {' '.join(str(failure).split())}"
            continue
        break
    else:
        return
    for one in group:
        if not one.reason:
            _infer(work, one, known)


def _alone(work: _Work, candidate: Candidate) -> tuple[Worsening, float]:
    """The error and the drift of the graph with nothing but this in it."""
    sensed = work.known.sensed
    if id(candidate) not in sensed:
        outputs = work.outputs(work.substituted([candidate]), work.sensed.measuring)
        sensed[id(candidate)] = work.quick.worsening(outputs), work.quick.drift(outputs)
    return sensed[id(candidate)]


def _infer(work: _Work, one: Measured, known: Measured) -> None:
    a, b = one.candidate.layer_error, known.candidate.layer_error
    if one is not known:
        factor = a / b if b > 0 else 1.0
        one.drift = known.drift * factor
        one.error = known.error.times(factor if work.judge.additive else math.sqrt(factor))
    lower = one.error.lower
    if lower > work.budget.metric or not math.isfinite(one.error.mean):
        how = "" if one is known else "about "
        one.reason = f"alone it loses {how}{one.error.mean:.3g} (at least {lower:.3g} at 95 %), and the budget is {work.budget.metric:.3g}"


def _problem(work: _Work, measured: Sequence[Measured]) -> tuple[Problem, list[int]]:
    """The program's numbers; ``places``: which of ``measured`` its options are."""
    places = [k for k, m in enumerate(measured) if not m.reason]
    options = [
        Option(m.latency, m.error.upper, m.candidate.bytes, m.candidate.covers, m.candidate.reads, m.candidate.writes)
        for m in (measured[k] for k in places)
    ]
    coded = frozenset().union(*(o.reads | o.writes for o in options))
    conversions = {v: work.known.costs.conversion(v) for v in coded}
    values = {v.name or "": v for n in work.graph.graph for v in n.outputs} | {v.name or "": v for v in work.graph.graph.inputs}
    readers = {v: [o.name or "" for o in _outputs_of_readers(values[v])] for v in coded}
    enter, leave = ({v: pair[k] for v, pair in conversions.items()} for k in (0, 1))
    return Problem(options, enter, leave, readers, memory=work.memory), places


def _outputs_of_readers(value: ir.Value) -> list[ir.Value]:
    return [use.node.outputs[0] for use in value.uses()]


class _Search:
    """Solve, substitute, measure, tighten."""

    def __init__(
        self, work: _Work, measured: Sequence[Measured], problem: Problem, places: Sequence[int], again: Callable[[ir.Model], ir.Model],
        bound: float, *, last: bool,
    ) -> None:  # fmt: skip
        self._work, self._measured, self._problem, self._again = work, measured, problem, again
        self.places, self._bound, self._last = places, bound, last
        self._before, self._lost = work.graph, work.lost
        self._worth = _worth([measured[k] for k in places]) if work.judge.additive else 1.0
        self._scale = 1.0
        self.points: list[Point] = []
        """What was measured for the front."""
        self._hope: dict[str, float] = {}
        """By family of candidates: the part of its gains that was seen when a whole was measured."""
        self.exact_ms = math.nan
        self.rounds: list[dict[str, Any]] = []
        self.reason = ""

    def run(self) -> tuple[ir.Model | None, Point | None]:
        """The best answer that meets the budget, measured as a whole, and is faster (or smaller); None: the graph as it is.

        After one that leaves much of the budget, the program is solved again with what it has taught; after one that misses, too.
        """
        best: tuple[ir.Model | None, Point | None] = None, None
        for number in range(ROUNDS):
            self._work.progress(f"choosing, round {number + 1}")
            taken = solve(self._additive(), self._room(self._bound), self._most_bytes())
            known = best[1]
            if not taken or (known is not None and taken == known.chosen):
                if known is None:
                    self.reason = "no set of candidates meets the budget and pays" if taken is not None or number else self._no_answer()
                return best
            model, point = self._searched_again(taken)
            said = self._verdict(point)
            self.rounds.append({**point.to_dict(), "verdict": said or "accepted"})
            self._work.progress(f"choosing, round {number + 1}: {said or 'accepted'}")
            if said:
                self._tighten(taken, point)
                continue
            if known is None or _better(self._work, point, known):
                best = model, point
            if point.error.upper > SLACK * self._bound or time.monotonic() - self._work.start > 2 * PATIENCE:
                return best
            self._loosen(taken, point)
        if best[1] is None:
            self.reason = f"none of {ROUNDS} answers was within the budget and better when measured as a whole"
        return best

    def _searched_again(self, taken: frozenset[int]) -> tuple[ir.Model, Point]:
        """The graph with these candidates, searched exactly again; as it was put together where that is faster: laws know nothing of kernels
        for codes."""
        plain = self._materialised(taken)
        model = self._again(plain.clone())
        stored, error = self._judged(model)
        if not error.upper <= self._bound:
            return model, Point(taken, self.predicted(taken), error, weight_bytes(stored), math.nan)
        variants = {"after": stored}
        if not self._work.memory and structure(plain) != structure(model):
            variants["plain"] = self._work.trials.stored(plain)
        times = self._times(variants)
        if times.get("plain", math.inf) < SLOWER * times["after"]:
            model, times["after"] = plain, times["plain"]
            stored, error = self._judged(plain)
        return model, Point(taken, self.predicted(taken), error, weight_bytes(stored), times["after"] / 1e3)

    def compared(self, model: ir.Model, point: Point) -> tuple[ir.Model, Point]:
        """The answer, or one for another budget that turns out to be better as a whole and is within this one, too."""
        self.points = [point, *self.front(point)]
        for other in self.points[1:]:
            if not self._verdict(other) and _better(self._work, other, point):
                model, point = self._materialised(other.chosen), other
        return model, point

    def front(self, answer: Point) -> list[Point]:
        """What the program answers for other budgets, put into the graph that this stage began with."""
        self._work.graph, self._work.lost = self._before, self._lost
        points: dict[frozenset[int], Point] = {}
        for bound in (*(part * self.predicted(answer.chosen) for part in FRONT), BEYOND * self._bound):
            self._work.progress(f"the front: a budget of {bound:.2g}")
            taken = solve(replace(self._additive(), excluded=()), self._room(bound))
            if taken and taken != answer.chosen and taken not in points:
                points[taken] = self._point(taken, self._work.substituted([self._measured[self.places[k]].candidate for k in sorted(taken)]))
        return list(points.values())

    def _no_answer(self) -> str:
        return f"no set of candidates has at most {self._work.budget.weight_bytes} of the exact graph's weight bytes within the budget"

    def _most_bytes(self) -> float | None:
        part = self._work.budget.weight_bytes
        return None if part is None or not self._last else part * self._work.exact_bytes - self._work.bytes

    def _room(self, bound: float) -> float:
        """What is left of a bound, in the unit in which errors add."""
        lost = max(0.0, self._work.lost.upper)
        return max(0.0, bound - lost if self._work.judge.additive else bound**2 - lost**2)

    def predicted(self, taken: frozenset[int]) -> float:
        """What the program thinks that the whole loses."""
        problem, lost = self._additive(), max(0.0, self._work.lost.mean)
        total = sum(problem.floored(k) for k in taken)
        return lost + total if self._work.judge.additive else math.sqrt(lost**2 + total)

    def _additive(self) -> Problem:
        """Errors as they add: norms in squares; a metric by what the drift of outputs was seen to be worth. All that joint measurements taught
        is in the scale."""
        options = [
            replace(o, error=self._error(k) * self._scale, latency=o.latency * (self._hope.get(self._kind(k), 1.0) if o.latency < 0 else 1.0))
            for k, o in enumerate(self._problem.options)
        ]
        gains: dict[str, float] = {}
        for k, option in enumerate(options):
            site = self._measured[self.places[k]].candidate.site
            gains[site] = max(gains.get(site, 0.0), -option.latency)
        room = self._room(self._bound)
        return replace(self._problem, options=options, accuracy=PREFERRED * sum(gains.values()) / room if room > 0 else 0.0)

    def _kind(self, k: int) -> str:
        return self._measured[self.places[k]].candidate.rewrite

    def _error(self, k: int) -> float:
        one = self._measured[self.places[k]]
        if self._work.judge.additive:
            return max(self._worth * one.drift, 0.0)
        return max(0.0, one.error.upper**2 - max(0.0, self._work.lost.mean) ** 2)

    def _materialised(self, taken: frozenset[int]) -> ir.Model:
        model = self._work.substituted([self._measured[self.places[k]].candidate for k in sorted(taken)])
        return ir.external_data.load_to_model(model)

    def _point(self, taken: frozenset[int], model: ir.Model) -> Point:
        stored, error = self._judged(model)
        return Point(taken, self.predicted(taken), error, weight_bytes(stored), self._times({"after": stored})["after"] / 1e3)

    def _judged(self, model: ir.Model) -> tuple[ir.Model, Worsening]:
        """The model as trials take it, and what it loses."""
        work = self._work
        stored = work.trials.stored(model)
        return stored, work.judge.worsening(work.outputs(stored, work.data.measuring))

    def _times(self, variants: Mapping[str, ir.Model]) -> dict[str, float]:
        """Microseconds of each, beside the graph that this stage began with."""
        work = self._work
        work.trials.keep(self._before)
        times = work.trials.times({"before": (self._before, work.example)} | {n: (m, work.example) for n, m in variants.items()}, turn=0.05)
        self.exact_ms = times["before"] / 1e3
        return times

    def _verdict(self, point: Point) -> str:
        """Why an answer will not do."""
        work, budget = self._work, self._work.budget
        if not point.error.upper <= self._bound:
            return f"it loses {point.error.mean:.3g}, {point.error.upper:.3g} at 95 %, and the budget is {self._bound:.3g}"
        if budget.weight_bytes is not None and self._last and point.bytes > budget.weight_bytes * work.exact_bytes:
            return f"its weights take {point.bytes / work.exact_bytes:.3f} of the exact graph's bytes"
        if budget.latency is not None and self._last and point.latency_ms > budget.latency * self.exact_ms:
            return f"it takes {point.latency_ms / self.exact_ms:.3f} of the time before"
        if not (work.wants_bytes and point.bytes < work.bytes) and point.latency_ms > SLOWER * self.exact_ms:
            return f"as a whole it is not faster: {point.latency_ms:.3f} ms, before {self.exact_ms:.3f} ms"
        return ""

    def _tighten(self, taken: frozenset[int], point: Point) -> None:
        """This set is out; and where its error was above the prediction, so are others that rest on the same hope."""
        self._problem = replace(self._problem, excluded=[*self._problem.excluded, taken])
        missed = point.error.upper
        if not missed > self._bound:
            self._disappointed(taken, point)
            return
        lost, left = self._beyond(missed), self._room(self._bound)
        drift = sum(self._measured[self.places[k]].drift for k in taken)
        if self._work.judge.additive and math.isfinite(lost) and drift > 0:
            self._worth, self._scale = max(1.1 * self._worth * self._scale, lost / drift), 1.0
            return
        self._scale *= max(1.1, lost / left) if math.isfinite(lost) and left > 0 else 4.0

    def _disappointed(self, taken: frozenset[int], point: Point) -> None:
        """The whole gained less than its parts by themselves: so will others of these kinds. Of several kinds nobody knows which it was: the
        one that promises most stays, alone."""
        hoped: dict[str, float] = {}
        for k in taken:
            hoped[self._kind(k)] = hoped.get(self._kind(k), 0.0) - self._problem.options[k].latency / 1e3
        if len(hoped) > 1:
            self._hope |= dict.fromkeys(hoped.keys() - {max(hoped, key=lambda kind: hoped[kind])}, 0.0)
            return
        ((kind, promised),) = hoped.items()
        part = min(0.5, max(0.0, (self.exact_ms - point.latency_ms) / promised)) if promised > 0 else 0.5
        self._hope[kind] = self._hope.get(kind, 1.0) * part

    def _loosen(self, taken: frozenset[int], point: Point) -> None:
        """The whole lost much less than was predicted: errors count for what they were seen to be, with half as much again for safety."""
        lost = max(1.5 * self._beyond(max(0.0, point.error.upper)), 0.0)
        drift = sum(self._measured[self.places[k]].drift for k in taken)
        if self._work.judge.additive and drift > 0:
            self._worth, self._scale = min(self._worth * self._scale, max(lost / drift, WORTH / 10)), 1.0
            return
        known = sum(self._error(k) for k in taken) * self._scale
        self._scale *= min(1.0, max(lost / known, 0.1)) if known > 0 else 1.0

    def _beyond(self, error: float) -> float:
        """What this stage lost, in the unit in which errors add."""
        before = max(0.0, self._work.lost.upper)
        return error - before if self._work.judge.additive else error**2 - before**2


def _worth(measured: Sequence[Measured]) -> float:
    """How much of the metric a unit of drift is worth, from all candidates together: one alone, on few samples, tells little."""
    drift = sum(m.drift for m in measured)
    return max(WORTH, sum(m.error.mean for m in measured) / drift if drift > 0 else 0.0)


class _Told:
    """What the report says of all that was tried."""

    def __init__(self, work: _Work, tried: Sequence[_Answer], best: _Answer, omitted: Sequence[Refusal]) -> None:
        self._work, self._best, self._point = work, best, best.point
        self._sites: list[tuple[Measured, bool]] = []
        self._refused: dict[Refusal, None] = {}
        stages = [(stage, answer is best) for answer in tried for stage in answer.stages]
        for stage, won in stages:
            for k, one in enumerate(stage.measured):
                taken = won and k in stage.chosen
                if not taken and not one.reason:
                    one.reason = "not part of the best answer within the budget" if self._point is not None else stage.search.reason
                self._sites.append((one, taken))
            self._refused |= dict.fromkeys(stage.refusals)
        known = {m.candidate.rewrite.split("-")[0] for m, _ in self._sites}
        self._refused |= dict.fromkeys(r for r in omitted if r.rewrite.split("-")[0] not in known)
        self._rounds = [r for stage, _ in stages for r in stage.search.rounds]
        self._reasons = list(dict.fromkeys(stage.search.reason for stage, _ in stages if stage.search.reason))
        self._front = best.stages[-1].search.points or [best.point] if best.point is not None else []

    def result(self) -> Approximated:
        work, point = self._work, self._point
        chosen = [m for m, taken in self._sites if taken]
        front = [p.to_dict() for p in self._front]
        section = {
            "budget": {"metric": work.budget.metric, "weight_bytes": work.budget.weight_bytes, "latency": work.budget.latency},
            "metric": {
                "exact": work.judge.base, "worsening": None if point is None else point.error.mean,
                "upper": None if point is None else point.error.upper,
            },
            "samples": work.data.samples, "splits": [len(s) for s in work.data.splits], "chosen": len(chosen), "rounds": self._rounds,
            "stopped": "; ".join(self._reasons), "sites": [m.to_dict(taken) for m, taken in self._sites],
            "refused": [{"rule": r.rewrite, "site": r.site, "reason": r.reason} for r in self._refused],
            "front": pareto(front), "correlation": correlation(front),
        }  # fmt: skip
        declined = [{"rule": m.candidate.rewrite, "site": m.candidate.site, "reason": m.reason} for m, _ in self._sites if m.reason]
        declined += [{"rule": r.rewrite, "site": r.site, "reason": r.reason} for r in self._refused]
        notes = [*work.data.warnings, *work.judge.notes, self._sentence(chosen, point)]
        return Approximated(self._best.model, section, _rewrites(chosen), declined, notes, None if point is None else _engine_check(work))

    def _sentence(self, chosen: Sequence[Measured], point: Point | None) -> str:
        if point is None:
            return f"approximate: none, the exact graph stands: {self._reasons[-1] if self._reasons else 'no candidate pays'}"
        return (
            f"approximate: {len(chosen)} of {len(self._sites)} candidates; the metric is worse by {point.error.mean:.3g} "
            f"({point.error.upper:.3g} at 95 %) on inputs that nothing was fitted to; the budget is {self._work.budget.metric:.3g}"
        )


def _rewrites(chosen: Sequence[Measured]) -> list[dict[str, Any]]:
    counts: dict[str, list[Measured]] = {}
    for one in chosen:
        counts.setdefault(one.candidate.rewrite, []).append(one)
    return [{"rule": name, "count": len(ms), "equality": "approximate", "error": max(m.error.mean for m in ms)} for name, ms in counts.items()]


def _engine_check(work: _Work) -> Callable[[Engine, Engine | None], str]:
    data, judge, bound = work.data, work.judge, work.budget.metric

    def differs(run: Engine, usual: Engine | None = None) -> str:
        error = judge.worsening([[np.asarray(o) for o in run(feed)] for feed in data.feeds(data.measuring)])
        return "" if error.upper <= bound else f"there the metric is worse by {error.mean:.3g} ({error.upper:.3g} at 95 %), more than {bound:.3g}"

    return differs


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
