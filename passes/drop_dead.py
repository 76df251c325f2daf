"""Remove what no output needs."""

from __future__ import annotations

import onnx_ir as ir

from rewriter.edit import graphs


def drop_dead(model: ir.Model) -> ir.Model:
    """Keep only the nodes and weights that an output depends on.

    before                      after
        a = Relu(x)                 b = Exp(x)
        b = Exp(x)                  return b
        return b
    """
    for graph in reversed(list(graphs(model))):
        for node in reversed(list(graph)):
            if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                graph.remove(node, safe=True)
    for graph in graphs(model):
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
    return model
