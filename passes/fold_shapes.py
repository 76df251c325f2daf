"""Shape arithmetic is done now, as far as shapes are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from passes.drop_identity import is_symbol
from passes.inline_constants import LITERAL
from rewriter.edit import Array, Editor, const, dims, graphs, is_op, nodes, operand, static, tensor
from rewriter.infer_onnx import infer
from rewriter.opset import OPSET

# No more numbers than this are ever computed for one value; fewer are tracked where some are symbols.
MOST_NUMBERS = 1_000_000
_MOST_SYMBOLS = 1024
_MOST_SEEDS = 4096
_MOST_LITERALS = 16
_ROUNDS = 8

# An array of numbers, or of Python objects where some entries are symbols (str) or unknown (None).
Facts = dict[ir.Value, Array]
Partial = Callable[[ir.Node, list[Array | None]], Array | None]


def fold_shapes(model: ir.Model, most: int = MOST_NUMBERS) -> ir.Model:
    """Values computed from shapes and literal numbers alone become initialisers; If on a known condition its branch.

    before, x: [n, 4, 8]                         after
        s = Shape(x)                                 target = [0, 32]
        n = Gather(s, zero)                          y = Reshape(x, target)
        target = Concat(n, minus_one)
        y = Reshape(x, target)

    Integers, booleans and literals (numbers the program text holds, not weights) are evaluated, at most
    MOST_NUMBERS of them; arrays of more than ``most`` are known but not stored. Where dims are symbolic, a Reshape,
    Expand or Slice whose target becomes constant with one -1, with 0s or 1s gets that constant. Float weights are left
    to be folded as weight programs.
    """
    if any(value.shape is None for node in nodes(model) for value in node.outputs):
        infer(model)  # the passes before may have uncovered the constants that a shape follows from
    for _ in range(_ROUNDS):
        folded = _fold(model, most)
        taken = _take_branches(model)
        if not folded and not taken:
            break
        infer(model)
    return model


def _fold(model: ir.Model, most: int) -> bool:
    facts: Facts = {}
    for graph in graphs(model):
        for value in graph.initializers.values():
            array = const(value, _MOST_SEEDS)
            if array is not None and _is_seed(value, array):
                facts[value] = array
    editor = Editor(model)
    _learn(model.graph, facts, model.opset_imports.get("", OPSET))
    return _use(model, facts, editor, most)


def _is_seed(value: ir.Value, array: Array) -> bool:
    """Integers that a shape or an index may be, and a few literal numbers. Quantised weights are neither."""
    if array.dtype in (np.int64, np.int32, np.bool_):
        return True
    return LITERAL in value.meta and array.dtype.kind == "f" and array.size <= _MOST_LITERALS


def _learn(graph: ir.Graph, facts: Facts, opset: int) -> None:
    """What each node of the graph computes, then of its subgraphs: they may read outer values."""
    for node in graph:
        if node.domain == "" and len(node.outputs) >= 1:
            node.version = opset  # the evaluator is asked for one node at a time
            fact = _evaluate(node, facts)
            if fact is not None:
                facts[node.outputs[0]] = fact
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _learn(attribute.as_graph(), facts, opset)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    _learn(inner, facts, opset)


def _use(model: ir.Model, facts: Facts, editor: Editor, most: int) -> bool:
    """Replace what is known where something that is not known reads it."""
    changed = False
    for node in nodes(model):
        if node.graph is None or not node.outputs:
            continue
        fact = facts.get(node.outputs[0])
        if fact is not None and _known(fact):
            if _returned(node):
                changed |= _constant_output(node, fact, editor)
            continue  # whoever reads it is told the numbers
        for index, value in enumerate(node.inputs):
            if value is None or value.producer() is None or value not in facts or tensor(value) is not None:
                continue
            array = facts[value] if _known(facts[value]) else _target(node, index, facts[value])
            if array is None or array.size > most:
                continue
            if is_op(node, "Range") and array.size == 1:
                array = array.reshape(())  # runtimes take [n] for n while its shape is unknown, and then no more
            node.replace_input_with(index, _literal(editor, array, value))
            producer = value.producer()
            assert producer is not None
            editor.drop(producer)
            changed = True
    return changed


def _returned(node: ir.Node) -> bool:
    return node.outputs[0].is_graph_output()


def _constant_output(node: ir.Node, array: Array, editor: Editor) -> bool:
    if is_op(node, "Identity", "Constant") and tensor(operand(node, 0)) is not None:
        return False
    old = node.outputs[0]
    editor.replace(old, editor.emit(node, "Identity", [_literal(editor, array, old)], dtype=old.dtype))
    editor.drop(node)
    return True


def _literal(editor: Editor, array: Array, value: ir.Value) -> ir.Value:
    dtype = value.dtype.numpy() if value.dtype is not None else (np.int64 if array.dtype == object else array.dtype)
    new = editor.constant(np.asarray(array).astype(dtype), f"{value.name}_known")
    new.meta[LITERAL] = True
    return new


def _known(fact: Array) -> bool:
    return fact.dtype != object or all(isinstance(each, (int, np.integer)) for each in fact.reshape(-1))


# --- evaluation: every input known -------------------------------------------------------------------------------

_EXACT = {
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "CumSum", "Div", "Equal", "Expand",
    "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "IsNaN",
    "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pad", "Range", "Reciprocal", "ReduceMax",
    "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterND", "Sign", "Slice", "Sqrt", "Squeeze", "Sub", "Tile",
    "Transpose", "Trilu", "Unsqueeze", "Where", "Xor", "Pow", "NonZero",
}  # fmt: skip


def _evaluate(node: ir.Node, facts: Facts) -> Array | None:
    """What the node's first output is, as far as that follows from the facts; None where it does not."""
    if node.op_type in ("Shape", "Size"):
        return _shape_of(node)
    inputs = [None if value is None else facts.get(value) for value in node.inputs]
    if any(value is not None and fact is None for value, fact in zip(node.inputs, inputs, strict=True)):
        return None
    if all(fact is None or _known(fact) for fact in inputs):
        return _compute(node, [None if fact is None else _numbers(fact) for fact in inputs])
    return _partial(node, inputs)


