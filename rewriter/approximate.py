"""Approximate rewrites under one error budget.

record the exact graph on calibration inputs -> propose candidates -> measure each alone (error) and its part (time) -> integer program ->
substitute -> saturate exactly again -> measure the whole on inputs that nothing was fitted to -> tighten and solve again. All-exact is
always an answer, and the one that stays where nothing else meets the budget or pays.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Approximation, Refusal
from rewriter.budget import Budget
from rewriter.calibration import CalibrationSet
from rewriter.candidate_costs import PATIENCE, Measured, measured, proposed
from rewriter.errors import BudgetError
from rewriter.front import correlation, pareto
from rewriter.joint_choice import Point, Search, better, problem
from rewriter.metric import Worsening
from rewriter.trial import Trials
from rewriter.workpiece import Workpiece

Array = np.ndarray
Feed = Mapping[str, Any]
Engine = Callable[[Feed], list[Any]]
Plan = Sequence[Sequence[Approximation]]

STRUCTURES = 0.5
"""The part of the budget that changes of structure may use; numbers in fewer bits come after them, and may use what is left."""


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
        work = Workpiece(exact, data, metric, budget, trials, example, memory, progress)
        try:
            return _approximate(work, plans, again)
        except BudgetError:
            raise
        except Exception as failure:  # noqa: BLE001 - all-exact is the answer whatever goes wrong
            reason = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
            return Approximated(
                None, {"chosen": 0, "stopped": reason}, notes=[f"approximate rewrites were given up, the exact graph stands: {reason}"]
            )


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
    search: Search
    chosen: set[int]


def _approximate(work: Workpiece, plans: Sequence[Plan], again: Callable[[ir.Model], ir.Model]) -> Approximated:
    """The best answer of all plans; one after the first is tried only while there is time."""
    tried: list[_Answer] = []
    omitted: list[Refusal] = []
    work.seen(list(dict.fromkeys(kind for plan in plans for stage in plan for kind in stage)))  # all that is recorded of it, in one pass
    for plan in plans:
        if reason := _enough(work) if tried else "":
            omitted = [Refusal(kind.name, "the whole model", reason) for kind in dict.fromkeys(k for stage in plan for k in stage)]
            break
        work.graph, work.lost = work.begin, Worsening(0.0, 0.0)
        answer = _follow(work, plan, again, alone=not tried)
        tried.append(answer)
    return _Told(work, tried, _best(work, tried), omitted).result()


def _best(work: Workpiece, tried: Sequence[_Answer]) -> _Answer:
    """Of those that are faster in another process, too; or none."""
    left = [answer for answer in tried if answer.point is not None]
    while left:
        best = left[0]
        for other in left[1:]:
            if other.point is not None and best.point is not None and better(work, other.point, best.point):
                best = other
        work.progress("timing the answer in another process")
        if best.model is not None and work.confirmed(best.model):
            return best
        best.stages[-1].search.reason = "the answer was not faster when it was timed once more, in another process"
        left.remove(best)
    return _Answer()


def _enough(work: Workpiece) -> str:
    """Why no other plan is tried, or nothing."""
    spent = time.monotonic() - work.start
    return f"not tried: {spent:.0f} seconds had gone by" if spent > 3 * PATIENCE else ""


def _follow(work: Workpiece, plan: Plan, again: Callable[[ir.Model], ir.Model], *, alone: bool) -> _Answer:
    """One stage after the other, each on what the one before left; the last may use all that is left of the budget.

    ``alone``: no other plan has tried the last stage by itself.
    """
    answer = _Answer()
    for number, kinds in enumerate(plan):
        last = number == len(plan) - 1
        candidates, refusals = proposed(work, kinds)
        found = measured(work, candidates)
        program, places = problem(work, found)
        search = Search(work, found, program, places, again, work.budget.metric * (1.0 if last else STRUCTURES), last=last)
        model, point = search.run()
        if last and model is not None and point is not None:
            model, point = search.compared(model, point)
        answer.stages.append(_Stage(found, refusals, search, {places[k] for k in point.chosen} if point is not None else set()))
        if model is not None and point is not None:
            answer.model, answer.point = model, point
            work.go_on_from(model, point.error)
        elif not last and not alone:
            break  # the rest would be what another plan does
    part = work.budget.weight_bytes
    if answer.point is not None and part is not None and answer.point.bytes > part * work.exact_bytes:
        answer.model = answer.point = None
    return answer


class _Told:
    """What the report says of all that was tried."""

    def __init__(self, work: Workpiece, tried: Sequence[_Answer], best: _Answer, omitted: Sequence[Refusal]) -> None:
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
        notes = [*work.data.warnings, *work.judge.notes, self._sentence(chosen, point), *_unseen(work, point)]
        return Approximated(self._best.model, section, _rewrites(chosen), declined, notes, None if point is None else _engine_check(work))

    def _sentence(self, chosen: Sequence[Measured], point: Point | None) -> str:
        if point is None:
            return f"approximate: none, the exact graph stands: {self._reasons[-1] if self._reasons else 'no candidate pays'}"
        return (
            f"approximate: {len(chosen)} of {len(self._sites)} candidates; the metric is worse by {point.error.mean:.3g} "
            f"({point.error.upper:.3g} at 95 %) on inputs that nothing was fitted to; the budget is {self._work.budget.metric:.3g}"
        )


def _unseen(work: Workpiece, point: Point | None) -> list[str]:
    """A metric that counts samples is the same before and after on every part: then the spread over parts says nothing."""
    if point is None or not work.judge.additive or any(point.error.splits):
        return []
    count = work.data.samples * len(work.data.measuring) // max(1, len(work.data.measuring) + len(work.data.fitting))
    return [f"the metric did not change on any of {count} samples: a loss of up to {3 / max(1, count):.2g} would not show on so few (95 %)"]


def _rewrites(chosen: Sequence[Measured]) -> list[dict[str, Any]]:
    counts: dict[str, list[Measured]] = {}
    for one in chosen:
        counts.setdefault(one.candidate.rewrite, []).append(one)
    return [{"rule": name, "count": len(ms), "equality": "approximate", "error": max(m.error.mean for m in ms)} for name, ms in counts.items()]


def _engine_check(work: Workpiece) -> Callable[[Engine, Engine | None], str]:
    data, judge, bound = work.data, work.judge, work.budget.metric

    def differs(run: Engine, usual: Engine | None = None) -> str:
        error = judge.worsening([[np.asarray(o) for o in run(feed)] for feed in data.feeds(data.measuring)])
        return "" if error.upper <= bound else f"there the metric is worse by {error.mean:.3g} ({error.upper:.3g} at 95 %), more than {bound:.3g}"

    return differs
