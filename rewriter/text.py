"""A model as text, one line a node, the same text for the same model: what golden tests and reports compare."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def text(source: ir.Model | ir.Graph) -> str:
    """``x: FLOAT[2, n]`` for inputs, ``y = Op(x, w) {attr=1}  # FLOAT[2, n]`` for nodes, ``return y`` at the end."""
    return "\n".join(_graph(source.graph if isinstance(source, ir.Model) else source, ""))


def line(node: ir.Node) -> str:
    """One node as one line, without its subgraphs."""
    outputs = ", ".join(_name(value) for value in node.outputs)
    inputs = ", ".join(_name(value) for value in node.inputs)
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    attributes = ", ".join(f"{name}={_attribute(a)}" for name, a in sorted(node.attributes.items()) if not _inner(a))
    kinds = ", ".join(_kind(value) for value in node.outputs)
    return f"{outputs} = {operator}({inputs})" + (f" {{{attributes}}}" if attributes else "") + f"  # {kinds}"


def _graph(graph: ir.Graph, indent: str) -> list[str]:
    lines = [f"{indent}{_name(value)}: {_kind(value)}" for value in graph.inputs]
    lines += [f"{indent}{_weight(value)}" for value in graph.initializers.values() if not value.is_graph_input()]
    for node in graph:
        lines.append(indent + line(node))
        for name, attribute in sorted(node.attributes.items()):
            for inner in _inner(attribute):
                lines += [f"{indent}  {name}:", *_graph(inner, indent + "    ")]
    return [*lines, f"{indent}return {', '.join(_name(value) for value in graph.outputs)}"]


def _name(value: ir.Value | None) -> str:
    return "_" if value is None or not value.name else value.name


def _kind(value: ir.Value) -> str:
    kind = "?" if value.dtype is None else value.dtype.name
    if value.shape is None:
        return kind
    return f"{kind}[{', '.join('?' if str(d) == 'None' else str(d) for d in value.shape)}]"


def _weight(value: ir.Value) -> str:
    """Small constants show their numbers, large ones only their kind."""
    data = value.const_value
    if data is None or data.size > 8 or data.dtype == ir.DataType.STRING:
        return f"{_name(value)} = weight  # {_kind(value)}"
    return f"{_name(value)} = {_numbers(data)}  # {_kind(value)}"


def _numbers(data: ir.TensorProtocol) -> str:
    array = data.numpy()
    plain = array if array.dtype.kind in "bui" else array.astype(np.float64)
    return repr(plain.tolist()) if plain.dtype.kind != "f" else _floats(plain.tolist())


def _floats(number: float | list[object]) -> str:
    if isinstance(number, list):
        return "[" + ", ".join(_floats(each) for each in number) + "]"  # type: ignore[arg-type]
    return f"{number:.6g}"


def _attribute(attribute: ir.Attr) -> str:
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return _numbers(value) if value.size <= 8 and value.dtype != ir.DataType.STRING else "tensor"
    if isinstance(value, float):
        return _floats(value)
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def _inner(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
