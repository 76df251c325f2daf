"""What a user should know about a result that is right: notes for the report."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from rewriter.edit import const, dims, operand, required
from rewriter.weights import WeightProgram

SPARSE = 0.25
"""The share of zeros from which on a weight is taken to be pruned."""


def filled_zeros(program: WeightProgram, before: Mapping[str, ir.Value], after: Mapping[str, ir.Value]) -> list[str]:
    """Weights that were pruned, and are not any more because something dense was merged into them."""
    notes = []
    for name in program.outputs:
        merged = _array(after.get(name))
        for source in program.sources(name) if merged is not None else ():
            pruned = _array(before.get(source))
            if pruned is None or merged is None or pruned.size != merged.size:
                continue
            few, many = int(np.count_nonzero(pruned)), int(np.count_nonzero(merged))
            if pruned.size - few >= SPARSE * pruned.size and many > few:
                notes.append(f"merging filled zeros of the pruned weight {source!r}: {few} of {pruned.size} were not zero, {many} are now")
    return notes


def _array(value: ir.Value | None) -> np.ndarray | None:
    data = None if value is None else value.const_value
    if data is None or len(data.shape) < 2 or not data.dtype.is_floating_point():
        return None
    return data.numpy()


_ROW_BY_ROW = {
    "Abs", "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Gelu", "Identity", "LayerNormalization", "Log", "Mul", "Neg", "Pow", "Relu",
    "Sigmoid", "Sqrt", "Sub", "Tanh",
}  # fmt: skip
_OVER_ROWS = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"}


def mixed_samples(model: ir.Model) -> list[str]:
    """Reductions over the first axis of an input: if that is the batch, what one sample gets depends on its neighbours."""
    owner: dict[ir.Value, str] = {v: v.name or "" for v in model.graph.inputs if len(dims(v) or ()) > 1}
    notes = []
    for node in model.graph:
        x = operand(node, 0)
        if x not in owner or node.domain not in ("", "rewriter"):
            continue
        shape = dims(x)
        if node.op_type in _ROW_BY_ROW and shape is not None and len(dims(node.outputs[0]) or ()) == len(shape):
            owner[node.outputs[0]] = owner[required(node, 0)]
        elif node.op_type in _OVER_ROWS and 0 in _axes(node, len(shape or ())):
            name = owner[required(node, 0)]
            notes.append(f"{node.op_type} goes over the first axis of input {name!r}: if that is the batch, samples are not independent")
    return notes


def _axes(node: ir.Node, rank: int) -> list[int]:
    axes = const(operand(node, 1), 64) if operand(node, 1) is not None else None
    given = [int(a) for a in axes.reshape(-1)] if axes is not None else list(node.attributes.get_ints("axes") or ())
    return [a % rank for a in given] if rank else []
