"""A sum over a batch of products is a contraction: written as the Einsum that it is, it is taken apart like every other (R3, R7)."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from passes.match import read_once
from rewriter.edit import Editor, const, is_op, nodes, operand, required, static

MOST = 5
"""Factors of one contraction."""


def sum_to_einsum(model: ir.Model) -> ir.Model:
    """Sums over leading axes of products, weighted or not, whose terms nobody else reads.

    before                                  after
        p = MatMul(a, b)                        u = Reshape(w, [n])
        m = Mul(w, p)                           y = Einsum(u, a, b) {"a,abd,adc->bc"}
        y = ReduceSum(m, [0])

    w ``[n, 1, 1]``, a ``[n, i, k]``, b ``[n, k, j]``: the n products ``[i, j]`` are one product of depth n k. Left alone: sums of nothing but
    element-wise products, shapes that are not numbers, axes that stay.
    """
    if model.opset_imports.get("", 0) < 13:  # axes were attributes
        return model
    editor = Editor(model)
    for node in nodes(model):
        axes = _axes(node)
        shape = static(required(node, 0)) if axes is not None else None
        if axes is None or shape is None or any(a >= len(shape) - 2 for a in axes) or 1 in shape:
            continue
        found = _Contraction()
        letters = "".join(next(found.fresh) for _ in shape)
        found.take(required(node, 0), letters)
        if not found.products or not 2 <= len(found.factors) <= MOST:
            continue
        inputs = [_without_ones(v, node, editor) for v, _ in found.factors]
        kept = "".join(letter for a, letter in enumerate(letters) if a not in axes)
        equation = ",".join(term for _, term in found.factors) + "->" + kept
        new = editor.emit(node, "Einsum", inputs, {"equation": equation}, dtype=node.outputs[0].dtype, shape=node.outputs[0].shape)
        editor.replace(node.outputs[0], new)
        editor.drop(node)
    return model


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Which axes a ReduceSum takes away, from the front."""
    if not is_op(node, "ReduceSum") or node.attributes.get_int("keepdims", 1) != 0 or node.graph is None:
        return None
    if node.outputs[0].dtype is None or not node.outputs[0].dtype.is_floating_point():
        return None
    axes, shape = const(operand(node, 1)), static(required(node, 0))
    if axes is None or shape is None or axes.size == 0:
        return None
    return tuple(int(a) % len(shape) for a in axes.ravel())


@dataclass
class _Contraction:
    """``factors``: values and the letters of their axes of more than one element. ``products``: how many MatMuls were taken apart."""

    factors: list[tuple[ir.Value, str]] = field(default_factory=list)
    products: int = 0
    fresh: Iterator[str] = field(default_factory=lambda: iter(string.ascii_lowercase))

    def take(self, value: ir.Value, letters: str) -> None:
        """``letters``: one for each axis of the value."""
        node, shape = value.producer(), static(value)
        if node is None or not is_op(node, "Mul", "MatMul") or not read_once(value):
            self.factors.append((value, letters))
            return
        sides = [static(v) for v in node.inputs]
        if is_op(node, "Mul") and all(_broadcasts(s, shape) for s in sides):
            for each, side in zip(node.inputs, sides, strict=True):
                assert each is not None and side is not None and shape is not None
                self.take_part(each, letters[len(shape) - len(side) :], side)
        elif is_op(node, "MatMul") and _stacked(sides, shape):
            self.products += 1
            inner = next(self.fresh)
            self.take(required(node, 0), letters[:-1] + inner)
            self.take(required(node, 1), letters[:-2] + inner + letters[-1])
        else:
            self.factors.append((value, letters))

    def take_part(self, value: ir.Value, letters: str, shape: tuple[int, ...]) -> None:
        """A factor that broadcasting repeats along its axes of length 1."""
        if 1 in shape:
            self.factors.append((value, "".join(letter for letter, d in zip(letters, shape, strict=True) if d != 1)))
        else:
            self.take(value, letters)


def _broadcasts(side: tuple[int, ...] | None, shape: tuple[int, ...] | None) -> bool:
    return side is not None and shape is not None and len(side) <= len(shape) and 1 not in shape


def _stacked(sides: list[tuple[int, ...] | None], shape: tuple[int, ...] | None) -> bool:
    """A product of two stacks of matrices of one length, no axis of which has length 1."""
    if shape is None or any(s is None or len(s) != len(shape) or 1 in s for s in sides):
        return False
    return len(shape) > 2 and all(s is not None and s[:-2] == shape[:-2] for s in sides)


def _without_ones(value: ir.Value, before: ir.Node, editor: Editor) -> ir.Value:
    shape = static(value) or ()
    if 1 not in shape:
        return value
    kept = np.array([d for d in shape if d != 1], np.int64)
    return editor.emit(before, "Reshape", [value, editor.constant(kept)], dtype=value.dtype, shape=kept.tolist())
