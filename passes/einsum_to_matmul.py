"""An Einsum is transposes around products."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.match import Weights
from rewriter.edit import Editor, is_op, nodes, required, static


def einsum_to_matmul(model: ir.Model) -> ir.Model:
    """Einsum becomes MatMul (or Mul, where nothing is summed) between Transpose and Reshape nodes.

    before                                       after
        y = Einsum(a, b) {"bid,bjd->bij"}            bt = Transpose(b) {perm=[0, 2, 1]}
                                                     y = MatMul(a, bt)

    Of several operands two are taken at a time, starting at one that the model's inputs reach, so that a chain of weights stays a
    chain of products with them. Left alone: a letter twice in one operand, an ellipsis of unknown rank, dims that are not numbers
    where several letters must be joined into one.
    """
    if model.opset_imports.get("", 0) < 13:  # axes were attributes
        return model
    editor, weights = Editor(model), Weights()
    for node in nodes(model):
        plan = _plan(node) if is_op(node, "Einsum") else None
        result = None if plan is None else _contracted(node, plan, weights, editor)
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
    equation = _without_ellipsis(node, node.attributes.get_string("equation", "").replace(" ", ""))
    if equation is None:
        return None
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "")
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if len(terms) != len(node.inputs):
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


def _without_ellipsis(node: ir.Node, equation: str) -> str | None:
    """Each ``...`` as letters of its own, aligned at the right; None where a rank is not known, or the result is not written out."""
    if "." not in equation:
        return equation
    left, arrow, result = equation.partition("->")
    fresh = [letter for letter in string.ascii_letters if letter not in equation]
    terms, most = left.split(","), 0
    for index, term in enumerate(terms[: len(node.inputs)]):
        shape = required(node, index).shape
        count = None if shape is None else len(shape) - len(term.replace("...", ""))
        if "..." in term:
            if count is None or not 0 <= count <= len(fresh):
                return None
            terms[index] = term.replace("...", "".join(reversed(fresh[:count])))
            most = max(most, count)
    if not arrow or any("." in term for term in terms):
        return None
    return ",".join(terms) + "->" + result.replace("...", "".join(reversed(fresh[:most])))


def _contracted(node: ir.Node, plan: _Plan, weights: Weights, editor: Editor) -> ir.Value | None:
    """Two operands at a time, each time the one that leaves the least."""
    left = list(zip((required(node, i) for i in range(len(plan.terms))), plan.terms, strict=True))
    left.sort(key=lambda operand: operand[0] in weights)
    value, letters = left.pop(0)
    if not left:
        value, letters = _summed(node, value, letters, plan.result, editor)
        return _permuted(node, value, letters, plan.result, editor)
    while left:
        kept = [_kept(plan.result, letters, term, [t for j, (_, t) in enumerate(left) if j != i]) for i, (_, term) in enumerate(left)]
        best = min(range(len(left)), key=lambda i: (math.prod(plan.sizes[x] or 64 for x in kept[i]), i))
        other, term = left.pop(best)
        result = plan.result if not left else kept[best]
        step = _two(node, (value, letters), (other, term), _Plan(plan.terms, result, plan.sizes), editor)
        if step is None:
            return None
        value, letters = step, result
    return value


def _kept(result: str, one: str, other: str, rest: Sequence[str]) -> str:
    """What is left of two operands: the letters that the result or another operand has."""
    needed = set(result).union(*rest)
    return "".join(letter for letter in dict.fromkeys(one + other) if letter in needed)


def _two(
    node: ir.Node, one: tuple[ir.Value, str], other: tuple[ir.Value, str], plan: _Plan, editor: Editor
) -> ir.Value | None:
    keep = set(plan.result)
    # Letters that one operand alone has and nobody keeps are summed first.
    a, first = _summed(node, *one, keep | set(other[1]), editor)
    b, second = _summed(node, *other, keep | set(one[1]), editor)
    batch = [letter for letter in plan.result if letter in first and letter in second]
    rows = [letter for letter in plan.result if letter in first and letter not in second]
    columns = [letter for letter in plan.result if letter in second and letter not in first]
    inner = [letter for letter in first if letter in second and letter not in keep]
    if not inner:
        return _outer(node, a, first, b, second, plan.result, editor)
    outside = batch
    if not batch and len(rows) > 1:  # a matrix on the right: rows may have as many axes as they like
        outside, rows = rows[:-1], rows[-1:]
    groups = (rows, inner, columns)
    if any(len(group) != 1 and any(plan.sizes[letter] is None for letter in group) for group in groups):
        return None
    shaped = len(rows) != 1 or len(columns) != 1
    if (shaped or len(inner) != 1) and sum(plan.sizes[letter] is None for letter in (*outside, *rows, *columns)) > 1:
        return None
    a = _grouped(node, _permuted(node, a, first, [*outside, *rows, *inner], editor), plan, outside, rows, inner, editor)
    b = _grouped(node, _permuted(node, b, second, [*batch, *inner, *columns], editor), plan, batch, inner, columns, editor)
    y = editor.emit(node, "MatMul", [a, b], dtype=a.dtype)
    spread = [*outside, *rows, *columns]
    if shaped:
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
