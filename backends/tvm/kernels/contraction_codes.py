"""Matrix products of floats with weights that are stored as codes of 8 or 4 bits, with a scale for each block of depth.

    out[b, s, n] = chain( sum over k of left[b, s, k] * (codes[k, n] * scales[k / block, n] + shifts[k / block, n]) )

A product of few rows takes as long as its weights take to be read: codes are a quarter or an eighth of what floats are. They
become floats in registers, once for all rows of a tile, and are multiplied as a Contraction's; where there are registers for it,
a block is summed by itself and scaled once, ``scale * sum of left * code + shift * sum of left``. Codes are packed [panel, depth,
panel width]; those of 4 bits in pairs of depth, the even one in the lower half of a byte. A shift is a zero point: minus its
product with the scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.tvm.kernel import PLAIN, Chain, Machine, Operand, WithoutScratch
from backends.tvm.kernels.contraction import Contraction, Tile, Writer, panels

Array = np.ndarray[Any, Any]
_MAKING = 4.0  # instructions by which a vector of codes becomes one of floats
_WORTH = 16  # steps of depth from which on a block is summed by itself


@dataclass(frozen=True)
class ContractionCodes(WithoutScratch):
    """As Contraction with one tap and one matrix for all batches. ``bits``: 8 (codes are int8) or 4 (0 to 15). ``block``: steps of
    depth with one scale, even where bits are 4; the last may be shorter. Without ``shifted`` there are no shifts.

    Takes: left, codes, scales, the chain's operands, out.
    """

    batch: tuple[int, ...]
    rows: tuple[int, int]
    columns: int
    depth: int
    block: int
    bits: int
    shifted: bool
    left: Operand
    out: Operand
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """Multiplications and additions of one run."""
        return self.as_floats().operations

    @property
    def paired(self) -> int:
        """Codes in a byte."""
        return 8 // self.bits

    def configs(self, machine: Machine) -> list[Tile]:
        """Those of a Contraction; tall ones first, which make floats of a code less often."""
        floats = self.as_floats()
        return sorted(floats.configs(machine), key=lambda tile: floats.cycles(tile, machine) * (1 + _MAKING / (tile[0] * tile[1])))

    def write(self, config: Tile, machine: Machine) -> Any:
        """The function: left, codes, scales, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        return _Writer(self, config, machine, Emitter()).write()

    def pack(self, right: Array, config: Tile, machine: Machine) -> Array:
        """Codes [depth, columns] (int8 or, of 4 bits, uint8), or scales and shifts [1 or 2, blocks, columns] (float32), flat."""
        if right.dtype == np.float32:
            lines = right.swapaxes(0, 1).reshape(-1, self.columns)
        elif self.bits == 4:
            even = np.pad(right, [(0, right.shape[0] % 2), (0, 0)])
            lines = even[0::2] | even[1::2] << 4
        else:
            lines = right
        pieces = []
        for start, widths in panels(self.columns, config[2], machine.lanes):
            panel = lines[:, start : start + config[2]]
            pieces.append(np.pad(panel, [(0, 0), (0, sum(widths) - panel.shape[1])]).reshape(-1))
        return np.concatenate(pieces)

    def as_floats(self) -> Contraction:
        """The same product of weights that are floats."""
        return Contraction(
            self.batch, self.rows, self.columns, (1, 1), self.depth, self.left, self.out, None, (0,) * len(self.batch), self.chain
        )  # fmt: skip


