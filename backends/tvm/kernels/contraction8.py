"""Matrix products and convolutions of 8-bit numbers, with 32-bit sums.

    out[b, r, s, n] = chain( sum over t, u, k of (left[b, r, s, t, u, k] - zero) * right[b, t, u, k, n] )

A vector unit that multiplies bytes in fours (VNNI: unsigned by signed) takes four steps of depth at once: the left operand
gives four bytes to all elements of a vector, weights are packed [panel, taps, depth / 4, panel width, 4]. Signed left
operands are moved up by 128. What that and ``zero`` add is the same for a whole column; the sums start from its negative,
which lies before the weights. Other x86 processors multiply 16-bit numbers in pairs (PMADDWD), and others yet one step of
depth at a time as 32-bit numbers.
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
_FACTORS = {4: "int8", 2: "int16", 1: "int8"}  # how weights lie, by the steps that are multiplied at once
_PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


@dataclass(frozen=True)
class Contraction8(WithoutScratch):
    """As Contraction, with ``left`` of uint8 or int8, ``zero`` its zero point, weights of int8, and a chain that gets
    int32. Channels lie side by side. Up to 3 bytes are read after the last element of the left operand."""

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

    @property
    def operations(self) -> float:
        """Multiplications and additions of one run."""
        return 2.0 * math.prod((*self.batch, *self.rows, self.columns, *self.taps, self.depth))

    def configs(self, machine: Machine) -> list[Tile]:
        """Those of a Contraction with as many steps; wide ones first where a factor takes instructions to make."""
        steps = self.in_steps(machine)
        making = 0.0 if _bytes(machine) == 4 else 2.0 * machine.lanes
        return sorted(steps.configs(machine), key=lambda tile: steps.cycles(tile, machine) * (1 + making / tile[2]))

    def write(self, config: Tile, machine: Machine) -> Any:
        """The function: left, right, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        return _Writer(self, config, machine, Emitter()).write()

    def pack(self, right: Array, config: Tile, machine: Machine) -> Array:
        """Weights [matrices, taps, taps, depth, columns] (int8) as this kernel reads them, flat: int8, or int16 in pairs."""
        steps, step = self.in_steps(machine).depth, _bytes(machine)
        padded = np.pad(right, [(0, 0)] * 3 + [(0, steps * step - self.depth), (0, 0)])
        fours = padded.reshape(*right.shape[:3], steps, step, self.columns).swapaxes(4, 5)
        lifted = self.zero + (_LIFT[self.left.dtype] if machine.vnni else 0)
        starts = -lifted * right.sum((1, 2, 3), dtype=np.int32)
        pieces, heads = [], []
        for start, widths in _panels(self.columns, config[2], machine.lanes):
            missing = sum(widths) - min(config[2], self.columns - start)
            panel = fours[..., start : start + config[2], :]
            pieces.append(np.pad(panel, [(0, 0)] * 4 + [(0, missing), (0, 0)]).reshape(right.shape[0], -1))
            heads.append(np.pad(starts[:, start : start + config[2]], [(0, 0), (0, missing)]))
        kind = _FACTORS[step]
        head = np.concatenate(heads, axis=1).astype(np.int32).reshape(-1).view(kind)
        return np.concatenate([head, np.concatenate(pieces, axis=1).astype(kind).reshape(-1)])

    def in_steps(self, machine: Machine) -> Contraction:
        """The same computation with as many bytes of depth in a step as are multiplied at once."""
        step = _bytes(machine)
        strides = (*self.left.strides[:-1], step)
        left = Operand(self.left.dtype, strides)
        depth = math.ceil(self.depth / step)
        return Contraction(
            self.batch, self.rows, self.columns, self.taps, depth, left, self.out, None, self.matrices, self.chain,
        )  # fmt: skip


def _bytes(machine: Machine) -> int:
    """Steps of depth that are multiplied at once."""
    if machine.vnni:
        return 4
    return 2 if platform.machine().lower() in ("x86_64", "amd64") else 1


