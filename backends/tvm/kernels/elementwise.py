"""Element-wise chains on tensors, and copies of tensors, whatever the steps of each in memory.

    out[i...] = chain(operands[0][i...], operands[1][i...], ...)

Axes along which all step as along one become one. The innermost axis is the one along which most operands, and the
output above all, step by one; its vectors end with one that overlaps the one before, since to compute an element twice
does no harm (an output never lies where an operand lies). Operands that step by one along another axis, as in a
transposition, are read in square tiles and transposed in registers, by interleaving log2(lanes) times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.tvm.kernel import PLAIN, Chain, Config, Fixed, Machine, Operand, Step
from backends.tvm.kernels.work import offset, shared, threads_for

_HEAVY = frozenset({"Exp", "Log", "Sigmoid", "Tanh", "Erf", "Gelu", "Softplus", "Mish", "Elu", "Selu", "Celu", "Pow", "Mod"})
_CALLS = frozenset({"Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"})
_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "float16": 2, "int32": 4, "float32": 4, "int64": 8, "float64": 8}
_VECTORS = 4  # of one turn of the inner loop
_PIECE = 4096  # elements of a row that a thread takes at a time


@dataclass(frozen=True)
class Elementwise(Fixed):
    """``shape``: the axes, for which each operand and ``out`` have strides. The chain's registers are the operands, from
    register 0 on; it has none of its own. Without steps, operand 0 is copied; without operands, a constant is stored."""

    shape: tuple[int, ...]
    operands: tuple[Operand, ...]
    out: Operand
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """One for each step and element."""
        return float(math.prod(self.shape) * len(self.chain.steps))

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: the operands, out."""
        from backends.tvm.emit import Emitter

        return _Writer(self, machine, Emitter()).write()


@dataclass(frozen=True)
class Axis:
    """``size`` steps; ``strides`` of each operand, then of the output."""

    size: int
    strides: tuple[int, ...]


def merged(shape: Sequence[int], operands: Sequence[Operand]) -> list[Axis]:
    """The axes, outermost first as the last operand lies in memory, as few as step alike in all operands."""
    strides = list(zip(*(operand.strides for operand in operands), strict=True)) or [()] * len(shape)
    axes = [Axis(size, along) for size, along in zip(shape, strides, strict=True) if size > 1]
    axes.sort(key=lambda axis: tuple(abs(stride) for stride in reversed(axis.strides)), reverse=True)
    kept: list[Axis] = []
    for axis in axes:
        if kept and all(o == i * axis.size for o, i in zip(kept[-1].strides, axis.strides, strict=True)):
            kept[-1] = Axis(kept[-1].size * axis.size, axis.strides)
        else:
            kept.append(axis)
    return kept or [Axis(1, (1,) * len(operands))]


def step_cycles(steps: Sequence[Step], lanes: int) -> float:
    """About how long a chain takes for one element."""
    return sum(20.0 if s.op in _CALLS else (10.0 if s.op in _HEAVY else 0.7) / lanes for s in steps)


