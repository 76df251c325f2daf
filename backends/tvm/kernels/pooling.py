"""Maximum and average pooling: the total of a window of pixels, vectors along channels.

    out[n, h, w, c] = chain( total over the taps (t, u) within the image of source[n, h*s + t*d - p, w*s + u*d - p, c] )

Where no window reaches over the image's edges, all taps are written out one after the other; else each pixel first finds
which of its taps lie within. An average divides by how many those are, or, with ``include_pad``, by how many lie within the
image and its padding (windows may reach even further, where ceil_mode made the output larger).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.tvm.kernel import PLAIN, Chain, Config, Fixed, Machine, Operand
from backends.tvm.kernels.accumulate import LARGEST, SUM, combined, neutral
from backends.tvm.kernels.elementwise import step_cycles
from backends.tvm.kernels.work import offset, shared, threads_for

_BLOCK = 4  # vectors of channels at once


@dataclass(frozen=True)
class Window:
    """Along one axis: the image's ``size``, ``taps`` of the window ``dilation`` apart, windows ``stride`` apart, padding
    ``before`` and ``after``, and ``results``."""

    size: int
    taps: int
    results: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0

    @property
    def inside(self) -> bool:
        """Whether no window reaches over the edges."""
        last = (self.results - 1) * self.stride - self.before + (self.taps - 1) * self.dilation
        return self.before == 0 and last < self.size


@dataclass(frozen=True)
class Pooling(Fixed):
    """``kind``: "max" or "average" (of float32). ``source`` (the image without padding), ``out`` and the chain's operands
    have strides for [batch, row, column, channel]."""

    kind: str
    batch: int
    windows: tuple[Window, Window]
    channels: int
    source: Operand
    out: Operand
    include_pad: bool = False
    chain: Chain = PLAIN

    @property
    def operations(self) -> float:
        """One for each tap."""
        return float(self.batch * self.channels * math.prod(window.taps * window.results for window in self.windows))

    def write(self, config: Config, machine: Machine) -> Any:
        """The function: source, the chain's operands, out."""
        from backends.tvm.emit import Emitter

        return _Writer(self, machine, Emitter()).write()