def _numbers(fact: Array) -> Array:
    return fact.astype(np.int64) if fact.dtype == object else fact


def _shape_of(node: ir.Node) -> Array | None:
    shape = dims(operand(node, 0))
    if shape is None:
        return None
    if node.op_type == "Size":
        sizes = static(operand(node, 0))
        return None if sizes is None else np.array(math.prod(sizes), dtype=np.int64)
    part = shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(shape))]
    if all(isinstance(dim, int) for dim in part):
        return np.array(part, dtype=np.int64)
    return _objects([dim if isinstance(dim, int) or is_symbol(dim) else None for dim in part])


def _objects(entries: Sequence[Any]) -> Array:
    array = np.empty(len(entries), dtype=object)
    array[:] = entries
    return array


def _compute(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    """The reference evaluator's answer, for operators whose result is bounded before they are run."""
    if node.op_type not in _EXACT or len(node.outputs) != 1 or _size(node, inputs) > MOST_NUMBERS:
        return None
    if node.op_type in ("Div", "Mod") and not _divides(inputs):
        return None
    if node.op_type == "Div" and inputs[0] is not None and inputs[0].dtype.kind in "ui":
        return _truncate(inputs[0], inputs[1])
    # The evaluator wants one opset and a name for each present input.
    proto = ir.serde.serialize_node(node)
    names = [f"i{index}" if array is not None else "" for index, array in enumerate(inputs)]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.append("result")
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if name}
    try:
        with np.errstate(all="ignore"):
            results: Any = ReferenceEvaluator(proto, opsets={"": node.version or OPSET}).run(None, feeds)
    except Exception:  # noqa: BLE001  whatever the evaluator cannot do stays in the graph
        return None
    array = np.asarray(results[0])
    expected = node.outputs[0].dtype
    if array.dtype.kind not in "iub" and array.size > _MOST_SEEDS:
        return None  # a weight, however it is written: it is folded later, or stays packed
    if array.size > MOST_NUMBERS or (expected is not None and array.dtype != expected.numpy()):
        return None
    return array


def _divides(inputs: list[Array | None]) -> bool:
    """Integer division by zero, or of the smallest number by -1, is left to whoever runs it."""
    a, b = inputs[0], inputs[1]
    if a is None or b is None or b.dtype.kind not in "ui":
        return True
    return not (b == 0).any() and not ((b == -1).any() and a.size > 0 and a.min() == np.iinfo(a.dtype).min)


