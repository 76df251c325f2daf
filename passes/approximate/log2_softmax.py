"""Attention's probabilities in 4 bits, as powers of the square root of two (paper 62, RepQuant: softmax activations).

Most probabilities are small and few are large, so steps grow with them: for a scale s::

    q = clamp(round(-2 log2(p / s)), 0, 15)        p ≈ s 2^(-q/2) = s 2^(-⌈q/2⌉) (1 + (q mod 2) (√2 - 1))

The right side is the paper's scale reparameterisation: codes to the base √2 are shifts, as to the base 2, with one of two scales. As in the
authors' code what lies beyond the last power is zero; here that takes the place of the last power (q = 15), so that four bits hold all codes.
s is a power of √2, too: then it only moves the zero point. In standard operators rounding the logarithm is a linear quantiser with the
step ln(√2), and no power has to be looked up::

    softmax(x)  ->  relu'(exp(DequantizeLinear(QuantizeLinear(min(log_softmax(x), ln s)))))        relu': zero under a threshold

That is more work than softmax where there is no kernel that shifts, and measured time declines it there; codes of equal steps
(``int8_activations``) are what the integer products of a CPU take.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Later, Refusal, Site, Wanted
from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded, aligned
from rewriter.edit import is_op, required, tensor, uses

Array = np.ndarray
CODES = 16
STEP = math.log(2) / 2
SHARPER = 4
"""Powers of √2 below the largest probability that are tried for the scale, besides those above it."""
SAMPLES = 4
"""Recorded inputs on which the error is computed."""


@dataclass(frozen=True)
class _Place:
    """By names of values."""

    scores: str
    probabilities: str
    values: str
    output: str
    alone: bool


class Log2Softmax:
    """A Softmax that nothing but a product with values reads."""

    name = "quantise/log2-softmax"

    def wants(self, model: ir.Model) -> Wanted:
        return Wanted(frozenset(n for p in _places(model) for n in (p.scores, p.probabilities, p.values, p.output)))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for place in _places(site.model):
            probabilities, values = site.recorded[place.probabilities], site.recorded[place.values]
            if not place.alone:
                yield Refusal(self.name, place.output, "its probabilities have another reader")
            elif not probabilities.samples or not 0 < probabilities.high <= 1 + 1e-3:
                yield Refusal(self.name, place.output, "nothing was recorded there")
            else:
                scale = Later(partial(_scale, probabilities, values))
                covers = frozenset({place.probabilities, place.output})
                unit = ((place.scores, place.values), place.output)
                yield Candidate(self.name, place.output, covers, _Apply(place.probabilities, scale), unit=unit, lost=Later(partial(_lost, scale)))


def _lost(scale: Later[tuple[int, float]]) -> float:
    return scale()[1]


def log_codes(probabilities: Array, shift: int) -> Array:
    """15 - q for the scale ``2^(-shift/2)``: 0, which is no probability, to 15, which is the scale."""
    with np.errstate(divide="ignore"):
        rounded = np.round(2 * np.log2(probabilities.astype(np.float64))) + shift + CODES - 1
    return np.asarray(np.clip(rounded, 0, CODES - 1), np.uint8)


def powers(codes: Array, shift: int) -> Array:
    """What the codes stand for, by shifts and one of two scales."""
    q = CODES - 1 - codes.astype(np.int64)
    scales = 2.0 ** (-shift / 2) * (1 + (q % 2) * (math.sqrt(2) - 1))
    return np.asarray(np.where(codes == 0, 0.0, 2.0 ** -((q + 1) // 2) * scales))


def _scale(probabilities: Recorded, values: Recorded) -> tuple[int, float]:
    """(the scale of least error as a shift, ||p·v - p̂·v||² / ||p·v||²)"""
    largest = max(0, math.floor(-2 * math.log2(min(1.0, probabilities.high))))
    pairs = list(islice(aligned(probabilities, values), SAMPLES))
    exact = [p.astype(np.float64) @ v for p, v in pairs]
    whole = max(sum(float(np.sum(y**2)) for y in exact), 1e-30)

    def lost(shift: int) -> float:
        return sum(float(np.sum((powers(log_codes(p, shift), shift) @ v - y) ** 2)) for (p, v), y in zip(pairs, exact, strict=True))

    errors = {shift: lost(shift) / whole for shift in range(largest + SHARPER + 1)}
    best = min(errors, key=lambda shift: errors[shift])
    return best, errors[best]


def _places(model: ir.Model) -> Iterator[_Place]:
    for node in model.graph:
        if not is_op(node, "MatMul"):
            continue
        probabilities, values = required(node, 0), required(node, 1)
        softmax = probabilities.producer()
        if softmax is None or not is_op(softmax, "Softmax") or tensor(values) is not None or probabilities.dtype != ir.DataType.FLOAT:
            continue
        names = [v.name or "" for v in (required(softmax, 0), probabilities, values, node.outputs[0])]
        if all(names):
            yield _Place(names[0], names[1], names[2], names[3], uses(probabilities) == 1)


class _Apply:
    """The Softmax in logarithms, rounded there."""

    def __init__(self, probabilities: str, scale: Later[tuple[int, float]]) -> None:
        self._probabilities, self._scale = probabilities, scale

    def __call__(self, graph: Substitution) -> None:
        shift, _ = self._scale()
        node, editor = graph.maker(self._probabilities), graph.editor
        x, old = required(node, 0), node.outputs[0]

        def emit(op: str, *inputs: ir.Value, dtype: ir.DataType | None = old.dtype, **attributes: float) -> ir.Value:
            return editor.emit(node, op, inputs, attributes, dtype=dtype, shape=old.shape)

        step = editor.constant(np.array(STEP, np.float32), "step")
        zero = editor.constant(np.array(CODES - 1 + shift, np.uint8), "zero")
        logarithms = emit("LogSoftmax", x, axis=node.attributes.get_int("axis", -1) or 0)
        if shift:
            logarithms = emit("Min", logarithms, editor.constant(np.array(-STEP * shift, np.float32), "largest"))
        codes = emit("QuantizeLinear", logarithms, step, zero, dtype=ir.DataType.UINT8)
        decoded = emit("Exp", emit("DequantizeLinear", codes, step, zero))
        between = math.exp(-STEP * (CODES - 1.5 + shift))
        graph.replace(self._probabilities, emit("ThresholdedRelu", decoded, alpha=between))
