"""Layers that were fitted by themselves are fitted once more where others before them have changed, too.

Each candidate fits its layer to what the layer read in the exact graph. Put in together, a layer reads what those before it have made of that,
x̂ instead of x, and could make up for some of it (as the asymmetric reconstruction of channel pruning does, He et al 2017). In the order of the
graph, with y what the layer gave in the exact graph and r what is missing::

    r = y - (W x̂ + b)        min_{D,d} E||r - D x̂ - d||² + e ||D||²   ->   D = E[r_c x̂_cᵀ] (E[x̂_c x̂_cᵀ] + e I)⁻¹,   d = E[r] - D E[x̂]

with x̂_c, r_c less their means, or as they are and d = 0 where the layer takes no offset. ``e`` keeps a layer as it was where little is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from passes.approximate.fitted_product import damped, put, takes_offset, vector
from passes.approximate.products import ROWS, Product, pairs, products
from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded, aligned
from passes.drop_dead import drop_dead
from rewriter.edit import tensor

Array = np.ndarray
RIDGE = 1e-2
"""Of the mean square of what a layer reads."""
FEWEST = 8
"""Batches that a layer is fitted to, at least."""
Observe = Callable[[ir.Model, Sequence[str], int | None], Mapping[str, Recorded]]
"""What these values are in a model, on so many of the batches that weights are fitted to, or on all."""


def refit(model: ir.Model, exact: ir.Model, outputs: Collection[str], observe: Observe) -> None:
    """Fit, in place, the products of ``model`` that make these values, to what the exact graph makes of the same inputs."""
    graph = Substitution(model)
    known = {v.name for node in exact.graph for v in node.outputs}
    results = {p.output: _result(p) for p in products(model) if p.output in outputs and p.groups == 1}
    wanted = observe(exact, sorted(r for r in set(results.values()) if r in known), None)
    for product in products(model):  # in the order of the graph: each reads what the last one has become
        if results.get(product.output) in wanted:
            ought = wanted[results[product.output]]
            places = max((s.size for s in ought.samples), default=1) // len(product.weights)
            read = observe(model, [product.input], max(FEWEST, math.ceil(ROWS / max(1, places))))[product.input]
            found = pairs(product, [(x, y) for x, y in aligned(read, ought)])
            if found is not None and len(found[0]):
                _fit(graph, product, *found)
                drop_dead(model)


def _result(product: Product) -> str:
    """The product with the vector that is added to it."""
    place = vector(product)
    return product.output if place is None else place[0]


def _fit(graph: Substitution, product: Product, x: Array, y: Array) -> None:
    offset, place = takes_offset(product), vector(product)
    added = tensor(graph.maker(place[0]).inputs[place[1]]) if place is not None else None
    wide = x.astype(np.float64)
    missing = y - wide @ product.weights.T.astype(np.float64) - (0.0 if added is None else added.numpy().reshape(-1).astype(np.float64))
    means = [a.mean(axis=0) if offset else np.zeros(a.shape[1]) for a in (wide, missing)]
    centred = wide - means[0]
    square = damped(centred.T @ centred / len(wide), RIDGE)
    change = np.linalg.solve(square, centred.T @ (missing - means[1]) / len(wide)).T
    put(graph, product, product.weights + change, means[1] - change @ means[0] if offset else None)
