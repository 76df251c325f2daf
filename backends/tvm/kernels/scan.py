"""Running sums along an axis: CumSum.

out[i..., s] = chain( sum over r <= s of source[i..., r] )      exclusive: r < s; reverse: from the end
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from backends.tvm.kernel import PLAIN, Chain, Config, Fixed, Machine, Operand
from backends.tvm.kernels.accumulate import SUM, Accumulators
from backends.tvm.kernels.elementwise import Axis, merged, pieces
from backends.tvm.kernels.lines import chained, moved
from backends.tvm.kernels.work import offset, shared, threads_for


@dataclass(frozen=True)
class Scan(Fixed):
    """``source``, ``out`` and the chain's operands have strides for the axes of ``rows`` and then for the ``length``
    along which is summed."""

    rows: tuple[int, ...]
    length: int
    source: Operand
    out: Operand
    exclusive: bool = False
    reverse: bool = False
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """One for each element."""
        return float(math.prod(self.rows) * self.length)

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: source, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        e = Emitter()
        operands = (self.source, *self.chain.operands, self.out)
        rows = merged(self.rows, tuple(Operand(o.dtype, o.strides[:-1]) for o in operands))
        *outer, line = rows
        if abs(line.strides[-1]) != 1 or abs(line.strides[0]) != 1:  # nothing side by side but what is summed
            outer, line = rows, Axis(1, (0,) * len(operands))
        pointers = [e.pointer("source", self.source.dtype)]
        pointers += [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(self.chain.operands)]
        pointers.append(e.pointer("out", self.out.dtype))
        sizes = [axis.size for axis in outer]
        cycles = self.operations * (4.0 / min(line.size, machine.lanes))
        with shared(e, sizes, threads_for(cycles, math.prod(sizes), machine)) as places:
            bases = [e.bind(offset(places, [axis.strides[i] for axis in outer])) for i in range(len(operands))]
            for start, lanes in pieces(0, line.size, machine.lanes):
                firsts = [moved(base, start, stride) for base, stride in zip(bases, line.strides, strict=True)]
                self._sum(e, pointers, firsts, line, lanes)
        return e.function("scan")

    def _sum(self, e: Any, pointers: list[Any], firsts: list[Any], line: Axis, lanes: int) -> None:
        steps = [operand.strides[-1] for operand in (self.source, *self.chain.operands, self.out)]
        total = Accumulators(e, SUM, self.source.dtype, lanes, 1)
        with e.loop(self.length, "along") as turn:
            at = self.length - 1 - turn if self.reverse else turn
            places = [e.bind(moved(first, at, step)) for first, step in zip(firsts, steps, strict=True)]
            before = e.bind(total.vector()) if self.exclusive else None
            total.take(0, e.load(pointers[0], places[0], lanes, line.strides[0]))
            value = before if before is not None else total.vector()
            value = chained(e, self.chain, value, pointers[1:-1], places[1:-1], line.strides[1:-1], lanes)
            e.store(pointers[-1], places[-1], value, line.strides[-1])
