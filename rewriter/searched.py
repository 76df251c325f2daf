"""A model searched: its graphs as terms, the cheapest form of each, and which values of the model its terms stand for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir

from passes import normalise
from passes.saturate import PREFER_MODEL, select
from passes.share_weights import share_weights
from rewriter.cost import Prices
from rewriter.decode import Selected
from rewriter.edit import graphs
from rewriter.egraph import Frozen, Limits, Program, Saturator
from rewriter.encode import Encoding, encode
from rewriter.errors import InvalidInput
from rewriter.infer_onnx import infer
from rewriter.rule import Rule
from rewriter.terms import OPERATORS


def find_rule(name: str, rules: Sequence[Rule]) -> Rule:
    """The rule of that name (``maps-add`` or ``matmul/maps-add``). Raises ``InvalidInput``, with the nearest name."""
    wanted = name.strip().lower().replace("_", "-").replace("side-by-side/", "side_by_side/")
    known = {n: r for r in rules for n in (f"{r.theory}/{r.name}", r.name)}
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, sorted(known), 1, 0.5)
    raise InvalidInput(f"no rule {name!r}" + (f"; did you mean {near[0]!r}?" if near else "") + "; `rewriter rules` lists them")


class Model:
    """A normalised model's graphs as terms, and a search of them."""

    def __init__(self, model: ir.Model) -> None:
        """Consumes ``model``, as ``read_onnx`` gives it."""
        normalise(model)
        share_weights(model)
        infer(model)
        self.graphs = [(graph, encode(graph)) for graph in graphs(model)]
        self.nodes = sum(len(graph) for graph, _ in self.graphs)

    def search(self, rules: Sequence[Rule], saturator: Saturator, limits: Limits, lines: Sequence[str] = ()) -> list[Found]:
        """The cheapest form of every graph. Raises ``SearchFailed``."""
        found = []
        for graph, encoding in self.graphs:
            program = Program([*encoding.lines, *lines], rules, limits, encoding.rows, declines=False)
            frozen = saturator.saturate(program)
            selected, extraction = select(frozen, encoding, encoding.roots(graph), Prices.for_objective("latency"), {})
            made = sum(bool(frozen.nodes[c.node][3]) for c in extraction.chosen.values())
            found.append(Found(graph, encoding, frozen, selected, extraction.cost - PREFER_MODEL * made, len(extraction.chosen)))
        return found


@dataclass(frozen=True)
class Found:
    """One graph's search. ``cost``: microseconds by the cost model; ``terms``: run-time terms of the solution, inputs included."""

    graph: ir.Graph
    encoding: Encoding
    frozen: Frozen
    selected: Mapping[int, Selected]
    cost: float
    terms: int

    @cached_property
    def facts(self) -> dict[str, set[tuple[Any, ...]]]:
        """Rows by fact name."""
        return {name: set(rows) for name, rows in self.frozen.facts.items()}

    @cached_property
    def order(self) -> dict[int, int]:
        """For each class its first place in the model."""
        return {cls: i for i, cls in reversed(list(self.frozen.model.items()))}

    @cached_property
    def names(self) -> dict[int, ir.Value]:
        """For each class the first value of the model that is in it."""
        values = list(enumerate(self.encoding.values))
        return {self.frozen.model[i]: v for i, v in reversed(values) if v is not None and v.name}

    def sites(self) -> dict[str, list[str]]:
        """For each rule that made a term of the solution: the values of the model where it stands, in the model's order."""
        names = self.names
        readers: dict[int, list[int]] = {}
        for cls, term in self.selected.items():
            for argument in _classes(term):
                readers.setdefault(argument, []).append(cls)
        found: dict[str, set[int]] = {}
        for cls, term in self.selected.items():
            if term.rule:
                found.setdefault(term.rule, set()).add(_named(cls, readers, names))
        return {rule: [name_of(names.get(c)) for c in sorted(where, key=lambda c: self.order.get(c, 0))] for rule, where in found.items()}


def _classes(term: Selected) -> list[int]:
    if term.op == "op":
        return [a for a in term.arguments[1:] if isinstance(a, int)]
    kinds = OPERATORS[term.op].kinds if term.op in OPERATORS else ""
    return [a for a, kind in zip(term.arguments, kinds, strict=False) if kind == "t" and isinstance(a, int)]


def _named(cls: int, readers: Mapping[int, Sequence[int]], names: Mapping[int, ir.Value]) -> int:
    """The class itself, or the nearest one above it, that some value of the model is equal to."""
    queue, seen = [cls], {cls}
    for each in queue:
        if each in names:
            return each
        fresh = [r for r in readers.get(each, ()) if r not in seen]
        seen.update(fresh)
        queue += fresh
    return cls


def name_of(value: ir.Value | None) -> str:
    return "?" if value is None or not value.name else value.name


def full_name(rule: Rule) -> str:
    """``theory/name``, as reports write it."""
    return f"{rule.theory}/{rule.name}"
