"""Liger: attention of a trained linearised model: gates pooled from keys (an identity), half a window of softmax, half a recurrence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, plain, right, through

PAPER = Paper(12, "the pooling is gone, both halves are in the output layer, a decoding step keeps its state's size")
WIDTH, HEADS, TOKENS, WINDOW = 16, 2, 6, 3
HEAD = WIDTH // HEADS


class Liger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def gate(self, k: torch.Tensor) -> torch.Tensor:
        """Pooled to as many channels as there are: the keys themselves."""
        return F.adaptive_avg_pool1d(k, WIDTH)

    def mix(self, window: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        return 0.5 * window + 0.5 * linear

    def recurrence(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        state, out = torch.zeros_like(k[:, :, 0, :, None] * v[:, :, 0, None]), []
        for t in range(q.shape[2]):
            state = state * g[:, :, t, :, None].exp() + k[:, :, t, :, None] * v[:, :, t, None]
            out.append((q[:, :, t, None] @ state).squeeze(-2))
        return torch.stack(out, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = self.k(x)
        g = heads(F.logsigmoid(self.gate(k)) / 16)
        q, k, v = heads(self.q(x)), heads(k), heads(self.v(x))
        i = torch.arange(x.shape[1])
        near = (i[:, None] >= i) & (i[:, None] - i < WINDOW)
        window = F.scaled_dot_product_attention(q, k, v, attn_mask=near)
        y = self.mix(window, self.recurrence(q.softmax(-1), k.softmax(-1), v, g))
        return self.o(y.transpose(1, 2).flatten(2))


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)


class ByEinsum(Liger):
    """The recurrence in einsums, the pooling as a mean of windows of one, the halves as one division after the sum."""

    def gate(self, k: torch.Tensor) -> torch.Tensor:
        return F.avg_pool1d(k, 1)

    def mix(self, window: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        return (window + linear) / 2

    def recurrence(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        state, out, decay = torch.zeros_like(torch.einsum("nhk,nhv->nhkv", k[:, :, 0], v[:, :, 0])), [], torch.exp(g)
        for t in range(q.shape[2]):
            state = torch.einsum("nhkv,nhk->nhkv", state, decay[:, :, t]) + torch.einsum("nhk,nhv->nhkv", k[:, :, t], v[:, :, t])
            out.append(torch.einsum("nhk,nhkv->nhv", q[:, :, t], state))
        return torch.stack(out, 2)


class Reduced(Liger):
    """What is to be deployed: no pooling, the half in the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.empty(WIDTH, WIDTH))

    def gate(self, k: torch.Tensor) -> torch.Tensor:
        return k

    def mix(self, window: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        return window + linear


def reduced() -> nn.Module:
    return awake(Reduced())


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, TOKENS, WIDTH),)


@each(loop=Liger, einsum=ByEinsum)
def test_pooling_and_halves_are_gone(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    base = plain(reduced, inputs)
    right(outcome)
    has(outcome, AveragePool=0, GlobalAveragePool=0)
    assert outcome.ops.get("Mul", 0) + outcome.ops.get("Div", 0) <= base.ops.get("Mul", 0) + base.ops.get("Div", 0), outcome.graph
    assert sum(outcome.ops.values()) <= sum(base.ops.values()), f"{outcome.ops}, reduced by hand {base.ops}\n{outcome.graph}"
    record(PAPER, outcome)


class Step(Liger):
    """One decoding step: the state comes in and goes out, as large as ever."""

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k = self.k(x)
        g = (F.logsigmoid(self.gate(k)) / 16).view(len(x), HEADS, HEAD)
        q, k, v = (y.view(len(x), HEADS, HEAD) for y in (self.q(x), k, self.v(x)))
        state = state * g.exp()[..., None] + k.softmax(-1)[..., None] * v[:, :, None]
        y = (q.softmax(-1)[:, :, None] @ state)[:, :, 0]
        return self.o(0.5 * y.flatten(1)), state


@each(step=Step)
def test_a_decoding_step(module: Any, door: str) -> None:
    state = normal(2, HEADS, HEAD, HEAD, seed=2)
    outcome = through(door, awake(module()), (normal(2, WIDTH), state))
    right(outcome)
    has(outcome, AveragePool=0, GlobalAveragePool=0)
    assert outcome.outputs[1].shape == tuple(state.shape)


class Pooled(Liger):
    """Pooling to half as many channels is no identity."""

    def gate(self, k: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool1d(k, WIDTH // 2).repeat_interleave(2, -1)


def test_a_pooling_that_pools_stays() -> None:
    outcome = through("torch", awake(Pooled()), inputs())
    right(outcome)
    assert outcome.ops.get("AveragePool", 0) + outcome.ops.get("ReduceMean", 0) + outcome.ops.get("Conv", 0) >= 1, outcome.graph
