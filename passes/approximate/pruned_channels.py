"""Structured pruning: hidden channels go, and the layer that reads them is fitted again to make up for it.

A hidden tensor h lies between two products, ``h = f(W1 x + b1)`` with f element-wise (and depthwise convolutions), ``y = W2 h + b2``. With only
the channels S of it, the best W2' on calibration data is the least-squares solution::

    min_V E||W2 h - V h_S||²   ->   V = W2 G[:, S] (G[S, S] + e I)⁻¹,    G = E[h hᵀ]

whose loss is ``tr((W2 - V P_S) G (W2 - V P_S)ᵀ)``. Channels are taken away in the order of what they contribute by themselves,
``||W2[:, c]||² G[c, c]`` (the magnitude criterion, in the metric of the data). Shapes shrink at once: the matrices of both products, and what lies
between. (Zeros that a model already has are cut by the exact step ``channels/dead-channels``.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.products import Product, moments, products
from passes.approximate.substitution import Substitution
from rewriter.edit import is_op, tensor, uses

Array = np.ndarray
PARTS = (0.875, 0.75, 0.5, 0.35, 0.25)
"""Parts of the channels that are kept."""
FEWEST = 16
"""Hidden channels below which a layer is left alone."""
RIDGE = 1e-2
"""Of the mean square of a channel: what is fitted to few inputs must not follow their noise."""
MULTIPLE = 8
"""Kept channels come in whole vectors."""
ELEMENTWISE = {
    "Relu", "Gelu", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Clip", "Elu", "Softplus", "Mish", "Swish", "Erf", "Identity",
    "MaxPool",
    "AveragePool", "GlobalAveragePool", "Dropout", "Abs", "Sqrt", "Exp",
}  # fmt: skip
"""Operators of one data input that treat every channel by itself."""


@dataclass(frozen=True)
class Hidden:
    """Two products and what lies between them. ``biases``: Adds of a vector, by the values that they make; ``depthwise``: convolutions."""

    first: Product
    second: Product
    between: tuple[ir.Node, ...]


class PrunedChannels:
    """Between two products of which the second reads nothing but the first's channels."""

    name = "prune/channels"

    def wants(self, model: ir.Model) -> Wanted:
        found = list(_hidden(model))
        linear = frozenset(h.second.input for h in found if not h.second.is_convolution)
        return Wanted(frozenset(n for h in found for n in (h.first.input, h.second.input, h.second.output)), linear)

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for hidden in _hidden(site.model):
            gram = moments(hidden.second, site.recorded[hidden.second.input])
            if gram is None:
                yield Refusal(self.name, hidden.second.output, "the layer that reads the channels is too deep to be fitted again")
                continue
            yield from self._of(hidden, gram)

    def _of(self, hidden: Hidden, gram: Array) -> Iterator[Candidate]:
        channels = len(hidden.first.weights)
        taps = hidden.second.weights.shape[1] // channels
        order = _order(hidden.second.weights, gram, channels, taps)
        sizes = {max(MULTIPLE, round(part * channels / MULTIPLE) * MULTIPLE) for part in PARTS}
        for size in sorted(s for s in sizes if s < channels):
            kept = np.sort(order[:size])
            columns = (kept[:, None] * taps + np.arange(taps)).reshape(-1)
            fitted = Later(partial(_fitted, hidden.second.weights, gram, columns))
            saved = (channels - size) * (hidden.first.weights.shape[1] + len(hidden.second.weights) * taps) * 4
            covers = frozenset(v.name or "" for n in hidden.between for v in n.outputs) | {hidden.first.output, hidden.second.output}
            yield Candidate(
                f"{self.name}-{size / channels:.0%}", hidden.second.output, covers, _Apply(hidden, kept, fitted), -saved,
                unit=((hidden.first.input,), hidden.second.output), lost=Later(partial(_share_lost, fitted)),
            )  # fmt: skip


def _order(weights: Array, gram: Array, channels: int, taps: int) -> Array:
    """Channels by what they contribute, the largest first."""
    blocks = weights.reshape(len(weights), channels, taps)
    moments_of = gram.reshape(channels, taps, channels, taps)
    own = np.stack([moments_of[c, :, c, :] for c in range(channels)])
    return np.argsort(-np.einsum("oct,cts,ocs->c", blocks, own, blocks), kind="stable")


def _fitted(weights: Array, gram: Array, columns: Array) -> tuple[Array, float]:
    """The best weights on those columns only, and the part of the output's energy that is lost."""
    inner = gram[np.ix_(columns, columns)].copy()
    inner[np.diag_indices_from(inner)] += RIDGE * float(np.mean(np.diag(inner))) + 1e-12
    wide = weights.astype(np.float64)
    fitted = np.linalg.solve(inner, (wide @ gram[:, columns]).T).T
    left = wide.copy()
    left[:, columns] -= fitted
    lost, whole = (float(np.sum((m @ gram) * m)) for m in (left, wide))
    return fitted.astype(np.float32), lost / max(whole, 1e-30)