class _Writer(Writer):
    """Writes one ContractionCodes."""

    def __init__(self, spec: ContractionCodes, tile: Tile, machine: Machine, emitter: Any) -> None:
        super().__init__(spec.as_floats(), tile, machine, emitter)
        self.codes = spec
        self.factor = "uint8" if spec.bits == 4 else "int8"
        self.width = sum(self.panels[0][1])  # of every panel but the last
        self.seen: list[Any] = []  # sums of the left operand over a block, by row

    def _weights(self) -> None:
        super()._weights()
        self.scales = self.e.pointer("scales", "float32")

    def _rows_first(self) -> bool:
        return self.codes.depth * self.codes.columns * self.codes.bits // 8 <= self.machine.cache // 2

    def _right(self, batch: Sequence[Any], panel: Any, widths: Sequence[int]) -> tuple[Any, int]:
        codes = self.codes
        lines = math.ceil(codes.depth / codes.block) * (1 + codes.shifted)
        self.first = self.e.bind(panel * (lines * self.width))
        return self.e.bind(panel * (math.ceil(codes.depth / codes.paired) * self.width)), sum(widths)

    def _depth(
        self, sums: Sequence[Sequence[Any]], lower: Any, offsets: Sequence[int], start: Any, step: int,
        widths: Sequence[int], starts: Sequence[int], unroll: int,
    ) -> None:  # fmt: skip
        codes = self.codes
        whole, rest = divmod(codes.depth, codes.block)
        for count, first, length in ((whole, 0, codes.block), (1, whole, rest)):
            if not count or not length:
                continue
            with self.e.loop(count, "block", start=first) as block:
                factors = self._factors(block, step, widths, starts)
                place = self.e.bind(start + block * (codes.block // codes.paired * step))
                ahead = self.e.bind(lower + block * (codes.block * self.spec.left.strides[-1]))
                turns = max(1, unroll // codes.paired)
                if 2 * len(sums) * len(widths) + len(widths) + 2 > self.machine.registers or length < _WORTH:
                    self._block(sums, ahead, offsets, place, step, widths, starts, factors, length, turns)
                    continue
                parts = [[self._zeroed(width) for width in widths] for _ in sums]
                self.seen = [self._zeroed(1) for _ in sums] if codes.shifted else []
                self._block(parts, ahead, offsets, place, step, widths, starts, [(None, None)] * len(widths), length, turns)
                self._add(sums, parts, widths, factors)
                self.seen = []

    def _zeroed(self, width: int) -> Any:
        from backends.tvm.kernels.contraction import zero

        place = self.e.local(width, "float32", "part")
        self.e.store(place, 0, zero("float32", width))
        return place

    def _add(self, sums: Sequence[Sequence[Any]], parts: Sequence[Sequence[Any]], widths: Sequence[int], factors: Sequence[tuple[Any, Any]]) -> None:
        """The sums of a block of codes, scaled, to those of all."""
        from backends.tvm.emit import splat

        e = self.e
        for row, (totals, own) in enumerate(zip(sums, parts, strict=True)):
            for total, part, width, (scale, shift) in zip(totals, own, widths, factors, strict=True):
                value = e.load(total, 0, width) + e.load(part, 0, width) * scale
                if shift is not None:
                    value = value + splat(e.load(self.seen[row], 0), width) * shift
                e.store(total, 0, value)

    def _factors(self, block: Any, step: int, widths: Sequence[int], starts: Sequence[int]) -> list[tuple[Any, Any]]:
        """Scale and shift of each vector of columns."""
        e, shifted = self.e, self.codes.shifted
        line = self.first + block * ((1 + shifted) * step)
        return [
            (e.bind(e.load(self.scales, line + s, w)), e.bind(e.load(self.scales, line + step + s, w)) if shifted else None)
            for w, s in zip(widths, starts, strict=True)
        ]

    def _block(
        self, sums: Sequence[Sequence[Any]], lower: Any, offsets: Sequence[int], start: Any, step: int,
        widths: Sequence[int], starts: Sequence[int], factors: Sequence[tuple[Any, Any]], length: int, unroll: int,
    ) -> None:  # fmt: skip
        paired = self.codes.paired
        lines, odd = divmod(length, paired)

        def line(k: Any, count: int) -> None:
            raw = [self.e.bind(self.e.load(self.right, start + k * step + s, w)) for w, s in zip(widths, starts, strict=True)]
            for half in range(count):
                vectors = [self._floats(v, w, half, *f) for v, w, f in zip(raw, widths, factors, strict=True)]
                self._multiply(sums, lower, offsets, k * paired + half, vectors, widths)

        turns = lines // unroll
        if turns:
            with self.e.loop(turns, "k") as k:
                for inner in range(unroll):
                    line(k * unroll + inner, paired)
        for k in range(turns * unroll, lines):
            line(k, paired)
        if odd:
            line(lines, odd)

    def _floats(self, raw: Any, width: int, half: int, scale: Any, shift: Any) -> Any:
        """A vector of codes as the floats that they stand for."""
        from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

        from backends.tvm.emit import splat

        lanes = "" if width == 1 else f"x{width}"
        number = tirx.Cast(f"int32{lanes}", raw)
        if self.codes.bits == 4:
            number = number >> splat(tirx.const(4, "int32"), width) if half else number & splat(tirx.const(15, "int32"), width)
        value = tirx.Cast(f"float32{lanes}", number)
        if scale is not None:
            value = value * scale if shift is None else value * scale + shift
        return self.e.bind(value)

    def _multiply(
        self, sums: Sequence[Sequence[Any]], lower: Any, offsets: Sequence[int], k: Any, vectors: Sequence[Any], widths: Sequence[int]
    ) -> None:
        from backends.tvm.emit import splat

        e = self.e
        for number, (row, ahead) in enumerate(zip(sums, offsets, strict=True)):
            factor = e.bind(e.load(self.left, lower + k * self.spec.left.strides[-1] + ahead))
            if self.seen:
                e.store(self.seen[number], 0, e.load(self.seen[number], 0) + factor)
            for total, vector, width in zip(row, vectors, widths, strict=True):
                e.store(total, 0, e.load(total, 0, width) + splat(factor, width) * vector)