class _Writer:
    """Writes one Elementwise."""

    def __init__(self, spec: Elementwise, machine: Machine, emitter: Any) -> None:
        self.spec, self.machine, self.e = spec, machine, emitter
        self.all = (*spec.operands, spec.out)
        self.axes = merged(spec.shape, self.all)
        widest = max(_BYTES[operand.dtype] for operand in self.all)
        self.lanes = machine.lanes * (4 // min(4, widest))

    def write(self) -> Any:
        spec, e = self.spec, self.e
        self.pointers = [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(spec.operands)]
        self.pointers.append(e.pointer("out", spec.out.dtype))
        inner = self._inner()
        across = self._across(inner)
        outer = [axis for i, axis in enumerate(self.axes) if i not in (inner, across)]
        if across is not None:
            self._tiles(outer, self.axes[across], self.axes[inner])
        else:
            self._rows(outer, self.axes[inner])
        return e.function("elementwise")

    def _inner(self) -> int:
        """The axis of vectors: where the output steps by one; else where most operands do."""

        def worth(i: int) -> tuple[float, int]:
            axis = self.axes[i]
            unit = [abs(stride) <= 1 for stride in axis.strides]
            filled = min(1.0, axis.size / self.lanes)
            return (2 * unit[-1] + sum(unit[:-1]) * (1 if axis.size > 1 else 0)) * filled, i

        return max(range(len(self.axes)), key=worth)

    def _across(self, inner: int) -> int | None:
        """The axis along which operands step by one that do not along ``inner``, if square tiles fit into both."""
        rows = self.axes[inner]
        if rows.strides[-1] != 1 or rows.size < self.lanes or self.lanes > 16:
            return None
        turned = [i for i, stride in enumerate(rows.strides[:-1]) if abs(stride) > 1]
        for i, axis in enumerate(self.axes):
            if i != inner and axis.size >= self.lanes and any(axis.strides[j] == 1 for j in turned):
                return i
        return None

    def _cycles(self) -> float:
        each = 0.25 * len(self.all) + step_cycles(self.spec.chain.steps, self.lanes) * self.lanes
        return math.prod(axis.size for axis in self.axes) / self.lanes * (each + 1)

    # --- rows

    def _rows(self, outer: Sequence[Axis], row: Axis) -> None:
        """Every row as vectors; long rows in pieces, so that there is enough to share."""
        e, lanes = self.e, self.lanes
        group = _VECTORS * lanes
        sizes = [axis.size for axis in outer]
        whole = row.size // group * group  # what complete turns cover
        pieces = max(1, min(whole // _PIECE, math.ceil(64 / math.prod(sizes)))) if whole else 1
        turns = math.ceil(whole // group / pieces)
        pieces = math.ceil(whole // group / turns) if whole else 1
        units = [*sizes, pieces] if pieces > 1 else sizes
        threads = threads_for(self._cycles(), math.prod(units), self.machine)
        with shared(e, units, threads) as places:
            coordinates = places[: len(sizes)]
            bases = [e.bind(offset(coordinates, [axis.strides[i] for axis in outer])) for i in range(len(self.all))]
            if pieces == 1:
                with e.loop(turns, "turn") if whole else _never() as turn:
                    if whole:
                        self._turn(bases, row, turn * group)
                self._rest(bases, row, whole)
                return
            from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

            start = e.bind(places[-1] * turns)
            with e.loop(e.bind(tirx.min(turns, whole // group - start)), "turn", start=start) as turn:
                self._turn(bases, row, turn * group)
            if whole < row.size:
                with e.when(tirx.EQ(places[-1], pieces - 1)):
                    self._rest(bases, row, whole)

    def _turn(self, bases: Sequence[Any], row: Axis, start: Any) -> None:
        for vector in range(_VECTORS):
            self._vector(bases, row, start + vector * self.lanes, self.lanes)

    def _rest(self, bases: Sequence[Any], row: Axis, start: int) -> None:
        """From ``start`` to the end of the row, of which less than a turn is left."""
        for at, lanes in pieces(start, row.size, self.lanes):
            self._vector(bases, row, at, lanes)

    def _vector(self, bases: Sequence[Any], row: Axis, at: Any, lanes: int) -> None:
        e = self.e
        registers = [
            e.load(pointer, base + offset([at], [stride]), lanes, stride)
            for pointer, base, stride in zip(self.pointers[:-1], bases, row.strides[:-1], strict=False)
        ]
        self._store(registers, bases[-1] + offset([at], [row.strides[-1]]), lanes, row.strides[-1])

    def _store(self, registers: Sequence[Any], place: Any, lanes: int, stride: int) -> None:
        from backends.tvm.pointwise import evaluate

        steps = self.spec.chain.steps
        value = evaluate(self.e, steps, registers, lanes) if steps else registers[0]
        self.e.store(self.pointers[-1], place, value, stride)

    # --- square tiles

    def _tiles(self, outer: Sequence[Axis], across: Axis, row: Axis) -> None:
        """Tiles of ``lanes`` by ``lanes``; the last of an axis overlaps the one before it."""
        from tvm import tirx

        e, lanes = self.e, self.lanes
        counts = [math.ceil(across.size / lanes), math.ceil(row.size / lanes)]
        sizes = [axis.size for axis in outer]
        units = [*sizes, *counts]
        threads = threads_for(2 * self._cycles(), math.prod(units), self.machine)
        with shared(e, units, threads) as places:
            tile = places[-2:]
            starts = [
                e.bind(tirx.min(place * lanes, axis.size - lanes)) if axis.size % lanes else e.bind(place * lanes)
                for place, axis in zip(tile, (across, row), strict=True)
            ]
            where = [*places[:-2], *starts]
            axes = [*outer, across, row]
            bases = [e.bind(offset(where, [axis.strides[i] for axis in axes])) for i in range(len(self.all))]
            self._tile(bases, across, row)

    def _tile(self, bases: Sequence[Any], across: Axis, row: Axis) -> None:
        e, lanes = self.e, self.lanes
        turned: dict[int, list[Any]] = {}
        for i, pointer in enumerate(self.pointers[:-1]):
            if across.strides[i] == 1 and abs(row.strides[i]) > 1:
                lines = [e.bind(e.load(pointer, bases[i] + k * row.strides[i], lanes)) for k in range(lanes)]
                turned[i] = transposed(e, lines)
        for k in range(lanes):
            registers = [
                turned[i][k] if i in turned else e.load(pointer, bases[i] + k * across.strides[i], lanes, row.strides[i])
                for i, pointer in enumerate(self.pointers[:-1])
            ]
            self._store(registers, bases[-1] + k * across.strides[-1], lanes, 1)


def pieces(start: int, end: int, lanes: int) -> list[tuple[int, int]]:
    """Vectors (start, lanes) that cover ``start`` to ``end``: the last overlaps, or in short rows is a narrower one."""
    found = [(at, lanes) for at in range(start, end - lanes + 1, lanes)]
    left = (end - start) % lanes
    if left and end >= lanes:
        return [*found, (end - lanes, lanes)]
    at = end - left
    while left:
        narrow = 1 << (left.bit_length() - 1)
        found.append((at, narrow))
        at, left = at + narrow, left - narrow
    return found


def transposed(e: Any, lines: Sequence[Any]) -> list[Any]:
    """A square of registers transposed: interleaving the first half with the second is a rotation of the index bits."""
    from tvm import tirx

    count = len(lines)
    half = count // 2
    low = [j // 2 + (j % 2) * count for j in range(count)]
    high = [half + place for place in low]
    for _ in range(count.bit_length() - 1):
        mixed = []
        for a, b in zip(lines[:half], lines[half:], strict=True):
            mixed += [e.bind(tirx.Shuffle([a, b], low)), e.bind(tirx.Shuffle([a, b], high))]
        lines = mixed
    return list(lines)


def _never() -> Any:
    import contextlib

    return contextlib.nullcontext(0)
