"""Matrix products and convolutions: sums of products over taps and depth, a register tile of rows by columns at a time.

    out[b, r, s, n] = chain( sum over t, u, k of  left[b, r, s, t, u, k] * right[b, t, u, k, n] )

``b`` runs over batches or groups, ``(r, s)`` over rows (of a matrix: (1, M); of an image: height and width), ``(t, u)``
over the taps of a window, ``k`` over depth, ``n`` over columns. A convolution is this with channels as columns: the
left operand is the padded image itself, read with overlapping strides, so that nothing like im2col is ever stored.

The kernel is the one of Goto and van de Geijn (2008), without packing the left operand: a tile of sums stays in
registers, each step loads a few vectors of ``right``, which lie one after the other because weights are packed when
the model is compiled ([panel, taps, depth, panel width]), and multiplies them by broadcast elements of ``left``. All
tiles, of all batches, are one range that the threads share evenly. Ragged edges have tiles of their own size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.tvm.kernel import PLAIN, Chain, Machine, Operand, Strides, WithoutScratch
from backends.tvm.kernels.work import offset, shared, threads_for

Tile = tuple[int, int, int]  # rows, rows, columns that one tile covers
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Contraction(WithoutScratch):
    """Axes: ``left`` and ``out`` have strides for [*batch, rows, rows, ...] followed by [taps, taps, depth] and
    [columns]; the chain's operands are as ``out``. ``right`` is None where it is packed weights (``pack``), of which batch
    ``b`` takes matrix ``sum(b * matrices)``; else it is data, [*batch, depth, columns] with columns one element apart.
    """

    batch: tuple[int, ...]
    rows: tuple[int, int]
    columns: int
    taps: tuple[int, int]
    depth: int
    left: Operand
    out: Operand
    right: Operand | None = None
    matrices: Strides = ()
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """Multiplications and additions of one run."""
        return 2.0 * math.prod((*self.batch, *self.rows, self.columns, *self.taps, self.depth))

    def configs(self, machine: Machine) -> list[Tile]:
        """Tiles that fit into the registers, by the cycles that they are expected to take."""
        return sorted(set(self._tiles(machine)), key=lambda tile: (self.cycles(tile, machine), tile))

    def write(self, config: Tile, machine: Machine) -> Any:
        """The function: left, right, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        return Writer(self, config, machine, Emitter()).write()

    def pack(self, right: Array, config: Tile, machine: Machine) -> Array:
        """Weights [matrices, taps, taps, depth, columns] as this kernel reads them, flat."""
        pieces = []
        for start, widths in panels(self.columns, config[2], machine.lanes):
            panel = right[..., start : start + config[2]]
            missing = sum(widths) - panel.shape[-1]
            pieces.append(np.pad(panel, [(0, 0)] * 4 + [(0, missing)]).reshape(right.shape[0], -1))
        return np.ascontiguousarray(np.concatenate(pieces, axis=1)).reshape(-1)

    def _tiles(self, machine: Machine) -> Iterator[Tile]:
        across = math.ceil(self.columns / machine.lanes)
        for vectors in (1, 2, 3, 4, 6, 8):
            if vectors > across and vectors != 1:
                continue
            most = max(1, (machine.registers - 2 - vectors) // vectors)
            for high, wide in _row_tiles(self.rows, most):
                yield high, wide, vectors * machine.lanes

    def cycles(self, tile: Tile, machine: Machine) -> float:
        """A step of a tile takes as long as its multiplications, its loads, or the adders' latency, whichever is most."""
        high, wide, width = tile
        steps = math.prod(self.taps) * self.depth
        shapes = [
            (h * w, sum(widths) / machine.lanes, nh * nw)
            for (h, nh), (w, nw) in itertools.product(_parts(self.rows[0], high), _parts(self.rows[1], wide))
            for _, widths in panels(self.columns, width, machine.lanes)
        ]
        total = tiles = 0.0
        for count, vectors, times in shapes:
            step = max(count * vectors, (count + vectors) * 0.75, 2 * vectors, 6.0)
            total += times * (step * steps + 20 + 6 * count * vectors)
            tiles += times
        tiles *= math.prod(self.batch)
        share = math.ceil(tiles / machine.threads) / (tiles / machine.threads)  # one thread may have a tile more
        return total * share


def panels(columns: int, width: int, lanes: int) -> list[tuple[int, tuple[int, ...]]]:
    """Where each panel of columns starts, and the vectors that it is made of; the last may end in a shorter vector."""
    found = []
    for start in range(0, columns, width):
        left = min(width, columns - start)
        widths = [lanes] * (left // lanes)
        if left % lanes:
            widths.append(max(4, 1 << (left % lanes - 1).bit_length()) if left % lanes > 1 else 1)
        found.append((start, tuple(widths)))
    return found


def _row_tiles(rows: tuple[int, int], most: int) -> Iterator[tuple[int, int]]:
    """Tiles of at most ``most`` rows: whole lines if they are short, else parts of one line, as even as possible."""
    outer, inner = rows
    if inner <= most:
        high = min(outer, max(1, most // inner))
        yield high, inner
        yield math.ceil(outer / math.ceil(outer / high)), inner
        return
    for wide in {most, math.ceil(inner / math.ceil(inner / most)), max(1, most - 1), max(1, most * 2 // 3)}:
        yield 1, wide


def _parts(length: int, tile: int) -> list[tuple[int, int]]:
    """(size, how many) of the pieces that ``length`` is cut into."""
    whole, rest = divmod(length, tile)
    return [part for part in ((tile, whole), (rest, 1)) if part[0] and part[1]]


class Writer:
    """Writes one Contraction with one tile size; ``total`` is the type of the sums, ``factor`` that of the
    right operand."""

    def __init__(self, spec: Contraction, tile: Tile, machine: Machine, emitter: Any) -> None:
        self.spec, self.tile, self.machine, self.e = spec, tile, machine, emitter
        self.panels = panels(spec.columns, tile[2], machine.lanes)
        self.nb = len(spec.batch)
        self.total = self.factor = spec.left.dtype

    def write(self) -> Any:
        spec, e = self.spec, self.e
        self.left = e.pointer("left", spec.left.dtype)
        self._weights()
        self.operands = [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(spec.chain.operands)]
        self.out = e.pointer("out", spec.out.dtype)
        counts = [math.ceil(r / t) for r, t in zip(spec.rows, self.tile[:2], strict=True)]
        # the outermost part is kept longest: a panel of weights in the second-level cache, or a tile of rows in the first
        axes = [("panel", len(self.panels)), ("high", counts[0]), ("wide", counts[1])]
        if self._rows_first():
            axes = [axes[1], axes[2], axes[0]]
        sizes = [*spec.batch, *(count for _, count in axes)]
        threads = threads_for(spec.operations / (2 * self.machine.lanes), math.prod(sizes), self.machine)
        with shared(e, sizes, threads) as place:
            at = dict(zip((name for name, _ in axes), place[self.nb :], strict=True))
            self._tile(place[: self.nb], at["panel"], at["high"], at["wide"])
        return e.function("contraction")

    def _weights(self) -> None:
        """Declare the right operand."""
        self.right = self.e.pointer("right", self.factor)

    def _rows_first(self) -> bool:
        spec = self.spec
        weights = 4 * math.prod(spec.taps) * spec.depth * spec.columns
        return weights <= self.machine.cache // 2

    def _tile(self, batch: Sequence[Any], panel: Any, high: Any, wide: Any) -> None:
        """Choose among the sizes of tile that the edges need."""
        spec = self.spec
        choices: list[tuple[Any, list[tuple[int, Any]]]] = []
        for index, length, size in ((high, spec.rows[0], self.tile[0]), (wide, spec.rows[1], self.tile[1])):
            whole, rest = divmod(length, size)
            options = [(size, None)] if whole else []
            if rest:
                options.append((rest, index >= whole if whole else None))
            choices.append((index, options))
        last = self.panels[-1][1]
        full = self.panels[0][1]
        several = len(self.panels) > 1
        ends = last != full or spec.columns % self.machine.lanes != 0  # equal vectors may still hold fewer columns
        widths: list[tuple[Any, Any]] = [((full, self.tile[2]), None)] if several or not ends else []
        if ends:
            left = spec.columns - self.panels[-1][0]
            widths.append(((last, left), panel >= len(self.panels) - 1 if several else None))

        def by_width(h: int, w: int) -> None:
            self._choose(widths, lambda v: self._micro(batch, panel, high, wide, h, w, *v))

        def by_wide(h: int) -> None:
            self._choose(choices[1][1], lambda w: by_width(h, w))

        self._choose(choices[0][1], by_wide)

    def _choose(self, options: Sequence[tuple[Any, Any]], write: Any) -> None:
        if len(options) == 1:
            write(options[0][0])
        else:
            (usual, _), (edge, condition) = options
            self.e.choose(condition, lambda: write(edge), lambda: write(usual))

    def _micro(self, batch: Sequence[Any], panel: Any, high: Any, wide: Any, tall: int, broad: int, widths: tuple[int, ...], left: int) -> None:
        """One tile of ``tall`` x ``broad`` rows by the columns of ``widths``, of which ``left`` are stored."""
        spec, e = self.spec, self.e
        nb = self.nb
        where = [*batch, high * self.tile[0], wide * self.tile[1]]
        ls = spec.left.strides
        base = e.bind(offset(where, ls[: nb + 2]))
        rows = [(r, s) for r in range(tall) for s in range(broad)]
        sums = [[e.local(width, self.total, "sum") for width in widths] for _ in rows]
        starts = [sum(widths[:j]) for j in range(len(widths))]
        panel_base, step = self._right(batch, panel, widths)
        for row, (j, width) in itertools.product(sums, enumerate(widths)):
            e.store(row[j], 0, self._first(starts[j], width))
        offsets = [r * ls[nb] + s * ls[nb + 1] for r, s in rows]
        usual = (tall, broad, widths) == (*self.tile[:2], self.panels[0][1])
        unroll = 4 if usual and spec.depth >= 8 else 1  # edges are rare: their code may be small
        with e.loop(spec.taps[0], "tap") as t, e.loop(spec.taps[1], "tap") as u:
            lower = e.bind(base + t * ls[nb + 2] + u * ls[nb + 3])
            start = e.bind(panel_base + (t * spec.taps[1] + u) * (spec.depth * step))
            self._depth(sums, lower, offsets, start, step, widths, starts, unroll)
        self._finish(sums, where, rows, panel, widths, starts, left)

    def _depth(
        self, sums: Sequence[Sequence[Any]], lower: Any, offsets: Sequence[int], start: Any, step: int,
        widths: Sequence[int], starts: Sequence[int], unroll: int,
    ) -> None:  # fmt: skip
        """All steps of one tap."""
        whole = self.spec.depth // unroll
        if whole:
            with self.e.loop(whole, "k") as k:
                for inner in range(unroll):
                    self._step(sums, lower, offsets, start, k * unroll + inner, step, widths, starts)
        for inner in range(whole * unroll, self.spec.depth):
            self._step(sums, lower, offsets, start, inner, step, widths, starts)

    def _first(self, start: int, width: int) -> Any:
        """What the sums of the vector at column ``start`` of a panel start from."""
        return zero(self.total, width)

    def _right(self, batch: Sequence[Any], panel: Any, widths: Sequence[int]) -> tuple[Any, int]:
        """Where the panel starts, and how far apart its steps of depth are."""
        spec, e = self.spec, self.e
        if spec.right is not None:
            strides = spec.right.strides
            return e.bind(offset(batch, strides[: self.nb]) + panel * self.tile[2]), strides[self.nb]
        steps = math.prod(spec.taps) * spec.depth
        whole = sum(sum(w) for _, w in self.panels)
        matrix = offset(batch, spec.matrices or (0,) * self.nb)
        return e.bind(matrix * (steps * whole) + panel * (steps * sum(self.panels[0][1]))), sum(widths)

    def _step(
        self, sums: Sequence[Sequence[Any]], lower: Any, offsets: Sequence[int], start: Any, k: Any, step: int,
        widths: Sequence[int], starts: Sequence[int],
    ) -> None:  # fmt: skip
        spec, e = self.spec, self.e
        from backends.tvm.emit import splat

        vectors = [e.bind(e.load(self.right, start + k * step + s, w)) for w, s in zip(widths, starts, strict=True)]
        depth = spec.left.strides[-1]
        for row, ahead in zip(sums, offsets, strict=True):
            factor = e.bind(e.load(self.left, lower + k * depth + ahead))
            for total, vector, width in zip(row, vectors, widths, strict=True):
                e.store(total, 0, e.load(total, 0, width) + splat(factor, width) * vector)

    def _finish(
        self, sums: Sequence[Sequence[Any]], where: Sequence[Any], rows: Sequence[tuple[int, int]], panel: Any, widths: Sequence[int],
        starts: Sequence[int], left: int,
    ) -> None:  # fmt: skip
        """Hand the sums through the chain and store them; a vector that is wider than what is left goes one by one."""
        spec, e, nb = self.spec, self.e, self.nb
        bases = [(operand, e.bind(offset(where, operand.strides[: nb + 2]))) for operand in (*spec.chain.operands, spec.out)]
        column = panel * self.tile[2]
        for row, (r, s) in zip(sums, rows, strict=True):
            for total, width, start in zip(row, widths, starts, strict=True):
                if start + width <= left:
                    self._store(e.load(total, 0, width), bases, r, s, column + start, width)
                    continue
                spare = e.local(width, self.total, "spare")  # read by lanes, which would keep ``total`` out of registers
                e.store(spare, 0, e.load(total, 0, width))
                for lane in range(left - start):
                    self._store(e.load(spare, lane), bases, r, s, column + start + lane, 1)

    def _store(self, value: Any, bases: Sequence[tuple[Operand, Any]], r: int, s: int, column: Any, width: int) -> None:
        from backends.tvm.pointwise import evaluate

        e, nb = self.e, self.nb
        registers = [value]
        for buffer, (operand, base) in zip(self.operands, bases[:-1], strict=True):
            rs, ss, ns = operand.strides[nb:]
            registers.append(e.bind(e.load(buffer, base + r * rs + s * ss + column * ns, width, ns)))
        out, base = bases[-1]
        rs, ss, ns = out.strides[nb:]
        result = evaluate(e, self.spec.chain.steps, registers, width)
        e.store(self.out, base + r * rs + s * ss + column * ns, result, ns)


def zero(dtype: str, lanes: int) -> Any:
    """A vector of zeros."""
    from tvm import tirx

    from backends.tvm.emit import splat

    return splat(tirx.const(0, dtype), lanes)
