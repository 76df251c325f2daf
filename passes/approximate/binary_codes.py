"""Weights as sums of few binary matrices (paper 18, ShiftAddLLM: binary-coded quantisation).

``W = sum_b diag(a_b) S_b``, about, with ``S_b`` in {-1, 1}: from the greedy start ``S_1 = sign(W)``, ``a_1 = mean |W|``, and so on with the rest,
alternate least squares for a (a solve of B equations a row) and the nearest of the 2^B sums for S. With ``power_of_two`` each factor is one,
so that products are shifts. ``sign(0)`` is 1: a third code has no bit. Given the codes, the product is exact by tables: for every eight inputs
x_g, ``T_g[p] = sum_j +-x_gj`` for the 256 sign patterns p, and ``y_o = sum_b a_bo sum_g T_g[S_b[o, g]]`` (``by_tables``). The authors' kernel
stores exponents without signs and adds them to the bits of half-precision table entries, which is wrong for entries of zero; here a factor is
a number. On CPUs an 8-bit product is faster than tables: what is bought is bytes, and the graph unpacks the bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.products import Product, moments, products
from passes.approximate.rounding import output_error
from passes.approximate.substitution import Substitution

Array = np.ndarray
BITS = (2, 3, 4)
ROUNDS = 8
LEAST = 4096


def binary_codes(weights: Array, bits: int, rounds: int = ROUNDS, *, power_of_two: bool = False) -> tuple[Array, Array, list[float]]:
    """(a [rows, bits], S [rows, depth, bits] of ±1 as int8, the relative square error after each round) of ``weights`` [rows, depth]."""
    wide = weights.astype(np.float64)
    left, planes, factors = wide.copy(), [], []
    for _ in range(bits):
        plane = np.where(left >= 0, 1.0, -1.0)
        factor = (left * plane).mean(axis=1, keepdims=True)
        planes.append(plane)
        factors.append(factor)
        left -= factor * plane
    signs, alpha = np.stack(planes, -1), np.concatenate(factors, 1)
    patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=bits)))
    whole = float((wide**2).sum()) or 1.0
    errors = [float((left**2).sum()) / whole]
    for _ in range(rounds):
        system = signs.transpose(0, 2, 1) @ signs + 1e-9 * np.eye(bits)
        solved = np.linalg.solve(system, (signs.transpose(0, 2, 1) @ wide[..., None]))[..., 0]
        alpha = _powers(solved) if power_of_two else solved
        sums = alpha @ patterns.T
        nearest = _nearest(wide, sums)
        signs = patterns[nearest]
        errors.append(float(((wide - np.take_along_axis(sums, nearest, 1)) ** 2).sum()) / whole)
    return alpha.astype(np.float32), signs.astype(np.int8), errors


def _powers(alpha: Array) -> Array:
    return np.asarray(np.sign(alpha) * 2.0 ** np.round(np.log2(np.maximum(np.abs(alpha), 1e-12))))


def _nearest(wide: Array, sums: Array) -> Array:
    """For each entry the place of the nearest of its row's sums."""
    order = np.argsort(sums, axis=1)
    levels = np.take_along_axis(sums, order, 1)
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    place = (wide[:, :, None] > middles[:, None, :]).sum(axis=2) if wide.size * middles.shape[1] < 1 << 26 else _by_row(wide, middles)
    return np.take_along_axis(order, place, 1)


def _by_row(wide: Array, middles: Array) -> Array:
    return np.stack([np.searchsorted(m, row) for row, m in zip(wide, middles, strict=True)])


def by_tables(x: Array, alpha: Array, signs: Array) -> Array:
    """``x·Wᵀ`` [rows of x, outputs] by tables of eight inputs; the depth is a multiple of 8."""
    rows, depth, bits = signs.shape
    groups = depth // 8
    patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=8)), x.dtype)  # [256, 8]
    tables = x.reshape(len(x), groups, 8) @ patterns.T
    weight = 1 << np.arange(7, -1, -1)
    places = ((signs.reshape(rows, groups, 8, bits) > 0) * weight[:, None]).sum(axis=2)  # [rows, groups, bits]
    found = tables[:, np.arange(groups)[:, None], places.transpose(1, 0, 2).reshape(groups, -1)]
    return np.asarray((found.sum(axis=1).reshape(len(x), rows, bits) * alpha).sum(axis=2))


