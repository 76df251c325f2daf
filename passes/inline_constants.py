"""Constants become initialisers of the main graph."""

from __future__ import annotations

import onnx_ir as ir

from rewriter.edit import Editor, graphs, is_op, nodes, tensor

# What marks an initialiser as a number of the program text rather than a weight: see fold_shapes.
LITERAL = "rewriter.literal"


def inline_constants(model: ir.Model) -> ir.Model:
    """Every Constant node, and every initialiser of a subgraph, becomes an initialiser of the main graph.

    before                        after
        two = Constant() {2.0}        two = 2.0
        y = Mul(x, two)               y = Mul(x, two)

    A graph output that is a Constant becomes the Identity of the initialiser. Sparse constants stay.
    """
    editor = Editor(model)
    for node in nodes(model):
        if is_op(node, "Constant"):
            _inline(node, editor)
    for graph in graphs(model):
        if graph is not model.graph:
            _hoist(graph, editor)
    return model


def _inline(node: ir.Node, editor: Editor) -> None:
    old = node.outputs[0]
    data = tensor(old)
    if data is None or node.graph is None:
        return
    name = old.name or "constant"
    if old.is_graph_output():
        new = editor.initialiser(_named(data), f"{name}_value")
        copy = editor.emit(node, "Identity", [new], dtype=data.dtype, shape=data.shape.numpy())
        editor.replace(old, copy)
    elif node.graph is editor.model.graph:
        old.name = editor.fresh(f"{name}_was")
        new = editor.initialiser(_named(data), name, taken=True)
        old.replace_all_uses_with(new)
    else:
        new = editor.initialiser(_named(data), name)
        old.replace_all_uses_with(new)
    new.meta[LITERAL] = True
    node.graph.remove(node, safe=True)


def _named(data: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same memory under a name of its own: the source keeps its."""
    if data.dtype == ir.DataType.STRING:
        return ir.StringTensor(data.numpy(), shape=ir.Shape(data.shape.numpy()))
    return ir.Tensor(data.numpy(), dtype=data.dtype)


def _hoist(graph: ir.Graph, editor: Editor) -> None:
    for name, value in list(graph.initializers.items()):
        data = value.const_value
        if data is None or value.is_graph_output() or value.is_graph_input():
            continue
        new = editor.initialiser(_named(data), name)
        value.replace_all_uses_with(new)
        del graph.initializers[name]
