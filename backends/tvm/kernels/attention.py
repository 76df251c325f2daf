"""Attention: weights from products of queries and keys, normalised row by row, and the values' sums under them.

    out[b, h, t, :] = chain( softmax over s of (scale * q[b, h, t, :] . k[b, g, s, :] + mask[b, h, t, s]) . v[b, g, s, :] )

with ``g = h * groups / heads``: heads of queries share heads of keys and values. A tile of rows goes all the way at once:
its scores for every key lie in the first- or second-level cache and nowhere else. Keys are turned, once for a head and
thread, so that vectors lie along them; with few rows that would cost more than it gains, and products are summed along
depth instead, a square of registers at a time. Causal rows stop at the last key that one of the tile sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.tvm.kernel import PLAIN, Chain, Machine, Operand
from backends.tvm.kernels.accumulate import LARGEST, SUM, Accumulators, folded
from backends.tvm.kernels.elementwise import transposed
from backends.tvm.kernels.pooling import narrow
from backends.tvm.kernels.work import decoded, offset, threads_for

Tile = tuple[int, int]  # rows, vectors of keys
_FEW = 4  # rows for which keys are not turned


@dataclass(frozen=True)
class Attention:
    """Axes: ``query`` [batch, heads, queries, depth], ``key`` [batch, groups, keys, depth], ``value`` [batch, groups, keys,
    width], ``out`` and the chain's operands [batch, heads, queries, width], ``mask`` [batch, heads, queries, keys]: float32
    is added, bool hides where it is false. ``causal``: query t sees the keys up to t + keys - queries. Inputs: query, key,
    value, mask. ``guarded``: a row that sees no key gives 0 and not NaN."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    depth: int
    width: int
    scale: float
    query: Operand
    key: Operand
    value: Operand
    out: Operand
    mask: Operand | None = None
    causal: bool = False
    chain: Chain = PLAIN
    guarded: bool = False

    @property
    def operations(self) -> float:
        """Multiplications and additions of both products."""
        return 2.0 * self.batch * self.heads * self.queries * self.keys * (self.depth + self.width)

    def configs(self, machine: Machine) -> list[Tile]:
        """Tiles of rows by vectors of keys that fit into the registers."""
        rows = _Rows(self).count
        if self.few(machine):
            return [(rows, 1)]
        room = machine.registers - 2
        most = {n: min(rows, (room - n) // n) for n in (1, 2, 3, 4) if room - n >= n}
        tiles = {(_even(rows, high), n) for n, high in most.items() for high in range(max(1, high // 2), high + 1)}
        return sorted(tiles, key=lambda tile: (self._cost(tile, machine), tile))[:4]

    def scratch(self, config: Tile, machine: Machine) -> int:
        """For each thread: turned keys, and the scores of a tile of rows."""
        return machine.threads * 4 * self.room(config, machine)

    def write(self, config: Tile, machine: Machine) -> Any:
        """The function: query, key, value, mask, the chain's operands, out, scratch."""
        from backends.tvm.emit import Emitter

        return _Writer(self, config, machine, Emitter()).write()

    def few(self, machine: Machine) -> bool:
        """Whether there are too few rows for turning keys to pay."""
        along = self.query.strides[3] == self.key.strides[3] == 1
        return _Rows(self).count <= _FEW and along and _along(self.depth, machine.lanes) >= 4

    def padded(self, config: Tile, machine: Machine) -> int:
        """Keys, up to whole blocks."""
        block = config[1] * (_along(self.depth, machine.lanes) if self.few(machine) else machine.lanes)
        block = max(block, machine.lanes)
        return math.ceil(self.keys / block) * block

    def room(self, config: Tile, machine: Machine) -> int:
        """Elements of scratch for one thread, a multiple of 16."""
        turned = 0 if self.few(machine) else self.depth
        return math.ceil(self.padded(config, machine) * (turned + config[0]) / 16) * 16

    def _cost(self, tile: Tile, machine: Machine) -> float:
        rows, vectors = tile
        covered = math.ceil(_Rows(self).count / rows) * rows * self.padded(tile, machine)
        loads = (rows + vectors) / (rows * vectors)  # for each multiplication
        return covered * (max(1.0, 1.2 * loads, 8 / (rows * vectors)) + 0.2 * loads)


class _Rows:
    """What rows of a tile are: the queries of a head; of single queries, the heads that share keys."""

    def __init__(self, spec: Attention) -> None:
        shared = spec.heads // spec.groups
        self.single = spec.queries == 1
        self.count = shared if self.single else spec.queries
        self.heads = spec.groups if self.single else spec.heads
        self.shared = 1 if self.single else shared  # heads of rows for one head of keys
        self.head_step = shared if self.single else 1

    def strides(self, operand: Operand) -> tuple[int, int, int, int]:
        """Of an operand with heads and queries: batch, head, row, the last axis."""
        batch, head, query, last = operand.strides
        return batch, head * self.head_step, head if self.single else query, last


def _even(count: int, high: int) -> int:
    """Rows of as many tiles as of ``high`` rows, with the least overlap."""
    return math.ceil(count / math.ceil(count / high))


def _along(depth: int, lanes: int) -> int:
    """The widest vector that divides ``depth``."""
    return math.gcd(depth, lanes)


class _Writer:
    """Writes one Attention with one tile size."""

    def __init__(self, spec: Attention, tile: Tile, machine: Machine, emitter: Any) -> None:
        self.spec, self.machine, self.e, self.tile = spec, machine, emitter, tile
        self.lanes = machine.lanes
        self.rows = _Rows(spec)
        self.high = min(tile[0], self.rows.count)
        self.few = spec.few(machine)
        self.padded = spec.padded(tile, machine)
        self.block = tile[1] * self.lanes
        self.causal = spec.causal and spec.queries > 1
        self.plain = spec.mask is None and not self.causal and spec.scale > 0

    def write(self) -> Any:
        from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

        spec, e = self.spec, self.e
        named = [("query", spec.query), ("key", spec.key), ("value", spec.value)]
        named += [("mask", spec.mask)] if spec.mask is not None else []
        self.inputs = {name: e.pointer(name, operand.dtype) for name, operand in named}
        self.others = [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(spec.chain.operands)]
        self.out = e.pointer("out", spec.out.dtype)
        self.memory = e.buffer(e.pointer("scratch", "uint8").data, "float32", "memory")
        sizes = [spec.batch, self.rows.heads, math.ceil(self.rows.count / self.high)]
        total = math.prod(sizes)
        cycles = spec.operations / self.lanes + spec.operations / (spec.depth + spec.width) * 2 / self.lanes
        threads = threads_for(cycles, total, self.machine)
        with e.loop(threads, "thread", parallel=threads > 1) as thread:
            first = e.bind(tirx.truncdiv(thread * total, threads)) if threads > 1 else 0
            count = e.bind(tirx.truncdiv((thread + 1) * total, threads) - first) if threads > 1 else total
            room = e.bind(thread * spec.room(self.tile, self.machine)) if threads > 1 else 0
            self.turned = room
            self.scores = room if self.few else e.bind(room + spec.depth * self.padded)
            with e.loop(count, "unit", start=first) as unit:
                self._unit(unit, first, sizes)
        return e.function("attention")

    def _unit(self, unit: Any, first: Any, sizes: Sequence[int]) -> None:
        from tvm import tirx

        spec, e = self.spec, self.e
        batch, head, tile = decoded(e, unit, sizes)
        group = head if self.rows.shared == 1 else e.bind(tirx.truncdiv(head, self.rows.shared))
        self.key_base = e.bind(offset([batch, group], spec.key.strides[:2]))
        self.value_base = e.bind(offset([batch, group], spec.value.strides[:2]))
        row = tile * self.high
        if self.rows.count % self.high:
            row = e.bind(tirx.min(row, self.rows.count - self.high))
        self.where = [batch, head, row]
        self.limit, self.vectors = self._limits(row)
        if self.few:
            self._direct_scores()
        else:
            fresh = tirx.EQ(unit, first) if not isinstance(unit, int) else True
            if sizes[2] > 1 or self.rows.shared > 1:
                anew = tirx.EQ(tile, 0) if self.rows.shared == 1 else tirx.And(tirx.EQ(tile, 0), tirx.EQ(tirx.truncmod(head, self.rows.shared), 0))
                with e.when(tirx.Or(anew, fresh)) if not isinstance(unit, int) else _always():
                    self._turn()
            else:
                self._turn()
            self._scores()
        factors = e.local(self.high, "float32", "factors")
        with e.loop(self.high, "row") as r:
            e.store(factors, r, self._softmax(r))
        self._values([e.bind(e.load(factors, r)) for r in range(self.high)])

    def _limits(self, row: Any) -> tuple[Any, Any]:
        """How many keys the tile sees, and how many vectors hold them."""
        from tvm import tirx

        spec, e = self.spec, self.e
        if not self.causal:
            return spec.keys, math.ceil(spec.keys / self.lanes)
        seen = row + (self.high + spec.keys - spec.queries)
        limit = e.bind(tirx.max(1, tirx.min(spec.keys, seen)))
        return limit, e.bind(tirx.truncdiv(limit + (self.lanes - 1), self.lanes))

    # --- scores

    def _turn(self) -> None:
        """Keys to [block, depth, keys of a block]; what lies beyond the last key does not matter."""
        from tvm import tirx

        spec, e, lanes = self.spec, self.e, self.lanes
        _, _, along, down = spec.key.strides
        whole, rest = divmod(spec.keys, lanes)
        if along == 1:  # they lie so already
            with e.loop(whole, "vector") as vector:
                self._turn_lines(vector * lanes, self._target(vector), [lanes])
            self._turn_lines(whole * lanes, self._target(whole), narrow(rest))
            return
        with e.loop(whole + (rest > 0), "vector") as vector:
            target = e.bind(self._target(vector))
            start = e.bind(vector * lanes)
            last = spec.keys - 1  # repeated beyond
            places = [e.bind(self.key_base + offset([tirx.min(start + k, last) if rest else start + k], [along])) for k in range(lanes)]
            if spec.depth < lanes or down != 1:
                self._turn_slowly(places, target)
            else:
                self._turn_squares(places, target)

    def _target(self, vector: Any) -> Any:
        """Where the turned keys of a vector start."""
        from tvm import tirx

        vectors = self.tile[1]
        block = vector // vectors if isinstance(vector, int) else self.e.bind(tirx.truncdiv(vector, vectors))
        return self.turned + block * (self.spec.depth * self.block) + (vector - block * vectors) * self.lanes

    def _turn_lines(self, start: Any, target: Any, widths: Sequence[int]) -> None:
        """Keys side by side, line by line of depth."""
        e, down = self.e, self.spec.key.strides[3]
        base, target = e.bind(self.key_base + start), e.bind(target)
        with e.loop(self.spec.depth if widths else 0, "depth") as d:
            at = 0
            for width in widths:
                value = e.load(self.inputs["key"], base + offset([d], [down]) + at, width)
                e.store(self.memory, target + d * self.block + at, value)
                at += width

    def _turn_slowly(self, places: Sequence[Any], target: Any) -> None:
        spec, e = self.spec, self.e
        with e.loop(spec.depth, "depth") as d:
            for k, place in enumerate(places):
                value = e.load(self.inputs["key"], place + offset([d], spec.key.strides[3:]))
                e.store(self.memory, target + d * self.block + k, value)

    def _turn_squares(self, places: Sequence[Any], target: Any) -> None:
        from tvm import tirx

        e, lanes, depth = self.e, self.lanes, self.spec.depth
        with e.loop(math.ceil(depth / lanes), "square") as square:
            d = square * lanes
            if depth % lanes:
                d = e.bind(tirx.min(d, depth - lanes))
            lines = [e.bind(e.load(self.inputs["key"], place + d, lanes)) for place in places]
            for k, line in enumerate(transposed(e, lines)):
                e.store(self.memory, target + (d + k) * self.block, line)

    def _scores(self) -> None:
        """Rows of the tile by blocks of turned keys."""
        from tvm import tirx

        from backends.tvm.emit import splat

        spec, e, lanes = self.spec, self.e, self.lanes
        strides = self.rows.strides(spec.query)
        base = e.bind(offset(self.where, strides[:3]))
        blocks = self.padded // self.block
        if self.causal:
            blocks = e.bind(tirx.truncdiv(self.vectors + (self.tile[1] - 1), self.tile[1]))
        with e.loop(blocks, "block") as block:
            panel = e.bind(self.turned + block * (spec.depth * self.block))
            sums = [[Accumulators(e, SUM, "float32", lanes, 1) for _ in range(self.tile[1])] for _ in range(self.high)]
            with e.loop(spec.depth, "depth") as d:
                keys = [e.bind(e.load(self.memory, panel + d * self.block + j * lanes, lanes)) for j in range(self.tile[1])]
                for r, line in enumerate(sums):
                    factor = e.bind(e.load(self.inputs["query"], base + r * strides[2] + d * strides[3]))
                    for total, key in zip(line, keys, strict=True):
                        total.take(0, splat(factor, lanes) * key)
            for r, line in enumerate(sums):
                for j, total in enumerate(line):
                    e.store(self.memory, self.scores + r * self.padded + block * self.block + j * lanes, total.vector())

    def _direct_scores(self) -> None:
        """Each key as it lies, times the rows; a square of products gives as many scores as a vector holds."""
        from tvm import tirx

        spec, e = self.spec, self.e
        lanes = _along(spec.depth, self.lanes)
        strides = self.rows.strides(spec.query)
        base = e.bind(offset(self.where, strides[:3]))
        steps = range(0, spec.depth, lanes)
        with e.loop(math.ceil(spec.keys / lanes), "square") as square:
            start = e.bind(square * lanes)
            places = [e.bind(self.key_base + offset([tirx.min(start + k, spec.keys - 1)], [spec.key.strides[2]])) for k in range(lanes)]
            for r in range(self.high):
                queries = [e.bind(e.load(self.inputs["query"], base + r * strides[2] + d, lanes)) for d in steps]
                lines = []
                for place in places:
                    total = queries[0] * e.load(self.inputs["key"], place, lanes)
                    for query, d in zip(queries[1:], steps[1:], strict=True):
                        total = e.bind(total) + query * e.load(self.inputs["key"], place + d, lanes)
                    lines.append(e.bind(total))
                e.store(self.memory, self.scores + r * self.padded + start, _summed(e, lines))

    # --- softmax

    def _softmax(self, r: Any) -> Any:
        """Turns scores of row ``r`` into powers, and gives one over their sum."""
        from tvm import tirx

        from backends.tvm import vector_math as vm
        from backends.tvm.emit import splat

        e, lanes = self.e, self.lanes
        line = e.bind(self.scores + r * self.padded)
        most = e.bind(self._adjusted(r, line))
        if self.spec.guarded:
            most = e.bind(vm.at_least(e, most, -3e38))
        if self.plain:
            most = e.bind(most * vm.constant(self.spec.scale, most))
        total = Accumulators(e, SUM, "float32", lanes, 2)
        with e.loop(self.vectors, "vector") as vector:
            place = line + vector * lanes
            score = e.load(self.memory, place, lanes)
            if self.plain and self.spec.scale != 1.0:
                score = score * vm.constant(self.spec.scale, score)
            value = e.bind(vm.exp_of_negative(e, score - splat(most, lanes)))
            e.store(self.memory, place, value)
            total.take(0, value)
        summed = folded(e, SUM, total.vector())
        if self.spec.guarded:  # only where every score is -inf are all powers 0
            summed = e.bind(vm.where(tirx.EQ(summed, vm.constant(0.0, summed)), vm.constant(1.0, summed), summed))
        return e.bind(vm.constant(1.0, summed) / summed)

    def _adjusted(self, r: Any, line: Any) -> Any:
        """Scale, mask and causality, if there are any but a scale, which can wait; what lies beyond the last key becomes
        -inf. Gives the largest."""
        from tvm import tirx

        from backends.tvm.vector_math import constant

        spec, e, lanes = self.spec, self.e, self.lanes
        whole, rest = divmod(spec.keys, lanes)
        most = Accumulators(e, LARGEST, "float32", lanes, 1)
        ends = Accumulators(e, LARGEST, "float32", 1, 1)

        def adjust(at: Any, width: int) -> Any:
            value = e.bind(e.load(self.memory, line + at, width))
            if self.plain:
                return value
            value = e.bind(self._adjust(value, r, at))
            e.store(self.memory, line + at, value)
            return value

        def end() -> None:
            at = whole * lanes
            for width in narrow(rest):
                ends.take(0, _largest(e, adjust(at, width)))
                at += width
            for width in narrow(lanes - rest):
                e.store(self.memory, line + at, constant(-math.inf, e.load(self.memory, line + at, width)))
                at += width

        full = e.bind(tirx.min(self.vectors, whole)) if self.causal else whole
        with e.loop(full, "vector") as vector:
            most.take(0, adjust(vector * lanes, lanes))
        if rest:
            with e.when(self.vectors > whole) if self.causal else _always():
                end()
        ends.take(0, _largest(e, most.vector()))
        return ends.vector()

    def _adjust(self, score: Any, r: Any, at: Any) -> Any:
        from tvm import tirx

        from backends.tvm.emit import lanes_of, splat
        from backends.tvm.vector_math import constant, where

        spec, e = self.spec, self.e
        width = lanes_of(score)
        hidden = constant(-math.inf, score)
        value = e.bind(score * constant(spec.scale, score) if spec.scale != 1.0 else score)
        if spec.mask is not None:
            strides = self.rows.strides(spec.mask)
            place = offset([*self.where, at], strides) + r * strides[2]
            mask = e.bind(e.load(self.inputs["mask"], place, width, strides[3]))
            value = value + mask if spec.mask.dtype == "float32" else where(tirx.EQ(mask, constant(0, mask)), hidden, value)
            value = e.bind(value)
        if self.causal:
            last = e.bind(self.where[2] + (r + spec.keys - spec.queries))
            index = tirx.Ramp(at, 1, width) if width > 1 else at
            value = where(index > splat(last, width), hidden, value)
        return value

    # --- values

    def _values(self, factors: Sequence[Any]) -> None:
        """The values' sums under the powers, a few vectors of columns at a time."""
        spec, lanes = self.spec, self.lanes
        widths = [lanes] * (spec.width // lanes) + narrow(spec.width % lanes)
        fit = max(1, (self.machine.registers - 2) // (self.high + 1))
        start = 0
        for first in range(0, len(widths), fit):
            part = widths[first : first + fit]
            self._columns(factors, start, part)
            start += sum(part)

    def _columns(self, factors: Sequence[Any], start: int, widths: Sequence[int]) -> None:
        from backends.tvm.emit import splat

        spec, e = self.spec, self.e
        _, _, along, across = spec.value.strides
        copies = max(1, min(4, 8 // (self.high * len(widths)))) if not self.causal else 1
        sums = [[Accumulators(e, SUM, "float32", width, copies) for width in widths] for _ in range(self.high)]

        def take(number: int, s: Any) -> None:
            place = e.bind(self.value_base + offset([s], [along]) + start * across)
            values, at = [], 0
            for width in widths:
                values.append(e.bind(e.load(self.inputs["value"], place + at * across, width, across)))
                at += width
            for r, line in enumerate(sums):
                factor = e.bind(e.load(self.memory, self.scores + r * self.padded + s))
                for total, value, width in zip(line, values, widths, strict=True):
                    total.take(number, splat(factor, width) * value)

        if self.causal:
            with e.loop(self.limit, "key") as s:
                take(0, s)
        else:
            with e.loop(spec.keys // copies, "key") as turn:
                for j in range(copies):
                    take(j, turn * copies + j)
            for s in range(spec.keys // copies * copies, spec.keys):
                take(s, s)
        at = start
        for j, width in enumerate(widths):
            for r, line in enumerate(sums):
                self._store(e.bind(line[j].vector()) * splat(factors[r], width), r, at, width)
            at += width

    def _store(self, value: Any, r: int, at: int, width: int) -> None:
        from backends.tvm.pointwise import evaluate

        e, chain = self.e, self.spec.chain

        def place(operand: Operand) -> tuple[Any, int]:
            strides = self.rows.strides(operand)
            return offset([*self.where, at], strides) + r * strides[2], strides[3]

        registers = [value]
        for pointer, operand in zip(self.others, chain.operands, strict=True):
            where, step = place(operand)
            registers.append(e.load(pointer, where, width, step))
        where, step = place(self.spec.out)
        e.store(self.out, where, evaluate(e, chain.steps, registers, width), step)


def _summed(e: Any, lines: Sequence[Any]) -> Any:
    """The sum of each vector's elements, as one vector: transposition, with what would be added later added at once."""
    from tvm import tirx

    count = len(lines)
    low = [j // 2 + (j % 2) * count for j in range(count)]
    high = [count // 2 + place for place in low]
    while len(lines) > 1:
        half = len(lines) // 2
        lines = [e.bind(tirx.Shuffle([a, b], low) + tirx.Shuffle([a, b], high)) for a, b in zip(lines[:half], lines[half:], strict=True)]
    return lines[0]


def _largest(e: Any, vector: Any) -> Any:
    return folded(e, LARGEST, vector)


def _always() -> Any:
    import contextlib

    return contextlib.nullcontext()
