"""Matrix products and convolutions of 8-bit numbers, with 32-bit sums.

    out[b, r, s, n] = chain( sum over t, u, k of (left[b, r, s, t, u, k] - zero) * right[b, t, u, k, n] )

A vector unit that multiplies bytes in fours (VNNI: unsigned by signed) takes four steps of depth at once: the left operand
gives four bytes to all elements of a vector, weights are packed [panel, taps, depth / 4, panel width, 4]. Signed left
operands are moved up by 128. What that and ``zero`` add is the same for a whole column; the sums start from its negative,
which lies before the weights. Without VNNI, AVX2 does the same in three instructions (PMADDUBSW, PMADDWD by ones, PADDD),
where no two products that PMADDUBSW adds can leave 16 bits, in which it saturates: that depends on the weights alone
(``pairs_fit``), and holds for all weights of seven bits. Otherwise x86 processors multiply 16-bit numbers in pairs: of
four bytes that stand in all elements of a vector, a mask and a shift make the pairs (0, 2) and (1, 3), and weights are
packed in that order, [panel, taps, depth / 4, 2, panel width, 2]; extending each pair by itself would take longer than
multiplying it. Others yet multiply one step of depth at a time as 32-bit numbers.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.tvm.kernel import PLAIN, Chain, Machine, Operand, Strides, WithoutScratch
from backends.tvm.kernels.contraction import Contraction, Tile, Writer, panels

Array = np.ndarray[Any, Any]
_LIFT = {"uint8": 0, "int8": 128}
_PMADDUBSW = {4: "llvm.x86.ssse3.pmadd.ub.sw.128", 8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}
_PMADDWD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def convolves_fast(machine: Machine, weights: Array) -> bool:
    """Is a convolution faster on 8-bit numbers than on floats there? ``weights``: int8 [outputs, channels, taps, taps], or of a line [.., taps].

    Where 16-bit numbers are multiplied in pairs it is not: floats have Winograd's way."""
    if machine.vnni or machine.lanes <= 4:
        return machine.vnni
    if weights.ndim == 3:
        weights = weights[:, :, None]
    if weights.shape[1] % 2 and weights.shape[3] > 1:  # taps of a line follow each other, or not: pairs may be any two
        return bool((np.abs(weights.astype(np.int32)) <= 64).all())
    return pairs_fit(weights.transpose(2, 3, 1, 0))


