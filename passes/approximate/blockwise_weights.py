"""Weights as whole numbers of 4 or 8 bits, with a scale for each block of depth; activations stay floats (paper 69).

    W[o, k] ≈ s[o, k / B] Q[o, k]        |s Q - W| <= s / 2        |Ŵ x - W x| <= Σ_b (s_b / 2) ||x_b||₁

s_b is found on a grid of clipping ranges, weighted by the mean square of each input; rounding errors are made up for by the columns that
follow (``fitted_codes``). The graph has ``DequantizeLinear`` with ``block_size`` (opset 21), which runtimes and our own kernels multiply
by without making floats of all weights first. With scales of 32 bits, 4-bit codes in blocks of 128 take 4.25 bits a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.products import Product, moments, products
from passes.approximate.rounding import fitted_codes, output_error, rounded, symmetric_scales
from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded

Array = np.ndarray
WAYS = ((8, 128), (4, 128), (4, 32))
"""(bits, block)."""
LEAST = 1 << 14
"""Weights below which nothing is gained."""
OPSET = 21
CHANGED = {"GroupNormalization"}
"""Standard operators whose meaning changed with that opset."""


class BlockwiseWeights:
    """``MatMul`` by dequantised codes, for each product of at least ``LEAST`` weights whose depth is whole blocks."""

    name = "quantise/weights"

    def wants(self, model: ir.Model) -> Wanted:
        found = [p for p in products(model) if _fits(p)]
        return Wanted(frozenset(n for p in found for n in (p.input, p.output)), frozenset(p.input for p in found))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        changed = sorted({n.op_type for n in site.model.graph if n.op_type in CHANGED})
        for product in products(site.model):
            if not _fits(product):
                continue
            if changed and site.model.opset_imports[""] < OPSET:
                yield Refusal(self.name, product.output, f"it takes opset {OPSET}, in which {changed[0]} means something else")
                continue
            seen = site.recorded[product.input]
            gram = moments(product, seen)
            for bits, block in WAYS:
                if product.weights.shape[1] % block == 0:
                    yield self._of(product, gram, seen, bits, block)

    def _of(self, product: Product, gram: Array | None, seen: Recorded, bits: int, block: int) -> Candidate:
        weights = product.weights
        numbers = Later(lambda: coded(weights, gram, bits, block))
        size = weights.size * bits // 8 + 4 * weights.size // block

        def lost() -> float:
            codes, scales = numbers()
            return output_error(weights, codes * np.repeat(scales, block, axis=1), gram)

        return Candidate(
            f"{self.name}-{bits}-bit-blocks-of-{block}", product.output, frozenset({product.output}), InBlocks(product, numbers, bits, block),
            bytes=size - weights.nbytes, unit=((product.input,), product.output), lost=Later(lost),
            bound=f"rounding alone moves an output by at most the sum of s / 2 ||x||₁ over blocks: {_bound(weights, bits, block, seen):.3g}",
        )  # fmt: skip


def _fits(product: Product) -> bool:
    return not product.is_convolution and product.weights.size >= LEAST


def coded(weights: Array, gram: Array | None, bits: int, block: int) -> tuple[Array, Array]:
    """(codes [outputs, depth] int8, scales [outputs, depth / block] float32)."""
    depth = weights.shape[1]
    importance = np.diag(gram) if gram is not None else np.ones(depth)
    parts = [slice(start, start + block) for start in range(0, depth, block)]
    scales = np.stack([symmetric_scales(weights[:, p], bits, importance[p] + 1e-12) for p in parts], axis=1)
    wide = np.repeat(scales, block, axis=1)
    return (rounded(weights, wide, bits) if gram is None else fitted_codes(weights, wide, bits, gram)), scales


def _bound(weights: Array, bits: int, block: int, seen: Recorded) -> float:
    """The largest error of one output that plain rounding, with scales that clip nothing, can make on what was seen."""
    scales = np.abs(weights.reshape(len(weights), -1, block)).max(axis=2) / (2 ** (bits - 1) - 1)
    sizes = np.abs(seen.matrix()[:256])
    blocks = sizes.reshape(len(sizes), -1, block).sum(axis=2)
    return float((blocks @ (scales.T / 2)).max())


class InBlocks:
    """Puts the codes in the place of one product's weights."""

    def __init__(self, product: Product, numbers: Callable[[], tuple[Array, Array]], bits: int, block: int) -> None:
        """``numbers``: codes and scales, as ``coded`` gives them."""
        self._output, self._bias, self._bits, self._block = product.output, product.bias, bits, block
        self._numbers = numbers

    def __call__(self, graph: Substitution) -> None:
        node, editor, name = graph.maker(self._output), graph.editor, self._output
        old = node.outputs[0]
        graph.model.opset_imports[""] = max(OPSET, graph.model.opset_imports[""])
        graph.model.ir_version = max(10, graph.model.ir_version or 0)
        whole, factors = self._numbers()
        kept = whole.T.astype(ml_dtypes.int4) if self._bits == 4 else whole.T
        codes, scales = graph.stored(kept, f"{name}_codes"), graph.stored(factors.T, f"{name}_scales")
        options = {"axis": 0, "block_size": self._block}
        weights = editor.emit(node, "DequantizeLinear", [codes, scales], options, dtype=old.dtype, shape=kept.shape, hint=f"{name}_weight")
        result = editor.emit(node, "MatMul", [node.inputs[0], weights], dtype=old.dtype, shape=old.shape)
        if self._bias is not None:
            result = editor.emit(node, "Add", [result, graph.stored(self._bias, f"{name}_bias")], dtype=old.dtype, shape=old.shape)
        graph.replace(name, result)