class BinaryCodes:
    """Matrices of products."""

    name = "binary-codes"

    def wants(self, model: ir.Model) -> Wanted:
        found = [p for p in products(model) if _fits(p)]
        return Wanted(frozenset(n for p in found for n in (p.input, p.output)), frozenset(p.input for p in found))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for product in products(site.model):
            if not _fits(product):
                continue
            gram = moments(product, site.recorded[product.input])
            for bits in BITS:
                yield self._of(product, bits, gram)

    def _of(self, product: Product, bits: int, gram: Array | None) -> Candidate:
        weights = product.weights
        found = Later(lambda: binary_codes(weights, bits)[:2])
        stored = bits * (weights.size // 8 + 4 * len(weights))
        return Candidate(
            f"{self.name}/{bits}-bit", product.output, frozenset({product.output}), _Apply(product, found), stored - weights.nbytes,
            unit=((product.input,), product.output), lost=Later(lambda: output_error(weights, _sum(*found()), gram)),
        )  # fmt: skip


def _sum(alpha: Array, signs: Array) -> Array:
    return np.asarray((signs * alpha[:, None, :]).sum(axis=2))


def _fits(product: Product) -> bool:
    return not product.is_convolution and product.weights.size >= LEAST and product.weights.shape[1] % 8 == 0


class _Apply:
    """The bits, and their unpacking: W = Σ_b a_b (2 bit_b - 1)."""

    def __init__(self, product: Product, found: Later[tuple[Array, Array]]) -> None:
        self._output, self._found = product.output, found
        self._transposed = product.channel_axis == 1

    def __call__(self, graph: Substitution) -> None:
        node, editor = graph.maker(self._output), graph.editor
        alpha, signs = self._found()
        rows, depth, count = signs.shape
        packed = np.packbits((signs > 0).astype(np.uint8).transpose(2, 0, 1), axis=-1, bitorder="little")  # [bits, rows, depth / 8]
        stored = graph.stored(packed[..., None], f"{self._output}_bits")
        shifted = editor.emit(
            node, "BitShift", [stored, editor.constant(np.arange(8, dtype=np.uint8), "shifts")], {"direction": "RIGHT"}, dtype=ir.DataType.UINT8
        )
        bits = editor.emit(node, "BitwiseAnd", [shifted, editor.constant(np.array(1, np.uint8), "mask")], dtype=ir.DataType.UINT8)
        real = editor.emit(node, "Cast", [bits], {"to": int(ir.DataType.FLOAT)}, dtype=ir.DataType.FLOAT, shape=(count, rows, depth // 8, 8))
        flat = editor.emit(
            node,
            "Reshape",
            [real, editor.constant(np.array([count, rows, depth], np.int64), "shape")],
            dtype=ir.DataType.FLOAT,
            shape=(count, rows, depth),
        )
        factors = graph.stored(2 * alpha.T[:, :, None], f"{self._output}_factors")
        scaled = editor.emit(node, "Mul", [flat, factors], dtype=ir.DataType.FLOAT, shape=(count, rows, depth))
        summed = editor.emit(
            node,
            "ReduceSum",
            [scaled, editor.constant(np.array([0], np.int64), "axis")],
            {"keepdims": 0},
            dtype=ir.DataType.FLOAT,
            shape=(rows, depth),
        )
        offset = graph.stored(alpha.sum(axis=1)[:, None], f"{self._output}_offset")
        weights = editor.emit(node, "Sub", [summed, offset], dtype=ir.DataType.FLOAT, shape=(rows, depth))
        if self._transposed:
            weights = editor.emit(node, "Transpose", [weights], {"perm": [1, 0]}, dtype=ir.DataType.FLOAT, shape=(depth, rows))
        node.replace_input_with(1, weights)
