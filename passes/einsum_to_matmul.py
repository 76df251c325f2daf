"""An Einsum of one or two operands is transposes around a product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, is_op, nodes, required, static


def einsum_to_matmul(model: ir.Model) -> ir.Model:
    """Einsum becomes MatMul (or Mul, where nothing is summed) between Transpose and Reshape nodes.

    before                                       after
        y = Einsum(a, b) {"bid,bjd->bij"}            bt = Transpose(b) {perm=[0, 2, 1]}
                                                     y = MatMul(a, bt)

    Left alone: three or more operands, `...`, a letter twice in one operand, dims that are not numbers where several
    letters must be joined into one.
    """
    if model.opset_imports.get("", 0) < 13:  # axes were attributes
        return model
    editor = Editor(model)
    for node in nodes(model):
        plan = _plan(node) if is_op(node, "Einsum") else None
        if plan is not None:
            result = _one(node, plan, editor) if len(plan.terms) == 1 else _two(node, plan, editor)
            if result is not None:
                editor.replace(node.outputs[0], result)
                editor.drop(node)
    return model


@dataclass(frozen=True)
class _Plan:
    terms: list[str]
    result: str
    sizes: dict[str, int | None]


def _plan(node: ir.Node) -> _Plan | None:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "")
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if len(terms) > 2 or "." in equation or len(terms) != len(node.inputs):
        return None
    if any(len(set(term)) < len(term) for term in (*terms, result)) or not set(result) <= set("".join(terms)):
        return None
    sizes: dict[str, int | None] = dict.fromkeys("".join(terms))
    for index, term in enumerate(terms):
        shape = required(node, index).shape
        for letter, dim in zip(term, shape or (), strict=False):
            if isinstance(dim, int):
                # A dim of 1 against a larger one broadcasts: a case that MatMul's sums do not have.
                if sizes[letter] not in (None, dim):
                    return None
                sizes[letter] = dim
    return _Plan(terms, result, sizes)


def _one(node: ir.Node, plan: _Plan, editor: Editor) -> ir.Value:
    value, letters = _summed(node, required(node, 0), plan.terms[0], plan.result, editor)
    return _permuted(node, value, letters, plan.result, editor)


def _two(node: ir.Node, plan: _Plan, editor: Editor) -> ir.Value | None:
    first, second = plan.terms
    keep = set(plan.result)
    # Letters that one operand alone has and nobody keeps are summed first.
    a, first = _summed(node, required(node, 0), first, keep | set(second), editor)
    b, second = _summed(node, required(node, 1), second, keep | set(plan.terms[0]), editor)
    batch = [letter for letter in plan.result if letter in first and letter in second]
    rows = [letter for letter in plan.result if letter in first and letter not in second]
    columns = [letter for letter in plan.result if letter in second and letter not in first]
    inner = [letter for letter in first if letter in second and letter not in keep]
    if not inner:
        return _outer(node, a, first, b, second, plan.result, editor)
    groups = (rows, inner, columns)
    if any(len(group) != 1 and any(plan.sizes[letter] is None for letter in group) for group in groups):
        return None
    if any(len(group) != 1 for group in groups) and any(plan.sizes[letter] is None for letter in batch):
        return None
    a = _grouped(node, _permuted(node, a, first, [*batch, *rows, *inner], editor), plan, batch, rows, inner, editor)
    b = _grouped(node, _permuted(node, b, second, [*batch, *inner, *columns], editor), plan, batch, inner, columns, editor)
    y = editor.emit(node, "MatMul", [a, b], dtype=a.dtype)
    spread = [*batch, *rows, *columns]
    if len(rows) != 1 or len(columns) != 1:
        y = _reshaped(node, y, [_size(plan, letter) for letter in spread], editor)
    return _permuted(node, y, "".join(spread), plan.result, editor)


def _size(plan: _Plan, letter: str) -> int:
    """A dim as a Reshape target; at most one that is unknown is left to be derived."""
    size = plan.sizes[letter]
    return -1 if size is None else size


def _summed(
    node: ir.Node, value: ir.Value, letters: str, kept: Sequence[str] | set[str], editor: Editor
) -> tuple[ir.Value, str]:
    axes = [place for place, letter in enumerate(letters) if letter not in kept]
    if not axes:
        return value, letters
    where = editor.constant(np.array(axes, dtype=np.int64), "axes")
    total = editor.emit(node, "ReduceSum", [value, where], {"keepdims": 0}, dtype=value.dtype)
    return total, "".join(letter for letter in letters if letter in kept)


def _permuted(node: ir.Node, value: ir.Value, letters: str, order: Sequence[str], editor: Editor) -> ir.Value:
    perm = [letters.index(letter) for letter in order]
    if perm == sorted(perm):
        return value
    shape = static(value)
    return editor.emit(
        node,
        "Transpose",
        [value],
        {"perm": perm},
        dtype=value.dtype,
        shape=None if shape is None else [shape[place] for place in perm],
    )


def _grouped(
    node: ir.Node, value: ir.Value, plan: _Plan, batch: list[str], one: list[str], two: list[str], editor: Editor
) -> ir.Value:
    """The last letters joined into exactly two dims."""
    if len(one) == 1 and len(two) == 1:
        return value
    joined = [math.prod(_size(plan, letter) for letter in group) for group in (one, two)]
    return _reshaped(node, value, [*(_size(plan, letter) for letter in batch), *joined], editor)


def _reshaped(node: ir.Node, value: ir.Value, target: list[int], editor: Editor) -> ir.Value:
    shape = editor.constant(np.array(target, dtype=np.int64), "shape")
    known = target if all(size >= 0 for size in target) else None
    return editor.emit(node, "Reshape", [value, shape], dtype=value.dtype, shape=known)


def _outer(
    node: ir.Node, a: ir.Value, first: str, b: ir.Value, second: str, result: str, editor: Editor
) -> ir.Value:
    """Nothing is summed over both: a product of operands that broadcast."""
    parts = []
    for value, letters in ((a, first), (b, second)):
        value = _permuted(node, value, letters, [letter for letter in result if letter in letters], editor)
        missing = [place for place, letter in enumerate(result) if letter not in letters]
        if missing:
            axes = editor.constant(np.array(missing, dtype=np.int64), "axes")
            value = editor.emit(node, "Unsqueeze", [value, axes], dtype=value.dtype)
        parts.append(value)
    return editor.emit(node, "Mul", parts, dtype=a.dtype)
