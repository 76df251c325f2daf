"""Small surgery on an `onnx_ir` model: read a value's facts, add a constant or a node, replace a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every subgraph below it (function bodies are not part of the program text)."""
    yield model.graph
    yield from model.graph.subgraphs()


def nodes(model: ir.Model) -> list[ir.Node]:
    """Every node, outer before inner, as a list: safe to edit the model while walking it."""
    return [node for graph in graphs(model) for node in graph]


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these standard ONNX operators."""
    return node is not None and node.domain == "" and node.op_type in op_types


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """The input at that place, or None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def required(node: ir.Node, index: int) -> ir.Value:
    """The input at that place of a node that the standard says has it."""
    value = node.inputs[index]
    assert value is not None
    return value


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape: ints, names of symbolic dims, None for unknown ones; None as a whole where the rank is unknown.

    The symbols of a graph output are what the file declares, not what was derived: they count as unknown.
    """
    if value is None or value.shape is None:
        return None
    if value.is_graph_output() and not value.is_graph_input():
        return tuple(d if isinstance(d, int) else None for d in value.shape)
    # Some exporters write -1 for a dimension they do not know.
    return tuple((d if d >= 0 else None) if isinstance(d, int) else d.value for d in value.shape)


def static(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape where every dim is a number, else None."""
    found = dims(value)
    if found is None or not all(isinstance(d, int) for d in found):
        return None
    return tuple(d for d in found if isinstance(d, int))


def tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a value that is always the same: an initialiser (that is no input) or a Constant node."""
    if value is None:
        return None
    if value.is_initializer() and not value.is_graph_input():
        return value.const_value
    producer = value.producer()
    if producer is None or not is_op(producer, "Constant"):
        return None
    whole = producer.attributes.get("value")
    if whole is not None and whole.type == ir.AttributeType.TENSOR:
        return whole.as_tensor()  # get_const_tensor would name it, in the caller's own protobuf message
    return ir.convenience.get_const_tensor(value)


def const(value: ir.Value | None, limit: int = 1_000_000) -> Array | None:
    """The array behind a constant value of at most `limit` elements, else None."""
    found = tensor(value)
    if found is None or found.size > limit or found.dtype == ir.DataType.STRING:
        return None
    return found.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a constant of one element (any rank), else None."""
    found = const(value, 1)
    if found is None or found.size != 1 or found.dtype.kind == "c":
        return None
    return float(found.reshape(-1)[0])


def uses(value: ir.Value) -> int:
    """How often the value is read, a graph output counting once."""
    return len(value.uses()) + int(value.is_graph_output())


class Editor:
    """Adds to one model: every name it makes is new in the whole model, equal small constants are made once."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._names = {name for graph in graphs(model) for name in _names(graph)}
        self._made: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def fresh(self, hint: str) -> str:
        """A name that nothing in the model has yet, starting with `hint`."""
        name, number = hint, 1
        while name in self._names:
            name, number = f"{hint}_{number}", number + 1
        self._names.add(name)
        return name

    def constant(self, array: Array, hint: str = "const") -> ir.Value:
        """An initialiser of the main graph holding `array` (a numpy or ml_dtypes array)."""
        array = np.asarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        known = self._made.get(key)
        if known is not None and known.is_initializer():
            return known
        value = self.initialiser(ir.Tensor(array), hint)
        if array.size <= 64:
            self._made[key] = value
        return value

    def initialiser(self, data: ir.TensorProtocol, hint: str, *, taken: bool = False) -> ir.Value:
        """An initialiser of the main graph on that tensor, unread and uncopied; `taken`: exactly that name is free."""
        name = hint if taken else self.fresh(hint)
        shape = ir.Shape(data.shape.numpy())
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(data.dtype), const_value=data)
        self.model.graph.register_initializer(value)
        return value

    def emit(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        dtype: ir.DataType | None = None,
        shape: Iterable[int | str | ir.SymbolicDim | None] | None = None,
        hint: str = "",
    ) -> ir.Value:
        """A new node of one output right before `before`; its output takes the dtype and shape given."""
        output = ir.Value(
            name=self.fresh(hint or op_type.lower()),
            type=None if dtype is None else ir.TensorType(dtype),
            shape=None if shape is None else ir.Shape(shape),
        )
        attrs = ir.convenience.convert_attributes(dict(attributes or {}))
        node = ir.Node(domain, op_type, inputs, attrs, outputs=[output], name=self.fresh(output.name or op_type))
        before.prepend(node)
        return output

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Whoever read `old` reads `new`; an output of a graph keeps its name, dtype and shape."""
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        if not old.is_graph_output():
            old.replace_all_uses_with(new)
            return
        producer, place = new.producer(), old.producer()
        assert place is not None and place.graph is not None
        if producer is None or producer.graph is not place.graph or new.is_graph_output():
            new = self.emit(place, "Identity", [new], dtype=old.dtype)
        name = old.name or ""
        old.name = self.fresh(f"{name}_was")
        new.name, new.type, new.shape = name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def drop(self, node: ir.Node) -> None:
        """Remove a node that nobody reads any more, then what only it read (its constants stay for `drop_dead`)."""
        if node.graph is None or any(uses(output) for output in node.outputs):
            return
        sources = [value.producer() for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        for source in sources:
            if source is not None:
                self.drop(source)


def _names(graph: ir.Graph) -> Iterator[str]:
    for value in (*graph.inputs, *graph.initializers.values()):
        yield value.name or ""
    for node in graph:
        yield node.name or ""
        for output in node.outputs:
            yield output.name or ""
