"""Experts that compute the same with other weights become one, whose weights are their average (paper 2, experts weights averaging).

``Σ g_e(x) f_e(x)`` becomes ``f̄(x) Σ g_e(x)``, where f̄ has the mean of the experts' weights. Experts in parallel without gates are one wide layer in
the exact graph, ``W2 a(W1 x)``: there the hidden units of E groups become one group, W1 averaged and W2 summed. With W1_e = W̄1 + D_e,
W2_e = W̄2 + F_e and a β-smooth, L-Lipschitz activation the first order cancels::

    ||mean_e f_e(x) - f̄(x)|| <= ||W̄2|| (β / 2) mean_e ||D_e x||² + L mean_e ||F_e|| ||D_e x||

so what was trained with averaging, whose experts lie close together, loses little. Units are matched to those of the first expert first (a
hidden layer computes the same in any order). Experts that a router sends different inputs to lie far apart: the measured error rejects
them, or the spread, ``mean_e ||D_e|| / ||W̄1||``, before anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Refusal, Site, Wanted
from passes.approximate.substitution import Substitution
from rewriter.edit import is_op, tensor

Array = np.ndarray
CLOSE = 0.5
"""Spread up to which an average is proposed without gates; independent experts have sqrt(E - 1)."""
NEAR = 0.9
"""Spread up to which it is worth saying that it was not."""
FAR = 1.0
"""Distance of a hidden unit's weights to those of the nearest other one, in its own length, from which on it has no twin in another expert:
two experts of a spread of ``NEAR`` are 0.95 apart, independent units sqrt(2)."""
LOOKED = 64
"""Hidden units that are looked at for that."""
MOST, FEW = 16, 3
"""Experts that are looked for, and numbers of them that compete."""
BY_ELEMENT = (
    "Add", "Sub", "Mul", "Div", "Gelu", "Relu", "Sigmoid", "Tanh", "Erf", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Softplus", "Clip", "Neg",
)  # fmt: skip


class AveragedExperts:
    """Sums of gated or plain branches of one structure, and wide layers whose hidden units are groups that lie close together."""

    name = "average-experts"

    def wants(self, model: ir.Model) -> Wanted:
        ends = [(s.input, s.total) for s in sums(model)] + [(w.input, w.output) for w in wide_layers(model)]
        return Wanted(frozenset(v.name or "" for pair in ends for v in pair))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for found in sums(site.model):
            yield from self._of_sum(found)
        for layer in wide_layers(site.model):
            yield from self._of_layer(layer)

    def _of_sum(self, found: BranchSum) -> Iterator[Candidate]:
        count = len(found.branches)
        saved = sum(v.const_value.nbytes for vs in found.constants for v in vs if v.const_value is not None)
        name, source = found.total.name or "", found.input.name or ""
        yield Candidate(
            f"{self.name}-{count}", name, found.covers, _Average(name, source, found), bytes=-saved * (count - 1) // count,
            unit=((source,), name), bound=f"spread {spread(found.arrays()):.3g}",
        )  # fmt: skip

    def _of_layer(self, layer: WideLayer) -> Iterator[Candidate | Refusal]:
        hidden = layer.first.shape[1]
        if nearest(layer.first) > FAR:
            return
        orders = {count: aligned(layer, count) for count in range(2, MOST + 1) if hidden % count == 0}
        spreads = {count: spread([layer.first[:, o] for o in order]) for count, order in orders.items()}
        name, source = layer.output.name or "", layer.input.name or ""
        close = [count for count, far in spreads.items() if far <= CLOSE]
        if not close and spreads and min(spreads.values()) <= NEAR:
            count, far = min(spreads.items(), key=lambda pair: pair[1])
            yield Refusal(self.name, name, f"its hidden units are no {count} experts that lie close together: spread {far:.3g}")
        for count in close[-FEW:]:
            saved, bound = (layer.first.nbytes + layer.second.nbytes) * (count - 1) // count, f"spread {spreads[count]:.3g}"
            apply = _Narrow(layer, orders[count])
            yield Candidate(f"{self.name}-{count}", name, layer.covers, apply, bytes=-saved, unit=((source,), name), bound=bound)


def spread(experts: Sequence[Array]) -> float:
    """mean_e ||W_e - W̄|| / ||W̄||."""
    mean = np.mean([e.astype(np.float64) for e in experts], axis=0)
    size = float(np.linalg.norm(mean))
    return float(np.mean([np.linalg.norm(e - mean) for e in experts])) / size if size > 0 else float("inf")


# Experts that a sum keeps apart


@dataclass(frozen=True)
class BranchSum:
    """``total`` = ``rest`` + Σ gate · branch; gates are None where there is none. ``constants``: by place, the weights of each branch."""

    input: ir.Value
    total: ir.Value
    gates: tuple[ir.Value | None, ...]
    branches: tuple[ir.Value, ...]
    rest: tuple[ir.Value, ...]
    constants: tuple[tuple[ir.Value, ...], ...]
    covers: frozenset[str]

    def arrays(self) -> list[Array]:
        """The matrices of each expert, flat."""
        picked = [vs for vs in self.constants if len(vs[0].shape or ()) > 1]
        return [np.concatenate([_array(vs[e]).reshape(-1) for vs in picked]) for e in range(len(self.branches))]


def sums(model: ir.Model) -> Iterator[BranchSum]:
    """The largest sums of branches of one structure."""
    for node in model.graph:
        if not is_op(node, "Add", "Sum") or any(is_op(u.node, "Add", "Sum") and len(node.outputs[0].uses()) == 1 for u in node.outputs[0].uses()):
            continue
        terms = [(v, *_gated(v)) for v in _terms(node.outputs[0])]
        kinds = [None if branch.producer() is None else (gate is not None, _kind(branch.producer())) for _, gate, branch in terms]
        for kind in dict.fromkeys(k for k in kinds if k is not None):
            group = [(gate, branch) for k, (_, gate, branch) in zip(kinds, terms, strict=True) if k == kind]
            rest = tuple(v for k, (v, _, _) in zip(kinds, terms, strict=True) if k != kind)
            found = _alike(node.outputs[0], group, rest) if 2 <= len(group) <= MOST else None
            if found is not None:
                yield found


def _terms(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    if node is None or not is_op(node, "Add", "Sum"):
        return [value]
    found: list[ir.Value] = []
    for v in node.inputs:
        assert v is not None
        found += _terms(v) if len(v.uses()) == 1 and not v.is_graph_output() else [v]
    return found


def _gated(value: ir.Value) -> tuple[ir.Value | None, ir.Value]:
    """(gate, branch) of a term: the gate is the factor that is the same for all channels."""
    node = value.producer()
    if node is not None and is_op(node, "Mul"):
        for gate, branch in (tuple(node.inputs), tuple(node.inputs)[::-1]):
            if gate is None or branch is None or not gate.shape or not branch.shape or tensor(gate) is not None:
                continue
            if gate.shape[-1] == 1 and branch.shape[-1] != 1:
                return gate, branch
    return None, value


def _alike(total: ir.Value, terms: Sequence[tuple[ir.Value | None, ir.Value]], rest: tuple[ir.Value, ...]) -> BranchSum | None:
    branches = tuple(branch for _, branch in terms)
    constants: list[tuple[ir.Value, ...]] = []
    nodes: list[ir.Node] = []
    inputs: list[ir.Value] = []
    if not _same(branches, constants, nodes, inputs) or len({id(v) for v in inputs}) != 1:
        return None
    if not any(is_op(n, "MatMul", "Gemm", "Conv") for n in nodes) or not any(len(vs[0].shape or ()) > 1 for vs in constants):
        return None
    covers = frozenset(v.name or "" for n in nodes for v in n.outputs) | {total.name or ""}
    return BranchSum(inputs[0], total, tuple(g for g, _ in terms), branches, rest, tuple(constants), covers)


def _same(values: Sequence[ir.Value], constants: list[tuple[ir.Value, ...]], nodes: list[ir.Node], inputs: list[ir.Value]) -> bool:
    """Do these differ in nothing but weights? Notes the weights, the nodes between, and the values that all of them read."""
    if all(v is values[0] for v in values):
        if tensor(values[0]) is None:
            inputs.append(values[0])
        return True
    data = [tensor(v) for v in values]
    if all(d is not None for d in data):
        constants.append(tuple(values))
        kinds = {(d.dtype, tuple(d.shape.numpy())) for d in data if d is not None}
        return len(kinds) == 1 and next(iter(kinds))[0].is_floating_point() and all(v.is_initializer() for v in values)
    makers = [v.producer() for v in values]
    first = makers[0]
    if first is None or any(m is None or _kind(m) != _kind(first) or len(m.outputs) != 1 or len(m.outputs[0].uses()) != 1 for m in makers):
        return False
    nodes += [m for m in makers if m is not None]
    return all(
        (columns[0] is None and all(c is None for c in columns)) or _same([c for c in columns if c is not None], constants, nodes, inputs)
        for columns in zip(*(m.inputs for m in makers if m is not None), strict=True)
    )


def _kind(node: ir.Node | None) -> tuple[object, ...]:
    if node is None:
        return ()
    return node.domain, node.op_type, len(node.inputs), len(node.outputs), tuple(sorted((k, str(a.value)) for k, a in node.attributes.items()))


class _Average:
    """The structure of the first branch, once, on averaged weights."""

    def __init__(self, total: str, source: str, found: BranchSum) -> None:
        self._total, self._source = total, source
        self._branches = tuple(v.name or "" for v in found.branches)
        self._gates = tuple(g.name or "" for g in found.gates if g is not None)
        self._rest = tuple(v.name or "" for v in found.rest)
        self._means = {vs[0].name: np.mean([_array(v).astype(np.float64) for v in vs], axis=0).astype(_array(vs[0]).dtype) for vs in found.constants}

    def __call__(self, graph: Substitution) -> None:
        end = graph.maker(self._total)
        branch = self._copied(graph.value(self._branches[0]), graph, end, {})
        old, editor = end.outputs[0], graph.editor
        factor: ir.Value | None = None
        for name in self._gates:
            gate = graph.value(name)
            factor = gate if factor is None else editor.emit(end, "Add", [factor, gate], dtype=old.dtype, shape=gate.shape)
        if factor is None:
            factor = editor.constant(np.array(len(self._branches), old.dtype.numpy() if old.dtype else np.float32), "experts")
        result = editor.emit(end, "Mul", [branch, factor], dtype=old.dtype, shape=old.shape)
        for name in self._rest:
            result = editor.emit(end, "Add", [result, _term(graph, name)], dtype=old.dtype, shape=old.shape)
        graph.replace(self._total, result)

    def _copied(self, value: ir.Value, graph: Substitution, end: ir.Node, made: dict[ir.Value, ir.Value]) -> ir.Value:
        if value in made:
            return made[value]
        if value.name in self._means:
            made[value] = graph.stored(self._means[value.name], f"{value.name}_mean")
        elif value.name == self._source or value.producer() is None:
            return value
        else:
            node = value.producer()
            assert node is not None
            inputs = [None if v is None else self._copied(v, graph, end, made) for v in node.inputs]
            options = {k: a.value for k, a in node.attributes.items()}
            made[value] = graph.editor.emit(end, node.op_type, inputs, options, domain=node.domain, dtype=value.dtype, shape=value.shape)
        return made[value]


def _term(graph: Substitution, name: str) -> ir.Value:
    """A computed value or a weight."""
    return graph.model.graph.initializers.get(name) or graph.value(name)


# Experts that the exact search has made one wide layer


@dataclass(frozen=True)
class WideLayer:
    """``output`` = by-element(``input`` · first) · second. ``between``: the names of the values between; ``channels``: names of constants with
    a number for each hidden unit."""

    input: ir.Value
    output: ir.Value
    first: Array
    second: Array
    between: tuple[str, ...]
    channels: dict[str, Array]
    covers: frozenset[str]


def wide_layers(model: ir.Model) -> Iterator[WideLayer]:
    """Two products with nothing between them but operators that act on each element."""
    for node in model.graph:
        weights = tensor(node.inputs[1]) if is_op(node, "MatMul") else None
        if weights is not None and len(weights.shape) == 2 and tensor(node.inputs[0]) is None:
            found = _wide(node)
            if found is not None:
                yield found


def _wide(node: ir.Node) -> WideLayer | None:
    source, kernel = node.inputs
    assert source is not None and kernel is not None
    first = _array(kernel)
    hidden = first.shape[1]
    between, channels = [node.outputs[0]], dict[str, Array]()
    inside, waiting, last = {node.outputs[0]}, [node.outputs[0]], None
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return None
        for use in value.uses():
            reader = use.node
            if is_op(reader, "MatMul") and use.idx == 0 and tensor(reader.inputs[1]) is not None and last in (None, reader):
                last = reader
                continue
            if not is_op(reader, *BY_ELEMENT):
                return None
            for v in reader.inputs:
                data = tensor(v)
                if data is not None and data.size > 1:
                    if data.shape.numpy()[-1] != hidden or data.size != hidden or v is None or not v.is_initializer() or len(v.uses()) != 1:
                        return None
                    channels[v.name or ""] = _array(v)
            if reader.outputs[0] not in inside:
                inside.add(reader.outputs[0])
                between.append(reader.outputs[0])
                waiting.append(reader.outputs[0])
    if last is None or not _closed(inside, {node}):
        return None
    second = _array(last.inputs[1])
    if second.ndim != 2 or second.shape[0] != hidden:
        return None
    covers = frozenset(v.name or "" for v in (*between, last.outputs[0]))
    return WideLayer(source, last.outputs[0], first, second, tuple(v.name or "" for v in between), channels, covers)


def _closed(inside: Iterable[ir.Value], makers: set[ir.Node]) -> bool:
    """Is everything that the elements are combined with one of them, or constant?"""
    values = set(inside)
    for value in values:
        node = value.producer()
        if node is None or node in makers:
            continue
        if any(v is not None and v not in values and tensor(v) is None for v in node.inputs):
            return False
    return True


def nearest(first: Array) -> float:
    """How far the nearest other hidden unit is, of ``LOOKED`` units the median. ``first``: [inputs, hidden]."""
    units = first.T.astype(np.float64)
    lengths = np.linalg.norm(units, axis=1)
    places = np.unique(np.linspace(0, len(units) - 1, min(LOOKED, len(units))).astype(int))
    squares = lengths[places, None] ** 2 + lengths**2 - 2 * units[places] @ units.T
    squares[np.arange(len(places)), places] = np.inf
    distances = np.sqrt(np.maximum(squares.min(axis=1), 0)) / np.maximum(lengths[places], 1e-30)
    return float(np.median(distances))


def aligned(layer: WideLayer, count: int) -> list[Array]:
    """For each expert, which hidden units stand for units 0, 1, .. of the first: as they stand, or matched where that is closer."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    hidden = layer.first.shape[1]
    size = hidden // count
    signs = np.concatenate([layer.first, layer.second.T, *(c.reshape(1, -1) for c in layer.channels.values())]).astype(np.float64)
    groups = [np.arange(e * size, (e + 1) * size) for e in range(count)]
    found = [groups[0]]
    for group in groups[1:]:
        near = signs[:, groups[0]].T @ signs[:, group]
        _, match = linear_sum_assignment(near, maximize=True)
        found.append(group[match])
    plain, matched = (spread([layer.first[:, o] for o in order]) for order in (groups, found))
    return found if matched < plain else groups


