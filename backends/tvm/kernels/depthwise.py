"""Depthwise convolution: each channel has a filter of its own, so vectors lie along channels, stored last.

    out[n, h, w, c] = chain( sum over t, u of source[n, h, w, t, u, c] * weights[t, u, c] )

The source is the padded image, read with overlapping strides. A tile of output pixels stays in registers; neighbouring
pixels share most of what they read, which is loaded once for a line of the tile. Units are tiles of pixels by blocks of
channels; the filters of a block stay in the first-level cache while the tiles pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.tvm.kernel import PLAIN, Chain, Machine, Operand, WithoutScratch
from backends.tvm.kernels.elementwise import pieces, step_cycles
from backends.tvm.kernels.work import offset, shared, threads_for

Tile = tuple[int, int, int]  # rows and columns of pixels, vectors of channels in a block
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Depthwise(WithoutScratch):
    """Axes: ``source`` has strides for [batch, row, column, tap row, tap column, channel] (the convolution's strides and
    dilations are in them), ``out`` and the chain's operands for [batch, row, column, channel]. Weights lie as [taps, taps,
    channels]. Inputs: source, weights."""

    batch: int
    rows: tuple[int, int]
    channels: int
    taps: tuple[int, int]
    source: Operand
    out: Operand
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """Multiplications and additions of one run."""
        return 2.0 * self.batch * math.prod(self.rows) * self.channels * math.prod(self.taps)

    def configs(self, machine: Machine) -> list[Tile]:
        """Tiles that fit into the registers, the fewest loads for each multiplication first."""
        high, wide = self.rows
        across = math.ceil(self.channels / machine.lanes)
        tiles = {(h, _even(wide, w)) for h in (1, 2) if h <= high for w in (1, 2, 3, 4, 6, 8, 10, 14) if w <= wide}
        fit = [tile for tile in tiles if self._registers(tile) <= machine.registers] or [(1, 1)]
        best = sorted(fit, key=lambda tile: (self._cost(tile), tile))[:4]
        blocks = sorted({min(across, 4), min(across, 8), min(across, 2), across}, key=lambda b: (abs(b - 4), b))
        return [(*tile, blocks[0]) for tile in best] + [(*best[0], block) for block in blocks[1:]]

    def write(self, config: Tile, machine: Machine) -> Any:
        """The function: source, weights, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        return _Writer(self, config, machine, Emitter()).write()

    def pack(self, weights: Array, config: Tile, machine: Machine) -> Array:
        """Weights [taps, taps, channels] as this kernel reads them, flat."""
        return np.ascontiguousarray(weights).reshape(-1)

    def _registers(self, tile: tuple[int, int]) -> int:
        return math.prod(tile) + self._line(tile[1]) + 2

    def _line(self, wide: int) -> int:
        """Different pixels that one line of a tile reads for one row of taps."""
        _, _, across, _, tap, _ = self.source.strides
        return len({j * across + u * tap for j in range(wide) for u in range(self.taps[1])})

    def _cost(self, tile: tuple[int, int]) -> float:
        """Loads and multiplications for each pixel, those of overlapping tiles included."""
        high, wide = tile
        loads = self.taps[0] * (high * self._line(wide) + self.taps[1])
        covered = math.prod(math.ceil(size / t) * t for size, t in zip(self.rows, tile, strict=True)) / math.prod(self.rows)
        latency = max(1.0, 4.0 / math.prod(tile))
        return covered * (math.prod(self.taps) * latency + loads / math.prod(tile))


def _even(length: int, tile: int) -> int:
    """A tile about as large that divides ``length`` with the least overlap."""
    return math.ceil(length / math.ceil(length / tile))