class _Writer:
    """Writes one Pooling."""

    def __init__(self, spec: Pooling, machine: Machine, emitter: Any) -> None:
        self.spec, self.machine, self.e = spec, machine, emitter
        self.lanes = machine.lanes
        self.how = LARGEST if spec.kind == "max" else SUM

    def write(self) -> Any:
        from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

        spec, e = self.spec, self.e
        self.source = e.pointer("source", spec.source.dtype)
        self.others = [e.pointer(f"operand{i}", operand.dtype) for i, operand in enumerate(spec.chain.operands)]
        self.out = e.pointer("out", spec.out.dtype)
        widths = block_of(spec.channels, self.lanes)
        step = sum(widths)
        blocks = math.ceil(spec.channels / step)
        sizes = [spec.batch, *(window.results for window in spec.windows)]
        results = math.prod(sizes) * spec.channels
        cycles = spec.operations / self.lanes * 1.5 + results * step_cycles(spec.chain.steps, self.lanes)
        with shared(e, sizes, threads_for(cycles, math.prod(sizes), self.machine)) as (n, row, column):
            taps = [self._taps(window, place) for window, place in zip(spec.windows, (row, column), strict=True)]
            corners = [place * w.stride - w.before for place, w in zip((row, column), spec.windows, strict=True)]
            base = e.bind(offset([n, *corners], spec.source.strides[:3]))
            divisor = self._divisor((row, column), taps)
            with e.loop(blocks, "block") as block:
                channel = block * step
                if spec.channels % step and blocks > 1:
                    channel = e.bind(tirx.min(channel, spec.channels - step))
                self._pixel([n, row, column], channel, base, taps, widths, divisor)
        return e.function("pooling")

    def _taps(self, window: Window, place: Any) -> tuple[Any, Any]:
        """The first tap within the image, and the one after the last."""
        from tvm import tirx

        if window.inside:
            return 0, window.taps
        e, d = self.e, window.dilation
        start = e.bind(place * window.stride - window.before)
        first = e.bind(tirx.truncdiv(tirx.max(0, 0 - start) + (d - 1), d))
        last = e.bind(tirx.min(window.taps, tirx.truncdiv(tirx.max(0, window.size - start) + (d - 1), d)))
        return first, last

    def _divisor(self, places: Sequence[Any], taps: Sequence[tuple[Any, Any]]) -> Any:
        """How many elements an average is of, as a number of the source's type; None for a maximum."""
        from tvm import tirx

        spec, e = self.spec, self.e
        if spec.kind == "max":
            return None
        counts: list[Any] = []
        for window, place, (first, last) in zip(spec.windows, places, taps, strict=True):
            if not spec.include_pad:
                counts.append(last - first)
                continue
            room = window.size + window.before + window.after
            if (window.results - 1) * window.stride + (window.taps - 1) * window.dilation < room:
                counts.append(window.taps)
                continue
            within = tirx.truncdiv(room - place * window.stride + (window.dilation - 1), window.dilation)
            counts.append(tirx.min(window.taps, within))
        product = counts[0] * counts[1]
        if isinstance(product, int):
            return tirx.const(float(product), spec.source.dtype)
        return e.bind(tirx.Cast(spec.source.dtype, product))

    def _pixel(self, where: Sequence[Any], channel: Any, base: Any, taps: Sequence[tuple[Any, Any]], widths: Sequence[int], divisor: Any) -> None:
        from backends.tvm.emit import splat

        spec, e = self.spec, self.e
        down, across, along = spec.source.strides[1:]
        steps = [w.dilation * stride for w, stride in zip(spec.windows, (down, across), strict=True)]
        corner = e.bind(base + offset([channel], [along]))
        starts = [sum(widths[:j]) for j in range(len(widths))]
        totals = [e.local(lanes, spec.source.dtype, "total") for lanes in widths]
        for total, lanes in zip(totals, widths, strict=True):
            e.store(total, 0, neutral(self.how, spec.source.dtype, lanes))

        def take(t: Any, u: Any) -> None:
            place = e.bind(corner + offset([t, u], steps))
            for total, start, lanes in zip(totals, starts, widths, strict=True):
                value = e.bind(e.load(self.source, place + start * along, lanes, along))
                e.store(total, 0, combined(self.how, e.bind(e.load(total, 0, lanes)), value))

        if all(isinstance(bound, int) for pair in taps for bound in pair):
            for t in range(taps[0][1]):
                for u in range(taps[1][1]):
                    take(t, u)
        else:
            (top, bottom), (left, right) = taps
            with e.loop(bottom - top, "tap", start=top) as t, e.loop(right - left, "tap", start=left) as u:
                take(t, u)
        for total, start, lanes in zip(totals, starts, widths, strict=True):
            value = e.load(total, 0, lanes)
            if divisor is not None:
                value = value / splat(divisor, lanes)
            self._store(value, [*where, channel + start], lanes)

    def _store(self, value: Any, where: Sequence[Any], lanes: int) -> None:
        from backends.tvm.pointwise import evaluate

        spec, e = self.spec, self.e
        registers = [value]
        for pointer, operand in zip(self.others, spec.chain.operands, strict=True):
            registers.append(e.load(pointer, offset(where, operand.strides), lanes, operand.strides[3]))
        place = offset(where, spec.out.strides)
        e.store(self.out, place, evaluate(e, spec.chain.steps, registers, lanes), spec.out.strides[3])


def block_of(channels: int, lanes: int) -> tuple[int, ...]:
    """The vectors that pass together: as many as waste least at the end; of few channels, all, in shorter vectors."""
    if channels < lanes:
        return tuple(narrow(channels))
    most = min(_BLOCK, channels // lanes)
    best = min(range(1, most + 1), key=lambda n: (math.ceil(channels / (n * lanes)) * (n + 0.5), -n))
    return (lanes,) * best


def narrow(count: int) -> list[int]:
    """Widths of vectors, powers of two from large to small, that hold ``count`` elements."""
    return [1 << bit for bit in reversed(range(count.bit_length())) if count >> bit & 1]