class _Narrow:
    """One group of hidden units for all: what goes in is averaged, what comes out is summed."""

    def __init__(self, layer: WideLayer, order: Sequence[Array]) -> None:
        self._first = _mean(layer.first, order)
        self._second = np.sum([layer.second[o].astype(np.float64) for o in order], axis=0).astype(layer.second.dtype)
        self._channels = {name: _mean(array, order) for name, array in layer.channels.items()}
        self._between, self._output = layer.between, layer.output.name or ""

    def __call__(self, graph: Substitution) -> None:
        first, last = graph.maker(self._between[0]), graph.maker(self._output)
        first.replace_input_with(1, graph.stored(self._first, f"{self._between[0]}_mean"))
        last.replace_input_with(1, graph.stored(self._second, f"{self._output}_sum"))
        for name in self._between:
            value = graph.value(name)
            if value.shape is not None:
                value.shape = ir.Shape([*value.shape[:-1], self._first.shape[1]])
            node = value.producer()
            assert node is not None
            for place, read in enumerate(node.inputs):
                if read is not None and read.name in self._channels:
                    node.replace_input_with(place, graph.stored(self._channels[read.name], f"{read.name}_mean"))


def _mean(array: Array, order: Sequence[Array]) -> Array:
    return np.asarray(np.mean([array[..., o].astype(np.float64) for o in order], axis=0), array.dtype)


def _array(value: ir.Value | None) -> Array:
    data = tensor(value)
    assert data is not None
    return data.numpy()
