"""Where a convolution by 3 x 3 is cheaper as Winograd's: three launches, and the choice between the tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from backends.tvm.graph import Node
from backends.tvm.kernel import Chain, Machine, Operand, Step
from backends.tvm.kernels.contraction import Contraction
from backends.tvm.kernels.winograd import TAPS, WinogradInput, WinogradOutput, step_between, transformed
from backends.tvm.lowering import Lowering, Packed
from backends.tvm.views import View

Array = np.ndarray[Any, Any]
# Measured cycles that a tile of one vector of channels takes, there and back.
_INPUT_CYCLES, _OUTPUT_CYCLES = {2: 60.0, 4: 150.0}, {2: 40.0, 4: 100.0}
_GAIN = 1.15  # by which it must be cheaper on paper: the coefficients also have to go through the caches
_BAND, _TILES = 2 << 20, 56  # bytes of coefficients of a band, and how many tiles it has at least
_BYTES = 6.0  # of weights that come from beyond the second-level cache in a cycle


def tile_size(low: Lowering, node: Node) -> int:
    """Outputs of a tile a side if the convolution ``node`` is best done by Winograd's algorithm, else 0."""
    weights = low.graph.constants[node.inputs[1]]
    lanes = low.machine.lanes
    plain = all(set(node.attributes[key]) == {1} for key in ("strides", "dilations")) and node.attributes["group"] == 1
    if not plain or weights.shape[2:] != (TAPS, TAPS) or weights.shape[0] % lanes or weights.shape[1] % lanes:
        return 0
    images, _, *rows = low.graph.shapes[node.outputs[0]]
    return _best(images, (rows[0], rows[1]), weights.shape[1], weights.shape[0], low.machine, low.fast)


@lru_cache(maxsize=4096)
def _best(images: int, rows: tuple[int, int], depth: int, columns: int, machine: Machine, most: int) -> int:
    none = Operand("float32", ())
    direct = Contraction((images,), rows, columns, (TAPS, 1), TAPS * depth, none, none)
    best, cost = 0, _cycles(direct, machine) / _GAIN
    for m in (2, 4):
        tiles = images * math.prod(math.ceil(r / m) for r in rows)
        product = Contraction(((m + 2) ** 2,), (1, tiles), columns, (1, 1), depth, none, none, matrices=(1,))
        moved = tiles / machine.threads * (depth * _INPUT_CYCLES[m] + columns * _OUTPUT_CYCLES[m]) / machine.lanes
        mine = _cycles(product, machine) + moved
        if m <= most and mine < cost:
            best, cost = m, mine
    return best


def _cycles(spec: Contraction, machine: Machine) -> float:
    """Of one run, with its weights: (t * t) matrices of Winograd's instead of nine are much to fetch for a small image."""
    matrices = math.prod(spec.batch) if spec.matrices else 1
    weights = 4.0 * matrices * math.prod(spec.taps) * spec.depth * spec.columns
    working = spec.cycles(spec.configs(machine)[0], machine) * math.prod(spec.batch) / machine.threads
    return working + weights / _BYTES


def winograd(low: Lowering, name: str, image: View, weights: Array, out: View, steps: Sequence[Step], operands: Sequence[View], m: int) -> None:
    """``image`` [n, c, h, w] reaches as far as the last tile; ``out`` and ``operands`` are [n, o, h, w].

    A large image goes through in bands of tile rows, so that its coefficients stay in the caches between the three launches.
    """
    image, out, *operands = (view.transposed((0, 2, 3, 1)) for view in (image, out, *operands))
    packed = Packed(lambda: transformed(weights, m))
    images, high, wide, columns = out.shape
    across = images * math.ceil(wide / m)
    row = 4 * (m + 2) ** 2 * across * (image.shape[3] + columns)
    band = m * max(1, math.ceil(_TILES / across), _BAND // row)
    for start in range(0, high, band):
        rows = min(band, high - start)
        pieces = [view.sliced(1, start, rows) for view in (out, *operands)]
        part = image.sliced(1, start, -(-rows // m) * m + 2)
        _band(low, name, part, packed, pieces[0], steps, pieces[1:], m)


def _band(low: Lowering, name: str, image: View, weights: Packed, out: View, steps: Sequence[Step], operands: Sequence[View], m: int) -> None:
    images, high, wide, columns = out.shape
    depth, count = image.shape[3], (m + 2) ** 2
    grid = (images, math.ceil(high / m), math.ceil(wide / m))
    tiles = math.prod(grid)
    there, back = (step_between(tiles, size) for size in (depth, columns))
    coefficients, products = (low.temporary((count * step,), "float32") for step in (there, back))
    low.launch(WinogradInput(m, grid, depth, there, image.operand()), [image], coefficients, "Winograd input")
    left = Operand("float32", (there, 0, depth, 0, 0, 1))
    product = Contraction((count,), (1, tiles), columns, (1, 1), depth, left, Operand("float32", (back, 0, columns, 1)), matrices=(1,))
    low.launch(product, [coefficients, weights], products, "Winograd product")
    chain = Chain(tuple(view.operand() for view in operands), tuple(steps))
    last = WinogradOutput(m, images, (high, wide), columns, back, out.operand(), chain)
    low.launch(last, [products, *operands], out, name)
