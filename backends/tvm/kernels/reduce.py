"""Totals over some axes of a tensor: sums, means, products, maxima, minima, norms.

    out[kept...] = chain( total over reduced... of source[kept..., reduced...] )

Where the reduced axes hold what lies side by side, vectors lie along them and are folded at the end; else vectors lie along
a kept axis (the channels of an image stored channels last) and are totals all the way. Either way there are several
totals at a time, since an addition takes longer than it takes to start one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.tvm.kernel import PLAIN, Chain, Config, Fixed, Machine, Operand
from backends.tvm.kernels.accumulate import MAXIMUM, MINIMUM, PRODUCT, SUM, Accumulators, folded
from backends.tvm.kernels.elementwise import Axis, merged, pieces
from backends.tvm.kernels.work import offset, shared, threads_for

_TOTALS = 4  # at a time
_HOW = {
    "ReduceSum": SUM, "ReduceMean": SUM, "ReduceSumSquare": SUM, "ReduceL1": SUM, "ReduceL2": SUM, "ReduceLogSum": SUM,
    "ReduceLogSumExp": SUM, "ReduceProd": PRODUCT, "ReduceMax": MAXIMUM, "ReduceMin": MINIMUM,
}  # fmt: skip
KINDS = frozenset(_HOW)


@dataclass(frozen=True)
class Reduce(Fixed):
    """``source`` has strides for the axes ``kept`` and then ``reduced``; ``out`` and the chain's operands for ``kept``.
    ``kind`` is ONNX's name; those with logarithms, roots or means are of float32 alone."""

    kind: str
    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    source: Operand
    out: Operand
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """One for each element of the source."""
        return float(math.prod(self.kept) * math.prod(self.reduced))

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: source, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        return _Writer(self, machine, Emitter()).write()


