"""An LSTM over few steps as products, gates and sums: streaming models call it with one step at a time.

For each step (ONNX LSTM, default activations; gates in the order i, o, f, c)::

    [i o f g] = [x_t h] [W R]ᵀ + Wb + Rb        c = s(f) c + s(i) tanh(g)        h = s(o) tanh(c)

with s the sigmoid, and one product of both. Whoever has a graph of any form gives a ``Writer`` for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
V = TypeVar("V")

STEPS = 4
"""Steps up to which it pays: each is some ten kernels."""
DEFAULTS = {"direction": "forward", "layout": 0, "input_forget": 0, "clip": 0.0}
ACTIVATIONS = ["Sigmoid", "Tanh", "Tanh"]


class Writer(Protocol[V]):
    """Adds nodes to a graph whose values are ``V``."""

    def constant(self, array: Array) -> V: ...
    def reshaped(self, x: V, shape: Sequence[int]) -> V: ...
    def rows(self, x: V, axis: int, start: int, size: int) -> V: ...
    def node(self, op: str, inputs: Sequence[V], shape: Sequence[int], **attributes: int) -> V: ...


@dataclass(frozen=True)
class Lstm(Generic[V]):
    """One LSTM. ``x``: [steps, batch, inputs]; ``hidden``, ``cell``: [1, batch, size] or None (zeros); ``w``: [1, 4 size, inputs], ``r``: [1, 4 size,
    size], ``bias``: [1, 8 size] or None."""

    x: V
    shape: tuple[int, int, int]
    hidden: V | None
    cell: V | None
    w: Array
    r: Array
    bias: Array | None

    @property
    def size(self) -> int:
        return int(self.r.shape[-1])


def refusal(attributes: Mapping[str, Any], steps: int, *, plain: bool) -> str:
    """Why an LSTM with these attributes is not spelled out, or nothing. ``plain``: no lengths, no peepholes, weights that are known."""
    usual = list(attributes.get("activations") or ACTIVATIONS) == ACTIVATIONS
    if not usual or any(attributes.get(key, value) != value for key, value in DEFAULTS.items()):
        return "only forward, and its usual activations"
    if steps > STEPS or steps < 1:
        return f"it has {steps} steps, more than {STEPS}"
    return "" if plain else "lengths, peepholes, or weights that are computed"


def spell_out(lstm: Lstm[V], writer: Writer[V]) -> tuple[list[V], V, V]:
    """Every step's h, the last one, and the last c, all [batch, size]."""
    steps, batch, depth = lstm.shape
    weights = writer.constant(np.ascontiguousarray(np.concatenate([lstm.w[0], lstm.r[0]], axis=1).T))  # [inputs + hidden, 4 hidden]
    shift = None if lstm.bias is None else writer.constant(lstm.bias[0].reshape(2, -1).sum(axis=0).astype(lstm.w.dtype))
    h, c = (
        writer.constant(np.zeros((batch, lstm.size), lstm.w.dtype)) if state is None else writer.reshaped(state, (batch, lstm.size))
        for state in (lstm.hidden, lstm.cell)
    )
    every = []
    for step in range(steps):
        part = lstm.x if steps == 1 else writer.rows(lstm.x, 0, step, 1)
        h, c = _step(lstm, writer, writer.reshaped(part, (batch, depth)), h, c, weights, shift)
        every.append(h)
    return every, h, c


def _step(lstm: Lstm[V], writer: Writer[V], x: V, h: V, c: V, weights: V, shift: V | None) -> tuple[V, V]:
    """The next h and c."""
    _, batch, depth = lstm.shape
    size = lstm.size
    both = writer.node("Concat", [x, h], (batch, depth + size), axis=1)
    sums = writer.node("MatMul", [both, weights], (batch, 4 * size))
    if shift is not None:
        sums = writer.node("Add", [sums, shift], (batch, 4 * size))

    def made(op: str, *inputs: V) -> V:
        return writer.node(op, inputs, (batch, size))

    i, o, f, g = (writer.rows(sums, 1, k * size, size) for k in range(4))
    kept = made("Mul", made("Sigmoid", f), c)
    c = made("Add", kept, made("Mul", made("Sigmoid", i), made("Tanh", g)))
    return made("Mul", made("Sigmoid", o), made("Tanh", c)), c
