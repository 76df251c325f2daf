"""Softmax attention as linear attention (paper 12, Liger, whose feature maps are softmaxes over the head's channels).

``softmax(q kᵀ) v`` becomes ``q̂ (k̂ᵀ v) / (q̂ Σ k̂)`` with ``q̂ = softmax_d(q)``, ``k̂ = softmax_d(k)``: linear in the length. The two are different
functions (``softmax(q)·softmax(k)`` is not ``exp(q·k)``), and the paper trains the model again afterwards. Without that the error is of the
order of the output: what is measured decides, and is expected to decide against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Refusal, Site, Wanted
from passes.approximate.substitution import Substitution
from rewriter.edit import is_op, required, uses

SCALES = ("Mul", "Div")


@dataclass(frozen=True)
class _Attention:
    """By names of values. ``keys``: as the product takes them, [.., channels, tokens]."""

    queries: str
    keys: str
    values: str
    output: str
    inner: frozenset[str]
    masked: bool


class LinearAttention:
    """Attention that is written out as product, softmax, product."""

    name = "attention/linear"

    def wants(self, model: ir.Model) -> Wanted:
        return Wanted(frozenset(n for a in _attentions(model) for n in (a.queries, a.keys, a.values, a.output)))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for found in _attentions(site.model):
            if found.masked:
                yield Refusal(
                    self.name, found.output, "its scores are masked: linear attention would need a recurrence over the tokens, and training"
                )
                continue
            unit = ((found.queries, found.keys, found.values), found.output)
            yield Candidate(self.name, found.output, found.inner | {found.output}, _Apply(found), unit=unit, lost=_error(found, site))


def _attentions(model: ir.Model) -> Iterator[_Attention]:
    for node in model.graph:
        if not is_op(node, "MatMul") or not is_op(required(node, 0).producer(), "Softmax"):
            continue
        softmax = required(node, 0).producer()
        assert softmax is not None
        inner, value, masked = [softmax.outputs[0]], required(softmax, 0), False
        while (maker := value.producer()) is not None and is_op(maker, *SCALES, "Add", "Where") and uses(value) == 1:
            inner.append(value)
            masked |= is_op(maker, "Add", "Where")
            value = next((v for v in maker.inputs if v is not None and v.producer() is not None), required(maker, 0))
        scores = value.producer()
        if scores is None or not is_op(scores, "MatMul") or uses(value) != 1 or uses(softmax.outputs[0]) != 1:
            continue
        q, k, v = required(scores, 0), required(scores, 1), required(node, 1)
        if any(x.is_initializer() or not x.name for x in (q, k, v)):
            continue
        names = frozenset(x.name or "" for x in (*inner, value))
        yield _Attention(q.name or "", k.name or "", v.name or "", node.outputs[0].name or "", names, masked)


def _error(found: _Attention, site: Site) -> float:
    """||y - ŷ||² / ||y||² on one recorded input."""
    q, k, v, y = (site.recorded[n].samples[0].astype(np.float64) for n in (found.queries, found.keys, found.values, found.output))
    features, keys = _softmax(q, -1), _softmax(k, -2)
    linear = features @ (keys @ v) / (features @ keys.sum(axis=-1, keepdims=True))
    return float(((linear - y) ** 2).sum() / max((y**2).sum(), 1e-30))


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


class _Apply:
    def __init__(self, found: _Attention) -> None:
        self._found = found

    def __call__(self, graph: Substitution) -> None:
        node, editor = graph.maker(self._found.output), graph.editor
        q, k, v = (graph.value(n) for n in (self._found.queries, self._found.keys, self._found.values))
        rank = len(k.shape or ())
        features = editor.emit(node, "Softmax", [q], {"axis": -1}, dtype=q.dtype, shape=q.shape)
        keys = editor.emit(node, "Softmax", [k], {"axis": rank - 2}, dtype=k.dtype, shape=k.shape)
        state = editor.emit(node, "MatMul", [keys, v], dtype=q.dtype)
        sums = editor.emit(node, "ReduceSum", [keys, editor.constant(np.array([-1], np.int64), "axis")], {"keepdims": 1}, dtype=q.dtype)
        above = editor.emit(node, "MatMul", [features, state], dtype=q.dtype, shape=node.outputs[0].shape)
        below = editor.emit(node, "MatMul", [features, sums], dtype=q.dtype)
        graph.replace(self._found.output, editor.emit(node, "Div", [above, below], dtype=q.dtype, shape=node.outputs[0].shape))
