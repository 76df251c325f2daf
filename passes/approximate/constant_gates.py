"""A gate of zeros and ones that never changed on calibration inputs becomes what it was (paper 42).

A mask that is computed from the input, as a comparison cast to a number, and multiplied in, is replaced by its value; then channels that it
closes are dead, and exact laws cut them out, with the network that computed it. Seen the same on N inputs, it differs on another with a
probability of at most 3 / N, at 95 % (the rule of three).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Refusal, Site, Wanted
from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded
from rewriter.edit import is_op

LEAST = 20
"""Inputs below which nothing is concluded."""
COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or", "Xor")


class ConstantGates:
    """Casts of comparisons that only products read."""

    name = "constant-gate"

    def wants(self, model: ir.Model) -> Wanted:
        return Wanted(frozenset(name for gate in gates(model) for name in (gate.name or "", _source(gate).name or "")))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for gate in gates(site.model):
            name, recorded = gate.name or "", site.recorded[gate.name or ""]
            rows = _rows(recorded)
            if rows is None or len(rows) < LEAST:
                yield Refusal(self.name, name, f"too few inputs to say whether it is constant: {0 if rows is None else len(rows)} of {LEAST}")
                continue
            changes = np.mean(rows != rows[0])
            if changes > 0:
                yield Refusal(self.name, name, f"it changes: {changes:.2%} of its values differ from those of the first input")
                continue
            source = _source(gate).name or ""
            bound = f"the same on {len(rows)} inputs: another with probability at most {3 / len(rows):.3g} (95 %)"
            yield Candidate(self.name, name, frozenset({name}), _Apply(name, rows[:1]), unit=((source,), name), lost=0.0, bound=bound)


def gates(model: ir.Model) -> Iterator[ir.Value]:
    """Floats made of truth values that depend on the input, read by Mul alone."""
    for node in model.graph:
        if not is_op(node, "Cast", "Where") or node.outputs[0].dtype is None or not node.outputs[0].dtype.is_floating_point():
            continue
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        if maker is None or not is_op(maker, *COMPARISONS):
            continue
        if is_op(node, "Where") and any(v is None or not v.is_initializer() for v in node.inputs[1:]):
            continue
        readers = _readers(node.outputs[0])
        if readers and all(is_op(r, "Mul") for r in readers):
            yield node.outputs[0]


def _readers(value: ir.Value) -> list[ir.Node]:
    """Who reads it, by way of reshapes."""
    found: list[ir.Node] = []
    for use in value.uses():
        found += _readers(use.node.outputs[0]) if is_op(use.node, "Unsqueeze", "Reshape") and use.idx == 0 else [use.node]
    return found if not value.is_graph_output() else []


def _source(gate: ir.Value) -> ir.Value:
    """What the comparison looks at."""
    node = gate.producer()
    assert node is not None and node.inputs[0] is not None
    maker = node.inputs[0].producer()
    assert maker is not None
    return next(v for v in maker.inputs if v is not None and not v.is_initializer())


def _rows(recorded: Recorded) -> np.ndarray | None:
    """One row for each input, if all are of one shape."""
    samples = [s if s.ndim else s.reshape(1) for s in recorded.samples]
    if not samples or len({s.shape[1:] for s in samples}) != 1 or len(samples) < recorded.seen:
        return None
    return np.concatenate(samples)


class _Apply:
    def __init__(self, gate: str, values: np.ndarray) -> None:
        self._gate, self._values = gate, values

    def __call__(self, graph: Substitution) -> None:
        graph.replace(self._gate, graph.stored(self._values, f"{self._gate}_fixed"))
