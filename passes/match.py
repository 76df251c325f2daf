"""What the recognising passes ask of a graph: who made this value, is it that number, is it read only here."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from rewriter.edit import const, dims, is_op, operand, required, scalar, uses


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The standard node of one of these operators that makes the value."""
    node = None if value is None else value.producer()
    return node if is_op(node, *op_types) else None


def read_once(value: ir.Value) -> bool:
    """Whether the value has exactly one reader: only then does a rewrite of that reader make it superfluous."""
    return uses(value) == 1


def other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The second operand of a commutative node of two, whichever place `value` has."""
    a, b = required(node, 0), required(node, 1)
    return b if a is value else a if b is value else None


def number_and_rest(node: ir.Node) -> tuple[float, ir.Value] | None:
    """A commutative node of two operands, one of them a known number: that number and the other operand."""
    for one, rest in ((1, 0), (0, 1)):
        number = scalar(node.inputs[one])
        value = node.inputs[rest]
        if number is not None and value is not None and keeps_rank(node.inputs[one], value):
            return number, value
    return None


def keeps_rank(number: ir.Value | None, value: ir.Value) -> bool:
    """Whether the one-element `number` adds no dims to `value` by broadcasting."""
    rank, own = dims(number), dims(value)
    return rank is not None and (rank == () or (own is not None and len(rank) <= len(own)))


def near(number: float | None, wanted: float, relative: float = 1e-6) -> bool:
    """Whether a number of the file is that constant, as float32 (or a spelled-out decimal) would hold it."""
    return number is not None and math.isclose(number, wanted, rel_tol=relative)


def is_power(node: ir.Node | None, exponent: float) -> bool:
    """Whether it is x to that power, as Pow."""
    return is_op(node, "Pow") and node is not None and scalar(operand(node, 1)) == exponent


def squared(value: ir.Value | None) -> ir.Value | None:
    """What the value is the square of: Pow by 2, or a value times itself."""
    node = made_by(value, "Pow", "Mul")
    if node is None:
        return None
    if is_power(node, 2.0) or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1]):
        return node.inputs[0]
    return None


def _sum_over_length(value: ir.Value | None) -> ir.Node | None:
    """The ReduceSum that the value is, divided by the length of the last axis of what is summed."""
    quotient = made_by(value, "Div", "Mul")
    if quotient is None:
        return None
    for place in (0,) if quotient.op_type == "Div" else (0, 1):
        total, number = made_by(required(quotient, place), "ReduceSum"), scalar(quotient.inputs[1 - place])
        shape = dims(operand(total, 0)) if total is not None else None
        if total is None or number is None or not shape or not isinstance(shape[-1], int) or number == 0:
            continue
        if near(number if quotient.op_type == "Div" else 1 / number, shape[-1]):
            return total
    return None


def last_axis_mean(value: ir.Value | None) -> ir.Value | None:
    """What the value is the mean of, over the last axis, which is kept as 1; the mean may be a sum over the size."""
    if (ratio := made_by(value, "Div")) is not None:
        return _sum_over(ratio, scalar(operand(ratio, 1)), 0)
    if (product := made_by(value, "Mul")) is not None:
        found = number_and_rest(product)
        return None if found is None or not found[0] else _sum_over(product, 1 / found[0], product.inputs.index(found[1]))
    node = made_by(value, "ReduceMean")
    return None if node is None else _over_last_axis(node)


def _sum_over(node: ir.Node, size: float | None, place: int) -> ir.Value | None:
    """What is summed over its last axis, which is kept, where that has the size that the sum is divided by."""
    total = made_by(operand(node, place), "ReduceSum")
    summed = None if total is None or size is None else _over_last_axis(total)
    length = (dims(summed) or (None,))[-1]
    return summed if isinstance(length, int) and near(size, length) else None


def _over_last_axis(node: ir.Node) -> ir.Value | None:
    if not node.attributes.get_int("keepdims", 1):
        return None
    axes, shape = const(operand(node, 1), 8), dims(operand(node, 0))
    if axes is None and "axes" in node.attributes:
        axes = np.array(node.attributes["axes"].as_ints())
    if axes is None or shape is None or axes.size != 1 or int(axes.reshape(-1)[0]) not in (-1, len(shape) - 1):
        return None
    return node.inputs[0]


class Weights:
    """Which values are expressions of initialisers alone."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def __contains__(self, value: ir.Value | None) -> bool:
        if value is None:
            return False
        stack = [value]
        while stack:  # weights may be long chains of steps: no recursion
            top = stack[-1]
            node = top.producer()
            if top not in self._known and node is not None and _expression(node):
                unknown = [v for v in node.inputs if v is not None and v not in self._known]
                if unknown:
                    stack.extend(unknown)
                    continue
                self._known[top] = all(v is None or self._known[v] for v in node.inputs)
            self._known.setdefault(top, top.is_initializer() and not top.is_graph_input())
            stack.pop()
        return self._known[value]


def _expression(node: ir.Node) -> bool:
    """A random operator has no inputs and makes no weight; nor does what reads an outer loop's value."""
    inner = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
    return bool(node.inputs) and node.domain == "" and not inner and not node.op_type.startswith(("Random", "Bernoulli"))
