"""Why a result is what it is: the rules that it rests on and where, and why a rule stayed silent.

Necessity is found by dropping rules one at a time and searching again, for egglog keeps no proofs: it is necessity for the
*cost* that was reached, not a derivation. A silent rule is looked for with its left side alone, then with ever less of it: the place
where most of it stands is the nearest one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from rewriter.egraph import Limits, Saturator
from rewriter.probe import NAMELESS, erases, matches, probes, renamed, standing, written
from rewriter.rule import Rule
from rewriter.searched import Found, Model, full_name

PROVING = 30.0
"""Seconds that ``explain`` spends on finding out which rules can be spared."""
SPOKEN = {
    "linear": "map x·A + b", "product": "matrix product", "conv": "convolution", "add": "sum", "mul": "element-wise product",
    "scale": "product with a vector", "bias": "sum with a vector", "scalar": "product with a number", "shift": "sum with a number",
    "map": "element-wise function", "cat": "concatenation", "mean_pool": "average pooling",
}  # fmt: skip
"""The algebra's operators (``rewriter.terms``) as one says them."""


@dataclass
class Explanation:
    """What a search did. ``sites``: rule name to places; ``needed``: rules without which the result costs more."""

    sites: dict[str, list[str]]
    needed: list[str]
    complete: bool
    terms: tuple[int, int]
    cost: tuple[float, float]
    stop: str
    statements: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """For a person."""
        if not self.sites:
            yield "no rule changes this model"
            return
        yield f"run-time terms {self.terms[0]:,} -> {self.terms[1]:,}, cost {self.cost[0]:,.4g} -> {self.cost[1]:,.4g} us, search {self.stop}"
        for rule, places in self.sites.items():
            shown = ", ".join(map(repr, places[:6])) + (f" and {len(places) - 6} more" if len(places) > 6 else "")
            yield f"{rule}: {self.statements.get(rule, '')}"
            yield f"    at {shown}"
        yield f"rules needed for this cost: {', '.join(self.needed) or 'none'}"
        if not self.complete:
            yield "    (not all were tried alone: some of these may be spared)"


def explain(model: ir.Model, rules: Sequence[Rule], *, limits: Limits | None = None, seconds: float = PROVING) -> Explanation:
    """Which rules rewrite ``model``, where, and the fewest that reach the same cost. Consumes ``model``; raises ``SearchFailed``."""
    terms, bounds = Model(model), limits or Limits(seconds=60.0)
    end = time.monotonic() + seconds
    with Saturator() as saturator:
        plain = terms.search((), saturator, bounds)
        found = terms.search(rules, saturator, bounds)
        hits: Counter[str] = sum((Counter(f.frozen.matches) for f in found), Counter())
        fired = [r for r in rules if hits[full_name(r)]]
        sites: dict[str, list[str]] = {}
        for one in found:
            for rule, places in one.sites().items():
                sites.setdefault(rule, []).extend(places)
        for law in fired:
            if erases(law):
                sites.setdefault(full_name(law), []).extend(standing(terms, law, saturator, bounds))
        before, after = _total(plain), _total(found)
        needed: list[Rule] = []
        complete = True
        if after[1] < before[1] or after[0] < before[0]:
            needed, complete = _needed(terms, fired, set(sites), after, saturator, bounds, end)
    shown = {r: list(dict.fromkeys(places)) for r, places in sorted(sites.items(), key=lambda x: (-len(x[1]), x[0])) if places}
    stops = {f.frozen.stop for f in found}
    return Explanation(
        shown, [full_name(r) for r in needed] if shown else [], complete, (before[0], after[0]), (before[1], after[1]),
        "saturated" if stops <= {"saturated"} else f"stopped by {', '.join(sorted(stops - {'saturated'}))}",
        {full_name(r): r.statement for r in rules},
    )  # fmt: skip


def _total(found: Sequence[Found]) -> tuple[int, float]:
    return sum(f.terms for f in found), sum(f.cost for f in found)


def _needed(
    terms: Model, fired: Sequence[Rule], used: set[str], wanted: tuple[int, float], saturator: Saturator, limits: Limits, end: float
) -> tuple[list[Rule], bool]:
    """Rules of ``fired`` that cannot be spared, and whether each was tried: those not seen in the result go first, together."""

    def enough(rules: Sequence[Rule]) -> bool:
        _, cost = _total(terms.search(rules, saturator, limits))
        return cost <= wanted[1] * (1 + 1e-6) + 1e-9

    kept = [r for r in fired if full_name(r) in used]
    if not enough(kept):
        kept = list(fired)
    for rule in sorted(kept, key=lambda r: full_name(r) in used):
        if time.monotonic() > end:
            return kept, False
        without = [r for r in kept if r is not rule]
        if enough(without):
            kept = without
    return kept, True


@dataclass(frozen=True)
class Answer:
    """``applied``: places in the result; ``fired``: matches during the search; ``nearest``: place and reasons, if it never fired."""

    rule: str
    statement: str
    applied: list[str]
    fired: int
    nearest: tuple[str, str, list[str]] | None
    absent: str = ""
    stop: str = "saturated"

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield f"{self.rule}: {self.statement}"
        if self.applied:
            yield f"applied {len(self.applied)} times: at {', '.join(map(repr, self.applied[:8]))}" + (" ..." if len(self.applied) > 8 else "")
        elif self.fired:
            yield f"it fired {self.fired} times, but nothing that it made is in the cheapest result"
        elif self.nearest is not None:
            site, pattern, reasons = self.nearest
            where = "in a term that rules made" if site == NAMELESS else repr(site)
            yield f"nearest place: {where}, where {pattern} stands"
            yield from (f"    {reason}" for reason in reasons)
        else:
            yield f"its left side stands nowhere: {self.absent}"
        if self.stop != "saturated" and not self.applied:
            yield f"    (the search was stopped by its limit of {self.stop}: more might have been found)"


def why_not(rule: Rule, model: ir.Model, rules: Sequence[Rule], *, limits: Limits | None = None) -> Answer:
    """Where ``rule`` applied, or what was missing where it nearly did. Consumes ``model``; raises ``SearchFailed``."""
    terms, bounds = Model(model), limits or Limits(seconds=60.0)
    name, tries = full_name(rule), probes(rule)
    with Saturator() as saturator:
        found = terms.search(rules, saturator, bounds, [line for p in tries for line in p.lines(rule)])
        fired = sum(f.frozen.matches.get(name, 0) for f in found)
        applied = [site for f in found for site in f.sites().get(name, ())]
        if not applied and fired and erases(rule):
            applied = standing(terms, rule, saturator, bounds)
    stop = next((f.frozen.stop for f in found if f.frozen.stop != "saturated"), "saturated")
    if applied or fired:
        return Answer(name, rule.statement, applied, fired, None, stop=stop)
    for probe in tries:
        best = min(matches(found, rule, probe), key=lambda m: (len(m.missing), m.order), default=None)
        if best is not None:
            reasons = best.reasons() or ["every condition holds there now: the search ended before it fired"]
            if rule.declines and not probe.holes and any(c in rule.given for c in best.missing):
                reasons.append(rule.declines)
            return Answer(name, rule.statement, [], 0, (best.site, renamed(written(probe.pattern), probe), reasons), stop=stop)
    operator = rule.patterns()[0][0]
    kind = "weights" if rule.weights else "run-time tensors"
    return Answer(name, rule.statement, [], 0, None, f"the model has no {SPOKEN.get(operator, operator)} of {kind}", stop)
