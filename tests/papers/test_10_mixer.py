"""MixER: experts chosen by the context of an environment. With the context declared constant, one expert is left."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, plain, right, through

PAPER = Paper(10, "a declared context leaves one expert, its context part in the bias")
WIDTH, CONTEXT, HIDDEN, EXPERTS = 6, 4, 10, 3


class Mixer(nn.Module):
    """One context for the batch; the chosen expert's weights are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(CONTEXT, EXPERTS)
        self.w1, self.b1 = nn.Parameter(torch.empty(EXPERTS, HIDDEN, WIDTH + CONTEXT)), nn.Parameter(torch.empty(EXPERTS, HIDDEN))
        self.w2, self.b2 = nn.Parameter(torch.empty(EXPERTS, WIDTH, HIDDEN)), nn.Parameter(torch.empty(EXPERTS, WIDTH))

    def forward(self, x: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
        e = self.gate(ctx).argmax(-1)
        h = torch.cat([x, ctx.expand(x.shape[0], -1)], -1)
        return F.linear(torch.tanh(F.linear(h, self.w1[e], self.b1[e])), self.w2[e], self.b2[e])


class MixerOfAll(Mixer):
    """All experts are computed, and all but one multiplied by zero."""

    def forward(self, x: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
        one_hot = F.one_hot(self.gate(ctx).argmax(-1), EXPERTS).to(x.dtype)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            first = x @ self.w1[e, :, :WIDTH].t() + ctx @ self.w1[e, :, WIDTH:].t() + self.b1[e]
            y = y + one_hot[e] * (torch.tanh(first) @ self.w2[e].t() + self.b2[e])
        return y


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(5, WIDTH), normal(CONTEXT, seed=2)


def plain_inputs() -> tuple[torch.Tensor]:
    return inputs()[:1]


@each(looked_up=Mixer, all=MixerOfAll)
def test_a_declared_context_leaves_one_expert(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs(), constants={"ctx": inputs()[1].numpy()})
    base = plain(Plain, plain_inputs)
    right(outcome)
    has(outcome, Tanh=1, Softmax=0, ArgMax=0, Gather=0, Concat=0)
    assert outcome.macs == base.macs and outcome.matrices() == base.matrices(), outcome.graph
    record(PAPER, outcome)


def test_an_open_context_keeps_all_experts() -> None:
    outcome = through("torch", awake(Mixer()), inputs(), also=[(inputs()[0], -inputs()[1]), (inputs()[0], inputs()[1].flip(0))])
    right(outcome, kept=True)
