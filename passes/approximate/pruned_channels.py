"""Pruning: hidden channels go, and the layer that reads them is fitted again to make up for it.

A hidden tensor h lies between two products, ``h = f(W1 x + b1)`` with f element-wise (and depthwise convolutions), ``y = W2 h + b2``. With only
the channels S of it, the best W2' on calibration data is the least-squares solution::

    min_V E||W2 h - V h_S||²   ->   V = W2 G[:, S] (G[S, S] + e I)⁻¹,    G = E[h hᵀ]

whose loss is ``tr((W2 - V P_S) G (W2 - V P_S)ᵀ)``. Which channels: of two orders the one that loses less. By what they contribute by themselves,
``||W2[:, c]||² G[c, c]`` (the magnitude of weights, in the metric of the data); or one after the other, always the one whose loss is least when
all others are fitted again (optimal brain surgeon, Hassibi and Stork 1993, a channel at a time), with ``H = G + e I`` of the channels that are left::

    loss_c = tr(V_c (H⁻¹)_cc⁻¹ V_cᵀ)        V -> V - V_c (H⁻¹)_cc⁻¹ (H⁻¹)_c:        H⁻¹ -> H⁻¹ - (H⁻¹)_:c (H⁻¹)_cc⁻¹ (H⁻¹)_c:

Of two channels that are the same it takes one away for nothing; by itself either contributes. Shapes shrink at once: the matrices of both
products, and what lies between. (Zeros that a model already has are cut by the exact step ``channels/dead-channels``.)

Magnitude pruning of single weights has no file of its own: a dense product with zeros in it takes the same time and the same bytes. It gains
only where whole columns of W2 become zero, or rows of W1 with their biases: hidden channels that nobody reads or makes, which go here. By the
magnitude of their weights alone, ``||W1[c]|| ||W2[:, c]||``, they would be chosen worse: in the first two feed-forward layers of MiniLM, fitted
again alike, a half of them loses 1.6 times what the first order loses, and that 1.1 times what the second does.
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
BATCH = 32
"""One channel in so many is looked at together with others for which of them go next."""
ELIMINATED = 2048
"""Depth of the second layer up to which channels are taken away one after the other: beyond it a layer takes 5 seconds and more."""
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
        weights = hidden.second.weights
        rounded = {max(MULTIPLE, round(part * channels / MULTIPLE) * MULTIPLE) for part in PARTS}
        sizes = sorted(s for s in rounded if s < channels)
        orders = Later(lambda: _orders(weights, gram, channels, taps, sizes[0]))
        for size in sizes:
            best = Later(partial(_best, weights, gram, orders, size, taps))
            saved = (channels - size) * (hidden.first.weights.shape[1] + len(weights) * taps) * 4
            covers = frozenset(v.name or "" for n in hidden.between for v in n.outputs) | {hidden.first.output, hidden.second.output}
            yield Candidate(
                f"{self.name}-{size / channels:.0%}", hidden.second.output, covers, _Apply(hidden, size, best), -saved,
                unit=((hidden.first.input,), hidden.second.output), lost=Later(partial(_share_lost, best)),
            )  # fmt: skip


Kept = tuple[Array, Array, float]
"""The channels in their order, the weights that read them, and the part of the output's energy that is lost."""


def _orders(weights: Array, gram: Array, channels: int, taps: int, least: int) -> list[Array]:
    orders = [_by_contribution(weights, gram, channels, taps)]
    return [*orders, _by_elimination(weights, gram, channels, taps, least)] if len(gram) <= ELIMINATED else orders


def _best(weights: Array, gram: Array, orders: Later[list[Array]], size: int, taps: int) -> Kept:
    return min((_kept(weights, gram, order[:size], taps) for order in orders()), key=lambda kept: kept[2])


def _share_lost(best: Later[Kept]) -> float:
    return best()[2]


def _by_contribution(weights: Array, gram: Array, channels: int, taps: int) -> Array:
    """Channels by what they contribute by themselves, the largest first."""
    blocks = weights.reshape(len(weights), channels, taps)
    own = np.einsum("ctcs->cts", gram.reshape(channels, taps, channels, taps))
    return np.argsort(-np.einsum("oct,cts,ocs->c", blocks, own, blocks), kind="stable")


