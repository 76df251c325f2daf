"""Where the largest or smallest element of each row is: ArgMax and ArgMin.

    out[i...] = the first s (or the last) for which source[i..., s] is largest (or smallest)

Vectors lie along rows that lie side by side; a row that lies alone is searched by one vector, each element of which looks
at every so-many-th column, and then among what these found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from backends.tvm.kernel import Config, Fixed, Machine, Operand
from backends.tvm.kernels.accumulate import MAXIMUM, MINIMUM, neutral
from backends.tvm.kernels.elementwise import Axis, merged, pieces
from backends.tvm.kernels.lines import moved
from backends.tvm.kernels.work import offset, shared, threads_for


@dataclass(frozen=True)
class Extremum(Fixed):
    """``source`` has strides for the axes of ``rows`` and then for the ``length`` that is searched; ``out`` (int64) for
    ``rows``. What is undefined is never found, unless there is nothing else."""

    largest: bool
    rows: tuple[int, ...]
    length: int
    source: Operand
    out: Operand
    last: bool = False

    @property
    def operations(self) -> float:
        """One for each element."""
        return float(math.prod(self.rows) * self.length)

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: source, out."""
        from backends.tvm.emit import Emitter

        return _Writer(self, machine, Emitter()).write()


class _Writer:
    """Writes one Extremum."""

    def __init__(self, spec: Extremum, machine: Machine, emitter: Any) -> None:
        self.spec, self.machine, self.e = spec, machine, emitter
        self.step = spec.source.strides[-1]

    def write(self) -> Any:
        spec, e = self.spec, self.e
        self.source = e.pointer("source", spec.source.dtype)
        self.out = e.pointer("out", spec.out.dtype)
        rows = merged(spec.rows, (Operand(spec.source.dtype, spec.source.strides[:-1]), spec.out))
        *outer, line = rows
        alone = line.strides[0] != 1 or line.strides[-1] != 1 or line.size < 4
        if alone:
            outer, line = rows, Axis(1, (0, 0))
        sizes = [axis.size for axis in outer]
        cycles = spec.operations * 3.0 / self.machine.lanes
        with shared(e, sizes, threads_for(cycles, math.prod(sizes), self.machine)) as places:
            bases = [e.bind(offset(places, [axis.strides[i] for axis in outer])) for i in range(2)]
            if alone:
                e.store(self.out, bases[1], self._alone(bases[0]))
            else:
                for start, lanes in pieces(0, line.size, self.machine.lanes):
                    found = self._beside(moved(bases[0], start, 1), lanes)
                    e.store(self.out, moved(bases[1], start, 1), found)
        return e.function("extremum")

    def _beside(self, base: Any, lanes: int) -> Any:
        """The places in as many rows as the vector has elements."""
        best, where = self._start(lanes)
        self._search(best, where, self.spec.length, lambda s: self.e.load(self.source, moved(base, s, self.step), lanes), lambda s: s)
        return self._wide(self.e.load(where, 0, lanes))

    def _alone(self, base: Any) -> Any:
        """The place in one row."""
        from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

        from backends.tvm.emit import splat

        e, lanes, length = self.e, self.machine.lanes, self.spec.length
        whole = length // lanes
        best, where = self._start(lanes)
        each = tirx.Ramp(tirx.const(0, "int32"), 1, lanes)

        def load(s: Any) -> Any:
            return e.load(self.source, base + offset([s * lanes], [self.step]), lanes, self.step)

        self._search(best, where, whole, load, lambda s: splat(s * lanes, lanes) + each)
        first, place = self._start(1)
        for lane in range(min(lanes, length)) if whole else ():
            self._take(first, place, e.bind(e.load(best, lane)), e.bind(e.load(where, lane)), ordered=False)
        for s in range(whole * lanes, length):
            self._take(first, place, e.bind(e.load(self.source, base + s * self.step)), tirx.const(s, "int32"), ordered=True)
        return self._wide(e.load(place, 0))

    def _start(self, lanes: int) -> tuple[Any, Any]:
        from backends.tvm.vector_operators import fixed

        e, dtype = self.e, self.spec.source.dtype
        best, where = e.local(lanes, dtype, "best"), e.local(lanes, "int32", "where")
        e.store(best, 0, neutral(MAXIMUM if self.spec.largest else MINIMUM, dtype, lanes))
        e.store(where, 0, fixed(0, "int32", lanes))
        return best, where

    def _search(self, best: Any, where: Any, count: int, load: Any, index: Any) -> None:
        from backends.tvm.emit import lanes_of, splat

        e = self.e
        if not count:
            return
        with e.loop(count, "s") as s:
            value = e.bind(load(s))
            place = index(s)
            lanes = lanes_of(value)
            place = place if not isinstance(place, int) and lanes_of(place) == lanes else splat(_whole(place), lanes)
            self._take(best, where, value, e.bind(place), ordered=True)

    def _take(self, best: Any, where: Any, value: Any, place: Any, ordered: bool) -> None:
        """Keep ``value`` if it is better, or as good and at the right end; ``ordered``: no place so far was larger."""
        from tvm import tirx

        from backends.tvm import vector_math as vm
        from backends.tvm.emit import lanes_of

        e, lanes = self.e, lanes_of(value)
        old, at = e.bind(e.load(best, 0, lanes)), e.bind(e.load(where, 0, lanes))
        better = value > old if self.spec.largest else value < old
        if ordered:
            chosen = (value >= old if self.spec.largest else value <= old) if self.spec.last else better
        else:
            nearer = place > at if self.spec.last else place < at
            chosen = tirx.Or(better, tirx.And(tirx.EQ(value, old), nearer))
        e.store(where, 0, vm.where(chosen, place, at))
        e.store(best, 0, vm.where(chosen, value, old))

    def _wide(self, place: Any) -> Any:
        from backends.tvm.vector_math import cast

        return cast(place, self.spec.out.dtype)


def _whole(place: Any) -> Any:
    from tvm import tirx

    return tirx.const(place, "int32") if isinstance(place, int) else place