def _truncate(a: Array, b: Array | None) -> Array:
    """ONNX divides integers towards zero, NumPy downwards."""
    assert b is not None
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) == (b < 0), quotient, -quotient)).astype(a.dtype)


def _size(node: ir.Node, inputs: list[Array | None]) -> int:
    """How many numbers the result will have; more than MOST_NUMBERS where that cannot be told."""
    arrays = [array for array in inputs if array is not None]
    try:
        return _SIZES.get(node.op_type, _largest)(arrays)
    except (ValueError, TypeError, IndexError, ZeroDivisionError, OverflowError):
        return MOST_NUMBERS + 1


def _largest(arrays: list[Array]) -> int:
    broadcast = sum(array.size for array in arrays)
    try:
        return max(broadcast, math.prod(np.broadcast_shapes(*(array.shape for array in arrays))))
    except ValueError:
        return broadcast


def _product(numbers: Array) -> int:
    return math.prod(max(0, int(number)) for number in numbers.reshape(-1))


_SIZES: dict[str, Callable[[list[Array]], int]] = {
    "ConstantOfShape": lambda a: _product(a[0]),
    "Expand": lambda a: math.prod(np.broadcast_shapes(a[0].shape, tuple(int(n) for n in a[1]))),
    "Tile": lambda a: a[0].size * _product(a[1]),
    "Range": lambda a: max(0, math.ceil((float(a[1]) - float(a[0])) / float(a[2]))),
    "Pad": lambda a: math.prod(
        s + abs(int(p)) + abs(int(q)) for s, p, q in zip(a[0].shape, *np.split(a[1], 2), strict=True)
    ),
    "Gather": lambda a: a[0].size * max(1, a[1].size),
    "GatherND": lambda a: a[0].size * max(1, a[1].size),
}

# --- evaluation: some entries are symbols -------------------------------------------------------------------------


