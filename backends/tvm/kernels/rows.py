"""Softmax and the normalisations: each row needs totals of itself before any of it can be written.

    Softmax               e^(x - max) / sum of e^(x - max)
    LogSoftmax            (x - max) - log(sum of e^(x - max))
    LayerNormalization    (x - mean) / sqrt(mean of (x - mean)^2 + epsilon) * scale + bias
    RMSNormalization      x / sqrt(mean of x^2 + epsilon) * scale
    LpNormalization       x / max(sqrt(sum of x^2), epsilon), 0 for a row of zeros

A row is read from memory once and then from the first-level cache, or kept in registers if it is short; the variance is
of the differences from the mean, as it must be where the mean is large. Where the columns do not lie side by side but
another axis does, each element of a vector has a row of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.tvm.kernel import PLAIN, Chain, Config, Fixed, Machine, Operand
from backends.tvm.kernels.accumulate import LARGEST, SUM, Accumulators, folded
from backends.tvm.kernels.elementwise import step_cycles
from backends.tvm.kernels.work import offset, shared, threads_for

_KEPT = 8  # vectors of a row that stay in registers
_UNROLLED = 4
KINDS = ("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "LpNormalization")


@dataclass(frozen=True)
class Rows(Fixed):
    """Axes: ``rows`` (any number of them) and then ``columns``, for ``source``, ``out``, ``scale``, ``bias`` and the
    chain's operands alike; of float32, but for what the chain makes of it. ``scale`` and ``bias`` are multiplied and added
    before the chain, in every kind that has them. Inputs: source, scale, bias, those that there are."""

    kind: str
    rows: tuple[int, ...]
    columns: int
    source: Operand
    out: Operand
    epsilon: float = 0.0
    scale: Operand | None = None
    bias: Operand | None = None
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """About 8 for each element."""
        return 8.0 * math.prod(self.rows) * self.columns

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: source, scale, bias, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        return _Writer(self, machine, Emitter()).write()


class _Writer:
    """Writes one Rows."""

    def __init__(self, spec: Rows, machine: Machine, emitter: Any) -> None:
        self.spec, self.machine, self.e = spec, machine, emitter
        given = [("source", spec.source), ("scale", spec.scale), ("bias", spec.bias)]
        given += [(f"operand{i}", operand) for i, operand in enumerate(spec.chain.operands)]
        given.append(("out", spec.out))
        self.operands = [(name, operand) for name, operand in given if operand is not None]
        self.lanes = machine.lanes

    def write(self) -> Any:
        self.pointers = {name: self.e.pointer(name, operand.dtype) for name, operand in self.operands}
        across = self._across()
        sizes = list(self.spec.rows)
        if across is not None:
            sizes[across] = math.ceil(sizes[across] / self.lanes)
        softmax = self.spec.kind.endswith("Softmax")
        each = (3.0 if softmax else 1.2) / self.lanes + step_cycles(self.spec.chain.steps, self.lanes)
        cycles = math.prod(self.spec.rows) * (self.spec.columns * each + 40)
        with shared(self.e, sizes, threads_for(cycles, math.prod(sizes), self.machine)) as places:
            if across is None:
                self._row(places, self._columns)
            else:
                self._line(places, across)
        return self.e.function("rows")

    def _across(self) -> int | None:
        """The axis of rows that vectors lie along, if columns are no good for it."""
        source, out = self.spec.source.strides, self.spec.out.strides
        if source[-1] == 1 or self.spec.columns == 1:
            return None
        fit = [i for i, size in enumerate(self.spec.rows) if size >= 4 and source[i] == 1 and out[i] == 1]
        return fit[0] if fit else None

    def _line(self, places: list[Any], across: int) -> None:
        """One vector of rows; the last of an odd count narrows down to single rows."""
        from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

        size, lanes, vector = self.spec.rows[across], self.lanes, places[across]
        whole, rest = divmod(size, lanes)

        def at(start: Any, width: int) -> None:
            moved = [*places]
            moved[across] = start
            self._row(moved, lambda: _Column(self, across, width))

        def full() -> None:
            at(vector * lanes, lanes)

        def tail() -> None:
            if whole:  # rows are independent: to compute some twice does no harm
                at(size - lanes, lanes)
                return
            start = 0
            while start < rest:
                width = 1 << ((rest - start).bit_length() - 1)
                at(start, width)
                start += width

        if not rest:
            full()
        elif not whole:
            tail()
        else:
            self.e.choose(tirx.EQ(vector, whole), tail, full)

    def _columns(self) -> _Pass:
        vectors = math.ceil(self.spec.columns / self.lanes)
        return _Kept(self) if vectors <= _KEPT else _Pass(self)

    def _row(self, places: Sequence[Any], over: Callable[[], _Pass]) -> None:
        e = self.e
        self.bases = {name: e.bind(offset(places, operand.strides[:-1])) for name, operand in self.operands}
        self.steps = {name: operand.strides[-1] for name, operand in self.operands}
        row = over()
        kind = self.spec.kind
        if kind.endswith("Softmax"):
            self._softmax(row, kind == "LogSoftmax")
        elif kind == "LayerNormalization":
            self._layer_norm(row)
        else:
            self._scaled(row, kind == "RMSNormalization")

    def _softmax(self, row: _Pass, logarithm: bool) -> None:
        from backends.tvm import vector_math as vm

        e = self.e
        most = e.bind(row.total(LARGEST, lambda x, lanes: x))
        if logarithm:
            total = row.total(SUM, lambda x, lanes: vm.exp_of_negative(e, x - row.wide(most, lanes)))
            shift = e.bind(most + vm.log(e, e.bind(total)))
            # x - max first: the sum's logarithm is small beside a large maximum
            spare = e.bind(shift - most)
            row.write(lambda x, lanes: (x - row.wide(most, lanes)) - row.wide(spare, lanes))
            return
        again = self.spec.out.dtype != "float32"  # nowhere to keep the powers

        def power(x: Any, lanes: int) -> Any:
            return vm.exp_of_negative(e, x - row.wide(most, lanes))

        total = e.bind(row.total(SUM, power, keep=not again))
        one = e.bind(vm.constant(1.0, total) / total)
        row.write(lambda x, lanes: (power(x, lanes) if again else x) * row.wide(one, lanes), kept=not again)

    def _layer_norm(self, row: _Pass) -> None:
        from tvm import tirx

        from backends.tvm import vector_math as vm

        e, count = self.e, self.spec.columns
        total = e.bind(row.total(SUM, lambda x, lanes: x))
        mean = e.bind(total / vm.constant(count, total))

        def square(x: Any, lanes: int) -> Any:
            difference = e.bind(x - row.wide(mean, lanes))
            return difference * difference

        spread = e.bind(row.total(SUM, square))
        variance = e.bind(spread / vm.constant(count, spread) + vm.constant(self.spec.epsilon, spread))
        factor = e.bind(vm.constant(1.0, variance) / tirx.sqrt(variance))
        row.write(lambda x, lanes: (x - row.wide(mean, lanes)) * row.wide(factor, lanes))

    def _scaled(self, row: _Pass, mean: bool) -> None:
        from tvm import tirx

        from backends.tvm import vector_math as vm

        e, epsilon = self.e, self.spec.epsilon
        total = e.bind(row.total(SUM, lambda x, lanes: x * x))
        one = vm.constant(1.0, total)
        if mean:
            inner = e.bind(total / vm.constant(self.spec.columns, total) + vm.constant(epsilon, total))
            factor = e.bind(one / tirx.sqrt(inner))
        else:
            norm = e.bind(vm.at_least(e, e.bind(tirx.sqrt(total)), epsilon))
            zero = vm.constant(0.0, total)
            factor = e.bind(vm.where(tirx.EQ(norm, zero), zero, one / norm))
        row.write(lambda x, lanes: x * row.wide(factor, lanes))

    def load(self, name: str, at: Any, lanes: int) -> Any:
        """Elements of an operand from column ``at`` on."""
        step = self.steps[name]
        return self.e.bind(self.e.load(self.pointers[name], self.bases[name] + offset([at], [step]), lanes, step))

    def finish(self, value: Any, at: Any, lanes: int, load: Callable[[str, Any, int], Any], step: int) -> None:
        """Scale, bias and chain on ``value``, and its place in memory."""
        from backends.tvm.pointwise import evaluate

        e, spec = self.e, self.spec
        if spec.scale is not None:
            value = e.bind(value) * load("scale", at, lanes)
        if spec.bias is not None:
            value = e.bind(value) + load("bias", at, lanes)
        if spec.chain.steps:
            others = [load(f"operand{i}", at, lanes) for i in range(len(spec.chain.operands))]
            value = evaluate(e, spec.chain.steps, [value, *others], lanes)
        place = self.bases["out"] + offset([at], [self.steps["out"]])
        e.store(self.pointers["out"], place, value, step)


class _Pass:
    """A row as vectors of columns, which each pass loads again."""

    def __init__(self, writer: _Writer) -> None:
        self.w, self.e = writer, writer.e
        columns, lanes = writer.spec.columns, writer.lanes
        self.turns = columns // (lanes * _UNROLLED)
        start = self.turns * lanes * _UNROLLED
        self.rest = [(at, lanes) for at in range(start, columns - lanes + 1, lanes)]
        at = columns - columns % lanes
        while at < columns:
            width = 1 << ((columns - at).bit_length() - 1)
            self.rest.append((at, width))
            at += width

    def wide(self, value: Any, lanes: int) -> Any:
        """A number of the row, beside each of its elements."""
        from backends.tvm.emit import splat

        return splat(value, lanes)

    def total(self, how: str, of: Callable[[Any, int], Any], keep: bool = False) -> Any:
        """``of`` every element, combined; with ``keep`` also put where ``write`` finds it."""
        e, w = self.e, self.w
        widths = sorted({lanes for _, lanes in self.rest} | ({w.lanes} if self.turns else set()), reverse=True)
        sums = {lanes: Accumulators(e, how, "float32", lanes, _UNROLLED if lanes == w.lanes else 1) for lanes in widths}

        def take(number: int, at: Any, lanes: int) -> None:
            value = e.bind(of(self.element(at, lanes), lanes))
            if keep:
                self.keep(at, value)
            sums[lanes].take(number, value)

        self._each(take)
        found = [folded(e, how, sums[lanes].vector()) for lanes in widths]
        result = Accumulators(e, how, "float32", 1, 1)
        for value in found:
            result.take(0, value)
        return result.vector()

    def write(self, of: Callable[[Any, int], Any], kept: bool = False) -> None:
        """``of`` every element to the output, or of what ``total`` kept of it."""
        w = self.w

        def put(number: int, at: Any, lanes: int) -> None:
            value = of(self.kept(at, lanes) if kept else self.element(at, lanes), lanes)
            w.finish(value, at, lanes, w.load, w.steps["out"])

        self._each(put)

    def element(self, at: Any, lanes: int) -> Any:
        """The source from column ``at`` on."""
        return self.w.load("source", at, lanes)

    def keep(self, at: Any, value: Any) -> None:
        """In the output, which is not read by anyone yet."""
        w = self.w
        self.e.store(w.pointers["out"], w.bases["out"] + offset([at], [w.steps["out"]]), value, w.steps["out"])

    def kept(self, at: Any, lanes: int) -> Any:
        """What was kept from column ``at`` on."""
        return self.w.load("out", at, lanes)

    def _each(self, do: Callable[[int, Any, int], None]) -> None:
        lanes = self.w.lanes
        if self.turns:
            with self.e.loop(self.turns, "column") as turn:
                for j in range(_UNROLLED):
                    do(j, turn * (lanes * _UNROLLED) + j * lanes, lanes)
        for number, (at, width) in enumerate(self.rest):
            do(number, at, width)


class _Kept(_Pass):
    """A short row, of which every vector has its registers."""

    def __init__(self, writer: _Writer) -> None:
        super().__init__(writer)
        lanes = writer.lanes
        self.rest = [(j * lanes, lanes) for j in range(self.turns * _UNROLLED)] + self.rest
        self.turns = 0
        self.vectors = {at: writer.load("source", at, width) for at, width in self.rest}
        self.keeps: dict[int, Any] = {}

    def element(self, at: Any, lanes: int) -> Any:
        return self.vectors[at]

    def keep(self, at: Any, value: Any) -> None:
        self.keeps[at] = value

    def kept(self, at: Any, lanes: int) -> Any:
        return self.keeps[at]


class _Column(_Pass):
    """A vector of rows along axis ``across``, passed one column at a time."""

    def __init__(self, writer: _Writer, across: int, width: int) -> None:
        self.w, self.e, self.width = writer, writer.e, width
        self.along = {name: operand.strides[across] for name, operand in writer.operands}

    def wide(self, value: Any, lanes: int) -> Any:
        return value

    def total(self, how: str, of: Callable[[Any, int], Any], keep: bool = False) -> Any:
        e, columns, few = self.e, self.w.spec.columns, _UNROLLED
        sums = Accumulators(e, how, "float32", self.width, min(few, columns))

        def take(number: int, at: Any) -> None:
            value = e.bind(of(self._load("source", at, self.width), self.width))
            if keep:
                w = self.w
                e.store(w.pointers["out"], w.bases["out"] + offset([at], [w.steps["out"]]), value, self.along["out"])
            sums.take(number, value)

        turns = columns // few
        if turns:
            with e.loop(turns, "column") as turn:
                for j in range(few):
                    take(j, turn * few + j)
        for at in range(turns * few, columns):
            take(at, at)
        return sums.vector()

    def write(self, of: Callable[[Any, int], Any], kept: bool = False) -> None:
        with self.e.loop(self.w.spec.columns, "column") as at:
            value = of(self._load("out" if kept else "source", at, self.width), self.width)
            self.w.finish(value, at, self.width, self._load, self.along["out"])

    def _load(self, name: str, at: Any, lanes: int) -> Any:
        w = self.w
        place = w.bases[name] + offset([at], [w.steps[name]])
        return self.e.bind(self.e.load(w.pointers[name], place, lanes, self.along[name]))
