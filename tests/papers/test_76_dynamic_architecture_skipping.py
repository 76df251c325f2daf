"""Skipped layers: a search decided which layers an adapter replaces. The flags are constants, the skipped layers dead."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(76, "skipped layers' attention and feed-forward parts are gone: 4 of 32 layers, 11 % fewer products")
WIDTH, RANK, TOKENS, LAYERS, SKIPPED = 8, 1, 3, 32, (5, 11, 12, 30)


class Layer(nn.Module):
    """Attention and feed-forward parts, or an adapter in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2, self.qkv, self.o = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.f1, self.f2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.down, self.up = nn.Linear(WIDTH, RANK), nn.Linear(RANK, WIDTH)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        x = x + self.o((q @ k.mT).softmax(-1) @ v)
        return x + self.f2(F.relu(self.f1(self.n2(x))))

    def adapter(self, x: torch.Tensor) -> torch.Tensor:
        h = self.n1(x)
        return x + h + self.up(torch.tanh(self.down(h)))


class Network(nn.Module):
    """``skip``: which layers a search has switched off."""

    def __init__(self, layers: int, skip: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = layer.adapter(x) if i in self.skip else layer.whole(x)
        return x


class Flagged(Network):
    """The flag is a stored number, as in the paper's code (below 0: not skipped), and selects between both results."""

    def __init__(self, layers: int, skip: tuple[int, ...]) -> None:
        super().__init__(layers, skip)
        self.register_buffer("flags", torch.tensor([3 if i in skip else -1 for i in range(layers)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = torch.where(self.flags[i] < 0, layer.whole(x), layer.adapter(x))
        return x


class Mixed(Flagged):
    """The flag as a 0/1 gate that both results are multiplied with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            gate = (self.flags[i] >= 0).to(x.dtype)
            x = gate * layer.adapter(x) + (1 - gate) * layer.whole(x)
        return x


class Branched(Flagged):
    """The flag decides in the graph (``torch.cond``, an ONNX If)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = torch.cond(self.flags[i] < 0, layer.whole, layer.adapter, (x,))
        return x


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, TOKENS, WIDTH),)


ONE = 2 * (TOKENS * WIDTH * 8 * WIDTH + 2 * TOKENS * TOKENS * WIDTH)
ADAPTER = 2 * TOKENS * WIDTH * 2 * RANK


@each(select=Flagged, mixed=Mixed, condition=Branched)
def test_skipped_layers_are_dead(module: Any, door: str, record: Any) -> None:
    if module is Branched and door == "onnx":
        door = "torch"  # files with subgraphs cannot be renamed here; the reader is the same
    outcome = through(door, awake(module(3, (1,))), inputs())
    right(outcome, 1e-4)
    has(outcome, Softmax=2, Relu=2, Tanh=1, Where=0, If=0)
    assert outcome.macs == 2 * ONE + ADAPTER, outcome.graph
    record(PAPER, outcome)


def test_four_of_thirty_two_layers() -> None:
    """As the search leaves it in Python: 11 % fewer products than all layers."""
    outcome = through("torch", awake(Network(LAYERS, SKIPPED)), inputs())
    right(outcome, 1e-4)
    assert outcome.macs <= 0.89 * LAYERS * ONE, outcome.macs / (LAYERS * ONE)
    has(outcome, Softmax=LAYERS - len(SKIPPED))


class DependsOnTheInput(Flagged):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.where(x.sum() < 0, layer.whole(x), layer.adapter(x))
        return x


def test_a_flag_that_depends_on_the_input_stays() -> None:
    outcome = through("torch", awake(DependsOnTheInput(1, ())), inputs(), also=[(-inputs()[0],)])
    right(outcome)
    has(outcome, Where=1, Softmax=1, Tanh=1)
