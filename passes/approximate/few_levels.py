"""Weights of few levels: 1-bit and low-bit matrices (paper 16), ternary ones (paper 60). For memory: they pack into bits.

Low bits (16, as the authors' code): ``W ≈ std(W) Q((W - mean) / std) + mean``, Q to the nearest of 2^b levels that are optimal for a Gaussian
(Lloyd and Max; for one bit ±0.798). Ternary (60, ComPEFT): the largest k of ``|τ|`` keep their signs, ``τ ≈ a g`` with g in {-1, 0, 1}; a by
least squares on what the layer makes of its inputs, ``a = <W X, g X> / <g X, g X>``, and k from a grid by the same error. Both are stored as codes of
1, 2 or 4 bits and a table, and unpacked when the model runs. Meant for adapters and differences to a base model, whose products are small beside
the rest; other matrices may compete, and what is measured decides. A difference has to stand in the graph as a weight of its own. That of a merged
layer to the checkpoint that it was trained from is not looked for: ``W0`` and a ternary ``τ`` take more bytes than ``W0 + τ`` (60 saves what is sent
to where ``W0`` is already, and nothing else of an artefact reads it).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.products import Product, moments, products
from passes.approximate.rounding import output_error
from passes.approximate.substitution import Substitution
from passes.pack_weights import pack_weight

Array = np.ndarray
EPSILON = 1e-5
KEPT = (0.1, 0.2, 0.3, 0.5, 0.7)
"""Parts of the entries that stay in a ternary matrix."""
LEAST = 512


class FewLevels:
    """Matrices of products, each by itself."""

    name = "levels"

    def wants(self, model: ir.Model) -> Wanted:
        found = [p for p in products(model) if p.weights.size >= LEAST]
        return Wanted(frozenset(n for p in found for n in (p.input, p.output)), frozenset(p.input for p in found if not p.is_convolution))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for product in products(site.model):
            if product.weights.size < LEAST or product.groups != 1:
                continue
            gram = moments(product, site.recorded[product.input])
            for bits in (1, 2, 4):
                yield self._candidate(f"{self.name}/{bits}-bit", product, Later(partial(low_bit, product.weights, bits)), bits, gram)
            yield self._candidate(f"{self.name}/ternary", product, Later(partial(_ternary, product.weights, gram)), 2, gram)

    @staticmethod
    def _candidate(name: str, product: Product, approximated: Later[Array], bits: int, gram: Array | None) -> Candidate:
        saved = product.weights.nbytes - product.weights.size * bits // 8 - 4 * 2**bits
        return Candidate(
            name, product.output, frozenset({product.output}), _Apply(product.output, Later(lambda: product.as_stored(approximated()))), -saved,
            unit=((product.input,), product.output), lost=Later(lambda: output_error(product.weights, approximated(), gram)),
        )  # fmt: skip


def gaussian_levels(bits: int, rounds: int = 200) -> Array:
    """The 2^bits levels of least square error for a standard normal number (Lloyd's iteration on its quantiles)."""
    from statistics import NormalDist

    normal = NormalDist()
    count = 1 << 14
    numbers = np.array([normal.inv_cdf((k + 0.5) / count) for k in range(count)])
    levels = np.array([normal.inv_cdf((k + 0.5) / 2**bits) for k in range(2**bits)])
    for _ in range(rounds):
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, numbers)
        levels = np.array([numbers[nearest == k].mean() for k in range(len(levels))])
    return levels


def low_bit(weights: Array, bits: int) -> Array:
    """``weights`` with at most 2^bits values, float32. The deviation is the unbiased one, and epsilon stands in the division only."""
    wide = weights.astype(np.float64)
    mean, deviation = wide.mean(), wide.std(ddof=1)
    levels = gaussian_levels(bits)
    z = (wide - mean) / (deviation + EPSILON)
    table = (levels * deviation + mean).astype(np.float32)
    return np.asarray(table[np.searchsorted((levels[1:] + levels[:-1]) / 2, z)])


def ternary(delta: Array, gram: Array | None = None) -> tuple[Array, float]:
    """(a g of the shape of ``delta``, the part of the output's energy that is lost), for the part kept and a of least error.

    ``gram``: second moments of the layer's inputs, [depth, depth]; None: the error of the matrix itself.
    """
    wide = delta.astype(np.float64)
    sizes = np.sort(np.abs(wide), axis=None)
    best: tuple[Array, float] | None = None
    for part in KEPT:
        threshold = sizes[min(sizes.size - 1, int((1 - part) * sizes.size))]
        signs = np.sign(wide) * (np.abs(wide) >= max(threshold, 1e-30))
        seen = signs if gram is None else signs @ gram
        alpha = float((wide * seen).sum() / max((signs * seen).sum(), 1e-30))
        approximated = (alpha * signs).astype(np.float32)
        error = output_error(delta, approximated, gram)
        if best is None or error < best[1]:
            best = approximated, error
    assert best is not None
    return best


def _ternary(delta: Array, gram: Array | None) -> Array:
    return ternary(delta, gram)[0]


class _Apply:
    """The matrix, packed."""

    def __init__(self, output: str, weights: Later[Array]) -> None:
        self._output, self._weights = output, weights

    def __call__(self, graph: Substitution) -> None:
        node = graph.maker(self._output)
        value = graph.stored(self._weights(), f"{self._output}_levels")
        node.replace_input_with(1, value)
        pack_weight(value, node, graph.editor)
