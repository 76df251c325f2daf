"""A residual branch left out: ``x + f(x)`` becomes ``x`` (paper 44, FoldGPT).

What the branch adds to the stream on calibration inputs, ``||f(x)||² / ||x + f(x)||²``, ranks the candidates and no more: branches lean on each
other, so each is judged by the whole model's metric, and so is every set of them. A branch that leaves something else besides its sum, as
keys and values for a cache, stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Refusal, Site, Wanted
from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded, aligned
from rewriter.edit import is_op, tensor

FEWEST = 2
"""Nodes of a branch: a single product or activation beside the stream is no block."""


class DroppedBlocks:
    """Every sum of a value and a branch that is computed from it alone."""

    name = "dropped-block"

    def wants(self, model: ir.Model) -> Wanted:
        return Wanted(frozenset(v.name or "" for skip, total, _ in residuals(model) for v in (skip, total)))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for skip, total, branch in residuals(site.model):
            name, source = total.name or "", skip.name or ""
            inside = frozenset(v.name or "" for node in branch for v in node.outputs)
            if not _alike(site.recorded[source], site.recorded[name]):
                continue
            if any(v.is_graph_output() for node in branch for v in node.outputs):
                yield Refusal(self.name, name, "its branch gives an output of the model, too")
                continue
            stored = {v for node in branch for v in node.inputs if v is not None and v.is_initializer() and all(u.node in branch for u in v.uses())}
            yield Candidate(
                self.name, name, inside | {name}, _Apply(name, source),
                bytes=-sum(v.const_value.nbytes for v in stored if v.const_value is not None), unit=((source,), name),
                lost=_share(site.recorded[source], site.recorded[name]),
            )  # fmt: skip


def residuals(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value, set[ir.Node]]]:
    """(x, x + f(x), the nodes of f) wherever f reads nothing that is computed but x, and nobody else reads what f makes."""
    for node in model.graph:
        if not is_op(node, "Add"):
            continue
        total = node.outputs[0]
        for skip, added in (tuple(node.inputs), tuple(node.inputs)[::-1]):
            if skip is None or added is None or tensor(skip) is not None or not _compatible(skip, added, total):
                continue
            branch = _branch(skip, added, node)
            if branch is not None and len(branch) >= FEWEST:
                yield skip, total, branch
                break


def _branch(skip: ir.Value, added: ir.Value, end: ir.Node) -> set[ir.Node] | None:
    """The nodes between, if every computed value that they read comes from ``skip`` by way of them."""
    found: set[ir.Node] = set()
    waiting, reached = [added], False
    while waiting:
        value = waiting.pop()
        if value is skip:
            reached = True
            continue
        maker = value.producer()
        if maker is None:
            if not value.is_initializer() and not _is_side(value):
                return None
            continue
        if maker in found:
            continue
        if maker.graph is not end.graph or any(a.type == ir.AttributeType.GRAPH for a in maker.attributes.values()):
            return None
        found.add(maker)
        waiting += [v for v in maker.inputs if v is not None]
    shared = {n for n in found if any(u.node not in found and u.node is not end for v in n.outputs for u in v.uses())}
    # What others read as well (a mask, positions) is no part of the branch, if it is not made from the stream.
    beside = _with_sources(shared)
    if any(skip in node.inputs for node in beside):
        return None
    found -= beside
    return found if reached and added.producer() in found else None


def _compatible(*values: ir.Value) -> bool:
    """Of one rank, with no two lengths that differ; lengths that are open may turn out to be the same."""
    shapes = [v.shape for v in values if v.shape is not None]
    if len(shapes) < len(values) or len({len(s) for s in shapes}) > 1:
        return False
    return all(len({d for d in lengths if isinstance(d, int) and d >= 0}) <= 1 for lengths in zip(*shapes, strict=True))


def _alike(a: Recorded, b: Recorded) -> bool:
    """Did they have the same shapes on everything that was seen?"""
    return bool(a.samples) and all(x.shape == y.shape for x, y in aligned(a, b))


def _is_side(value: ir.Value) -> bool:
    """An input of the model beside the stream: a mask, positions."""
    return value.is_graph_input()


def _with_sources(nodes: set[ir.Node]) -> set[ir.Node]:
    """These nodes, and all that they are computed from."""
    found: set[ir.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [m for v in node.inputs if v is not None and (m := v.producer()) is not None]
    return found


def _share(skip: Recorded, total: Recorded) -> float:
    pairs = list(aligned(skip, total))
    whole = sum(float(np.sum(b.astype(np.float64) ** 2)) for _, b in pairs)
    return sum(float(np.sum((b.astype(np.float64) - a) ** 2)) for a, b in pairs) / whole if whole > 0 else float("nan")


class _Apply:
    def __init__(self, total: str, skip: str) -> None:
        self._total, self._skip = total, skip

    def __call__(self, graph: Substitution) -> None:
        graph.replace(self._total, graph.value(self._skip))