def _partial(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    """The same for integer vectors and scalars with symbolic entries, for the operators that move or compare them."""
    rule = _PARTIAL.get(node.op_type)
    if rule is None or any(fact is not None and fact.size > _MOST_SYMBOLS for fact in inputs):
        return None
    try:
        return rule(node, inputs)
    except (IndexError, ValueError, TypeError, AttributeError):
        return None


def _moved(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    """Operators that only move entries work on any entries: compute where each one goes."""
    data = inputs[0]
    assert data is not None
    places = np.arange(data.size, dtype=np.int64).reshape(data.shape)
    rest = [None if fact is None else _numbers(fact) for fact in inputs[1:] if fact is None or _known(fact)]
    if len(rest) < len(inputs) - 1:
        return None
    # Moving int64 places needs no output type: the node's own is checked when numbers come out.
    moved = _compute(node, [places, *rest])
    if moved is None:
        return None
    result = np.empty(moved.shape, dtype=object)
    result[...] = data.reshape(-1)[moved]
    return result


def _concat(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    return np.concatenate([fact.astype(object) for fact in inputs if fact is not None])


def _cast(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    integer = node.attributes.get_int("to") in (ir.DataType.INT64, ir.DataType.INT32)
    return inputs[0] if integer else None


def _elementwise(combine: Callable[[Any, Any], Any]) -> Partial:
    def apply(node: ir.Node, inputs: list[Array | None]) -> Array | None:
        a, b = np.broadcast_arrays(*(np.asarray(fact, dtype=object) for fact in inputs))
        pairs = zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)
        return _booleans(_objects([combine(x, y) for x, y in pairs]).reshape(a.shape))

    return apply


def _booleans(result: Array) -> Array | None:
    """Comparisons are only of use when every one of them is decided."""
    entries = result.reshape(-1).tolist()
    if entries and all(isinstance(each, bool) for each in entries):
        return result.astype(np.bool_)
    return None if any(isinstance(each, bool) for each in entries) else result


def _number(entry: Any) -> bool:
    return isinstance(entry, (int, np.integer)) and not isinstance(entry, bool)


def _add(a: Any, b: Any) -> Any:
    if _number(a) and _number(b):
        return int(a) + int(b)
    return a if _number(b) and b == 0 else b if _number(a) and a == 0 else None


def _sub(a: Any, b: Any) -> Any:
    if _number(a) and _number(b):
        return int(a) - int(b)
    return a if _number(b) and b == 0 else 0 if a is not None and a == b else None


def _mul(a: Any, b: Any) -> Any:
    if _number(a) and _number(b):
        return int(a) * int(b)
    return a if _number(b) and b == 1 else b if _number(a) and a == 1 else None


def _div(a: Any, b: Any) -> Any:
    if _number(a) and _number(b) and a >= 0 and b > 0:
        return int(a) // int(b)
    return a if _number(b) and b == 1 else None


def _equal(a: Any, b: Any) -> Any:
    """A dim is never negative; one symbol is equal to itself; all else is open. None: not decided."""
    if (_number(a) and _number(b)) or (isinstance(a, str) and a == b):
        return bool(a == b)
    number = a if _number(a) else b
    other = b if _number(a) else a
    return False if _number(number) and number < 0 and isinstance(other, str) else None


def _where(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    condition, a, b = inputs
    if condition is None or condition.dtype == object:
        return None
    return np.where(condition, np.asarray(a, dtype=object), np.asarray(b, dtype=object))


_PARTIAL: dict[str, Partial] = {
    **dict.fromkeys(("Gather", "Slice", "Squeeze", "Unsqueeze", "Identity", "Reshape", "Expand", "Flatten"), _moved),
    "Concat": _concat,
    "Cast": _cast,
    "Add": _elementwise(_add),
    "Sub": _elementwise(_sub),
    "Mul": _elementwise(_mul),
    "Div": _elementwise(_div),
    "Equal": _elementwise(_equal),
    "Where": _where,
}

# --- what a reader of a partly known target can be told instead ----------------------------------------------------


def _target(node: ir.Node, index: int, fact: Array) -> Array | None:
    """Numbers that mean the same to this reader as the partly symbolic ones, or None."""
    if index != 1 or fact.ndim != 1:
        return None
    shape = dims(operand(node, 0))
    if shape is None:
        return None
    if is_op(node, "Reshape"):
        target = _reshape_target(list(fact), shape)
        if target is not None:
            node.attributes.pop("allowzero", None)  # it would read our 0 as a size
        return target
    if is_op(node, "Expand"):
        return _expand_target(list(fact), shape)
    return None


def _reshape_target(fact: list[Any], shape: tuple[int | str | None, ...]) -> Array | None:
    """0 where the dim at that place is kept, -1 for at most one other."""
    if any(_number(each) and (each == 0 or each < -1) for each in fact):
        return None
    kept = [isinstance(each, str) and place < len(shape) and shape[place] == each for place, each in enumerate(fact)]
    target = [0 if keep else -1 if not _number(each) else int(each) for keep, each in zip(kept, fact, strict=True)]
    if target.count(-1) > 1:
        return None
    return np.array(target, dtype=np.int64)


def _expand_target(fact: list[Any], shape: tuple[int | str | None, ...]) -> Array | None:
    """1 where the dim is already what it is to become."""
    target = []
    for place, each in enumerate(fact, start=-len(fact)):
        if _number(each):
            target.append(int(each))
        elif isinstance(each, str) and -place <= len(shape) and shape[place] == each:
            target.append(1)
        else:
            return None
    return np.array(target, dtype=np.int64)


# --- branches -----------------------------------------------------------------------------------------------------


def _take_branches(model: ir.Model) -> bool:
    """An If whose condition is known is replaced by the nodes of its branch."""
    changed, editor = False, Editor(model)
    for node in nodes(model):
        condition = const(operand(node, 0), 1) if is_op(node, "If") else None
        if condition is None or condition.size != 1 or node.graph is None:
            continue
        branch = node.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"].as_graph()
        if not branch.initializers:
            _splice(node, branch, editor)
            changed = True
    return changed


def _splice(node: ir.Node, branch: ir.Graph, editor: Editor) -> None:
    results = list(branch.outputs)
    branch.outputs.clear()
    for inner in list(branch):
        branch.remove(inner)
        for output in inner.outputs:
            # The two branches may use one name; the Editor counted it, so it is new only with a number.
            if output.name:
                output.name = editor.fresh(output.name)
        inner.name = editor.fresh(inner.name or inner.op_type)
        node.prepend(inner)
    for old, new in zip(node.outputs, results, strict=True):
        editor.replace(old, new)
    editor.drop(node)
