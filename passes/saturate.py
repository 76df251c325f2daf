"""Replace a graph by the cheapest equal one that the rules find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from rewriter.cost import Prices, class_sizes, run_cost, stored_cost
from rewriter.decode import Selected, decode
from rewriter.egraph import Frozen, Limits, Program, Saturator
from rewriter.encode import Encoding, encode
from rewriter.extract import Choice, Extraction, cheapest_trees, extract
from rewriter.rule import Condition, Rule, binds, text
from rewriter.terms import FACTS, OPERATORS, TABLES

STORED = -1
"""In place of a node: a weight, which costs its bytes once however many read it."""
PREFER_MODEL = 1e-3
"""Microseconds by which a node of the model beats an equal one that a rule made: ties leave the model alone."""


@dataclass(frozen=True)
class Decline:
    """A law whose left side stands at ``site`` and whose condition does not hold there."""

    rule: str
    site: str
    reason: str


@dataclass
class Search:
    """What one search did, summed over a model's graphs."""

    nodes: int = 0
    classes: int = 0
    rounds: int = 0
    seconds: float = 0.0
    stop: str = "saturated"
    method: str = "forced"
    extraction_seconds: float = 0.0
    gap: float = 0.0
    rewrites: Counter[str] = field(default_factory=Counter)
    declined: list[Decline] = field(default_factory=list)
    value_facts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, other: Search) -> None:
        self.nodes += other.nodes
        self.classes += other.classes
        self.rounds = max(self.rounds, other.rounds)
        self.seconds += other.seconds
        self.stop = other.stop if self.stop == "saturated" else self.stop
        self.method = other.method if self.method in ("forced", other.method) or other.method == "greedy" else self.method
        self.extraction_seconds += other.extraction_seconds
        self.gap = max(self.gap, other.gap)
        self.rewrites += other.rewrites
        self.declined += other.declined
        self.value_facts |= other.value_facts


def saturate(
    graph: ir.Graph,
    rules: Sequence[Rule],
    saturator: Saturator,
    *,
    limits: Limits | None = None,
    objective: str | Prices = "latency",
    hints: Mapping[str, int] | None = None,
) -> tuple[ir.Graph, Search]:
    """The cheapest graph equal to ``graph`` under the rules, constants left as expressions, and how it was found.

    before                                      after
        a = MatMul(x, W)                            d = MatMul(A, B)
        b = MatMul(MatMul(x, A), B)                 e = Add(W, d)
        return Add(a, b)                            return MatMul(x, e)

    ``hints``: sizes of symbolic dimensions, for the cost. Consumes ``graph``. Raises ``SearchFailed``, and then leaves it as it was.
    """
    encoding = encode(graph)
    frozen = saturator.saturate(Program(encoding.lines, rules, limits or Limits(), encoding.rows))
    prices = objective if isinstance(objective, Prices) else Prices.for_objective(objective)
    selected, extraction = select(frozen, encoding, encoding.roots(graph), prices, hints or {})
    search = Search(
        len(frozen.nodes), len({n[1] for n in frozen.nodes}), frozen.rounds, frozen.seconds, frozen.stop,
        extraction.method, extraction.seconds, extraction.gap, value_facts=encoding.value_facts,
    )  # fmt: skip
    search.rewrites = _rewrites(frozen, rules, selected)
    search.value_facts = _relied_on(encoding.value_facts, rules, search.rewrites)
    search.declined = [*_declined(frozen, encoding, rules, set(selected)), *_dearer(frozen, encoding, rules, selected)]
    return decode(graph, encoding, frozen.model, selected), search


ALWAYS = {"zero", "one"}
"""Facts that analyses and extraction use themselves, whatever laws fired."""


