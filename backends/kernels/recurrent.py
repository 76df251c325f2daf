"""LSTM, GRU and RNN: both directions, sequence lengths, peepholes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from backends.kernels.elementwise import _sigmoid, _softplus
from backends.kernels.registry import Array, Call, kernel, raised

Step = Callable[..., tuple[Array, ...]]


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Array], Array] | None:
    a, b = alpha, beta
    table: dict[str, Callable[[Array], Array]] = {
        "sigmoid": _sigmoid,
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
        "softsign": lambda x: x / (1 + np.abs(x)),
        "softplus": _softplus,
        "leakyrelu": lambda x: np.where(x < 0, (0.01 if a is None else a) * x, x),
        "thresholdedrelu": lambda x: np.where(x > (1.0 if a is None else a), x, 0),
        "elu": lambda x: np.where(x > 0, x, (1.0 if a is None else a) * np.expm1(np.minimum(x, 0))),
        "hardsigmoid": lambda x: np.clip((0.2 if a is None else a) * x + (0.5 if b is None else b), 0, 1),
        "affine": lambda x: (1.0 if a is None else a) * x + (0.0 if b is None else b),
        "scaledtanh": lambda x: (1.0 if a is None else a) * np.tanh((1.0 if b is None else b) * x),
    }
    return table.get(name.lower())


def _activations(call: Call, defaults: list[str], directions: int) -> list[list[Callable[[Array], Array]]] | None:
    names = call.get("activations") or defaults * directions
    alphas, betas = list(call.get("activation_alpha") or []), list(call.get("activation_beta") or [])
    takes_alpha = ("leakyrelu", "thresholdedrelu", "elu", "hardsigmoid", "affine", "scaledtanh")
    takes_beta = ("hardsigmoid", "affine", "scaledtanh")
    made = []
    for name in names:  # the parameters are listed for those functions only that take them
        alpha = alphas.pop(0) if alphas and name.lower() in takes_alpha else None
        beta = betas.pop(0) if betas and name.lower() in takes_beta else None
        function = _activation(name, alpha, beta)
        if function is None:
            return None
        made.append(function)
    n = len(defaults)
    return [made[i * n : (i + 1) * n] for i in range(directions)]


def _clipped(call: Call) -> Callable[[Array], Array]:
    bound = call.get("clip")
    return (lambda x: x) if not bound else (lambda x: np.clip(x, -bound, bound))


def _scan(
    step: Step, x: Array, lengths: Array, backwards: bool, states: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """Run ``step(x_t, *states) -> states`` over time; finished sequences keep their state and give zeros."""
    time, batch = x.shape[:2]
    rows = np.arange(batch)
    outputs = np.zeros((time, batch, states[0].shape[-1]), x.dtype)
    for t in range(time):
        live = t < lengths
        at = np.where(live, lengths - 1 - t, t) if backwards else np.full(batch, t)
        new = step(x[at, rows], *states)
        states = tuple(np.where(live[:, None], n, s) for n, s in zip(new, states, strict=True))
        outputs[at[live], rows[live]] = states[0][live]
    return outputs, states


def _run(
    call: Call, x: Array, w: Array, r: Array, b: Array | None, lengths: Array | None, initial: list[Array | None],
    gates: int, defaults: list[str], make: Callable[..., Step],
) -> Any:  # fmt: skip
    if call.get("layout", 0):
        x = x.swapaxes(0, 1)
        initial = [None if s is None else s.swapaxes(0, 1) for s in initial]
    directions, hidden = r.shape[0], r.shape[2]
    functions = _activations(call, defaults, directions)
    if functions is None:
        return NotImplemented
    dtype = x.dtype
    x, w, r = raised(x), raised(w), raised(r)
    bias = np.zeros((directions, 2 * gates * hidden), x.dtype) if b is None else raised(b)
    ends = np.full(x.shape[1], x.shape[0]) if lengths is None else lengths.astype(np.int64)
    outputs, finals = [], []
    for d in range(directions):
        backwards = call.get("direction", "forward") == "reverse" or d == 1
        zero = np.zeros((x.shape[1], hidden), x.dtype)
        states = tuple(zero if s is None else raised(s[d]) for s in initial)
        step = make(d, w[d], r[d], bias[d], functions[d], _clipped(call))
        out, last = _scan(step, x, ends, backwards, states)
        outputs.append(out)
        finals.append(last)
    y = np.stack(outputs, axis=1)  # time, directions, batch, hidden
    ends_ = [np.stack(parts) for parts in zip(*finals, strict=True)]
    if call.get("layout", 0):
        y, ends_ = y.transpose(2, 0, 1, 3), [e.swapaxes(0, 1) for e in ends_]
    return tuple(v.astype(dtype, copy=False) for v in (y, *ends_))


@kernel("LSTM")
def lstm(
    call: Call, x: Array, w: Array, r: Array, b: Any = None, lengths: Any = None, h0: Any = None, c0: Any = None,
    p: Any = None,
) -> Any:  # fmt: skip
    def make(d: int, w: Array, r: Array, b: Array, f: list[Any], clip: Any) -> Step:
        hidden = r.shape[1]
        pi, po, pf = np.split(raised(p[d]), 3) if p is not None else (0, 0, 0)
        total = b[: 4 * hidden] + b[4 * hidden :]

        def step(x_t: Array, h: Array, c: Array) -> tuple[Array, ...]:
            i, o, g, n = np.split(x_t @ w.T + h @ r.T + total, 4, axis=1)
            i, g = f[0](clip(i + pi * c)), f[0](clip(g + pf * c))
            g = 1 - i if call.get("input_forget", 0) else g
            new = g * c + i * f[1](clip(n))
            return f[0](clip(o + po * new)) * f[2](new), new

        return step

    return _run(call, x, w, r, b, lengths, [h0, c0], 4, ["Sigmoid", "Tanh", "Tanh"], make)


@kernel("GRU")
def gru(call: Call, x: Array, w: Array, r: Array, b: Any = None, lengths: Any = None, h0: Any = None) -> Any:
    def make(d: int, w: Array, r: Array, b: Array, f: list[Any], clip: Any) -> Step:
        hidden = r.shape[1]
        wb, rb = b[: 3 * hidden], b[3 * hidden :]

        def step(x_t: Array, h: Array) -> tuple[Array, ...]:
            xz, xr, xn = np.split(x_t @ w.T + wb, 3, axis=1)
            hz, hr = np.split(h @ r[: 2 * hidden].T + rb[: 2 * hidden], 2, axis=1)
            z, reset = f[0](clip(xz + hz)), f[0](clip(xr + hr))
            rn, bn = r[2 * hidden :].T, rb[2 * hidden :]
            inner = reset * (h @ rn + bn) if call.get("linear_before_reset", 0) else (reset * h) @ rn + bn
            return ((1 - z) * f[1](clip(xn + inner)) + z * h,)

        return step

    return _run(call, x, w, r, b, lengths, [h0], 3, ["Sigmoid", "Tanh"], make)


@kernel("RNN")
def rnn(call: Call, x: Array, w: Array, r: Array, b: Any = None, lengths: Any = None, h0: Any = None) -> Any:
    def make(d: int, w: Array, r: Array, b: Array, f: list[Any], clip: Any) -> Step:
        total = b[: r.shape[1]] + b[r.shape[1] :]
        return lambda x_t, h: (f[0](clip(x_t @ w.T + h @ r.T + total)),)

    return _run(call, x, w, r, b, lengths, [h0], 1, ["Tanh"], make)
