"""SlimFlow: one step of a diffusion model at a fixed time. All that depends on the time alone is a constant."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, is_plain, normal, plain, right, through

PAPER = Paper(61, "no operator of the time embedding is left; the modulation is the norm's affine part")
CHANNELS, EMBEDDING, GROUPS, SIZE, TIME = 8, 16, 4, 6, 0.5


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, 2 * CHANNELS))
        self.norm, self.conv = nn.GroupNorm(GROUPS, CHANNELS, affine=False), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        half = EMBEDDING // 2
        angles = t * torch.exp(-math.log(1e4) * torch.arange(half) / half)
        scale, shift = self.time(torch.cat([angles.sin(), angles.cos()]).to(x.dtype)).chunk(2)
        h = self.norm(x) * (1 + scale[:, None, None]) + shift[:, None, None]
        return x + self.conv(F.silu(h))


class StepInRows(Step):
    """Time as a batch of one, frequencies as powers, the norm written out, modulation by einsum."""

    def forward(self, image: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        half = EMBEDDING // 2
        angles = time.reshape(1, 1) * torch.pow(1e-4, torch.arange(half)[None].to(image.dtype) / half)
        e = torch.einsum("ne,fe->nf", torch.cat([torch.sin(angles), torch.cos(angles)], 1), self.time[0].weight) + self.time[0].bias
        scale, shift = (F.linear(e * torch.sigmoid(e), self.time[2].weight, self.time[2].bias)).split(CHANNELS, 1)
        grouped = image.reshape(image.shape[0], GROUPS, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        h = (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)).view_as(image)
        h = torch.einsum("nchw,nc->nchw", h, (1 + scale).expand(image.shape[0], -1)) + shift[..., None, None]
        return self.conv(h * torch.sigmoid(h)) + image


class Plain(nn.Module):
    """What is to be deployed: scale and shift in the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(GROUPS, CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(F.silu(self.norm(x)))


def plain_step() -> nn.Module:
    return awake(Plain())


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(2, CHANNELS, SIZE, SIZE), torch.tensor(TIME)


def plain_inputs() -> tuple[torch.Tensor]:
    return inputs()[:1]


@each(modulated=(Step, "t"), rows=(StepInRows, "time"))
def test_a_fixed_time_leaves_no_time_embedding(module: Any, door: str, record: Any) -> None:
    step, name = module
    outcome = through(door, awake(step()), inputs(), constants={name: TIME})
    right(outcome)
    has(outcome, Sin=0, Cos=0, Exp=0, MatMul=0, Gemm=0, Conv=1, Concat=0, Split=0)
    if step is Step:
        is_plain(outcome, plain(plain_step, plain_inputs))
    record(PAPER, outcome)


def test_an_open_time_stays_an_input() -> None:
    other = (inputs()[0], torch.tensor(0.125))
    outcome = through("torch", awake(Step()), inputs(), also=[other])
    right(outcome)
    has(outcome, Sin=1, Cos=1)


def test_the_time_given_at_compile_time_is_the_one_that_counts() -> None:
    """The example says 0.5, the declaration 0.125."""
    import rewriter
    from zoo import ort

    module = awake(Step())
    x = inputs()[0]
    result = rewriter.optimize(module, inputs(), constants={"t": 0.125})
    with torch.no_grad():
        want = module(x, torch.tensor(0.125)).numpy()
    assert [v.name for v in result.model.graph.input] == ["x"]
    assert ort.relative(ort.run(result.model, ort.feed_of(result.model, [x]))[0], want) <= 1e-5
