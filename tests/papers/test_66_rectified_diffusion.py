"""Rectified diffusion: a sampler with a fixed list of few steps. Its scalars and time embeddings are constants, its weights shared."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(66, "no time embedding in any step; the steps share their weights")
CHANNELS, EMBEDDING, STEPS = 12, 16, 3
TIMES = [1.0, 0.625, 0.25, 0.0]


def schedule(t: float) -> tuple[float, float]:
    """alpha and sigma, as a host computes them in double precision."""
    return math.cos(t * 1.2), math.sin(t * 1.2) + 0.05


class Sampler(nn.Module):
    """eps(x, t) from a small network; x' = (a'/a) x + (s' - s a'/a) eps."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, CHANNELS))
        self.inner, self.outer = nn.Linear(CHANNELS, 2 * CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)

    def embedding(self, t: torch.Tensor) -> torch.Tensor:
        angles = t * torch.exp(-math.log(1e4) * torch.arange(EMBEDDING // 2) / (EMBEDDING // 2))
        return self.time(torch.cat([angles.sin(), angles.cos()], -1).to(self.inner.weight.dtype))

    def eps(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.outer(F.gelu(self.inner(x + self.embedding(t))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for now, then in itertools.pairwise(TIMES):
            (a, s), (a2, s2) = schedule(now), schedule(then)
            x = a2 / a * x + (s2 - s * a2 / a) * self.eps(x, torch.tensor(now))
        return x


class SamplerWithTable(Sampler):
    """All embeddings made at once and gathered by the step's index; layers by einsum; the schedule as tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.embedding(torch.tensor(TIMES)[:, None])
        alphas, sigmas = torch.tensor([schedule(t) for t in TIMES]).to(x.dtype).unbind(-1)
        for i in range(STEPS):
            h = x + table[torch.tensor(i)]
            h = F.gelu(torch.einsum("ni,oi->no", h, self.inner.weight) + self.inner.bias)
            noise = h @ self.outer.weight.t() + self.outer.bias
            ratio = alphas[i + 1] / alphas[i]
            x = ratio * x + (sigmas[i + 1] - sigmas[i] * ratio) * noise
        return x


class OneStep(Sampler):
    """One step as a graph of its own: the time is an input, declared constant when it is compiled."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + self.eps(x, t)


def inputs() -> tuple[torch.Tensor]:
    return (normal(4, CHANNELS),)


@each(unrolled=Sampler, table=SamplerWithTable)
def test_the_sampler_has_no_time_embedding(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    has(outcome, Sin=0, Cos=0, Sigmoid=0, Gather=0, Gelu=STEPS)
    assert outcome.products == 2 * STEPS, outcome.graph
    record(PAPER, outcome)


@each(unrolled=Sampler, table=SamplerWithTable)
def test_memory_keeps_the_steps_weights_shared(module: Any, door: str) -> None:
    outcome = through(door, awake(module()), inputs(), objective="memory")
    right(outcome)
    shared = 4 * (2 * CHANNELS * 2 * CHANNELS + 3 * CHANNELS)
    per_step = 4 * (2 * CHANNELS + CHANNELS + 4)
    assert outcome.weight_bytes <= shared + STEPS * per_step, f"{outcome.weight_bytes}\n{outcome.graph}"


@each(step=OneStep)
def test_a_step_at_a_declared_time(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), (*inputs(), torch.tensor(0.625)), constants={"t": 0.625})
    right(outcome)
    has(outcome, Sin=0, Cos=0, Sigmoid=0)
    assert outcome.products == 2, outcome.graph
    record(PAPER, outcome)


def test_an_open_time_stays() -> None:
    outcome = through("torch", awake(OneStep()), (*inputs(), torch.tensor(0.625)), also=[(*inputs(), torch.tensor(0.1))])
    right(outcome)
    has(outcome, Sin=1, Cos=1)
