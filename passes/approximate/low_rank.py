"""A product or convolution as two thinner ones (paper 40's decomposition, cut off).

With C the mean of x xᵀ over calibration inputs and C = L Lᵀ, the best approximation of rank r of what the layer *computes* there, and not
of its weights, comes from the singular value decomposition of W L (Eckart-Young)::

    W L = U S Vᵀ        W ≈ (U_r S_r) (V_rᵀ L⁻¹)        E|(W - W_r) x|² = Σ_{k>r} S_k²

r (outputs + depth) multiplications stand for outputs · depth. What fine-tuning by rewards learned may lie off the top directions (paper 64):
the layer's error says nothing of that, and a candidate is judged by the metric of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.products import Product, moments, products
from passes.approximate.rounding import output_error
from passes.approximate.substitution import Substitution

Array = np.ndarray
PARTS = (0.7, 0.5, 0.35, 0.25)
"""Of the multiplications, that the two products take together."""
LEAST = 1 << 14
"""Weights below which two products cost more than one."""
DAMPING = 1e-4
"""Of the mean second moment, added to each: directions that calibration never showed are not free to change."""


class LowRank:
    """Each product of at least ``LEAST`` weights, at some ranks."""

    name = "low-rank"

    def wants(self, model: ir.Model) -> Wanted:
        found = list(_large(products(model)))
        values = frozenset(name for p in found for name in (p.input, p.output))
        return Wanted(values, frozenset(p.input for p in found if not p.is_convolution))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for product in _large(products(site.model)):
            gram = moments(product, site.recorded[product.input])
            if gram is None:
                yield Refusal(self.name, product.output, "its depth is too large for second moments, or nothing was recorded there")
            else:
                yield from self._of(product, gram)

    def _of(self, product: Product, gram: Array) -> Iterable[Candidate]:
        outputs, depth = product.weights.shape
        halves = Later(lambda: decomposed(product.weights, gram))
        ranks = {int(part * outputs * depth / (outputs + depth)) for part in PARTS}
        for rank in sorted(ranks - {0}, reverse=True):
            cut = Later(partial(_cut, halves, rank))
            yield Candidate(
                f"{self.name}-{rank}", product.output, frozenset({product.output}), _Apply(product, rank, cut),
                bytes=4 * (rank * (outputs + depth) - outputs * depth), unit=((product.input,), product.output),
                lost=Later(partial(_lost, product, cut, gram)),
                bound="the layer's error on calibration inputs is the sum of the squared singular values that were cut off",
            )  # fmt: skip


Halves = tuple[Array, Array]


def _cut(halves: Later[tuple[Array, Array, Array]], rank: int) -> Halves:
    left, right, _ = halves()
    return left[:, :rank].astype(np.float32), right[:rank].astype(np.float32)


def _lost(product: Product, cut: Later[Halves], gram: Array) -> float:
    left, right = cut()
    return output_error(product.weights, left @ right, gram)


def decomposed(weights: Array, gram: Array) -> tuple[Array, Array, Array]:
    """(left [outputs, k], right [k, depth], squared singular values [k]), float64: ``left[:, :r] @ right[:r]`` is the best of rank r."""
    whole = gram.astype(np.float64)
    whole = whole + np.eye(len(whole)) * (DAMPING * float(np.trace(whole)) / len(whole) + 1e-12)
    root = np.linalg.cholesky(whole)
    u, s, vt = np.linalg.svd(weights.astype(np.float64) @ root, full_matrices=False)
    return u * s, np.linalg.solve(root.T, vt.T).T, s**2


def _large(found: Iterable[Product]) -> Iterator[Product]:
    return (p for p in found if p.weights.size >= LEAST and p.groups == 1)


class _Apply:
    """Edits one product: the thin one first, with its window if it is a convolution, then the one that has the bias."""

    def __init__(self, product: Product, rank: int, cut: Later[Halves]) -> None:
        self._output, self._bias, self._axis = product.output, product.bias, product.channel_axis
        kernel = product.node.inputs[1]
        assert kernel is not None and kernel.shape is not None
        self._window = tuple(kernel.shape.numpy()[1:]) if product.is_convolution else ()
        self._rank, self._cut = rank, cut

    def __call__(self, graph: Substitution) -> None:
        node = graph.maker(self._output)
        old, editor, name = node.outputs[0], graph.editor, self._output
        rank, (left, right) = self._rank, self._cut()
        if self._window:
            first = graph.stored(right.reshape(rank, *self._window), f"{name}_right")
            second = graph.stored(left.reshape(*left.shape, *[1] * (len(self._window) - 1)), f"{name}_left")
            shape = None if old.shape is None else [*old.shape[:1], rank, *old.shape[2:]]
            thin = editor.emit(node, "Conv", [node.inputs[0], first], _window_of(node), dtype=old.dtype, shape=shape, hint=f"{name}_thin")
            bias = [graph.stored(self._bias, f"{name}_bias")] if self._bias is not None else []
            graph.replace(name, editor.emit(node, "Conv", [thin, second, *bias], dtype=old.dtype, shape=old.shape))
            return
        shape = None if old.shape is None else [*old.shape[:-1], rank]
        first, second = graph.stored(right.T, f"{name}_right"), graph.stored(left.T, f"{name}_left")
        thin = editor.emit(node, "MatMul", [node.inputs[0], first], dtype=old.dtype, shape=shape, hint=f"{name}_thin")
        result = editor.emit(node, "MatMul", [thin, second], dtype=old.dtype, shape=old.shape)
        if self._bias is not None:
            result = editor.emit(node, "Add", [result, graph.stored(self._bias, f"{name}_bias")], dtype=old.dtype, shape=old.shape)
        graph.replace(name, result)


def _window_of(node: ir.Node) -> dict[str, object]:
    return {name: node.attributes[name].value for name in ("strides", "dilations", "pads", "auto_pad") if name in node.attributes}
