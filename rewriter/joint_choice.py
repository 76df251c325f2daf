"""The choice as a whole: solve the program, substitute, search exactly again, measure, tighten, and solve again."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from rewriter.candidate_costs import PATIENCE, Measured
from rewriter.choice import Option, Problem, solve
from rewriter.cut import kind as structure
from rewriter.errors import RewriterError
from rewriter.front import finite
from rewriter.graph import weight_bytes
from rewriter.metric import Worsening
from rewriter.workpiece import ANSWERS, Workpiece

ROUNDS = ANSWERS
"""How often the program is solved and its answer measured."""
HOPELESS = 7
"""And how many more of them may be given up on the way."""
TIGHTER = 1.3
"""After one that missed they count for this much more, at least."""
LOOSER = 4.0
"""An answer that lost much less than was predicted divides what errors count for by this, at most: on few samples it may be chance."""
SLACK = 0.7
"""An answer that is likely to use less of its bound than this is not the last one. (What is proved of it is mostly how few samples there are.)"""
WORTH = 0.1
"""What a unit of drift (the squared normalised error of the outputs) is taken to be worth of any metric at least, until a whole is measured."""
PREFERRED = 0.05
"""Part of all gains that the whole budget must be worth: what gains less is not worth its error."""
FRONT = (0.15, 0.5)
"""Parts of what the answer is thought to lose, for which the last program is solved again, to see what else could be had."""
BEYOND = 2.0
"""And of the budget."""
SLOWER = 0.98
"""The choice must take less than this part of the exact graph's time, or it is not worth an error."""


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
            "candidates": len(self.chosen), "predicted": finite(self.predicted), "error": finite(self.error.mean),
            "upper": finite(self.error.upper), "weight_bytes": self.bytes, "latency_ms": finite(self.latency_ms),
        }  # fmt: skip