def _panels(columns: int, width: int, lanes: int) -> list[tuple[int, tuple[int, ...]]]:
    """Panels whose shortest vector is of 4 elements, for which there is an instruction."""
    return [(start, tuple(max(4, w) for w in widths)) for start, widths in panels(columns, width, lanes)]


class _Writer(Writer):
    """Writes one Contraction8."""

    def __init__(self, spec: Contraction8, tile: Tile, machine: Machine, emitter: Any) -> None:
        super().__init__(spec.in_steps(machine), tile, machine, emitter)
        self.panels = _panels(spec.columns, tile[2], machine.lanes)
        self.step = _bytes(machine)
        self.total, self.factor = "int32", _FACTORS[self.step]
        self.word = 2 if self.step == 2 else 4  # elements of weights in 32 bits
        self.signed = spec.left.dtype == "int8"
        matrices = 1 + sum((size - 1) * stride for size, stride in zip(spec.batch, spec.matrices, strict=False))
        self.head = matrices * sum(sum(widths) for _, widths in self.panels)  # sums to start from

    def _right(self, batch: Sequence[Any], panel: Any, widths: Sequence[int]) -> tuple[Any, int]:
        from backends.tvm.kernels.work import offset

        start, step = super()._right(batch, panel, widths)
        whole = sum(sum(w) for _, w in self.panels)
        matrix = offset(batch, self.spec.matrices or (0,) * self.nb)
        self.column = self.e.bind(matrix * whole + panel * sum(self.panels[0][1]))
        return self.e.bind(self.word * self.head + start * self.step), step * self.step

    def _first(self, start: int, width: int) -> Any:
        from backends.tvm.vector_math import words

        place = (self.column + start) * self.word
        return words(self.e.load(self.right, place, self.word * width))

    def _step(
        self, sums: Sequence[Sequence[Any]], lower: Any, offsets: Sequence[int], start: Any, k: Any, step: int,
        widths: Sequence[int], starts: Sequence[int],
    ) -> None:  # fmt: skip
        from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

        from backends.tvm.emit import splat

        e = self.e
        vectors = [e.bind(e.load(self.right, start + k * step + s * self.step, w * self.step)) for w, s in zip(widths, starts, strict=True)]
        if self.step == 1:
            vectors = [e.bind(tirx.Cast(f"int32x{w}", vector)) for vector, w in zip(vectors, widths, strict=True)]
        depth = self.spec.left.strides[-1]
        for row, ahead in zip(sums, offsets, strict=True):
            factor = e.bind(self._factor(lower + k * depth + ahead))
            for total, vector, width in zip(row, vectors, widths, strict=True):
                e.store(total, 0, self._more(e.load(total, 0, width), splat(factor, width), vector))

    def _factor(self, place: Any) -> Any:
        """A step of the left operand as one 32-bit number: four bytes, unsigned; a pair of 16 bits; or what it is."""
        from tvm import tirx

        from backends.tvm.vector_math import words

        if self.step == 1:
            return tirx.Cast("int32", self.e.load(self.left, place))
        bytes_ = self.e.load(self.left, place, self.step)
        if self.step == 2:
            return words(self.e.bind(tirx.Cast("int16x2", bytes_)))
        four = words(bytes_)
        return four ^ tirx.const(-0x7F7F7F80, "int32") if self.signed else four  # moves each byte up by 128

    def _more(self, total: Any, left: Any, right: Any) -> Any:
        """``total`` and, in each element, the products of a step."""
        from tvm import tirx

        from backends.tvm.emit import lanes_of

        if self.step == 1:
            return total + left * right
        lanes = lanes_of(total)
        wide = tirx.reinterpret(f"{self.factor}x{self.step * lanes}", left)
        if self.step == 2:
            return total + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _PAIRS[lanes], wide, right)
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", total, wide, right)