def _by_elimination(weights: Array, gram: Array, channels: int, taps: int, least: int) -> Array:
    """Channels, those that go first last, until ``least`` are left.

    The cheapest few are taken out of their own part of H⁻¹ one by one, as long as they cost no more than others did, and of the whole at once.
    """
    left, inverse = weights.astype(np.float64), np.linalg.inv(_damped(gram))
    alive, gone = np.arange(channels), np.zeros(0, np.int64)
    while len(alive) > least:
        batch = max(4, len(alive) // BATCH)
        costs = _costs(left, inverse, taps)
        cheapest = np.argsort(costs, kind="stable")
        bound = float(costs[cheapest[batch]]) if batch < len(alive) else np.inf
        among = _columns(cheapest[:batch], taps)
        picked = _cheapest(left[:, among], inverse[np.ix_(among, among)], taps, bound, min(batch, len(alive) - least))
        out = cheapest[picked]
        left, inverse = _without(left, inverse, _columns(out, taps))
        gone = np.append(gone, alive[out])
        alive = np.delete(alive, out)
    return np.concatenate([alive, gone[::-1]])


def _cheapest(left: Array, inverse: Array, taps: int, bound: float, most: int) -> list[int]:
    """Which of these few channels go, in order: those that cost at most ``bound``, and in any case a quarter of them."""
    alive, gone = list(range(left.shape[1] // taps)), list[int]()
    fewest = max(1, len(alive) // 4)
    while len(gone) < most:
        costs = _costs(left, inverse, taps)
        place = int(np.argmin(costs))
        if costs[place] > bound and len(gone) >= fewest:
            break
        left, inverse = _without(left, inverse, _columns(np.array([place]), taps))
        gone.append(alive.pop(place))
    return gone


def _costs(left: Array, inverse: Array, taps: int) -> Array:
    """What each channel's removal loses: tr(V_c (H⁻¹)_cc⁻¹ V_cᵀ)."""
    count = left.shape[1] // taps
    blocks = inverse.reshape(count, taps, count, taps)
    own = np.einsum("ctcs->cts", blocks)
    read = left.reshape(-1, count, taps).transpose(1, 2, 0)
    return np.asarray(np.sum(read * np.linalg.solve(own, read), axis=(1, 2)))


def _without(left: Array, inverse: Array, columns: Array) -> tuple[Array, Array]:
    """V and H⁻¹ when these columns are gone and the others fitted again."""
    step = np.linalg.solve(inverse[np.ix_(columns, columns)], inverse[columns])
    left, inverse = left - left[:, columns] @ step, inverse - inverse[:, columns] @ step
    stay = np.delete(np.arange(len(inverse)), columns)
    return left[:, stay], inverse[np.ix_(stay, stay)]


def _columns(channels: Array, taps: int) -> Array:
    """Where a channel's weights stand."""
    return np.asarray((channels[:, None] * taps + np.arange(taps)).reshape(-1))


def _damped(gram: Array) -> Array:
    """G + e I"""
    damped = gram.astype(np.float64)
    damped[np.diag_indices_from(damped)] += RIDGE * float(np.mean(np.diag(damped))) + 1e-12
    return damped


def _kept(weights: Array, gram: Array, channels: Array, taps: int) -> Kept:
    kept = np.sort(channels)
    return kept, *_fitted(weights, gram, _columns(kept, taps))


def _fitted(weights: Array, gram: Array, columns: Array) -> tuple[Array, float]:
    """The best weights on those columns only, and the part of the output's energy that is lost."""
    inner = _damped(gram[np.ix_(columns, columns)])
    wide = weights.astype(np.float64)
    fitted = np.linalg.solve(inner, (wide @ gram[:, columns]).T).T
    left = wide.copy()
    left[:, columns] -= fitted
    lost, whole = (float(np.sum((m @ gram) * m)) for m in (left, wide))
    return fitted.astype(np.float32), lost / max(whole, 1e-30)


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

    def __init__(self, hidden: Hidden, size: int, best: Later[Kept]) -> None:
        self._size, self._best = size, best
        self._first, self._second = hidden.first, hidden.second
        self._between = [n.outputs[0].name or "" for n in hidden.between]

    def __call__(self, graph: Substitution) -> None:
        first, second = graph.maker(self._first.output), graph.maker(self._second.output)
        kept, fitted, _ = self._best()
        channels = len(self._first.weights)
        self._cut(kept, graph, first, 1, self._first.channel_axis, channels)
        if len(first.inputs) > 2:
            self._cut(kept, graph, first, 2, -1, channels)
        for name in self._between:
            node = graph.maker(name)
            for place, value in enumerate(node.inputs):
                data = tensor(value)
                if data is not None and data.size > 1:
                    shape = tuple(data.shape.numpy())
                    self._cut(kept, graph, node, place, 0 if node.op_type == "Conv" else shape.index(channels) if channels in shape else -1, channels)
            if node.op_type == "Conv":
                node.attributes["group"] = ir.AttrInt64("group", self._size)
        if self._second.is_convolution:
            window = self._second.as_stored(self._second.weights).shape[2:]
            stored = fitted.reshape(len(fitted), self._size, *window)
        else:
            stored = fitted if self._second.channel_axis == 0 else fitted.T
        second.replace_input_with(1, graph.stored(stored, f"{self._second.output}_weight"))
        for name in (self._first.output, *self._between):
            _forget_channels(graph.value(name), channels, self._size, self._first.is_convolution)

    def _cut(self, kept: Array, graph: Substitution, node: ir.Node, place: int, axis: int, channels: int) -> None:
        data = tensor(node.inputs[place])
        if data is None or data.shape.numpy()[axis] != channels:
            return
        node.replace_input_with(place, graph.stored(np.take(data.numpy(), kept, axis), f"{node.outputs[0].name}_kept"))


def _forget_channels(value: ir.Value, channels: int, kept: int, images: bool) -> None:
    if value.shape is not None and len(value.shape):
        axis = 1 if images else len(value.shape) - 1
        value.shape = ir.Shape([kept if k == axis and d == channels else d for k, d in enumerate(value.shape)])
