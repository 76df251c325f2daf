"""What a graph is made of, in numbers: operators, multiply-accumulates, bytes of weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from rewriter.cost import numbers
from rewriter.edit import dims, nodes
from rewriter.functions import CHUNK, DOMAIN


@dataclass(frozen=True)
class Summary:
    """``ops``: count by operator type (other domains as ``domain::type``); ``macs`` at the given sizes of symbolic dimensions."""

    nodes: int
    ops: dict[str, int]
    macs: int
    weight_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {"nodes": self.nodes, "ops": self.ops, "macs": self.macs, "weight_bytes": self.weight_bytes}


def summarise(model: ir.Model, hints: Mapping[str, int] | None = None) -> Summary:
    """Counts over the main graph and all subgraphs. A Constant node is a weight, not an operator."""
    operators = [n for n in nodes(model) if n.op_type != "Constant" or n.domain]
    names = Counter(n.op_type if n.domain in ("", "ai.onnx") else f"{n.domain}::{n.op_type}" for n in operators)
    macs = sum(_macs(n, hints or {}) for n in operators)
    return Summary(len(operators), dict(sorted(names.items())), macs, weight_bytes(model))


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initialisers and Constant nodes, each stored tensor once."""
    seen: dict[int, int] = {}
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                seen[id(value.const_value)] = value.const_value.nbytes
    for node in nodes(model):
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
            seen[id(attribute.value)] = attribute.as_tensor().nbytes
    return sum(seen.values())


def _macs(node: ir.Node, hints: Mapping[str, int]) -> int:
    """Of matrix products, convolutions and recurrences; 0 where a shape is unknown."""
    if node.domain == DOMAIN and node.op_type == "LinearRecurrence":
        return _recurrence(*(numbers(_names(v), hints) for v in node.inputs[1:3] if v is not None))
    if node.domain not in ("", "ai.onnx") or not node.outputs:
        return 0
    out = numbers(_names(node.outputs[0]), hints)
    if out is None:
        return 0
    inputs = [numbers(_names(v), hints) if v is not None else None for v in node.inputs]
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul") and inputs[0]:
        return math.prod(out) * inputs[0][-1]
    if node.op_type == "Gemm" and inputs[0]:
        return math.prod(out) * inputs[0][0 if node.attributes.get_int("transA", 0) else 1]
    if node.op_type == "Einsum":
        return _einsum(node.attributes.get_string("equation", "").replace(" ", ""), inputs)
    if node.op_type in ("Conv", "ConvInteger") and len(inputs) > 1 and inputs[1]:
        return math.prod(out) * math.prod(inputs[1][1:])
    if node.op_type == "ConvTranspose" and len(inputs) > 1 and inputs[0] and inputs[1]:
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    return 0


def _recurrence(k: tuple[int, ...] | None, v: tuple[int, ...] | None) -> int:
    """Of its definition: every step meets its chunk (scores, and values by them), writes to the state and reads from it."""
    if k is None or v is None:
        return 0
    batch, time, features, values = *k, v[-1]
    return batch * time * (CHUNK * (features + values) + 2 * features * values)


def _einsum(equation: str, inputs: list[tuple[int, ...] | None]) -> int:
    """One for every combination of its letters, where something is multiplied; 0 with an ellipsis."""
    terms = equation.partition("->")[0].split(",")
    if len(terms) < 2 or "." in equation:
        return 0
    sizes = {letter: size for term, shape in zip(terms, inputs, strict=False) for letter, size in zip(term, shape or (), strict=False)}
    return math.prod(sizes.get(letter, 1) for letter in set("".join(terms)))


def _names(value: ir.Value) -> tuple[int | str, ...] | None:
    found = dims(value)
    return None if found is None else tuple("?" if d is None else d for d in found)
