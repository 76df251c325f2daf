"""A graph that candidates are put into, what it gives on the measuring splits, and what is known of it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Approximation, Candidate, Refusal, Wanted, substituted, together
from passes.approximate.refit import refit
from passes.calibrate import Recorded, record, with_outputs
from passes.drop_dead import drop_dead
from passes.spell_out_lstm import spell_out_lstm
from rewriter.budget import Budget
from rewriter.calibration import CalibrationSet
from rewriter.errors import BudgetError, RewriterError
from rewriter.graph import weight_bytes
from rewriter.metric import Judge, Worsening
from rewriter.trial import Trials
from rewriter.unit_cost import UnitCosts

Array = np.ndarray

ANSWERS = 5
"""Answers as a whole that are judged on the same samples before one is taken."""
AS_FAST = 1.05
"""What a graph may take of another's time to be thought as fast."""
WHOLE = 0.4
"""Seconds of calls of each graph where whole ones are compared."""
SENSED = 4
"""Batches of each split on which single candidates are measured; the choice is measured on all."""


class Workpiece:
    """The exact graph, what it gives on the measuring splits, and what variants of it are measured with.

    ``graph``: the graph that candidates are put into; ``begin``: the first one, the exact graph with operators spelled out whose weights they would
    hide, where that is as fast; ``lost``: what ``graph`` has lost already.
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
        self._sites: dict[int, Seen] = {}
        names = [v.name or "" for v in exact.graph.inputs]
        first = data.feed(data.measuring[0])
        self.example = list(example) if example is not None else [first[n] for n in names]
        progress("running the exact graph on the calibration inputs")
        try:
            outputs = self.outputs(self.exact, data.measuring)
        except RewriterError as failure:
            raise BudgetError(f"the model does not run on the calibration inputs: {failure}") from None
        self.judge = Judge(metric, data, outputs, answers=ANSWERS)
        self.sensed = data.fewer(SENSED)
        known = dict(zip(data.measuring, outputs, strict=True))
        self.quick = Judge(metric, self.sensed, [known[p] for p in self.sensed.measuring])
        """Judges single candidates."""
        trials.pace_by(self.exact, self.example)
        self.begin = self.graph = self._spelled_out()

    def _spelled_out(self) -> ir.Model:
        spelled = ir.external_data.load_to_model(self.exact.clone())
        if not spell_out_lstm(spelled):
            return self.exact
        stored = self.trials.stored(drop_dead(spelled))
        times = self.times({"exact": self.exact, "spelled": stored})
        return stored if times["spelled"] <= AS_FAST * times["exact"] else self.exact

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
    def known(self) -> Seen:
        """What is known of the graph as it is."""
        if id(self.graph) not in self._sites:
            recorded: dict[str, Recorded] = {}
            self._sites[id(self.graph)] = Seen(self.graph, recorded, UnitCosts(self.graph, recorded, self.trials))
        return self._sites[id(self.graph)]

    def seen(self, kinds: Sequence[Approximation]) -> Seen:
        """What was recorded, proposed and timed of the graph as it is: kept for every plan that comes to the same graph."""
        found = self.known
        wanted = together([k.wants(self.graph) for k in kinds])
        if not wanted.values | wanted.grams <= found.recorded.keys():
            found.recorded.update(self._recorded(wanted, found.recorded))
        return found

    def _recorded(self, wanted: Wanted, known: Mapping[str, Recorded]) -> dict[str, Recorded]:
        inputs = [v.name or "" for v in self.graph.graph.inputs]
        return self._observed(self.graph, sorted((wanted.values | wanted.grams).union(inputs) - known.keys()), grams=wanted.grams)

    def _observed(self, model: ir.Model, names: Sequence[str], most: int | None = None, grams: frozenset[str] = frozenset()) -> dict[str, Recorded]:
        """What these values are on the batches that weights are fitted to, or on so many of them."""
        inputs = [v.name or "" for v in model.graph.inputs]
        key = self.trials.load(with_outputs(model, names))
        places = self.data.fitting[:most]
        try:
            return record(
                model, names, grams, self.data.feeds(places), lambda feed: self.trials.call(key, [feed[n] for n in inputs]),
                lambda n: self.progress(f"recording batch {n} of {len(places)}"),
            )  # fmt: skip
        finally:
            self.trials.drop(key)

    def times(self, variants: Mapping[str, ir.Model]) -> dict[str, float]:
        """Microseconds of each (of what ``trials.stored`` gave)."""
        self.trials.keep(self.graph)
        return self.trials.times({name: (model, self.example) for name, model in variants.items()}, seconds=WHOLE)

    def confirmed(self, model: ir.Model) -> bool:
        """Is it faster than the exact graph in another process, too? Where a process happens to lie in memory makes a tenth of the time of a small
        graph; and the least of many answers is the one that was lucky."""
        if self.wants_bytes:
            return True
        variants = {"exact": self.exact, "answer": self.trials.stored(model)}
        with contextlib.closing(self.trials.anew()) as trials:
            times = trials.times({name: (variant, self.example) for name, variant in variants.items()}, seconds=WHOLE)
        return not math.isfinite(times["exact"]) or times["answer"] < times["exact"]

    def worsening(self, model: ir.Model, *, hopeless: float = math.inf, timed: bool = False) -> Worsening:
        """What it loses on all that measures, or on as much of it as shows that it loses more than ``hopeless``."""
        running = self.trials.running(model, self.data.feeds(self.data.measuring), timed=timed)
        with contextlib.closing(running):
            return self.judge.worsening((outputs for several in running for outputs in several), hopeless)

    def outputs(self, model: ir.Model, places: Sequence[int]) -> list[list[Array]]:
        return self.trials.outputs(model, self.data.feeds(places))

    def substituted(self, candidates: Sequence[Candidate]) -> ir.Model:
        """A copy of the graph with these in it, and fitted once more as a whole."""
        model = substituted(self.graph, candidates)
        fitted = frozenset().union(*(c.fitted for c in candidates))
        if len(candidates) > 1 and fitted:
            with contextlib.suppress(RewriterError):  # a graph that does not run is told where it is measured
                refit(model, self.graph, fitted, self._observed_once)
        return model

    def _observed_once(self, model: ir.Model, names: Sequence[str], most: int | None) -> Mapping[str, Recorded]:
        """As ``_observed``; what the graph itself gives is recorded for all answers that are fitted to it."""
        if model is not self.graph:
            return self._observed(model, names, most)
        recorded = self.known.recorded
        if left := [n for n in names if n not in recorded]:
            recorded.update(self._observed(model, left))
        return {n: recorded[n] for n in names}


@dataclass
class Seen:
    """Of one graph. ``proposed``: by kind. ``sensed``: by candidate, its error and drift alone."""

    graph: ir.Model
    recorded: dict[str, Recorded]
    costs: UnitCosts
    proposed: dict[str, tuple[list[Candidate], list[Refusal]]] = field(default_factory=dict)
    sensed: dict[int, tuple[Worsening, float]] = field(default_factory=dict)
