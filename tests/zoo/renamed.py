"""An ONNX model whose names say nothing: every value, node, weight and input is t0, t1, ..."""

from __future__ import annotations

import onnx


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with all names replaced and all notes removed. Models with subgraphs are not supported."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    names: dict[str, str] = {"": ""}

    def new(name: str) -> str:
        return names.setdefault(name, f"t{len(names) - 1}")

    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = new(value.name)
        value.doc_string = ""
        del value.metadata_props[:]
    for i, node in enumerate(graph.node):
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise ValueError("models with subgraphs cannot be renamed here")
        node.input[:] = [new(n) for n in node.input]
        node.output[:] = [new(n) for n in node.output]
        node.name, node.doc_string = f"n{i}", ""
        del node.metadata_props[:]
    graph.name, graph.doc_string = "g", ""
    for holder in (copy, graph):
        del holder.metadata_props[:]
    return copy
