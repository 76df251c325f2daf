"""Pruning: hidden channels go, and the layers that read them are fitted again to make up for it.

Where channels live and die together (``hidden_channels``), those that can be done without (``elimination``) are cut out of everything at once:
rows of the products that make them, what lies between, columns of the products that read them, which are replaced by the best that can be done
with the channels that stay. Shapes shrink. (Zeros that a model already has are cut by the exact step ``channels/dead-channels``.)

Magnitude pruning of single weights has no file of its own: a dense product with zeros in it takes the same time and the same bytes. It gains
only where whole columns of a reading product become zero, or rows of a writing one with their biases: hidden channels that nobody reads or
makes, which go here. By the magnitude of their weights alone, ``||W1[c]|| ||W2[:, c]||``, they would be chosen worse: in the first two
feed-forward layers of MiniLM, fitted again alike, a half of them loses 1.6 times what contributions lose, and that 1.1 times what elimination does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.elimination import Kept, Reading, best, orders
from passes.approximate.fitted_product import put, takes_offset, vector
from passes.approximate.hidden_channels import Hidden, hidden
from passes.approximate.products import Product, moments, patches
from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded
from rewriter.edit import tensor

Array = np.ndarray
PARTS = (0.875, 0.75, 0.5, 0.35, 0.25)
"""Parts of the channels that are kept."""
MULTIPLE = 8
"""Kept channels come in whole vectors."""


class PrunedChannels:
    """Wherever channels are made and read by products, and one result leaves."""

    name = "prune/channels"

    def wants(self, model: ir.Model) -> Wanted:
        found = list(hidden(model))
        linear = frozenset(p.input for h in found for p in h.readers if not p.is_convolution)
        read = frozenset(p.input for h in found for p in h.readers)
        return Wanted(read | {n for h in found for n in (*h.inputs, h.output.output)}, linear)

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for part in hidden(site.model):
            readings = _readings(part, site.recorded)
            if readings is None:
                yield Refusal(self.name, part.output.output, "a layer that reads the channels is too deep to be fitted again")
                continue
            yield from self._of(part, readings)

    def _of(self, part: Hidden, readings: list[Reading]) -> Iterator[Candidate]:
        channels = part.channels
        rounded = {max(MULTIPLE, round(share * channels / MULTIPLE) * MULTIPLE) for share in PARTS}
        sizes = sorted(s for s in rounded if s < channels)
        order = Later(partial(orders, readings, channels, min(sizes)))
        each = sum(p.weights.shape[1] + (p.bias is not None) for p in part.writers) + sum(len(r.weights) * r.taps for r in readings)
        each += sum(data.size // channels for node in part.between for v in node.inputs if (data := tensor(v)) is not None)
        added = sum(len(p.weights) for p, r in zip(part.readers, readings, strict=True) if r.mean is not None and vector(p) is None)
        products = {p.output for p in (*part.writers, *part.readers)}
        for size in sizes:
            kept = Later(partial(_best, readings, order, size))
            yield Candidate(
                f"{self.name}-{size / channels:.0%}", part.output.output, frozenset(products | set(part.values)), _Apply(part, size, kept),
                (added - (channels - size) * each) * 4, unit=(part.inputs, part.output.output), lost=Later(partial(_share_lost, kept)),
                fitted=frozenset(p.output for p in part.readers),
            )  # fmt: skip


def _best(readings: list[Reading], order: Later[list[Array]], size: int) -> Kept:
    return best(readings, order(), size)


def _share_lost(kept: Later[Kept]) -> float:
    return kept().lost


def _readings(part: Hidden, recorded: Mapping[str, Recorded]) -> list[Reading] | None:
    """Each reader with what it reads; the work that it does is its share."""
    found = []
    for product in part.readers:
        seen = recorded[product.input]
        gram = moments(product, seen)
        if gram is None:
            return None
        taps = product.weights.shape[1] // part.channels
        rows = sum(s.size for s in seen.samples) / max(1, len(seen.samples)) / part.channels
        found.append(Reading(product.weights, gram, _mean(product, seen), taps, rows * product.weights.size))
    return found


def _mean(product: Product, recorded: Recorded) -> Array | None:
    """Of what the product reads, if it can take an offset."""
    if not takes_offset(product):
        return None
    if not product.is_convolution and (known := recorded.mean()) is not None:
        return known
    rows = patches(product, recorded)
    return None if rows is None else np.asarray(rows.astype(np.float64).mean(axis=0))


class _Apply:
    """Cuts the matrices; the fitted ones take their places."""

    def __init__(self, part: Hidden, size: int, kept: Later[Kept]) -> None:
        self._part, self._size, self._kept = part, size, kept
        self._between = [n.outputs[0].name or "" for n in part.between]

    def __call__(self, graph: Substitution) -> None:
        part, kept = self._part, self._kept()
        for reader, weights, offset in zip(part.readers, kept.weights, kept.offsets, strict=True):
            put(graph, reader, weights, offset)
        for writer in part.writers:
            node = graph.maker(writer.output)
            self._cut(kept.channels, graph, node, 1, writer.channel_axis)
            if len(node.inputs) > 2:
                self._cut(kept.channels, graph, node, 2, -1)
        for name in self._between:
            node = graph.maker(name)
            for place, value in enumerate(node.inputs):
                data = tensor(value)
                if data is not None and data.size > 1:
                    shape = tuple(data.shape.numpy())
                    axis = 0 if node.op_type == "Conv" else shape.index(part.channels) if part.channels in shape else -1
                    self._cut(kept.channels, graph, node, place, axis)
            if node.op_type == "Conv":
                node.attributes["group"] = ir.AttrInt64("group", self._size)
        for name in part.values:
            _forget_channels(graph.value(name), part.channels, self._size, images=part.images)

    def _cut(self, kept: Array, graph: Substitution, node: ir.Node, place: int, axis: int) -> None:
        data = tensor(node.inputs[place])
        if data is None or data.shape.numpy()[axis] != self._part.channels:
            return
        node.replace_input_with(place, graph.stored(np.take(data.numpy(), kept, axis), f"{node.outputs[0].name}_kept"))


def _forget_channels(value: ir.Value, channels: int, kept: int, *, images: bool) -> None:
    if value.shape is not None and len(value.shape):
        axis = 1 if images else len(value.shape) - 1
        value.shape = ir.Shape([kept if k == axis and d == channels else d for k, d in enumerate(value.shape)])