@dataclass(frozen=True)
class Contraction8(WithoutScratch):
    """As Contraction, with ``left`` of uint8 or int8, ``zero`` its zero point, weights of int8, and a chain that gets
    int32. Channels lie side by side. Up to 3 bytes are read after the last element of the left operand.
    ``fits``: what ``pairs_fit`` says of the weights."""

    batch: tuple[int, ...]
    rows: tuple[int, int]
    columns: int
    taps: tuple[int, int]
    depth: int
    left: Operand
    out: Operand
    zero: int = 0
    matrices: Strides = ()
    chain: Chain = PLAIN
    fits: bool = False

    @property
    def operations(self) -> float:
        """Multiplications and additions of one run."""
        return 2.0 * math.prod((*self.batch, *self.rows, self.columns, *self.taps, self.depth))

    def configs(self, machine: Machine) -> list[Tile]:
        """Those of a Contraction with as many steps; wide ones first where a factor takes instructions to make."""
        steps = self.in_steps(machine)
        making = (0.0 if machine.vnni else 2.0 if self.way(machine) is _ONES else 1.0) * machine.lanes
        return sorted(steps.configs(machine), key=lambda tile: steps.cycles(tile, machine) * (1 + making / tile[2]))

    def write(self, config: Tile, machine: Machine) -> Any:
        """The function: left, right, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        return _Writer(self, config, machine, Emitter()).write()

    def pack(self, right: Array, config: Tile, machine: Machine) -> Array:
        """Weights [matrices, taps, taps, depth, columns] (int8) as this kernel reads them, flat: int8, or int16 in pairs."""
        way = self.way(machine)
        steps = self.in_steps(machine).depth
        padded = np.pad(right, [(0, 0)] * 3 + [(0, steps * way.step - self.depth), (0, 0)])
        # [.., depth / step, parts, columns, steps of a part]: what is multiplied at once lies side by side
        parts = padded.reshape(*right.shape[:3], steps, way.step // way.parts, way.parts, self.columns).transpose(0, 1, 2, 3, 5, 6, 4)
        lifted = self.zero + (_LIFT[self.left.dtype] if way is _FOURS else 0)
        starts = -lifted * right.sum((1, 2, 3), dtype=np.int32)
        pieces, heads = [], []
        for start, widths in _panels(self.columns, config[2], machine.lanes):
            missing = sum(widths) - min(config[2], self.columns - start)
            panel = parts[..., start : start + config[2], :]
            pieces.append(np.pad(panel, [(0, 0)] * 5 + [(0, missing), (0, 0)]).reshape(right.shape[0], -1))
            heads.append(np.pad(starts[:, start : start + config[2]], [(0, 0), (0, missing)]))
        head = np.concatenate(heads, axis=1).astype(np.int32).reshape(-1).view(way.weights)
        return np.concatenate([head, np.concatenate(pieces, axis=1).astype(way.weights).reshape(-1)])

    def way(self, machine: Machine) -> _Way:
        """How it is computed there."""
        if machine.vnni or (self.fits and machine.lanes > 4):  # narrower ones may lack SSSE3
            return _FOURS
        return _PAIRS if platform.machine().lower() in ("x86_64", "amd64") else _ONES

    def in_steps(self, machine: Machine) -> Contraction:
        """The same computation with as many bytes of depth in a step as are loaded at once."""
        step = self.way(machine).step
        strides = (*self.left.strides[:-1], step)
        left = Operand(self.left.dtype, strides)
        depth = math.ceil(self.depth / step)
        return Contraction(
            self.batch, self.rows, self.columns, self.taps, depth, left, self.out, None, self.matrices, self.chain,
        )  # fmt: skip


@dataclass(frozen=True)
class _Way:
    """``step``: bytes of depth that are loaded at once. They are multiplied in ``parts``: part p takes bytes p, p + parts, ... ``weights``:
    how they lie."""

    step: int
    parts: int
    weights: str

    @property
    def word(self) -> int:
        """Elements of weights in 32 bits."""
        return 4 // np.dtype(self.weights).itemsize


_FOURS, _PAIRS, _ONES = _Way(4, 1, "int8"), _Way(4, 2, "int16"), _Way(1, 1, "int8")


def pairs_fit(weights: Array) -> bool:
    """Can no two neighbours along depth, times bytes, leave 16 bits when they are added? ``weights``: int8 [.., depth, columns]."""
    padded = np.pad(weights, [(0, 0)] * (weights.ndim - 2) + [(0, weights.shape[-2] % 2), (0, 0)]).astype(np.int32)
    above, below = np.maximum(padded, 0), np.minimum(padded, 0)
    most, least = (part[..., ::2, :] + part[..., 1::2, :] for part in (above, below))
    return bool((255 * most <= 2**15 - 1).all() and (255 * least >= -(2**15)).all())


def _panels(columns: int, width: int, lanes: int) -> list[tuple[int, tuple[int, ...]]]:
    """Panels whose shortest vector is of 4 elements, for which there is an instruction."""
    return [(start, tuple(max(4, w) for w in widths)) for start, widths in panels(columns, width, lanes)]


class _Writer(Writer):
    """Writes one Contraction8."""

    def __init__(self, spec: Contraction8, tile: Tile, machine: Machine, emitter: Any) -> None:
        super().__init__(spec.in_steps(machine), tile, machine, emitter)
        self.panels = _panels(spec.columns, tile[2], machine.lanes)
        self.way = spec.way(machine)
        self.total, self.factor = "int32", self.way.weights
        self.signed = spec.left.dtype == "int8"
        matrices = 1 + sum((size - 1) * stride for size, stride in zip(spec.batch, spec.matrices, strict=False))
        self.head = matrices * sum(sum(widths) for _, widths in self.panels)  # sums to start from

    def _right(self, batch: Sequence[Any], panel: Any, widths: Sequence[int]) -> tuple[Any, int]:
        from backends.tvm.kernels.work import offset

        start, step = super()._right(batch, panel, widths)
        whole = sum(sum(w) for _, w in self.panels)
        matrix = offset(batch, self.spec.matrices or (0,) * self.nb)
        self.column = self.e.bind(matrix * whole + panel * sum(self.panels[0][1]))
        return self.e.bind(self.way.word * self.head + start * self.way.step), step * self.way.step

    def _first(self, start: int, width: int) -> Any:
        from backends.tvm.vector_math import words

        place = (self.column + start) * self.way.word
        return words(self.e.load(self.right, place, self.way.word * width))

    def _step(
        self, sums: Sequence[Sequence[Any]], lower: Any, offsets: Sequence[int], start: Any, k: Any, step: int,
        widths: Sequence[int], starts: Sequence[int],
    ) -> None:  # fmt: skip
        e, depth = self.e, self.spec.left.strides[-1]
        factors = [e.bind(self._loaded(lower + k * depth + ahead)) for ahead in offsets]
        each = step // self.way.parts  # weights of a part, of all columns of the panel
        for part in range(self.way.parts):
            vectors = [self._weights_at(start + k * step + part * each, s, w) for w, s in zip(widths, starts, strict=True)]
            for row, factor in zip(sums, factors, strict=True):
                for total, vector, width in zip(row, vectors, widths, strict=True):
                    e.store(total, 0, self._more(e.load(total, 0, width), self._spread(factor, width, part), vector))

    def _weights_at(self, place: Any, start: int, width: int) -> Any:
        """Of one part: those of ``width`` columns from ``start`` on."""
        from tvm import tirx

        size = self.way.step // self.way.parts
        vector = self.e.bind(self.e.load(self.right, place + start * size, width * size))
        return self.e.bind(tirx.Cast(f"int32x{width}", vector)) if self.way is _ONES else vector

    def _loaded(self, place: Any) -> Any:
        """A step of the left operand as one 32-bit number: four bytes, where VNNI multiplies them unsigned; or what it is."""
        from tvm import tirx

        from backends.tvm.vector_math import words

        if self.way is _ONES:
            return tirx.Cast("int32", self.e.load(self.left, place))
        four = words(self.e.load(self.left, place, 4))
        return four ^ tirx.const(-0x7F7F7F80, "int32") if self.signed and self.way is _FOURS else four  # moves each byte up by 128

    def _spread(self, factor: Any, width: int, part: int) -> Any:
        """A step in all elements of a vector; of four bytes those of one part, as 16-bit numbers."""
        from tvm import tirx

        from backends.tvm.emit import splat

        if self.way is not _PAIRS:
            return splat(factor, width)
        halves = tirx.reinterpret(f"int16x{2 * width}", splat(factor, width))
        eight = splat(tirx.const(8, "int16"), 2 * width)
        if self.signed:
            return tirx.shift_right(halves if part else tirx.shift_left(halves, eight), eight)
        if not part:
            return halves & splat(tirx.const(0xFF, "int16"), 2 * width)
        unsigned = tirx.reinterpret(f"uint16x{2 * width}", splat(factor, width))
        return tirx.reinterpret(f"int16x{2 * width}", tirx.shift_right(unsigned, splat(tirx.const(8, "uint16"), 2 * width)))

    def _more(self, total: Any, left: Any, right: Any) -> Any:
        """``total`` and, in each element, the products of a part."""
        from tvm import tirx

        from backends.tvm.emit import lanes_of, splat

        lanes = lanes_of(total)
        if self.way is _ONES:
            return total + left * right
        if self.way is _PAIRS:
            return total + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _PMADDWD[lanes], left, right)
        wide = tirx.reinterpret(f"int8x{4 * lanes}", left)
        if self.machine.vnni:
            return tirx.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", total, wide, right)
        pairs = tirx.call_llvm_pure_intrin(f"int16x{2 * lanes}", _PMADDUBSW[lanes], wide, right)
        return total + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _PMADDWD[lanes], pairs, splat(tirx.const(1, "int16"), 2 * lanes))
