"""Gated linear attention: recurrent, masked-parallel and chunked spellings are one operator, linear in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import rewriter
from papers.fixture import Paper, each, normal, right, through
from zoo import ort
from zoo.scan import gated_linear_attention

PAPER = Paper(55, "recurrent, parallel and chunked forms are one operator, linear in time; strong decay stays finite")
KEYS, VALUES, HEADS, TOKENS = 4, 5, 2, 16
TOLERANCE = 1e-4
"""S3's, chunked against recurrent."""


class Recurrent(nn.Module):
    """S_t = diag(exp g_t) S_{t-1} + k_t^T v_t, o_t = q_t S_t; the gate acts on the old state, the current token is included."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        state, out = torch.zeros_like(k[:, :, 0, :, None] * v[:, :, 0, None]), []
        for t in range(q.shape[2]):
            state = g[:, :, t, :, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None]
            out.append((q[:, :, t, None] @ state)[:, :, 0])
        return torch.stack(out, 2)


class RecurrentByEinsum(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        state, out, decay = torch.zeros_like(torch.einsum("nhk,nhv->nhkv", k[:, :, 0], v[:, :, 0])), [], g.exp()
        for t in range(q.shape[2]):
            state = torch.einsum("nhk,nhkv->nhkv", decay[:, :, t], state) + torch.einsum("nhk,nhv->nhkv", k[:, :, t], v[:, :, t])
            out.append(torch.einsum("nhk,nhkv->nhv", q[:, :, t], state))
        return torch.stack(out, 2)


class Parallel(nn.Module):
    """((Q e^b)(K e^-b)^T * M) V with b the running sum of the gates."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        b = g.cumsum(2)
        mask = torch.ones(q.shape[2], q.shape[2], dtype=q.dtype).tril()
        return ((q * b.exp()) @ (k * (-b).exp()).mT * mask) @ v


class Chunked(nn.Module):
    """Chunks of four: a state between them, differences of log gates inside."""

    chunk = 4

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        state, out = torch.zeros_like(k[:, :, 0, :, None] * v[:, :, 0, None]), []
        mask = torch.ones(self.chunk, self.chunk, dtype=torch.bool).tril()[..., None]
        for i in range(0, q.shape[2], self.chunk):
            qc, kc, vc = (z[:, :, i : i + self.chunk] for z in (q, k, v))
            b = g[:, :, i : i + self.chunk].cumsum(2)
            ratio = torch.where(mask, b[:, :, :, None] - b[:, :, None], -torch.inf).exp()
            inside = torch.einsum("nhtk,nhsk,nhtsk->nhts", qc, kc, ratio)
            out.append((qc * b.exp()) @ state + inside @ vc)
            last = b[:, :, -1:]
            state = state * last.exp().mT + (kc * (last - b).exp()).mT @ vc
        return torch.cat(out, 2)


def inputs(tokens: int = TOKENS, decay: float = 1.0) -> tuple[torch.Tensor, ...]:
    q, k = normal(2, HEADS, tokens, KEYS), normal(2, HEADS, tokens, KEYS, seed=2)
    gates = torch.nn.functional.logsigmoid(normal(2, HEADS, tokens, KEYS, seed=4))
    return q, k, normal(2, HEADS, tokens, VALUES, seed=3), decay * gates


@each(
    recurrent=Recurrent,
    einsum=RecurrentByEinsum,
    parallel=Parallel,
    chunked=Chunked,
    missing={"chunked": "the chunked form is not recognised"},
)
def test_every_spelling_is_one_operator(module: Any, door: str, record: Any) -> None:
    """Recognised as one: the graph does not grow with time."""
    outcome = through(door, module(), inputs(), also=[inputs(decay=0.1)])
    right(outcome, TOLERANCE)
    assert any(op.startswith("rewriter::") for op in outcome.ops) or outcome.result.ir_model.functions, outcome.graph
    assert sum(outcome.ops.values()) <= 12, outcome.graph
    record(PAPER, outcome)


@each(recurrent=Recurrent, chunked=Chunked)
def test_strong_decay_stays_finite(module: Any, door: str) -> None:
    """exp(-b) of the running sum overflows float32; differences do not."""
    strong = inputs(decay=40.0)
    outcome = through(door, module(), inputs(), also=[strong])
    right(outcome, TOLERANCE)


def scan() -> onnx.ModelProto:
    return gated_linear_attention(KEYS, VALUES)


def feeds(tokens: int) -> list[np.ndarray]:
    return [z[0, 0].numpy() for z in inputs(tokens, decay=1 / 16)]


@pytest.mark.parametrize("tokens", [16, 1024])
def test_a_scan_is_the_operator(tokens: int) -> None:
    proto = scan()
    result = rewriter.optimize(proto)
    assert "Scan" not in result.report.after.ops, result.report.after.ops
    want = ort.run(proto, ort.feed_of(proto, feeds(tokens)))[0]
    got = ort.run(result.model, ort.feed_of(result.model, feeds(tokens)))[0]
    assert ort.relative(got, want) <= TOLERANCE


class Exclusive(nn.Module):
    """The readout sees the state before the token: another operator, unless the law says how the two differ."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        state, out = torch.zeros_like(k[:, :, 0, :, None] * v[:, :, 0, None]), []
        for t in range(q.shape[2]):
            out.append((q[:, :, t, None] @ state)[:, :, 0])
            state = g[:, :, t, :, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None]
        return torch.stack(out, 2)


class Saturating(nn.Module):
    """A state under tanh is no linear recurrence."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        state, out = torch.zeros_like(k[:, :, 0, :, None] * v[:, :, 0, None]), []
        for t in range(4):
            state = torch.tanh(g[:, :, t, :, None].exp() * state + k[:, :, t, :, None] * v[:, :, t, None])
            out.append((q[:, :, t, None] @ state)[:, :, 0])
        return torch.stack(out, 2)


@pytest.mark.parametrize("module", [Exclusive, Saturating])
def test_near_misses_are_right(module: Any) -> None:
    outcome = through("torch", module(), inputs(8))
    right(outcome, TOLERANCE)


def test_no_softmax_chooses_the_cheaper_order() -> None:
    """(Q K^T) V with no mask and no softmax: Q (K^T V) where there are more tokens than channels, and not where there are fewer."""

    class Linear(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return (q @ k.mT) @ v

    def costs(tokens: int, width: int) -> int:
        outcome = through("torch", Linear(), tuple(normal(1, tokens, width, seed=s) for s in (1, 2, 3)))
        right(outcome)
        return outcome.macs

    assert costs(64, 4) == 2 * 64 * 4 * 4
    assert costs(4, 64) == 2 * 4 * 4 * 64


@pytest.mark.parametrize("tokens", [1, 7, 65])
def test_a_scan_is_right_at_any_length(tokens: int) -> None:
    proto = scan()
    result = rewriter.optimize(proto)
    want = ort.run(proto, ort.feed_of(proto, feeds(tokens)))[0]
    assert ort.relative(ort.run(result.model, ort.feed_of(result.model, feeds(tokens)))[0], want) <= TOLERANCE
