"""Scales of channels go from the inputs of a product into its weights (paper 62, RepQuant; SmoothQuant does it with other factors).

Channels of very different ranges waste most of the 256 codes of one scale. A quantiser (s_c, z_c) for every channel is one quantiser (s, z) of other
numbers: with ``s = mean s_c``, ``z = round(mean z_c)``, ``r_c = s_c / s`` and ``b_c = s (z - z_c)``::

    x' = x / r - b        W' = W diag(r)        W x = W' x' + W' b

and the codes of x' under (s, z) are those of x under (s_c, z_c), bit for bit, because z is whole (with the mean itself, as in the authors' code, they
are not). W' is rounded after the scales have come in: that is the approximation. The division and the subtraction are written as such; behind a
LayerNorm that nobody else reads the exact laws move them into its scale and bias, and they are gone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.products import Product, moments, products
from passes.approximate.rounding import fitted_codes, output_error, rounded, symmetric_scales
from passes.approximate.substitution import Codes, Substitution

Array = np.ndarray
LEAST = 4096
UNEVEN = 3.0
"""How many times the median the widest channel's range must be: else there is nothing to be gained."""


class TransportedScales:
    """Products of matrices whose inputs have channels of different ranges."""

    name = "quantise/transported"

    def wants(self, model: ir.Model) -> Wanted:
        found = list(_candidates(model))
        return Wanted(frozenset(n for p in found for n in (p.input, p.output)), frozenset(p.input for p in found))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for product in _candidates(site.model):
            seen = site.recorded[product.input]
            if seen.least is None or seen.most is None or not (np.isfinite(seen.least) & np.isfinite(seen.most)).all():
                yield Refusal(self.name, product.output, "nothing was recorded there")
                continue
            low, high = seen.least.astype(np.float64), seen.most.astype(np.float64)
            spread = high - low
            if spread.max(initial=0) < UNEVEN * max(float(np.median(spread)), 1e-30):
                yield Refusal(self.name, product.output, "its channels have similar ranges: one scale serves them all")
                continue
            yield self._of(product, site, low, high)

    def _of(self, product: Product, site: Site, low: Array, high: Array) -> Candidate:
        source, r, b = reparameterised(low, high)
        gram = moments(product, site.recorded[product.input])
        fitted = Later(lambda: _fitted(product, site, gram, r, b))

        def lost() -> float:
            codes, scales = fitted()
            return output_error(product.weights, codes * scales[:, None] / r, gram) + _rounding(product, source, r, gram)

        bytes_saved = 3 * product.weights.size - 4 * len(product.weights) - r.nbytes - b.nbytes
        apply = _Apply(product, source, r, b, fitted)
        return Candidate(
            self.name, product.output, frozenset({product.output}), apply, -bytes_saved, unit=((product.input,), product.timed), lost=Later(lost)
        )


def _fitted(product: Product, site: Site, gram: Array | None, r: Array, b: Array) -> tuple[Array, Array]:
    """(codes, scales) of W diag(r)."""
    weights, partners = product.weights * r, product.partners if site.saturating else None
    scales = symmetric_scales(weights, 8, partners=partners)
    mean = site.recorded[product.input].mean()
    if gram is None or mean is None:
        return rounded(weights, scales, 8, partners), scales
    return fitted_codes(weights, scales, 8, _moved(gram, mean, r, b), partners=partners), scales


def reparameterised(low: Array, high: Array) -> tuple[Codes, Array, Array]:
    """(the tensor's quantiser, r, b) for the ranges of the channels."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scales = np.maximum((high - low) / 255, 1e-8 + 1e-4 * float(np.mean(high - low)) / 255)
    zeros = np.clip(np.round(-low / scales), 0, 255)
    scale, zero = float(np.float32(scales.mean())), int(np.round(zeros.mean()))
    return Codes(scale, zero), (scales / scale).astype(np.float32), (scale * (zero - zeros)).astype(np.float32)


def _moved(gram: Array, mean: Array, r: Array, b: Array) -> Array:
    """E[x' x'ᵀ] of x' = x / r - b."""
    inner = gram / np.outer(r, r)
    cross = np.outer(mean / r, b)
    return np.asarray(inner - cross - cross.T + np.outer(b, b))


def _rounding(product: Product, source: Codes, r: Array, gram: Array | None) -> float:
    """What the codes of the inputs add: each channel is off by s r_c / sqrt(12) in the root mean square."""
    if gram is None:
        return 0.0
    wide = product.weights.astype(np.float64)
    return float((source.scale**2 / 12) * np.sum((wide * r) ** 2) / max(float(np.sum((wide @ gram) * wide)), 1e-30))


def _candidates(model: ir.Model) -> Iterator[Product]:
    return (p for p in products(model) if p.node.op_type == "MatMul" and p.weights.size >= LEAST)


class _Apply:
    def __init__(self, product: Product, source: Codes, r: Array, b: Array, fitted: Later[tuple[Array, Array]]) -> None:
        self._output, self._input, self._source = product.output, product.input, source
        self._inverse, self._b = (1 / r).astype(np.float32), b
        self._as_stored, self._fitted = product.as_stored, fitted

    def __call__(self, graph: Substitution) -> None:
        node, (codes, scales) = graph.maker(self._output), self._fitted()
        added = (codes * scales[:, None] @ self._b).astype(np.float32)
        moved = graph.once(f"{self._input}~transported", lambda: self._transport(graph))
        node.replace_input_with(0, graph.decoded(moved, self._source))
        node.replace_input_with(1, graph.decoded_weight(node, self._as_stored(codes), scales, 1, f"{self._output}_weight"))
        old = node.outputs[0]
        reader = next(iter(node.outputs[0].uses()), None)
        assert reader is not None
        offset = graph.editor.emit(reader.node, "Add", [old, graph.stored(added, f"{self._output}_offset")], dtype=old.dtype, shape=old.shape)
        for use in [u for u in old.uses() if u.node is not offset.producer()]:
            use.node.replace_input_with(use.idx, offset)

    def _transport(self, graph: Substitution) -> str:
        """x / r - b, made once for all products that read x."""
        x = graph.value(self._input)
        first = graph.first_reader(x)
        scaled = graph.editor.emit(first, "Mul", [x, graph.stored(self._inverse, "inverse")], dtype=x.dtype, shape=x.shape)
        return graph.named(graph.editor.emit(first, "Sub", [scaled, graph.stored(self._b, "shift")], dtype=x.dtype, shape=x.shape))
