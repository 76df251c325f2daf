"""Candidates one by one: what each would gain, measured on its part, and what the graph loses with nothing but it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.instructions import saturating
from passes.approximate.candidate import Approximation, Candidate, Refusal, Site
from rewriter.front import finite
from rewriter.metric import Worsening
from rewriter.workpiece import Workpiece

PATIENCE = 120.0
"""Seconds for timing candidates, and for measuring them one by one; what is left then does not compete. After three
times as many no further plan is begun."""
NOISE = 0.1
"""Part of a gain that measurements differ by."""


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
            "rewrite": c.rewrite, "site": c.site, "error": finite(self.error.mean), "upper": finite(self.error.upper),
            "layer_error": finite(c.told_error), "bound": c.bound, "microseconds": finite(self.latency), "bytes": c.bytes, "chosen": chosen,
            "reason": self.reason,
        }  # fmt: skip


def proposed(work: Workpiece, kinds: Sequence[Approximation]) -> tuple[list[Candidate], list[Refusal]]:
    """What these kinds propose for the graph as it is."""
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


def measured(work: Workpiece, candidates: Sequence[Candidate]) -> list[Measured]:
    """Time first, then errors of what could pay, the largest gains first."""
    found: list[Measured] = []
    work.known.costs.measure(candidates, PATIENCE, lambda place, count: work.progress(f"timing part {place + 1} of {count}"))
    for candidate in candidates:
        one = Measured(candidate)
        try:
            if not work.known.costs.known(candidate):
                one.reason = "not timed: time was up"
                found.append(one)
                continue
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
            slower.reason = f"the same numbers take {slower.latency - best[key].latency:.1f} µs less by other operators"


def _without_dominated(work: Workpiece, measured: Sequence[Measured]) -> None:
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


def _dominates(work: Workpiece, a: Measured, b: Measured) -> bool:
    same = a.candidate.covers <= b.candidate.covers
    exact = a.candidate.layer_error < b.candidate.layer_error
    small = not work.wants_bytes or a.candidate.bytes <= b.candidate.bytes * (1 - NOISE)
    return same and exact and small and a.latency <= b.latency * (1 - NOISE)


def _pays(work: Workpiece, one: Measured) -> bool:
    """Could it be part of any answer?"""
    return one.latency < 0 or (work.wants_bytes and one.candidate.bytes < 0)


def _sense(work: Workpiece, competing: Sequence[Measured]) -> None:
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


def _promise(work: Workpiece, one: Measured) -> float:
    return one.candidate.bytes if work.memory else one.latency


def _sense_family(work: Workpiece, group: Sequence[Measured]) -> None:
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


def _alone(work: Workpiece, candidate: Candidate) -> tuple[Worsening, float]:
    """The error and the drift of the graph with nothing but this in it."""
    sensed = work.known.sensed
    if id(candidate) not in sensed:
        outputs = work.outputs(work.substituted([candidate]), work.sensed.measuring)
        sensed[id(candidate)] = work.quick.worsening(outputs), work.quick.drift(outputs)
    return sensed[id(candidate)]


def _infer(work: Workpiece, one: Measured, known: Measured) -> None:
    a, b = one.candidate.layer_error, known.candidate.layer_error
    if one is not known:
        factor = a / b if b > 0 else 1.0
        one.drift = known.drift * factor
        one.error = known.error.times(factor if work.judge.additive else math.sqrt(factor))
    lower = one.error.lower
    if lower > work.budget.metric or not math.isfinite(one.error.mean):
        how = "" if one is known else "about "
        one.reason = f"alone it loses {how}{one.error.mean:.3g} (at least {lower:.3g} at 95 %), and the budget is {work.budget.metric:.3g}"