class _Writer:
    """Writes one Reduce. Operands along kept axes: the source, the chain's, the output."""

    def __init__(self, spec: Reduce, machine: Machine, emitter: Any) -> None:
        self.spec, self.machine, self.e = spec, machine, emitter
        rank = len(spec.kept)
        outside = Operand(spec.source.dtype, spec.source.strides[:rank])
        self.kept = merged(spec.kept, (outside, *spec.chain.operands, spec.out))
        self.reduced = merged(spec.reduced, (Operand(spec.source.dtype, spec.source.strides[rank:]),))
        self.how, self.lanes, self.dtype = _HOW[spec.kind], machine.lanes, spec.source.dtype

    def write(self) -> Any:
        spec, e = self.spec, self.e
        self.source = e.pointer("source", spec.source.dtype)
        self.others = [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(spec.chain.operands)]
        self.out = e.pointer("out", spec.out.dtype)
        along = self._along()
        heavy = 3.0 if spec.kind == "ReduceLogSumExp" else 0.5
        cycles = spec.operations * (heavy / self.lanes if along is not None or self._side_by_side() else heavy)
        if along is None:
            sizes = [axis.size for axis in self.kept]
            with shared(e, sizes, threads_for(cycles, math.prod(sizes), self.machine)) as places:
                self._bases(places, self.kept)
                self._result(self._inner, self.kept[-1], 0, 1)
            return e.function("reduce")
        row = self.kept[along]
        outer = [axis for i, axis in enumerate(self.kept) if i != along]
        group = self._group(row, math.prod(axis.size for axis in outer))
        counts = [*(axis.size for axis in outer), math.ceil(row.size / group)]
        with shared(e, counts, threads_for(cycles, math.prod(counts), self.machine)) as places:
            self._bases(places[:-1], outer)
            self._vectors(row, places[-1], group)
        return e.function("reduce")

    def _along(self) -> int | None:
        """The kept axis that vectors lie along: the one that steps by one, unless a reduced one does and is longer."""
        fit = [i for i, axis in enumerate(self.kept) if axis.strides[0] == 1 and axis.size > 1]
        if not fit or (self._side_by_side() and self.reduced[-1].size >= self.kept[fit[0]].size):
            return None
        return fit[0]

    def _side_by_side(self) -> bool:
        return self.reduced[-1].strides[0] == 1

    def _group(self, row: Axis, others: int) -> int:
        """Elements of a kept row that are reduced at once: up to 4 vectors, fewer if threads would have nothing to do."""
        vectors = min(_TOTALS, max(1, row.size // self.lanes))
        while vectors > 1 and others * (row.size // (vectors * self.lanes)) < self.machine.threads:
            vectors -= 1
        return vectors * self.lanes

    def _bases(self, places: Sequence[Any], axes: Sequence[Axis]) -> None:
        count = len(self.others) + 2
        self.bases = [self.e.bind(offset(places, [axis.strides[i] for axis in axes])) for i in range(count)]

    def _vectors(self, row: Axis, number: Any, group: int) -> None:
        """One group of vectors along a kept row; the last group of a row may be odd."""
        from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

        def write(start: Any, widths: Sequence[tuple[int, int]]) -> None:
            for at, lanes in widths:
                count = max(1, _TOTALS // len(widths))
                self._result(lambda b, of, a=at, n=lanes, c=count: self._outer(b, of, start + a, n, c), row, start + at, lanes)

        whole, rest = divmod(row.size, group)
        full = [(at, self.lanes) for at in range(0, group, self.lanes)]
        # of a ragged end, the last vector overlaps the one before, which is of another group maybe
        odd = [(at - whole * group, lanes) for at, lanes in pieces(whole * group, row.size, self.lanes)]
        if not rest:
            write(number * group, full)
        elif not whole:
            write(0, odd)
        else:
            last = tirx.EQ(number, whole)
            self.e.choose(last, lambda: write(whole * group, odd), lambda: write(number * group, full))

    # --- one result

    def _result(self, total: Callable[..., Any], row: Axis, at: Any, lanes: int) -> None:
        """``total`` gives the total of a mapped source; ``at`` is the place on ``row``."""
        from backends.tvm.pointwise import evaluate

        e = self.e
        value = self._finished(total, lanes)
        moved = [base + offset([at], [stride]) for base, stride in zip(self.bases, row.strides, strict=True)]
        registers = [value]
        for pointer, place, stride in zip(self.others, moved[1:-1], row.strides[1:-1], strict=True):
            registers.append(e.load(pointer, place, lanes, stride))
        value = evaluate(e, self.spec.chain.steps, registers, lanes)
        e.store(self.out, moved[-1], value, row.strides[-1])

    def _finished(self, total: Callable[..., Any], lanes: int) -> Any:
        from tvm import tirx

        from backends.tvm import vector_math as vm

        e, kind = self.e, self.spec.kind
        if kind == "ReduceLogSumExp":
            most = e.bind(total(MAXIMUM, lambda x: x))
            zero = vm.constant(0.0, most)
            shift = e.bind(vm.where(vm.is_infinite(most), zero, most))
            summed = e.bind(total(SUM, lambda x: vm.exp(e, x - self._beside(shift, x))))
            return vm.log(e, summed) + shift
        of: dict[str, Callable[[Any], Any]] = {
            "ReduceSumSquare": lambda x: x * x,
            "ReduceL2": lambda x: x * x,
            "ReduceL1": vm.magnitude,
        }
        value = e.bind(total(self.how, of.get(kind, lambda x: x)))
        if kind == "ReduceMean":
            count = vm.constant(math.prod(self.spec.reduced), value)
            return value / count if self.dtype.startswith("float") else tirx.truncdiv(value, count)
        if kind == "ReduceL2":
            return tirx.sqrt(value)
        return vm.log(e, value) if kind == "ReduceLogSum" else value

    def _beside(self, value: Any, like: Any) -> Any:
        from backends.tvm.emit import lanes_of, splat

        return value if lanes_of(value) == lanes_of(like) else splat(value, lanes_of(like))

    # --- totals

    def _outer(self, how: str, of: Callable[[Any], Any], at: Any, lanes: int, count: int) -> Any:
        """Each element of a vector along a kept axis is a total of its own."""
        import contextlib

        e = self.e
        *slow, fast = self.reduced
        sums = Accumulators(e, how, self.dtype, lanes, min(count, fast.size))
        with contextlib.ExitStack() as nest:
            places = [nest.enter_context(e.loop(axis.size, "r")) for axis in slow]
            base = e.bind(self.bases[0] + offset([at], [1]) + offset(places, [axis.strides[0] for axis in slow]))

            def take(number: int, r: Any) -> None:
                value = e.bind(e.load(self.source, base + offset([r], fast.strides), lanes))
                sums.take(number, of(value))

            turns = fast.size // sums.count
            with e.loop(turns, "r") as turn:
                for j in range(sums.count):
                    take(j, turn * sums.count + j)
            for r in range(turns * sums.count, fast.size):
                take(r, r)
        return sums.vector()

    def _inner(self, how: str, of: Callable[[Any], Any]) -> Any:
        """One number: vectors along the innermost reduced axis."""
        import contextlib

        e = self.e
        *slow, fast = self.reduced
        stride = fast.strides[0]
        widest = self.lanes if stride == 1 or fast.size >= 4 * self.lanes else 1
        whole, rest = divmod(fast.size, widest)
        count = max(1, min(_TOTALS, whole))
        sums = Accumulators(e, how, self.dtype, widest, count)
        ends = Accumulators(e, how, self.dtype, 1, 1)
        with contextlib.ExitStack() as nest:
            places = [nest.enter_context(e.loop(axis.size, "r")) for axis in slow]
            base = e.bind(self.bases[0] + offset(places, [axis.strides[0] for axis in slow]))

            def load(at: Any, lanes: int) -> Any:
                return of(e.bind(e.load(self.source, base + offset([at], [stride]), lanes, stride)))

            turns = whole // count
            if turns:
                with e.loop(turns, "r") as turn:
                    for j in range(count):
                        sums.take(j, load((turn * count + j) * widest, widest))
            for number in range(turns * count, whole):
                sums.take(number, load(number * widest, widest))
            at = whole * widest
            while rest:
                lanes = 1 << (rest.bit_length() - 1)
                ends.take(0, folded(e, how, load(at, lanes)))
                at, rest = at + lanes, rest - lanes
        ends.take(0, folded(e, how, sums.vector()))
        return ends.vector()