class Search:
    """Solve, substitute, measure, tighten."""

    def __init__(
        self, work: Workpiece, measured: Sequence[Measured], problem: Problem, places: Sequence[int], again: Callable[[ir.Model], ir.Model],
        bound: float, *, last: bool,
    ) -> None:  # fmt: skip
        self._work, self._measured, self._problem, self._again = work, measured, problem, again
        self.places, self._bound, self._last = places, bound, last
        self._before, self._lost = work.graph, work.lost
        self._rival = work.exact if work.graph is work.begin else work.graph
        """What an answer has to be faster than."""
        self._worth = _worth([measured[k] for k in places]) if work.judge.additive else 1.0
        self._scale = 1.0
        self._met = math.inf
        """What errors counted for when an answer was last within the bound: what counts them for less is too much, where that missed."""
        self.points: list[Point] = []
        """What was measured for the front."""
        self._hope: dict[str, float] = {}
        """By kind of candidates: the part of its gains that was seen when a whole was measured."""
        self._aside: list[str] = []
        """Kinds that stood in a whole that disappointed, beside the one that promised most: their turn comes again."""
        self.exact_ms = math.nan
        self.rounds: list[dict[str, Any]] = []
        self.reason = ""

    def run(self) -> tuple[ir.Model | None, Point | None]:
        """The best answer that meets the budget, measured as a whole, and is faster (or smaller); None: the graph as it is.

        After one that leaves much of the budget, the program is solved again with what it has taught; after one that misses, too.
        """
        best: tuple[ir.Model | None, Point | None] = None, None
        start = time.monotonic()
        whole = 0  # answers that were measured to the end; others were seen to be hopeless at little cost
        for number in range(ROUNDS + HOPELESS):
            if whole == ROUNDS:
                break
            self._work.progress(f"choosing, round {number + 1}")
            taken = solve(self._additive(), self._room(self._bound), self._most_bytes())
            known = best[1]
            if not taken and known is None:
                taken = self._single()
            if not taken or (known is not None and taken == known.chosen):
                if known is None:
                    self.reason = "no set of candidates meets the budget and pays" if taken is not None or number else self._no_answer()
                return best
            model, point = self._searched_again(taken)
            said = self._verdict(point)
            whole += len(point.error.splits) == len(self._work.data.splits)
            self.rounds.append({**point.to_dict(), "verdict": said or "accepted"})
            self._work.progress(f"choosing, round {number + 1}: {said or 'accepted'}")
            if said:
                self._tighten(taken, point)
                continue
            if known is None or better(self._work, point, known):
                best = model, point
            if self._aside:
                self._hope[self._aside.pop()] = 1.0
                continue
            if point.error.likely > SLACK * self._bound or time.monotonic() - start > PATIENCE:
                return best
            self._loosen(taken, point)
        if best[1] is None:
            self.reason = f"none of {len(self.rounds)} answers was within the budget and better when measured as a whole"
        return best

    def _single(self) -> frozenset[int]:
        """The candidate that gains most by itself, of those that did not miss yet. A set that missed says too much against its parts: on few
        samples what it lost is mostly chance, and the one whose gain it was has not been measured without the others."""
        missed = {k for together in self._problem.excluded if len(together) == 1 for k in together}
        options = self._additive().options
        within = [self._measured[place].error.lower <= self._bound for place in self.places]
        left = [k for k, o in enumerate(options) if k not in missed and within[k] and o.latency < 0]
        return frozenset({min(left, key=lambda k: options[k].latency)}) if left and self._most_bytes() is None else frozenset()

    def _searched_again(self, taken: frozenset[int]) -> tuple[ir.Model, Point]:
        """The graph with these candidates, searched exactly again; as it was put together where that is faster: laws know nothing of kernels
        for codes."""
        plain = self._materialised(taken)
        model = self._again(plain.clone())
        stored, error = self._judged(model)
        if not self._within(error):
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
            if not self._verdict(other) and better(self._work, other, point):
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
        lost = max(0.0, self._work.lost.likely)
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
        """The model as trials take it, and what it loses: within the bound on the engine that it is for, too, which rounds otherwise."""
        work = self._work
        stored = work.trials.stored(model)
        error = work.worsening(stored, hopeless=self._bound)
        if work.trials.engine == "onnxruntime" or not self._within(error):
            return stored, error
        with contextlib.suppress(RewriterError):  # then it will not be timed there either
            error = max(error, work.worsening(stored, hopeless=self._bound, timed=True), key=lambda e: e.upper)
        return stored, error

    def _within(self, error: Worsening) -> bool:
        return self._counted(error) <= self._bound

    def _counted(self, error: Worsening) -> float:
        """What counts against the bound. Of the last stage what is certain. Of one before it what is likely, as long as it is certain to leave
        the whole budget unbroken: the last one has to prove what all of them lose together."""
        if self._last:
            return error.upper
        return max(error.likely, error.upper * self._bound / self._work.budget.metric) if self._work.budget.metric > 0 else error.upper

    def _times(self, variants: Mapping[str, ir.Model]) -> dict[str, float]:
        """Microseconds of each, beside the graph that they compete with."""
        times = self._work.times({"before": self._rival, **variants})
        self.exact_ms = times["before"] / 1e3
        return times

    def _verdict(self, point: Point) -> str:
        """Why an answer will not do."""
        work, budget = self._work, self._work.budget
        if not self._within(point.error):
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
        missed = self._counted(point.error)
        if not missed > self._bound:
            self._disappointed(taken, point)
            return
        lost, left = self._beyond(missed), self._room(self._bound)
        drift = sum(self._measured[self.places[k]].drift for k in taken)
        if self._work.judge.additive and math.isfinite(lost) and drift > 0:
            counted = self._worth * self._scale
            self._worth, self._scale = max(TIGHTER * counted, min(lost / drift, math.sqrt(counted * self._met))), 1.0
            return
        self._scale *= max(TIGHTER, lost / left) if math.isfinite(lost) and left > 0 else 4.0

    def _disappointed(self, taken: frozenset[int], point: Point) -> None:
        """The whole gained less than its parts by themselves: so will others of these kinds. Of several kinds nobody knows which it was: the
        one that promises most stays, alone, and the others come back after it."""
        hoped: dict[str, float] = {}
        for k in taken:
            hoped[self._kind(k)] = hoped.get(self._kind(k), 0.0) - self._problem.options[k].latency / 1e3
        if len(hoped) > 1:
            *self._aside, _ = sorted(hoped, key=lambda kind: hoped[kind])
            self._hope |= dict.fromkeys(self._aside, 0.0)
            return
        ((kind, promised),) = hoped.items()
        self._hope |= dict.fromkeys(self._aside, 1.0)
        self._aside = []
        part = min(0.5, max(0.0, (self.exact_ms - point.latency_ms) / promised)) if promised > 0 else 0.5
        self._hope[kind] = self._hope.get(kind, 1.0) * part

    def _loosen(self, taken: frozenset[int], point: Point) -> None:
        """The whole lost much less than was predicted: errors count for what they were seen to be, with half as much again for safety."""
        lost = max(1.5 * self._beyond(max(0.0, point.error.likely)), 0.0)
        self._met = counted = self._worth * self._scale
        drift = sum(self._measured[self.places[k]].drift for k in taken)
        if self._work.judge.additive and drift > 0:
            self._worth, self._scale = min(counted, max(lost / drift, WORTH / 10, counted / LOOSER)), 1.0
            return
        known = sum(self._error(k) for k in taken) * self._scale
        self._scale *= min(1.0, max(lost / known, 0.1)) if known > 0 else 1.0

    def _beyond(self, error: float) -> float:
        """What this stage lost, in the unit in which errors add."""
        before = max(0.0, self._work.lost.likely)
        return error - before if self._work.judge.additive else error**2 - before**2


def _worth(measured: Sequence[Measured]) -> float:
    """How much of the metric a unit of drift is worth, from all candidates together: one alone, on few samples, tells little."""
    drift = sum(m.drift for m in measured)
    return max(WORTH, sum(m.error.mean for m in measured) / drift if drift > 0 else 0.0)


def problem(work: Workpiece, measured: Sequence[Measured]) -> tuple[Problem, list[int]]:
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


def better(work: Workpiece, a: Point, b: Point) -> bool:
    """Is the first answer the one to have?"""
    return a.bytes < b.bytes if work.memory else a.latency_ms < SLOWER * b.latency_ms
