"""Products and convolutions on 8-bit numbers (paper 17, AdaQuant; QDQ, so that integer kernels take them).

Activations are written per tensor, ``x ≈ (q_x - z_x) s_x`` with q_x in 0..255 and z_x whole; weights symmetric, ``W ≈ diag(s_w) Q`` with Q
in -127..127 and a scale for every output (per channel) or one for all (per tensor). Then::

    x·Wᵀ ≈ s_x s_w (q_x·Qᵀ - z_x Σ Q)

an integer product whose second term is constant. What the layer loses is ``||W x - Ŵ x̂||²``; it is made small on calibration data, layer by
layer, over the scales (a grid of clipping ranges) and over the codes (each rounding's error is made up for by the columns that follow, as
the second moments of the inputs say). Per channel the bias takes the mean of what is left, ``E[W x - Ŵ x̂]``, where a convolution has one.

Processors without VNNI add two products of bytes in 16 bits and saturate; runtimes answer with wrong numbers, or with slower instructions. There
the codes of columns that are added are kept small enough together (``rounding.rounded``), and both are right and fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.products import Product, moments, patches, products
from passes.approximate.rounding import activation_codes, activation_error, fitted_codes, output_error, rounded, symmetric_scales
from passes.approximate.substitution import Codes, Substitution

Array = np.ndarray
LEAST = 256
"""Weights below which a product is left alone: its quantisers would cost more than it."""


class Int8Products:
    """``MatMul`` and ``Conv`` between DequantizeLinear of codes; a convolution's result becomes codes too, as some runtimes ask, or stays floats."""

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
        gram = Later(lambda: moments(product, seen))
        return [c for each in (True, False) for c in self._candidates(product, source, target, gram, site, per_channel=each)]

    @staticmethod
    def _activation_error(product: Product, source: Codes, target: Codes | None, gram: Array | None, site: Site) -> float:
        """What the codes of inputs and outputs add to it: ``E[d²] ||W||² / E||W x||²`` for independent errors d."""
        weights, result = product.weights.astype(np.float64), site.recorded[product.result].numbers()
        energy = float(np.sum((weights @ gram) * weights)) if gram is not None else float(np.mean(result.astype(np.float64) ** 2)) * len(weights)
        lost = activation_error(site.recorded[product.input].numbers(), source) * float(np.sum(weights**2))
        after = activation_error(result, target) / max(float(np.mean(result.astype(np.float64) ** 2)), 1e-30) if target is not None else 0.0
        return lost / max(energy, 1e-30) + after

    def _candidates(
        self, product: Product, source: Codes, target: Codes | None, gram: Later[Array | None], site: Site, *, per_channel: bool
    ) -> Iterator[Candidate]:
        weights = product.weights

        def lost(after: Codes | None) -> float:
            return output_error(weights, fitted().weights, gram()) + self._activation_error(product, source, after, gram(), site)

        fitted = Later(lambda: _fitted(product, source, gram(), site, per_channel=per_channel))
        name = f"{self.name}-{'per-channel' if per_channel else 'per-tensor'}"
        saved = weights.nbytes - weights.size - 4 * (len(weights) if per_channel else 1)
        shared: dict[str, Any] = {
            "bytes": -saved, "reads": frozenset({product.input}), "unit": ((product.input,), product.timed), "lost": Later(partial(lost, None)),
        }  # fmt: skip
        alike = f"{self.name}-per-channel"  # one scale or many: the last step of the same kernel
        parts = (product, source, None, fitted)
        open_ = Candidate(name, product.result, product.covers, _Apply(*parts), numbers=name, timed_as=alike, **shared)
        if target is None:
            yield open_
            yield replace(
                open_, rewrite=f"{name}-integers", covers=frozenset({product.output}), apply=_ByIntegers(*parts), timed_as=f"{alike}-integers"
            )
            return
        yield replace(open_, rewrite=f"{name}-to-floats", timed_as=f"{alike}-to-floats")
        yield replace(
            open_, apply=_Apply(product, source, target, fitted), writes=frozenset({product.result}), lost=Later(partial(lost, target)),
            numbers=f"{name}, codes again",
        )  # fmt: skip