class _Writer:
    """Writes one Depthwise with one tile size."""

    def __init__(self, spec: Depthwise, tile: Tile, machine: Machine, emitter: Any) -> None:
        self.spec, self.machine, self.e = spec, machine, emitter
        self.high, self.wide, self.block = min(tile[0], spec.rows[0]), min(tile[1], spec.rows[1]), tile[2]
        self.lanes = machine.lanes

    def write(self) -> Any:
        from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

        spec, e = self.spec, self.e
        self.source = e.pointer("source", spec.source.dtype)
        self.weights = e.pointer("weights", spec.source.dtype)
        self.others = [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(spec.chain.operands)]
        self.out = e.pointer("out", spec.out.dtype)
        vectors = max(1, math.ceil(spec.channels / self.lanes))
        counts = [math.ceil(spec.rows[0] / self.high), math.ceil(spec.rows[1] / self.wide)]
        sizes = [spec.batch, math.ceil(vectors / self.block), *counts]
        cycles = spec.operations / 2 / self.lanes * 1.5
        cycles += spec.operations / 2 / math.prod(spec.taps) * step_cycles(spec.chain.steps, self.lanes)
        with shared(e, sizes, threads_for(cycles, math.prod(sizes), self.machine)) as (n, block, high, wide):
            row, column = (self._start(*a) for a in ((high, self.high, spec.rows[0]), (wide, self.wide, spec.rows[1])))
            if spec.channels < self.lanes:
                for start, lanes in pieces(0, spec.channels, self.lanes):
                    self._tile(n, row, column, start, lanes)
            else:
                first = e.bind(block * self.block) if sizes[1] > 1 else 0
                count = self.block if vectors % self.block == 0 else e.bind(tirx.min(self.block, vectors - first))
                with e.loop(count, "vector", start=first) as vector:
                    self._tile(n, row, column, self._start(vector, self.lanes, spec.channels), self.lanes)
        return e.function("depthwise")

    def _start(self, index: Any, step: int, length: int) -> Any:
        """Where a tile starts; the last overlaps the one before it."""
        from tvm import tirx

        if isinstance(index, int):
            return min(index * step, length - step)
        return self.e.bind(tirx.min(index * step, length - step) if length % step else index * step)

    def _tile(self, n: Any, row: Any, column: Any, channel: Any, lanes: int) -> None:
        spec, e = self.spec, self.e
        _, down, across, tap_down, tap_across, _ = spec.source.strides
        base = e.bind(offset([n, row, column, channel], [spec.source.strides[i] for i in (0, 1, 2, 5)]))
        filters = e.bind(offset([channel], [1]))
        pixels = [(r, s) for r in range(self.high) for s in range(self.wide)]
        sums: dict[tuple[int, int], Any] = {}
        for t in range(spec.taps[0]):
            for r in range(self.high):
                line: dict[int, Any] = {}
                for u in range(spec.taps[1]):
                    weight = e.bind(e.load(self.weights, filters + (t * spec.taps[1] + u) * spec.channels, lanes))
                    for s in range(self.wide):
                        place = s * across + u * tap_across
                        if place not in line:
                            line[place] = self._load(base + (r * down + t * tap_down + place), lanes)
                        product = line[place] * weight
                        sums[r, s] = e.bind(sums[r, s] + product if (r, s) in sums else product)
        self._finish([(r, s, sums[r, s]) for r, s in pixels], [n, row, column, channel], lanes)

    def _load(self, place: Any, lanes: int) -> Any:
        return self.e.bind(self.e.load(self.source, place, lanes, self.spec.source.strides[-1]))

    def _finish(self, values: Sequence[tuple[int, int, Any]], where: Sequence[Any], lanes: int) -> None:
        from backends.tvm.pointwise import evaluate

        spec, e = self.spec, self.e
        operands = (*spec.chain.operands, spec.out)
        bases = [e.bind(offset(where, operand.strides)) for operand in operands]
        for r, s, value in values:
            places = [b + (r * o.strides[1] + s * o.strides[2]) for b, o in zip(bases, operands, strict=True)]
            registers = [value]
            for pointer, place, operand in zip(self.others, places, spec.chain.operands, strict=False):
                registers.append(e.load(pointer, place, lanes, operand.strides[3]))
            e.store(self.out, places[-1], evaluate(e, spec.chain.steps, registers, lanes), spec.out.strides[3])
