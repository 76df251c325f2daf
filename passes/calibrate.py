"""What calibration inputs do at the places of a graph: ranges, samples, second moments. Streaming: memory does not grow with the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

Array = np.ndarray
Feed = dict[str, Array]

KEPT = 1 << 20
"""Numbers kept of one value, spread over all inputs that were seen."""
WIDEST = 4096
"""Channels up to which second moments are kept: they take the square of that."""


@dataclass
class Recorded:
    """What was seen of one value. ``samples``: whole arrays of some inputs, at most ``KEPT`` numbers but for the first.

    Where second moments were asked for, over all rows of the last axis: ``gram`` and ``total``, the sums of x xᵀ and of x, float64
    ``[channels, channels]`` and ``[channels]``; ``least`` and ``most`` of each channel.
    """

    low: float = np.inf
    high: float = -np.inf
    seen: int = 0
    samples: list[Array] = field(default_factory=list)
    gram: Array | None = None
    total: Array | None = None
    least: Array | None = None
    most: Array | None = None
    rows: int = 0
    _stride: int = 1

    def add(self, array: Array, *, gram: bool) -> None:
        """One more input's value."""
        if array.size and array.dtype.kind == "f":
            self.low, self.high = min(self.low, float(array.min())), max(self.high, float(array.max()))
        if gram and array.ndim and array.shape[-1] <= WIDEST:
            rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
            self._add_rows(rows)
        if self.seen % self._stride == 0:
            self.samples.append(np.array(array))
            if len(self.samples) > 1 and sum(s.size for s in self.samples) > KEPT:
                self.samples, self._stride = self.samples[::2], self._stride * 2
        self.seen += 1

    def _add_rows(self, rows: Array) -> None:
        product, total = (rows.T @ rows).astype(np.float64), rows.sum(axis=0, dtype=np.float64)
        least, most = rows.min(axis=0, initial=np.inf), rows.max(axis=0, initial=-np.inf)
        self.gram = product if self.gram is None else self.gram + product
        self.total = total if self.total is None else self.total + total
        self.least = least if self.least is None else np.minimum(self.least, least)
        self.most = most if self.most is None else np.maximum(self.most, most)
        self.rows += len(rows)

    def numbers(self) -> Array:
        """All that was kept, flat."""
        return np.concatenate([s.reshape(-1) for s in self.samples]) if self.samples else np.zeros(0, np.float32)

    def matrix(self) -> Array:
        """All that was kept as rows of the last axis."""
        return np.concatenate([s.reshape(-1, s.shape[-1]) for s in self.samples])

    def mean(self) -> Array | None:
        """The mean of x, over the rows of ``moments``."""
        return None if self.total is None or not self.rows else self.total / self.rows

    def moments(self) -> Array | None:
        """The mean of x xᵀ."""
        return None if self.gram is None or not self.rows else self.gram / self.rows


def aligned(*recorded: Recorded) -> Iterator[tuple[Array, ...]]:
    """Samples of values that were recorded together, one of each: those of inputs of which all were kept."""
    steps = [max(r._stride for r in recorded) // r._stride for r in recorded]
    yield from zip(*(r.samples[::step] for r, step in zip(recorded, steps, strict=True)), strict=False)


Runner = Callable[[ir.Model, Sequence[Feed]], list[list[Array]]]


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the model that gives these values besides its own outputs."""
    copy = model.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs}
    already = {v.name for v in copy.graph.outputs}
    copy.graph.outputs.extend(values[name] for name in names if name in values and name not in already)
    return copy


def record(
    model: ir.Model, names: Sequence[str], grams: frozenset[str], feeds: Iterable[Feed], run: Callable[[Feed], list[Array]],
    seen: Callable[[int], None] = lambda _: None,
) -> dict[str, Recorded]:  # fmt: skip
    """What ``feeds`` do at the values ``names``; ``run``: ``with_outputs(model, names)`` on one feed. One feed's values at a time."""
    inputs = {v.name or "" for v in model.graph.inputs}
    outputs = [v.name or "" for v in model.graph.outputs]
    made = [n for n in names if n not in inputs and n not in outputs]
    found = {name: Recorded() for name in names}
    for count, feed in enumerate(feeds):
        values = dict(zip([*outputs, *made], run(feed), strict=True)) | {n: feed[n] for n in names if n in inputs}
        for name in names:
            found[name].add(np.asarray(values[name]), gram=name in grams)
        seen(count + 1)
    return found
