"""Products and convolutions on 8-bit numbers (paper 17, AdaQuant; QDQ, so that integer kernels take them).

Activations are written per tensor, ``x ≈ (q_x - z_x) s_x`` with q_x in 0..255 and z_x whole; weights symmetric, ``W ≈ diag(s_w) Q`` with Q
in -127..127 and a scale for every output (per channel) or one for all (per tensor). Then::

    x·Wᵀ ≈ s_x s_w (q_x·Qᵀ - z_x Σ Q)

an integer product whose second term is constant. What the layer loses is ``||W x - Ŵ x̂||²``; it is made small on calibration data, layer by
layer, over the scales (a grid of clipping ranges) and over the codes (each rounding's error is made up for by the columns that follow, as
the second moments of the inputs say). Per channel the bias takes the mean of what is left, ``E[W x - Ŵ x̂]``, where a convolution has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Refusal, Site, Wanted
from passes.approximate.products import Product, moments, patches, products
from passes.approximate.rounding import activation_codes, fitted_codes, output_error, rounded, symmetric_scales
from passes.approximate.substitution import Codes, Substitution

Array = np.ndarray
LEAST = 256
"""Weights below which a product is left alone: its quantisers would cost more than it."""


class Int8Products:
    """``MatMul`` and ``Conv`` between DequantizeLinear of codes; a convolution's result becomes codes too, as runtimes ask."""

    name = "quantise/int8"

    def wants(self, model: ir.Model) -> Wanted:
        found = [p for p in products(model) if p.weights.size >= LEAST]
        values = frozenset(name for p in found for name in (p.input, p.result))
        return Wanted(values, frozenset(p.input for p in found if not p.is_convolution))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for product in products(site.model):
            if product.weights.size >= LEAST:
                yield from self._of(product, site)

    def _of(self, product: Product, site: Site) -> Iterable[Candidate | Refusal]:
        seen = site.recorded[product.input]
        if not np.isfinite(seen.high):
            return [Refusal(self.name, product.result, "nothing was recorded there")]
        source = activation_codes(seen.numbers(), seen.low, seen.high)
        after = site.recorded[product.result]
        target = activation_codes(after.numbers(), after.low, after.high) if product.is_convolution else None
        gram = moments(product, seen)
        return [c for each in (True, False) for c in self._candidates(product, source, target, gram, site, per_channel=each)]

    def _candidates(
        self, product: Product, source: Codes, target: Codes | None, gram: Array | None, site: Site, *, per_channel: bool
    ) -> Iterator[Candidate]:
        weights = product.weights
        importance = np.diag(gram) if gram is not None else None
        scales = symmetric_scales(weights, 8, importance)
        if not per_channel:
            scales = np.full(len(weights), symmetric_scales(weights.reshape(1, -1), 8)[0], np.float32)
        codes = fitted_codes(weights, scales, 8, gram) if gram is not None and per_channel else rounded(weights, scales, 8)
        approximated = codes * scales[:, None]
        error = output_error(weights, approximated, gram)
        bias = product.bias
        if product.is_convolution and per_channel:
            bias = _corrected(product, approximated, source, site)
        kept = scales if per_channel else scales[:1].reshape(())
        name = f"{self.name}-{'per-channel' if per_channel else 'per-tensor'}"
        saved = weights.nbytes - codes.nbytes - kept.nbytes
        shared: dict[str, Any] = {
            "bytes": -saved, "reads": frozenset({product.input}), "unit": ((product.input,), product.timed), "layer_error": error, "numbers": name,
        }  # fmt: skip
        parts = (product, source, target, product.as_stored(codes), kept, bias)
        writes = frozenset({product.result} if target is not None else ())
        yield Candidate(name, product.result, product.covers, _Apply(*parts), writes=writes, **shared)
        if not product.is_convolution:
            yield Candidate(f"{name}-integers", product.result, frozenset({product.output}), _ByIntegers(*parts), **shared)


def _corrected(product: Product, approximated: Array, source: Codes, site: Site) -> Array | None:
    """The bias and the mean of what the codes lose."""
    rows = patches(product, site.recorded[product.input])
    if rows is None or product.groups != 1:
        return product.bias
    coded = (np.clip(np.round(rows / source.scale) + source.zero, 0, 255) - source.zero) * source.scale
    lost = (rows @ product.weights.T - coded @ approximated.T).mean(axis=0)
    return np.asarray(lost if product.bias is None else product.bias + lost, np.float32)


class _Apply:
    """Edits one product. Its weights are kept as codes, once, for every variant in which the candidate stands."""

    def __init__(self, product: Product, source: Codes, target: Codes | None, weights: Array, scales: Array, bias: Array | None) -> None:
        self._output, self._result, self._source, self._codes, self._target = product.output, product.result, product.input, source, target
        self._weights, self._scales, self._axis, self._bias = weights, scales, product.channel_axis, bias
        self._relu = product.relu

    def __call__(self, graph: Substitution) -> None:
        node = graph.maker(self._output)
        node.replace_input_with(0, graph.decoded(self._source, self._codes))
        axis = self._axis if self._scales.ndim else None
        node.replace_input_with(1, graph.decoded_weight(node, self._weights, self._scales, axis, f"{self._output}_weight"))
        if self._bias is not None:
            self._set_bias(node, graph)
        if self._target is not None:
            if self._relu and self._target.zero == 0:
                graph.replace(self._result, graph.value(self._output))  # the least code is zero: the quantiser clamps by itself
            graph.encode(self._result, self._target)

    def _set_bias(self, node: ir.Node, graph: Substitution) -> None:
        """int32 codes at the scale of the products, as integer kernels add them."""
        assert self._bias is not None
        scales = np.asarray(self._scales.astype(np.float64) * self._codes.scale)
        numbers = np.round(self._bias / scales)
        if bool((np.abs(numbers) < 2**30).all()):
            bias = graph.decoded_weight(node, numbers.astype(np.int32), scales, 0 if scales.ndim else None, f"{self._output}_bias")
        else:
            bias = graph.stored(self._bias, f"{self._output}_bias")
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, bias)


class _ByIntegers(_Apply):
    """The same numbers by MatMulInteger: ``s_x s_w (q_x - z_x)·Q + b``, where a runtime does not fuse the other form."""

    def __call__(self, graph: Substitution) -> None:
        node = graph.maker(self._output)
        codes, editor = graph.codes(self._source, self._codes), graph.editor
        weights = self._weights.T if node.op_type == "Gemm" and self._axis == 0 else self._weights
        stored = graph.stored(weights, f"{self._output}_weight_codes")
        zero = editor.constant(np.array(self._codes.zero, self._codes.dtype), "zero")
        shape, old = node.outputs[0].shape, node.outputs[0]
        sums = editor.emit(node, "MatMulInteger", [codes, stored, zero], dtype=ir.DataType.INT32, shape=shape)
        real = editor.emit(node, "Cast", [sums], {"to": int(ir.DataType.FLOAT)}, dtype=ir.DataType.FLOAT, shape=shape)
        factors = graph.stored(np.asarray(self._scales.astype(np.float64) * self._codes.scale, np.float32), f"{self._output}_scale")
        result = editor.emit(node, "Mul", [real, factors], dtype=old.dtype, shape=shape)
        if self._bias is not None:
            result = editor.emit(node, "Add", [result, graph.stored(self._bias, f"{self._output}_bias")], dtype=old.dtype, shape=shape)
        graph.replace(self._output, result)
