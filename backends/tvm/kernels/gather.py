"""Elements at places that are known only when the model runs: Gather and GatherElements along any axis.

    out[i...] = chain( data[i..., but along one axis: indices[i...]] )

A Gather of rows is this with indices that are the same all along a row, which is then copied as vectors. Negative indices
count from the end. An index that is out of range would be an error in ONNX Runtime; here it is the nearest that is in range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from backends.tvm.kernel import PLAIN, Chain, Config, Fixed, Machine, Operand
from backends.tvm.kernels.elementwise import merged, step_cycles
from backends.tvm.kernels.lines import chained, each_vector, moved
from backends.tvm.kernels.work import offset, shared, threads_for


@dataclass(frozen=True)
class Gather(Fixed):
    """``shape``: the output's axes. ``data`` steps along them by its own strides, and by 0 along the axes that only choose;
    ``size`` and ``step``: of the data's axis that is chosen from. ``indices`` (int32 or int64) step by 0 along the others.
    Inputs: data, indices."""

    shape: tuple[int, ...]
    data: Operand
    size: int
    step: int
    indices: Operand
    out: Operand
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """One for each element."""
        return float(math.prod(self.shape))

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: data, indices, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        e = Emitter()
        operands = (self.data, self.indices, *self.chain.operands, self.out)
        axes = merged(self.shape, operands)
        *outer, line = axes
        if line.strides[1]:  # every element has an index of its own
            outer, line = axes, type(line)(1, (0,) * len(operands))
        data = e.pointer("data", self.data.dtype)
        indices = e.pointer("indices", self.indices.dtype)
        others = [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(self.chain.operands)]
        out = e.pointer("out", self.out.dtype)
        sizes = [axis.size for axis in outer]
        cycles = math.prod(self.shape) * (1.0 / min(machine.lanes, line.size) + step_cycles(self.chain.steps, machine.lanes))
        with shared(e, sizes, threads_for(cycles + 3 * math.prod(sizes), math.prod(sizes), machine)) as places:
            bases = [e.bind(offset(places, [axis.strides[i] for axis in outer])) for i in range(len(operands))]
            source = e.bind(bases[0] + within(e, e.load(indices, bases[1]), self.size) * self.step)

            def copy(at: Any, lanes: int) -> None:
                value = e.load(data, moved(source, at, line.strides[0]), lanes, line.strides[0])
                spots = [moved(base, at, stride) for base, stride in zip(bases[2:], line.strides[2:], strict=True)]
                value = chained(e, self.chain, value, others, spots[:-1], line.strides[2:-1], lanes)
                e.store(out, spots[-1], value, line.strides[-1])

            each_vector(e, line.size, machine.lanes, copy)
        return e.function("gather")


def within(e: Any, index: Any, size: int) -> Any:
    """``index`` as a place from 0 to ``size`` - 1."""
    from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

    kind = str(index.ty.dtype)
    bounded = e.bind(tirx.max(tirx.min(index, tirx.const(size - 1, kind)), tirx.const(-size, kind)))
    place = e.bind(tirx.Cast("int32", bounded) if kind != "int32" else bounded)
    return e.bind(tirx.Select(place < 0, place + size, place))
