"""Another matrix, and an offset, in the place of a product's own."""

from __future__ import annotations

import numpy as np

from passes.approximate.products import Product
from passes.approximate.substitution import Substitution
from rewriter.edit import is_op, tensor, uses

Array = np.ndarray


def damped(square: Array, ridge: float) -> Array:
    """Second moments or covariances, float64, with a part ``ridge`` of their mean diagonal added to it: what is fitted to few inputs must not follow
    their noise."""
    wide = square.astype(np.float64)
    wide[np.diag_indices_from(wide)] += ridge * float(np.mean(np.diag(wide))) + 1e-12
    return wide


def takes_offset(product: Product) -> bool:
    """A convolution and a Gemm can be given a vector that is added; a MatMul has one in an Add behind it, or none."""
    return not is_op(product.node, "MatMul") or vector(product) is not None


def vector(product: Product) -> tuple[str, int] | None:
    """Where the vector stands that is added to the product: the output of the node that adds it, and its place there."""
    if product.bias is not None:
        return product.output, 2
    value = product.node.outputs[0]
    if not is_op(product.node, "MatMul") or uses(value) != 1 or value.is_graph_output():
        return None
    (use,) = value.uses()
    data = tensor(use.node.inputs[1 - use.idx]) if is_op(use.node, "Add") else None
    fits = data is not None and data.size == len(product.weights) == data.shape.numpy()[-1]
    return (use.node.outputs[0].name or "", 1 - use.idx) if fits else None


def put(graph: Substitution, product: Product, weights: Array, offset: Array | None) -> None:
    """``weights``: [outputs, depth], of any depth; ``offset``: [outputs], added to the vector that is there, for products that take one."""
    node = graph.maker(product.output)
    if product.is_convolution:
        stored = weights.reshape(len(weights), -1, *product.as_stored(product.weights).shape[2:])
    else:
        stored = weights if product.channel_axis == 0 else weights.T
    node.replace_input_with(1, graph.stored(stored.astype(np.float32), f"{product.output}_weight"))
    if offset is None:
        return
    name, place = vector(product) or (product.output, 2)
    adds = graph.maker(name)
    if place == len(adds.inputs):
        adds.resize_inputs(place + 1)
    known = tensor(adds.inputs[place])
    now = offset if known is None else known.numpy() + offset
    adds.replace_input_with(place, graph.stored(np.asarray(now, np.float32), f"{product.output}_bias"))