def _share_lost(fitted: Later[tuple[Array, float]]) -> float:
    return fitted()[1]


def _hidden(model: ir.Model) -> Iterator[Hidden]:
    found = {p.output: p for p in products(model)}
    by_input: dict[str, list[Product]] = {}
    for p in found.values():
        by_input.setdefault(p.input, []).append(p)
    for first in found.values():
        if first.groups != 1 or len(first.weights) < FEWEST:
            continue
        value = first.node.outputs[0]
        between: list[ir.Node] = []
        while uses(value) == 1 and not value.is_graph_output():
            (node,) = (u.node for u in value.uses())
            second = found.get(node.outputs[0].name or "")
            if second is not None and second.input == value.name and second.groups == 1 and _fits(first, second):
                yield Hidden(first, second, tuple(between))
                break
            if not _by_channel(node, value, len(first.weights), first.is_convolution):
                break
            between.append(node)
            value = node.outputs[0]


def _fits(first: Product, second: Product) -> bool:
    return first.is_convolution == second.is_convolution and second.weights.shape[1] % len(first.weights) == 0


def _by_channel(node: ir.Node, value: ir.Value, channels: int, images: bool) -> bool:
    if len(node.outputs) != 1 or node.inputs[0] is not value and not is_op(node, "Add", "Mul"):
        return False
    if is_op(node, *ELEMENTWISE):
        return images or "Pool" not in node.op_type
    if is_op(node, "Add", "Mul"):
        other = next((v for v in node.inputs if v is not value), None)
        data = tensor(other)
        return data is not None and (data.size == 1 or _is_vector(tuple(data.shape.numpy()), channels, images))
    if is_op(node, "Conv") and images:
        return node.attributes.get_int("group", 1) == channels and all(tensor(v) is not None for v in node.inputs[1:] if v is not None)
    return False


def _is_vector(shape: tuple[int, ...], channels: int, images: bool) -> bool:
    """One number a channel, along the axis of channels."""
    if images:
        return len(shape) in (3, 4) and shape[-3] == channels and int(np.prod(shape)) == channels
    return bool(shape) and shape[-1] == channels == int(np.prod(shape))


class _Apply:
    """Cuts the matrices; the fitted one takes the second's place."""

    def __init__(self, hidden: Hidden, kept: Array, fitted: Later[tuple[Array, float]]) -> None:
        self._kept, self._fitted = kept, fitted
        self._first, self._second = hidden.first, hidden.second
        self._between = [n.outputs[0].name or "" for n in hidden.between]

    def __call__(self, graph: Substitution) -> None:
        first, second = graph.maker(self._first.output), graph.maker(self._second.output)
        channels = len(self._first.weights)
        self._cut(graph, first, 1, self._first.channel_axis, channels)
        if len(first.inputs) > 2:
            self._cut(graph, first, 2, -1, channels)
        for name in self._between:
            node = graph.maker(name)
            for place, value in enumerate(node.inputs):
                data = tensor(value)
                if data is not None and data.size > 1:
                    shape = tuple(data.shape.numpy())
                    self._cut(graph, node, place, 0 if node.op_type == "Conv" else shape.index(channels) if channels in shape else -1, channels)
            if node.op_type == "Conv":
                node.attributes["group"] = ir.AttrInt64("group", len(self._kept))
        fitted = self._fitted()[0]
        if self._second.is_convolution:
            window = self._second.as_stored(self._second.weights).shape[2:]
            stored = fitted.reshape(len(fitted), len(self._kept), *window)
        else:
            stored = fitted if self._second.channel_axis == 0 else fitted.T
        second.replace_input_with(1, graph.stored(stored, f"{self._second.output}_weight"))
        for name in (self._first.output, *self._between):
            _forget_channels(graph.value(name), channels, len(self._kept), self._first.is_convolution)

    def _cut(self, graph: Substitution, node: ir.Node, place: int, axis: int, channels: int) -> None:
        data = tensor(node.inputs[place])
        if data is None or data.shape.numpy()[axis] != channels:
            return
        node.replace_input_with(place, graph.stored(np.take(data.numpy(), self._kept, axis), f"{node.outputs[0].name}_kept"))


def _forget_channels(value: ir.Value, channels: int, kept: int, images: bool) -> None:
    if value.shape is not None and len(value.shape):
        axis = 1 if images else len(value.shape) - 1
        value.shape = ir.Shape([kept if k == axis and d == channels else d for k, d in enumerate(value.shape)])
