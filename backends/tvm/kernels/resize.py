"""Images at another size: each output pixel is a weighted sum of a few input pixels of a few lines.

    out[n, h, w, c] = chain( sum over a, b of rows.weights[h, a] * columns.weights[w, b]
                                             * source[n, rows.places[h, a], columns.places[w, b], c] )

Which pixels and which weights is a table for each axis, made when the model is compiled: one pixel for the nearest, two
for linear, four for cubic interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.tvm.kernel import PLAIN, Chain, Config, Fixed, Machine, Operand
from backends.tvm.kernels.elementwise import step_cycles
from backends.tvm.kernels.lines import chained, each_vector, moved
from backends.tvm.kernels.work import offset, shared, threads_for

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Resize(Fixed):
    """``sizes``: rows and columns of the output; ``taps``: how many input pixels one is made of, along either axis.
    ``source``, ``out`` and the chain's operands have strides for [batch, row, column, channel]. Inputs: source, places of
    rows [rows, taps] (int32), their weights (float32), places of columns, their weights (see ``interpolation``)."""

    batch: int
    sizes: tuple[int, int]
    channels: int
    taps: tuple[int, int]
    source: Operand
    out: Operand
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """Two for each tap."""
        return 2.0 * self.batch * math.prod(self.sizes) * self.channels * math.prod(self.taps)

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: source, the tables, the chain's operands, out."""
        from backends.tvm.emit import Emitter, splat

        e = Emitter()
        source = e.pointer("source", self.source.dtype)
        tables = [(e.pointer(f"places{i}", "int32"), e.pointer(f"weights{i}", "float32")) for i in range(2)]
        others = [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(self.chain.operands)]
        out = e.pointer("out", self.out.dtype)
        operands = (*self.chain.operands, self.out)
        cycles = self.operations / machine.lanes + self.operations / 2 * step_cycles(self.chain.steps, machine.lanes)
        sizes = [self.batch, *self.sizes]
        with shared(e, sizes, threads_for(cycles, math.prod(sizes), machine)) as (n, *pixel):
            lines = []  # for each axis, of each tap: where it is read, its weight
            for (places, weights), at, count, stride in zip(tables, pixel, self.taps, self.source.strides[1:3], strict=True):
                spots = [e.bind(at * count + a) for a in range(count)]
                lines.append([(e.bind(e.load(places, s) * stride), e.bind(e.load(weights, s))) for s in spots])
            start = e.bind(offset([n], self.source.strides[:1]))
            alone = math.prod(self.taps) == 1
            taps = [(e.bind(start + r + c), None if alone else e.bind(v * w)) for r, v in lines[0] for c, w in lines[1]]
            bases = [e.bind(offset([n, *pixel], operand.strides[:3])) for operand in operands]

            def put(at: Any, lanes: int) -> None:
                total: Any = None
                for place, weight in taps:
                    step = self.source.strides[3]
                    value = e.load(source, moved(place, at, step), lanes, step)
                    if weight is not None:
                        value = value * splat(weight, lanes)
                    total = value if total is None else e.bind(total) + value
                steps = [operand.strides[3] for operand in operands]
                spots = [moved(base, at, step) for base, step in zip(bases, steps, strict=True)]
                total = chained(e, self.chain, total, others, spots[:-1], steps[:-1], lanes)
                e.store(out, spots[-1], total, steps[-1])

            each_vector(e, self.channels, machine.lanes, put)
        return e.function("resize")


def interpolation(
    mode: str, size: int, result: int, scale: float, coordinates: str = "half_pixel", nearest: str = "round_prefer_floor",
    cubic: float = -0.75, exclude_outside: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """Places (int32) and weights (float32), [result, taps], for one axis of ONNX's Resize; ``scale`` is result / size.

    ``coordinates``: half_pixel, pytorch_half_pixel, half_pixel_symmetric, asymmetric or align_corners; ``nearest``:
    round_prefer_floor, round_prefer_ceil, floor or ceil. Raises KeyError for another.
    """
    x = np.arange(result, dtype=np.float64)
    half = (x + 0.5) / scale - 0.5
    centred: dict[str, Callable[[], Array]] = {
        "half_pixel": lambda: half,
        "pytorch_half_pixel": lambda: half if result > 1 else np.zeros_like(x),
        "half_pixel_symmetric": lambda: size / 2 * (1 - result / (scale * size)) + half,
        "asymmetric": lambda: x / scale,
        "align_corners": lambda: x * (size - 1) / (result - 1) if result > 1 else np.zeros_like(x),
    }
    at = centred[coordinates]()
    if mode == "nearest":
        rounded: dict[str, Callable[[], Array]] = {
            "round_prefer_floor": lambda: np.ceil(at - 0.5),
            "round_prefer_ceil": lambda: np.floor(at + 0.5),
            "floor": lambda: np.floor(at),
            "ceil": lambda: np.ceil(at),
        }
        places = rounded[nearest]()[:, None]
        weights = np.ones_like(places)
    else:
        low = np.floor(at)
        between: dict[str, Callable[[Array], Array]] = {"linear": _linear, "cubic": lambda t: _cubic(t, cubic)}
        weights = between[mode]((at - low)[:, None])
        count = weights.shape[1]
        places = low[:, None] + np.arange(count) - (count // 2 - 1)
        if exclude_outside:
            weights = np.where((places >= 0) & (places < size), weights, 0)
            weights = weights / weights.sum(1, keepdims=True)
    return np.clip(places, 0, size - 1).astype(np.int32), weights.astype(np.float32)


def _linear(t: Array) -> Array:
    return np.concatenate([1 - t, t], 1)


def _cubic(t: Array, a: float) -> Array:
    def near(x: Array) -> Array:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Array) -> Array:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return np.concatenate([far(1 + t), near(t), near(1 - t), far(2 - t)], 1)