@dataclass(frozen=True)
class _Fitted:
    """``codes`` int8 [outputs, depth], their scales ([outputs], or one), and the bias that goes with them."""

    codes: Array
    scales: Array
    bias: Array | None

    @property
    def weights(self) -> Array:
        """What they stand for."""
        return np.asarray(self.codes * self.scales.reshape(-1, 1))


def _fitted(product: Product, source: Codes, gram: Array | None, site: Site, *, per_channel: bool) -> _Fitted:
    weights, partners = product.weights, product.partners if site.saturating else None
    bits = 7 if site.saturating and partners is None else 8
    if not per_channel:
        flat = None if partners is None else (np.arange(len(weights))[:, None] * weights.shape[1] + partners).reshape(-1)
        scale = symmetric_scales(weights.reshape(1, -1), bits, None, flat)
        return _Fitted(rounded(weights, np.full(len(weights), scale[0]), bits, partners), scale.reshape(()), product.bias)
    scales = symmetric_scales(weights, bits, np.diag(gram) if gram is not None else None, partners)
    codes = rounded(weights, scales, bits, partners) if gram is None else fitted_codes(weights, scales, bits, gram, partners=partners)
    found = _Fitted(codes, scales, product.bias)
    return replace(found, bias=_corrected(product, found.weights, source, site)) if product.is_convolution else found


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

    def __init__(self, product: Product, source: Codes, target: Codes | None, fitted: Later[_Fitted]) -> None:
        self._output, self._result, self._source, self._codes, self._target = product.output, product.result, product.input, source, target
        self._as_stored, self._axis, self._relu, self._fitted = product.as_stored, product.channel_axis, product.relu, fitted

    def __call__(self, graph: Substitution) -> None:
        node, fitted = graph.maker(self._output), self._fitted()
        node.replace_input_with(0, graph.decoded(self._source, self._codes))
        axis = self._axis if fitted.scales.ndim else None
        node.replace_input_with(1, graph.decoded_weight(node, self._as_stored(fitted.codes), fitted.scales, axis, f"{self._output}_weight"))
        if fitted.bias is not None:
            self._set_bias(node, graph, fitted.bias, fitted.scales)
        if self._target is not None:
            if self._relu and self._target.zero == 0:
                graph.replace(self._result, graph.value(self._output))  # the least code is zero: the quantiser clamps by itself
            graph.encode(self._result, self._target)

    def _set_bias(self, node: ir.Node, graph: Substitution, real: Array, factors: Array) -> None:
        """int32 codes at the scale of the products, as integer kernels add them."""
        scales = np.asarray(factors.astype(np.float64) * self._codes.scale)
        numbers = np.round(real / scales)
        if bool((np.abs(numbers) < 2**30).all()):
            bias = graph.decoded_weight(node, numbers.astype(np.int32), scales, 0 if scales.ndim else None, f"{self._output}_bias")
        else:
            bias = graph.stored(real, f"{self._output}_bias")
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, bias)


class _ByIntegers(_Apply):
    """The same numbers by MatMulInteger: ``s_x s_w (q_x - z_x)·Q + b``, where a runtime does not fuse the other form."""

    def __call__(self, graph: Substitution) -> None:
        node = graph.maker(self._output)
        codes, editor = graph.codes(self._source, self._codes), graph.editor
        fitted = self._fitted()
        weights = self._as_stored(fitted.codes)
        weights = weights.T if node.op_type == "Gemm" and self._axis == 0 else weights
        stored = graph.stored(weights, f"{self._output}_weight_codes")
        zero = editor.constant(np.array(self._codes.zero, self._codes.dtype), "zero")
        shape, old = node.outputs[0].shape, node.outputs[0]
        sums = editor.emit(node, "MatMulInteger", [codes, stored, zero], dtype=ir.DataType.INT32, shape=shape)
        real = editor.emit(node, "Cast", [sums], {"to": int(ir.DataType.FLOAT)}, dtype=ir.DataType.FLOAT, shape=shape)
        factors = graph.stored(np.asarray(fitted.scales.astype(np.float64) * self._codes.scale, np.float32), f"{self._output}_scale")
        result = editor.emit(node, "Mul", [real, factors], dtype=old.dtype, shape=shape)
        if fitted.bias is not None:
            result = editor.emit(node, "Add", [result, graph.stored(fitted.bias, f"{self._output}_bias")], dtype=old.dtype, shape=shape)
        graph.replace(self._output, result)