def _relied_on(facts: Mapping[str, tuple[str, ...]], rules: Sequence[Rule], used: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """What of the weights' values the result may rest on: signs only where a law asked for them."""
    wanted = ALWAYS | {c[0] for r in rules if f"{r.theory}/{r.name}" in used for c in r.given}
    kept = {name: tuple(f for f in held if f.partition(":")[0] in wanted) for name, held in facts.items()}
    return {name: held for name, held in kept.items() if held}


def _rewrites(frozen: Frozen, rules: Sequence[Rule], selected: Mapping[int, Selected]) -> Counter[str]:
    """How many run-time terms of the solution each law made or erased; for laws that only made weights, how many weights."""
    tidying = {f"{r.theory}/{r.name}" for r in rules if r.weights}
    live = {row[0] for row in frozen.facts["live"]}
    made = [(cls, s.rule) for cls, s in selected.items() if s.rule and s.rule not in tidying]
    made += [(cls, rule) for cls, rule in frozen.facts["erased"] if cls in selected and rule not in tidying]
    seen = Counter(rule for cls, rule in made if cls in live)
    return seen + Counter(rule for _, rule in made if rule not in seen)


def select(
    frozen: Frozen, encoding: Encoding, roots: Sequence[int], prices: Prices, hints: Mapping[str, int]
) -> tuple[dict[int, Selected], Extraction]:
    """One e-node per class of the cheapest solution: run-time classes first, then the weights that they read."""
    const, zeros = ({row[0] for row in frozen.facts[fact]} for fact in ("const", "zero"))
    sizes = class_sizes(frozen.nodes, encoding, frozen.model, hints)
    convolved = {cls for op, cls, _, _ in frozen.nodes if op == "conv"}
    live: dict[int, list[Choice]] = {}
    fixed: dict[int, list[Choice]] = {}
    for k, (op, cls, arguments, rule) in enumerate(frozen.nodes):
        reads = _reads(op, arguments)
        if cls in const:
            if all(r in const for r in reads):
                # Any weights-only expression is free at run time: prefer short ones, and the model's own.
                fixed.setdefault(cls, []).append(Choice(k, 0.0 if op == "leaf" else 1.0 + PREFER_MODEL * bool(rule), reads))
            continue
        cost = run_cost(op, cls, arguments, sizes, prices, zeros, convolved) + (PREFER_MODEL if rule else 0.0)
        stored = [r for r in reads if r in const and r not in zeros]
        if prices.shares_weights:
            live.update((r, [Choice(STORED, stored_cost(r, sizes, prices), ())]) for r in stored if r not in live)
        else:
            cost += sum(stored_cost(r, sizes, prices) for r in stored)
        live.setdefault(cls, []).append(Choice(k, cost, tuple(r for r in reads if r not in const or (prices.shares_weights and r in stored))))
    tops = [frozen.model[i] for i in roots]
    extraction = extract(live, [c for c in tops if c not in const])
    weights = cheapest_trees(fixed)
    selected: dict[int, Selected] = {}
    wanted = [c for c in tops if c in const]
    for cls, choice in extraction.chosen.items():
        if choice.node == STORED:
            continue
        op, _, arguments, rule = frozen.nodes[choice.node]
        if op in ("linear", "conv") and arguments[2] in zeros:
            arguments = (*arguments[:2], None, *arguments[3:])
        selected[cls] = Selected(op, arguments, rule)
        wanted += [r for r in _reads(op, arguments) if r in const]
    while wanted:
        cls = wanted.pop()
        if cls not in selected:
            op, _, arguments, rule = frozen.nodes[weights[cls].node]
            selected[cls] = Selected(op, arguments, rule)
            wanted += _reads(op, arguments)
    return selected, extraction


def _reads(op: str, arguments: tuple[object, ...]) -> tuple[int, ...]:
    if op == "op":
        return tuple(a for a in arguments[1:] if isinstance(a, int))
    kinds = OPERATORS[op].kinds if op in OPERATORS else ""
    return tuple(a for a, k in zip(arguments, kinds, strict=False) if k == "t" and isinstance(a, int))


def _declined(frozen: Frozen, encoding: Encoding, rules: Sequence[Rule], in_solution: set[int]) -> list[Decline]:
    """Places in the result where a law's left side stands, a condition that makes it true fails, and no sister law applies."""
    facts = FactIndex(frozen.facts)
    names = {frozen.model[i]: v.name for i, v in reversed(list(enumerate(encoding.values))) if v is not None and v.name}
    sisters: dict[str, list[Rule]] = {}
    for rule in rules:
        sisters.setdefault(text(rule.patterns()[0]), []).append(rule)
    found: dict[tuple[str, str], Decline] = {}
    for rule in rules:
        for row in frozen.near.get(rule.near_relation.removeprefix("near_"), ()):
            root, values = row[0], dict(zip(rule.free, row[1:], strict=True))
            missing = _missing(rule, values, facts)
            tensors = [v for v in row[1:] if isinstance(v, int)] if root not in names else [root]
            site = next((names[t] for t in tensors if t in names), "")
            if not missing or not site or not all(t in in_solution for t in tensors if t in names):
                continue
            if not all(_missing(sister, values, facts) for sister in sisters[text(rule.patterns()[0])]):
                continue
            written = ", ".join(f"{n}({','.join(a)})" for n, a in missing)
            name = f"{rule.theory}/{rule.name}"
            found.setdefault((name, site), Decline(name, site, f"{rule.declines} ({written} does not hold)"))
    return list(found.values())


def _dearer(frozen: Frozen, encoding: Encoding, rules: Sequence[Rule], selected: Mapping[int, Selected]) -> Iterator[Decline]:
    """Laws that hold at a place in the result, are used nowhere in it, and gave something that costs more than what was taken.

    Only laws about sums and linear maps: one that takes a scale or a bias into its neighbour is no alternative anybody would miss.
    """
    names = {frozen.model[i]: v.name for i, v in reversed(list(enumerate(encoding.values))) if v is not None and v.name}
    live = {row[0] for row in frozen.facts["live"]} & set(names) & set(selected)
    told = {f"{r.theory}/{r.name}" for r in rules if r.patterns()[0][0] in ("linear", "conv", "cat") or r.declines}
    told -= {s.rule for s in selected.values()}
    places: dict[str, list[str]] = {}
    for _, cls, arguments, rule in frozen.nodes:
        if rule in told and cls in live and selected[cls].arguments != arguments:
            places.setdefault(rule, []).append(names[cls] or "")
    for rule, sites in sorted(places.items()):
        more = f" and {len(sites) - 1} more places" if len(sites) > 1 else ""
        yield Decline(rule, sites[0] + more, "holds here, but what it gives is estimated to cost more than what was taken")


class FactIndex:
    """The rows of every fact, found by all their arguments or by the first."""

    def __init__(self, facts: Mapping[str, Sequence[tuple[object, ...]]]) -> None:
        self._rows = {name: set(rows) for name, rows in facts.items()}
        self._by_first: dict[tuple[str, object], list[tuple[object, ...]]] = {}
        for name, rows in facts.items():
            for row in rows if FACTS[name].of is not None else ():
                self._by_first.setdefault((name, row[0]), []).append(row)

    def bind(self, condition: Condition, known: dict[str, object]) -> bool:
        """Does it hold of what is known? What else its row says is then known too."""
        name, arguments = condition
        if all(a in known for a in arguments):
            return tuple(known[a] for a in arguments) in self._rows[name]
        for row in self._by_first.get((name, known.get(arguments[0])), ()):
            if all(known.get(a, v) == v for a, v in zip(arguments, row, strict=True)):
                known.update(zip(arguments, row, strict=True))
                return True
        return False


def _missing(rule: Rule, values: Mapping[str, object], facts: FactIndex) -> list[Condition]:
    """The conditions of a law that fail at a match: facts by what the e-graph derived, tables and attributes by what they are."""
    known = dict(values)
    for condition in rule.when:
        if binds(condition) and condition[0] in FACTS:
            facts.bind(condition, known)
    absent = [c for c in rule.given if c[0] in FACTS and not facts.bind(c, known)]
    abstract = replace(rule, given=tuple(c for c in rule.given if c[0] not in FACTS), when=tuple(c for c in rule.when if c[0] in TABLES))
    return abstract.bind(known)[1] + absent
