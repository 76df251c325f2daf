"""Convolutions by 3 x 3 with fewer multiplications: Winograd's F(m x m, 3 x 3), as two transforms around matrix products.

A tile of ``t = m + 2`` inputs a side becomes ``t * t`` coefficients, each of which is multiplied by its own matrix of
transformed weights (free: made when the model is compiled); ``m`` x ``m`` outputs a tile come back. F(2) needs 2.25 times
fewer multiplications than the direct sum, F(4) 4 times, and both lose some accuracy, F(4) more.
Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015); the matrices are those of Toom and Cook.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from backends.tvm.kernel import PLAIN, Chain, Config, Fixed, Machine, Operand
from backends.tvm.kernels.work import offset, shared, threads_for

Array = np.ndarray[Any, Any]
Matrix = tuple[tuple[float, ...], ...]
TAPS = 3
# Points of few bits whose powers stay near 1 keep rounding errors small (after Barabasz et al. 2018): with these the mean
# error of F(4) is 2.3 times that of the direct sum, with the usual 0, 1, -1, 2, -2 it is 4.5 times.
_POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)),
}


@cache
def matrices(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """(outputs from coefficients, coefficients of weights, coefficients of inputs) of F(m, 3), in one dimension."""
    points = _POINTS[m]
    size = m + TAPS - 1
    output = [[float(p**k) for p in points] + [float(k == m - 1)] for k in range(m)]
    scale = [math.prod(p - q for q in points if q != p) for p in points]
    weight = [[float(p**k / f) for k in range(TAPS)] for p, f in zip(points, scale, strict=True)]
    weight.append([0.0] * (TAPS - 1) + [1.0])
    inputs = [_expanded([q for q in points if q != p], size) for p in points]
    inputs.append(_expanded(points, size))
    return _frozen(output), _frozen(weight), _frozen(inputs)


def transformed(weights: Array, m: int) -> Array:
    """Weights [o, c, 3, 3] as matrices [t * t, 1, 1, c, o], computed in float64."""
    g = np.asarray(matrices(m)[1])
    both = np.einsum("ia,jb->ijab", g, g).reshape(len(g) ** 2, TAPS**2)
    outputs, depth = weights.shape[:2]
    taps = weights.transpose(2, 3, 1, 0).astype(np.float64, order="C").reshape(TAPS**2, -1)
    packed: Array = (both @ taps).astype(weights.dtype).reshape(len(both), 1, 1, depth, outputs)
    return packed


def step_between(tiles: int, channels: int) -> int:
    """Elements from one coefficient to the next: an odd number of cache lines, so that they do not fight for places."""
    lines = -(-tiles * channels // 16)
    return 16 * (lines | 1)


@dataclass(frozen=True)
class WinogradInput(Fixed):
    """Coefficients [t * t, n * down * across, c] of an image [n, h, w, c] that reaches as far as its last tile.

    ``grid``: images, tiles down, tiles across. ``channels``: a multiple of the vector's lanes. ``step``: elements from one
    coefficient to the next.
    """

    m: int
    grid: tuple[int, int, int]
    channels: int
    step: int
    image: Operand
    dtype: str = "float32"

    @property
    def operations(self) -> float:
        """Additions, about: two passes of four a coefficient."""
        return 8.0 * (self.m + 2) ** 2 * math.prod(self.grid) * self.channels

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: image, out."""
        from backends.tvm.emit import Emitter

        e = Emitter()
        image, out = e.pointer("image", self.dtype), e.pointer("out", self.dtype)
        size = self.m + 2
        n, h, w, c = self.image.strides
        with _tiles(e, self.grid, self.operations, machine) as (tile, number, down, across):
            base = e.bind(number * n + down * (self.m * h) + across * (self.m * w))
            with e.loop(self.channels // machine.lanes, "c") as block:
                channel = e.bind(block * machine.lanes)
                square = [[e.load(image, base + channel * c + i * h + j * w, machine.lanes, c) for j in range(size)] for i in range(size)]
                for index, value in enumerate(_both(e, matrices(self.m)[2], square, self.dtype)):
                    e.store(out, tile * self.channels + index * self.step + channel, value)
        return e.function("winograd_input")


@dataclass(frozen=True)
class WinogradOutput(Fixed):
    """An image [n, h, w, c] of coefficients as in WinogradInput; the chain follows, its operands as ``out``."""

    m: int
    images: int
    rows: tuple[int, int]
    channels: int
    step: int
    out: Operand
    chain: Chain = PLAIN
    dtype: str = "float32"

    @property
    def grid(self) -> tuple[int, int, int]:
        """Images, tiles down, tiles across."""
        return self.images, math.ceil(self.rows[0] / self.m), math.ceil(self.rows[1] / self.m)

    @property
    def operations(self) -> float:
        """Additions, about."""
        return 8.0 * (self.m + 2) * self.m * math.prod(self.grid) * self.channels

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: coefficients, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        e = Emitter()
        coefficients = e.pointer("coefficients", self.dtype)
        operands = [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(self.chain.operands)]
        buffers = [*operands, e.pointer("out", self.out.dtype)]
        size = self.m + 2
        with _tiles(e, self.grid, self.operations, machine) as (tile, number, down, across):
            bases = [
                e.bind(number * o.strides[0] + down * (self.m * o.strides[1]) + across * (self.m * o.strides[2]))
                for o in (*self.chain.operands, self.out)
            ]
            with e.loop(self.channels // machine.lanes, "c") as block:
                channel = e.bind(block * machine.lanes)
                square = [
                    [e.load(coefficients, tile * self.channels + (i * size + j) * self.step + channel, machine.lanes) for j in range(size)]
                    for i in range(size)
                ]
                values = _both(e, matrices(self.m)[0], square, self.dtype)
                self._stored(e, buffers, bases, values, (down, across), channel, machine.lanes)
        return e.function("winograd_output")

    def _stored(
        self, e: Any, buffers: Sequence[Any], bases: Sequence[Any], values: Sequence[Any], place: tuple[Any, Any],
        channel: Any, lanes: int,
    ) -> None:  # fmt: skip
        """Store a tile, of the last row or column only what is inside the image."""

        def block(high: int, wide: int) -> None:
            for i in range(high):
                for j in range(wide):
                    self._store(e, buffers, bases, values[i * self.m + j], (i, j), channel, lanes)

        def by_width(high: int) -> None:
            _edge(e, place[1], self.grid[2], self.rows[1] % self.m, self.m, lambda wide: block(high, wide))

        _edge(e, place[0], self.grid[1], self.rows[0] % self.m, self.m, by_width)

    def _store(self, e: Any, buffers: Sequence[Any], bases: Sequence[Any], value: Any, at: tuple[int, int], channel: Any, lanes: int) -> None:
        from backends.tvm.pointwise import evaluate

        spots = [
            base + at[0] * o.strides[1] + at[1] * o.strides[2] + channel * o.strides[3]
            for base, o in zip(bases, (*self.chain.operands, self.out), strict=True)
        ]
        registers = [value]
        for buffer, spot, operand in zip(buffers, spots, self.chain.operands, strict=False):
            registers.append(e.bind(e.load(buffer, spot, lanes, operand.strides[3])))
        e.store(buffers[-1], spots[-1], evaluate(e, self.chain.steps, registers, lanes), self.out.strides[3])


def _edge(e: Any, index: Any, count: int, rest: int, usual: int, write: Any) -> None:
    """Write what a whole tile needs, and for the last of ``count`` tiles what ``rest`` outputs need."""
    if not rest:
        write(usual)
    elif count == 1:
        write(rest)
    else:
        e.choose(index >= count - 1, lambda: write(rest), lambda: write(usual))


@contextlib.contextmanager
def _tiles(e: Any, grid: tuple[int, int, int], operations: float, machine: Machine) -> Iterator[tuple[Any, Any, Any, Any]]:
    """All tiles, shared by the threads: the number of the tile, its image, and its place down and across."""
    with shared(e, grid, threads_for(operations / machine.lanes, math.prod(grid), machine)) as (number, down, across):
        yield e.bind(offset((number, down, across), (grid[1] * grid[2], grid[2], 1))), number, down, across


def _both(e: Any, matrix: Matrix, square: Sequence[Sequence[Any]], dtype: str) -> list[Any]:
    """``matrix @ square @ matrix.T`` of vectors, row by row."""
    size = len(square)
    half = [_rows(e, matrix, [e.bind(square[i][j]) for i in range(size)], dtype) for j in range(size)]  # [j][row]
    return [v for row in range(len(matrix)) for v in _rows(e, matrix, [half[j][row] for j in range(size)], dtype)]


def _rows(e: Any, matrix: Matrix, values: Sequence[Any], dtype: str) -> list[Any]:
    """``matrix @ values``; of two rows that differ in the signs of some terms, each part is summed once."""
    found: list[Any] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if found[i] is not None:
            continue
        other = next((k for k in range(i + 1, len(matrix)) if _mirrored(row, matrix[k])), None)
        if other is None:
            found[i] = e.bind(_sum(row, values, dtype))
            continue
        same = e.bind(_sum([a if a == b else 0.0 for a, b in zip(row, matrix[other], strict=True)], values, dtype))
        odd = e.bind(_sum([a if a != b else 0.0 for a, b in zip(row, matrix[other], strict=True)], values, dtype))
        found[i], found[other] = e.bind(same + odd), e.bind(same - odd)
    return found


def _mirrored(row: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the rows differ in the signs of some of their terms and in nothing else."""
    alike = sum(a == b != 0 for a, b in zip(row, other, strict=True))
    opposite = sum(a == -b != 0 for a, b in zip(row, other, strict=True))
    return min(alike, opposite) >= 1 and alike + opposite == sum(a != 0 for a in row) == sum(b != 0 for b in other)


def _sum(factors: Sequence[float], values: Sequence[Any], dtype: str) -> Any:
    from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

    from backends.tvm.emit import lanes_of, splat

    total: Any = None
    terms = sorted(((f, v) for f, v in zip(factors, values, strict=True) if f), key=lambda term: abs(term[0]) != 1)
    for factor, value in terms:
        part = value if abs(factor) == 1 else value * splat(tirx.const(abs(factor), dtype), lanes_of(value))
        if total is None:
            total = part if factor > 0 else splat(tirx.const(0.0, dtype), lanes_of(value)) - part
        else:
            total = total + part if factor > 0 else total - part
    return total


def _expanded(roots: Sequence[Fraction], size: int) -> list[float]:
    """The coefficients of the product of (x - root), lowest first, filled up with zeros."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *polynomial]
        polynomial = [s - root * p for s, p in zip(shifted, [*polynomial, Fraction(0)], strict=True)]
    return [float(c) for c in polynomial] + [0.0] * (size - len(polynomial))


def _frozen(rows: Sequence[Sequence[float]]) -> Matrix:
    return tuple(tuple(row) for row in rows)
