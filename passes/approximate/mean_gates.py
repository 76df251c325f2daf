"""A gate on channels becomes the number that it is on average (paper 42 does so where a gate never changes; here it hardly does).

``y = W (h * g(h)) + b``: g has one number a channel, made from all of h (a pooling, two small products, a sigmoid: squeeze and excitation), and
a product W of constant weights reads what it scales. Without the gate, what W reads is h itself. The best that a product of h can do instead
is, on calibration data, the least-squares solution with an offset::

    min_{V,d} E||W (h * g) - V h - d||²     ->     [V d] = W E[(h * g) h̄ᵀ] (E[h̄ h̄ᵀ] + e I)⁻¹,     h̄ = [h 1]

which for a gate that does not change is ``V = W diag(g)``. Where no single product of one tap reads it, channel by channel a constant takes the
gate's place, ``c = E[g h²] / E[h²]``, and folds into the weights beside it by exact laws. Either way the pooling and all that follows it are dead.
A gate tells inputs apart, or it would not have been trained: how much of that is lost without it, only the whole model's metric says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Refusal, Site, Wanted
from passes.approximate.fitted_product import damped, put, takes_offset
from passes.approximate.products import Product, products
from passes.approximate.substitution import Substitution
from passes.calibrate import aligned
from rewriter.edit import is_op, tensor, uses

Array = np.ndarray
Pairs = list[tuple[Array, Array]]
LONGEST = 16
"""Nodes of a gate: what takes more is a branch of the network and no gate."""
ROWS = 16384
"""Rows that a product is fitted to."""
RIDGE = 1e-4
"""Of the mean square of a channel."""


class MeanGates:
    """Products of a value and of one number for each of its channels, made from that value alone."""

    name = "mean-gate"

    def wants(self, model: ir.Model) -> Wanted:
        return Wanted(frozenset(v.name or "" for gated, gate, _ in gates(model) for v in (gated, gate)))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        readers = {p.input: p for p in products(site.model) if p.groups == 1}
        for gated, gate, scaled in gates(site.model):
            name, source = scaled.name or "", gated.name or ""
            pairs = [(h, g) for h, g in aligned(site.recorded[source], site.recorded[gate.name or ""])]
            axis = _channel_axis(pairs)
            if axis is None:
                yield Refusal(self.name, name, "the gate has more than one number for a channel")
                continue
            reader = readers.get(name) if uses(scaled) == 1 else None
            pointwise = reader is not None and axis == (1 if reader.is_convolution else pairs[0][0].ndim - 1)
            if reader is not None and pointwise and reader.weights.shape[1] == pairs[0][1].shape[axis]:
                yield self._with_reader(source, gate.name or "", name, reader, pairs, axis)
                continue
            constant, lost = _constant(pairs, axis)
            covers = frozenset({name, gate.name or ""})
            yield Candidate(self.name, name, covers, _Fixed(gate.name or "", constant), unit=((source,), name), lost=lost)

    def _with_reader(self, source: str, gate: str, name: str, reader: Product, pairs: Pairs, axis: int) -> Candidate:
        weights, offset, lost = _fitted(reader.weights, pairs, axis, offset=takes_offset(reader))
        return Candidate(
            self.name,
            name,
            reader.covers | {name, gate},
            _Fitted(reader, source, weights, offset),
            unit=((source,), reader.timed),
            lost=lost,
            fitted=frozenset({reader.output}),
        )


def gates(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value, ir.Value]]:
    """(h, g, h * g) wherever g is smaller than h, as far as shapes say, and made from h and weights alone."""
    for node in model.graph:
        if not is_op(node, "Mul"):
            continue
        for gated, gate in (tuple(node.inputs), tuple(node.inputs)[::-1]):
            if gated is None or gate is None or gate is gated or tensor(gate) is not None:
                continue
            if _is_channel_wise(gate) and _made_from(gate, gated):
                yield gated, gate, node.outputs[0]
                break


def _is_channel_wise(gate: ir.Value) -> bool:
    """[N, C, 1, 1], [N, 1, C] and the like, with a C that is known: a constant has one length."""
    if gate.shape is None or len(gate.shape) < 3:
        return False
    lengths = [d for d in list(gate.shape)[1:] if d != 1]
    return len(lengths) == 1 and isinstance(lengths[0], int) and lengths[0] > 1


def _made_from(gate: ir.Value, source: ir.Value) -> bool:
    """Does everything that the gate is computed from come from there?"""
    found: set[ir.Node] = set()
    waiting, reached = [gate], False
    while waiting:
        value = waiting.pop()
        if value is source:
            reached = True
            continue
        maker = value.producer()
        if maker is None:
            if not value.is_initializer():
                return False
            continue
        if maker not in found:
            found.add(maker)
            if len(found) > LONGEST or any(a.type == ir.AttributeType.GRAPH for a in maker.attributes.values()):
                return False
            waiting += [v for v in maker.inputs if v is not None]
    return reached


def _channel_axis(pairs: Pairs) -> int | None:
    """Where the channels of a gate stand, if it has one number for each and is spread over something."""
    axes = {k for h, g in pairs for k in range(1, g.ndim) if g.shape[k] != 1}
    if len(axes) != 1:
        return None
    (axis,) = axes
    fits = all(h.ndim == g.ndim and h.shape[axis] == g.shape[axis] and h.size > g.size for h, g in pairs)
    return axis if fits else None


def _fitted(weights: Array, pairs: Pairs, axis: int, *, offset: bool) -> tuple[Array, Array, float]:
    """V, d (zeros without ``offset``), and ||W (h * g) - V h - d||² / ||W (h * g)||²."""
    before = np.concatenate([_rows(h, axis) for h, _ in pairs])
    after = np.concatenate([_rows(h * g, axis) for h, g in pairs])
    step = max(1, len(before) // ROWS)
    h, scaled = before[::step].astype(np.float64), after[::step].astype(np.float64)
    bar = np.concatenate([h, np.full((len(h), 1), float(offset))], axis=1)
    square = damped(bar.T @ bar, RIDGE)
    wanted = scaled @ weights.T.astype(np.float64)
    solution = np.linalg.solve(square, bar.T @ wanted)  # [channels + 1, outputs]
    left = wanted - bar @ solution
    lost = float(np.sum(left**2)) / max(float(np.sum(wanted**2)), 1e-30)
    return solution[:-1].T.astype(np.float32), (solution[-1] * float(offset)).astype(np.float32), lost


def _rows(array: Array, axis: int) -> Array:
    moved = np.moveaxis(array, axis, -1)
    return np.asarray(moved.reshape(-1, moved.shape[-1]))


def _constant(pairs: Pairs, axis: int) -> tuple[Array, float]:
    """c, of the gate's shape for a batch of one, and ||h * (g - c)||² / ||h * g||²."""
    energies = [_over_places(h.astype(np.float64) ** 2, axis) for h, _ in pairs]  # [N, C]
    values = [np.moveaxis(g.astype(np.float64), axis, 1).reshape(len(g), -1) for _, g in pairs]  # [N or 1, C]
    weight = sum(e.sum(axis=0) for e in energies)
    mean = np.mean(np.concatenate(values), axis=0)
    constant = np.where(weight > 0, sum((e * g).sum(axis=0) for e, g in zip(energies, values, strict=True)) / np.where(weight > 0, weight, 1.0), mean)
    lost = sum(float((e * (g - constant) ** 2).sum()) for e, g in zip(energies, values, strict=True))
    whole = sum(float((e * g**2).sum()) for e, g in zip(energies, values, strict=True))
    shape = [1] * pairs[0][1].ndim
    shape[axis] = -1
    return constant.astype(np.float32).reshape(shape), lost / max(whole, 1e-30)


def _over_places(squares: Array, axis: int) -> Array:
    """Sums for each sample and channel."""
    return np.asarray(np.moveaxis(squares, axis, 1).reshape(len(squares), squares.shape[axis], -1).sum(axis=2))


class _Fixed:
    """The constant in the gate's place."""

    def __init__(self, gate: str, values: Array) -> None:
        self._gate, self._values = gate, values

    def __call__(self, graph: Substitution) -> None:
        graph.replace(self._gate, graph.stored(self._values, f"{self._gate}_mean"))


class _Fitted:
    """The product of what was scaled reads what there was before, with weights that were fitted to it."""

    def __init__(self, reader: Product, source: str, weights: Array, offset: Array) -> None:
        self._reader, self._source, self._weights, self._offset = reader, source, weights, offset

    def __call__(self, graph: Substitution) -> None:
        graph.maker(self._reader.output).replace_input_with(0, graph.value(self._source))
        put(graph, self._reader, self._weights, self._offset if takes_offset(self._reader) else None)
