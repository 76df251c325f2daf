"""SPT: trained entries at chosen places, and LoRA where many are chosen. Both end in the weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, each, is_plain, normal, plain, through

PAPER = Paper(29, "scattered deltas and LoRA on slices of a qkv layer are the plain layer")
WIDTH, RANK, CHOSEN = 12, 3, 40


class Tuned(nn.Module):
    """One qkv layer; deltas anywhere in it, LoRA on its q and v rows, with a bias as in 'lora_bias'."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.c = nn.Parameter(normal(3 * WIDTH, WIDTH, seed=2) / 4), nn.Parameter(normal(3 * WIDTH, seed=3))
        self.register_buffer("places", torch.randperm(self.w.numel(), generator=torch.Generator().manual_seed(4))[:CHOSEN])
        self.delta = nn.Parameter(normal(CHOSEN, seed=5))
        self.a, self.b = nn.Parameter(normal(2, RANK, WIDTH, seed=6) / 4), nn.Parameter(normal(2, WIDTH, RANK, seed=7))
        self.lora_bias = nn.Parameter(normal(2, WIDTH, seed=8))


class IndexAdd(Tuned):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.w.flatten().index_add(0, self.places, self.delta).view_as(self.w)
        y = F.linear(x, w, self.c)
        q, v = (x @ self.a[i].T @ self.b[i].T + self.lora_bias[i] for i in range(2))
        return y + torch.cat([q, torch.zeros_like(q), v], -1)


class ScatterAdd(Tuned):
    """``scatter_add`` into zeros, and q, k, v as slices of the weight that are adapted one by one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        delta = torch.zeros(3 * WIDTH * WIDTH, dtype=self.w.dtype).scatter_add(0, self.places, self.delta).view(3 * WIDTH, WIDTH)
        parts = [torch.einsum("nti,oi->nto", x, w) for w in (self.w + delta).chunk(3)]
        for part, i in ((0, 0), (2, 1)):
            parts[part] = parts[part] + torch.einsum("nti,ri,or->nto", x, self.a[i], self.b[i]) + self.lora_bias[i]
        return torch.cat(parts, -1) + self.c


class Accumulated(Tuned):
    """``index_put`` that adds, rows and columns apart; the LoRA's product is formed first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.w.index_put((self.places // WIDTH, self.places % WIDTH), self.delta, accumulate=True)
        lora = torch.bmm(self.b, self.a)
        bias = torch.stack([self.lora_bias[0], torch.zeros_like(self.lora_bias[0]), self.lora_bias[1]]).flatten()
        return x @ (w + torch.cat([lora[0], torch.zeros_like(lora[0]), lora[1]])).t() + (self.c + bias)


class Plain(Tuned):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.w, self.c)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 5, WIDTH),)


@each(
    index_add=IndexAdd, scatter_add=ScatterAdd, accumulate=Accumulated
)
def test_the_layer_is_plain(module: Any, door: str, record: Any) -> None:
    outcome = through(door, module(), inputs())
    is_plain(outcome, plain(Plain, inputs))
    record(PAPER, outcome)


def test_an_adapter_with_an_activation_stays() -> None:
    class Adapter(Tuned):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.w, self.c)[..., :WIDTH] + F.relu(x @ self.a[0].T) @ self.b[0].T

    outcome = through("torch", Adapter(), inputs())
    assert outcome.error <= 1e-5 and outcome.ops["Relu"] == 1 and outcome.products == 3, outcome.graph
