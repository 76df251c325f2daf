"""The Gaussian error linear unit spelled out becomes Gelu."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import onnx_ir as ir

from passes.match import is_power, keeps_rank, made_by, near, number_and_rest, read_once
from rewriter.edit import Editor, is_op, nodes, required, scalar

_OPSET = 20


def recognise_gelu(model: ir.Model) -> ir.Model:
    """Half of x times one plus an error function of x, in any order of its factors, becomes one node.

    before                                          after
        y = x * 0.5 * (1 + Erf(x / 1.41421))            y = Gelu(x)
        z = 0.5 * x * (1 + Tanh(0.797885                z = Gelu(x) {approximate="tanh"}
                * (x + 0.044715 * x ** 3)))
    """
    if model.opset_imports.get("", 0) < _OPSET:
        return model
    editor = Editor(model)
    for node in nodes(model):
        if is_op(node, "Mul", "Div") and node.graph is not None:
            _recognise(node, editor)
    return model


@dataclass
class _Product:
    """A tree of products taken apart: its numeric factor and its other factors."""

    number: float = 1.0
    factors: list[ir.Value] = field(default_factory=list)

    def take(self, value: ir.Value, top: bool = False) -> None:
        node = made_by(value, "Mul", "Div")
        if node is None or not (top or read_once(value)):
            self.factors.append(value)
        elif node.op_type == "Div":
            divisor = scalar(node.inputs[1])
            if divisor is None or divisor == 0 or not keeps_rank(node.inputs[1], required(node, 0)):
                self.factors.append(value)
            else:
                self.number /= divisor
                self.take(required(node, 0))
        elif (parts := number_and_rest(node)) is not None:
            self.number *= parts[0]
            self.take(parts[1])
        else:
            self.take(required(node, 0))
            self.take(required(node, 1))


def _recognise(node: ir.Node, editor: Editor) -> None:
    product = _Product()
    product.take(node.outputs[0], top=True)
    if len(product.factors) != 2 or not near(product.number, 0.5):
        return
    for x, gate in (product.factors, product.factors[::-1]):
        kind = _gate(gate, x)
        if kind is not None:
            y = editor.emit(node, "Gelu", [x], {"approximate": kind}, dtype=x.dtype, shape=x.shape)
            editor.replace(node.outputs[0], y)
            editor.drop(node)
            return


def _gate(value: ir.Value, x: ir.Value) -> str | None:
    """Which Gelu it is where the value is 1 + erf(x / sqrt 2), or 1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))."""
    total = made_by(value, "Add")
    parts = None if total is None else number_and_rest(total)
    if parts is None or parts[0] != 1.0:
        return None
    inner = made_by(parts[1], "Erf", "Tanh")
    if inner is None:
        return None
    product = _Product()
    product.take(required(inner, 0), top=True)
    if inner.op_type == "Erf":
        return "none" if product.factors == [x] and near(product.number, math.sqrt(0.5)) else None
    if len(product.factors) == 1 and near(product.number, math.sqrt(2 / math.pi)) and _cubic(product.factors[0], x):
        return "tanh"
    return None


def _cubic(value: ir.Value, x: ir.Value) -> bool:
    """x + 0.044715 x^3"""
    total = made_by(value, "Add")
    if total is None:
        return False
    for one, rest in ((0, 1), (1, 0)):
        if total.inputs[one] is x:
            product = _Product()
            product.take(required(total, rest), top=True)
            cube = product.factors == [x, x, x] or (len(product.factors) == 1 and _is_cube(product.factors[0], x))
            return cube and near(product.number, 0.044715)
    return False


def _is_cube(value: ir.Value, x: ir.Value) -> bool:
    power = made_by(value, "Pow")
    return is_power(power, 3.0) and power is not None and power.inputs[0] is x
