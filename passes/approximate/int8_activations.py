"""Products of two activations on 8-bit numbers: ``q·kᵀ`` and ``p·v`` of attention (papers 17 and 62 quantise them like the layers).

Both sides are written per tensor, ``a ≈ (q_a - z_a) s_a`` and ``b ≈ (q_b - z_b) s_b`` with q in 0..255 and z whole, so that over a depth n::

    a·b ≈ s_a s_b (q_a·q_b - z_a Σ q_b - z_b Σ q_a + n z_a z_b)

which integers of 32 bits hold as long as 255² n < 2³¹. No side is constant: there is nothing to fit but the two scales (a grid of clipping
ranges), and what is lost is ``â·b̂ - a·b``, which is computed on what was recorded. Probabilities of a softmax lie in [0, 1], so their z is 0;
1/255 would do for their scale without data, but where no row is sharp the range that was seen is a small part of that, and the codes are finer.
Codes of both sides are unsigned: x86 without VNNI adds pairs of products of unsigned and signed bytes in 16 bits, which two large ones exceed.
A Transpose that nobody else reads moves codes, a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.rounding import activation_codes
from passes.approximate.substitution import Codes, Substitution
from passes.calibrate import aligned
from rewriter.edit import is_op, required, tensor, uses

Array = np.ndarray
LEAST = 1 << 14
"""Multiplications below which a product is left alone: its quantisers would cost more than it."""
DEEPEST = (2**31 - 1) // 255**2
"""Depth up to which no sum overflows."""
BETWEEN = ("Add", "Mul", "Div", "Sub", "Where")
"""What scores go through on their way to the Softmax of attention: scales and masks."""
SAMPLES = 4
"""Recorded inputs on which the error is computed."""


@dataclass(frozen=True)
class _Side:
    """What becomes codes, by name. ``turned``: what the product reads, where that is ``Transpose(value)`` and only the product reads it."""

    value: str
    turned: str = ""
    perm: tuple[int, ...] = ()

    def as_read(self, array: Array) -> Array:
        """What the product reads, of what was recorded."""
        return array.transpose(self.perm) if self.perm else array


@dataclass(frozen=True)
class _Pair:
    output: str
    sides: tuple[_Side, _Side]
    unit: tuple[tuple[str, ...], str]

    @property
    def values(self) -> tuple[str, ...]:
        """Of the sides, each once."""
        return tuple(dict.fromkeys(side.value for side in self.sides))


class Int8Activations:
    """``MatMul`` of two values that are computed: between DequantizeLinear of codes, or as MatMulInteger."""

    name = "quantise/int8-activations"

    def wants(self, model: ir.Model) -> Wanted:
        return Wanted(frozenset(name for pair in _pairs(model) for name in (*pair.values, pair.output, *pair.unit[0], pair.unit[1])))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for pair in _pairs(site.model):
            seen = [site.recorded[side.value] for side in pair.sides]
            if not all(r.samples and r.samples[0].size and np.isfinite(r.low) and np.isfinite(r.high) for r in seen):
                yield Refusal(self.name, pair.output, "nothing was recorded there, or what is infinite")
                continue
            depth = pair.sides[0].as_read(seen[0].samples[0]).shape[-1]
            if depth > DEEPEST:
                yield Refusal(self.name, pair.output, f"sums of {depth} products of codes do not fit 32 bits")
            elif depth * site.recorded[pair.output].samples[0].size >= LEAST:
                yield from self._of(pair, site)

    def _of(self, pair: _Pair, site: Site) -> Iterator[Candidate]:
        seen = {name: site.recorded[name] for name in pair.values}
        codes = {name: activation_codes(r.numbers(), r.low, r.high) for name, r in seen.items()}
        error = Later(partial(_error, pair, site, codes))
        covers = frozenset({pair.output, *(s.turned for s in pair.sides if s.turned)})
        for name, apply in ((self.name, _Apply), (f"{self.name}-integers", _ByIntegers)):
            yield Candidate(
                name, pair.output, covers, apply(pair, codes), reads=frozenset(pair.values), unit=pair.unit, lost=error,
                numbers=self.name,
            )  # fmt: skip


def _pairs(model: ir.Model) -> Iterator[_Pair]:
    for node in model.graph:
        if not is_op(node, "MatMul"):
            continue
        sides = [required(node, place) for place in (0, 1)]
        if all(_computed(v) for v in sides):
            yield _Pair(node.outputs[0].name or "", (_side(sides[0]), _side(sides[1])), _timed(node))


def _timed(node: ir.Node) -> tuple[tuple[str, ...], str]:
    """Between what the product is timed: runtimes compute attention as one, so that a product of it alone would tell little."""
    around = _attention(node)
    reads = [required(n, place) for n in around for place in (0, 1)]
    inputs = [_side(v).value for v in reads if all(v is not n.outputs[0] for n in around) and not _of_softmax(v)]
    return tuple(dict.fromkeys(inputs)), around[-1].outputs[0].name or ""


def _attention(node: ir.Node) -> tuple[ir.Node, ...]:
    """(scores, values) of the attention that the product is part of; else itself."""
    maker = required(node, 0).producer()
    if maker is not None and is_op(maker, "Softmax"):
        while maker is not None and is_op(maker, "Softmax", *BETWEEN):
            maker = next((v.producer() for v in maker.inputs if v is not None and tensor(v) is None), None)
        return (maker, node) if maker is not None and is_op(maker, "MatMul") else (node,)
    after: ir.Value = node.outputs[0]
    while uses(after) == 1 and not after.is_graph_output():
        (reader,) = (u.node for u in after.uses())
        if is_op(reader, "MatMul") and _of_softmax(after) and reader.inputs[0] is after:
            return node, reader
        if not is_op(reader, "Softmax", *BETWEEN):
            break
        after = reader.outputs[0]
    return (node,)


def _of_softmax(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and is_op(maker, "Softmax")


def _computed(value: ir.Value) -> bool:
    known = bool(value.name) and value.shape is not None and len(value.shape) >= 2
    return known and value.dtype == ir.DataType.FLOAT and tensor(value) is None


def _side(value: ir.Value) -> _Side:
    maker = value.producer()
    if maker is None or not is_op(maker, "Transpose") or uses(value) != 1:
        return _Side(value.name or "")
    source = required(maker, 0)
    perm = maker.attributes.get_ints("perm", None)
    if not source.name or tensor(source) is not None or perm is None:
        return _Side(value.name or "")
    return _Side(source.name, value.name or "", tuple(perm))


def _error(pair: _Pair, site: Site, codes: dict[str, Codes]) -> float:
    """||â·b̂ - a·b||² / ||a·b||²"""
    lost = whole = 0.0
    for arrays in islice(aligned(*(site.recorded[side.value] for side in pair.sides)), SAMPLES):
        exact = [side.as_read(array) for side, array in zip(pair.sides, arrays, strict=True)]
        coded = [side.as_read(_decoded(array, codes[side.value])) for side, array in zip(pair.sides, arrays, strict=True)]
        product = np.matmul(*exact)
        lost += float(np.sum((np.matmul(*coded) - product).astype(np.float64) ** 2))
        whole += float(np.sum(product.astype(np.float64) ** 2))
    return lost / max(whole, 1e-30)


def _decoded(array: Array, codes: Codes) -> Array:
    scale = np.float32(codes.scale)
    return np.asarray((np.clip(np.round(array / scale) + codes.zero, 0, 255) - codes.zero) * scale, np.float32)


class _Apply:
    """Edits one product: it reads what codes stand for."""

    def __init__(self, pair: _Pair, codes: dict[str, Codes]) -> None:
        self._pair, self._codes = pair, codes

    def __call__(self, graph: Substitution) -> None:
        node = graph.maker(self._pair.output)
        for place, side in enumerate(self._pair.sides):
            reader, where = (graph.maker(side.turned), 0) if side.turned else (node, place)
            reader.replace_input_with(where, graph.decoded(side.value, self._codes[side.value]))


class _ByIntegers(_Apply):
    """The same numbers by MatMulInteger: ``s_a s_b (q_a - z_a)·(q_b - z_b)``, where a runtime does not fuse the other form."""

    def __call__(self, graph: Substitution) -> None:
        node, editor = graph.maker(self._pair.output), graph.editor
        old = node.outputs[0]
        codes = [self._codes[side.value] for side in self._pair.sides]
        numbers = [self._numbers(graph, node, place) for place in (0, 1)]
        zeros = [editor.constant(np.array(c.zero, c.dtype), "zero") for c in codes]
        sums = editor.emit(node, "MatMulInteger", [*numbers, *zeros], dtype=ir.DataType.INT32, shape=old.shape)
        real = editor.emit(node, "Cast", [sums], {"to": int(ir.DataType.FLOAT)}, dtype=ir.DataType.FLOAT, shape=old.shape)
        factor = editor.constant(np.array(codes[0].scale * codes[1].scale, np.float32), "scale")
        graph.replace(self._pair.output, editor.emit(node, "Mul", [real, factor], dtype=old.dtype, shape=old.shape))

    def _numbers(self, graph: Substitution, node: ir.Node, place: int) -> ir.Value:
        """The codes as the product reads them."""
        side = self._pair.sides[place]
        codes = graph.codes(side.value, self._codes[side.value])
        if not side.turned:
            return codes
        shape = None if codes.shape is None else [codes.shape[k] for k in side.perm]
        return graph.editor.emit(node, "Transpose", [codes], {"perm": list(side.perm)}, dtype=codes.dtype, shape=shape)
