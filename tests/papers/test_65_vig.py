"""ViG: gated linear attention in both directions over an image's tokens. One masked product, no flips."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, normal, right, through

PAPER = Paper(65, "no flip and no concatenation is left; both directions are one operator each")
WIDTH, HEIGHT, RANK = 8, 4, 3
TOKENS = HEIGHT * HEIGHT


def gla(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    state, out = torch.zeros_like(k[:, 0, :, None] * v[:, 0, None]), []
    for t in range(q.shape[1]):
        state = g[:, t, :, None].exp() * state + k[:, t, :, None] * v[:, t, None]
        out.append((q[:, t, None] @ state)[:, 0])
    return torch.stack(out, 1)


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The parallel form, with differences of log gates."""
    b = g.cumsum(1)
    inside = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()[..., None]
    ratio = torch.where(inside, b[:, :, None] - b[:, None], -torch.inf).exp()
    return torch.einsum("ntk,nsk,ntsk->nts", q, k, ratio) @ v


class Mixer(nn.Module):
    form = staticmethod(gla)

    def __init__(self) -> None:
        super().__init__()
        self.dw = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.qkv, self.gp, self.o = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.g = nn.Sequential(nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, 2 * WIDTH))

    def both(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gf: torch.Tensor, gb: torch.Tensor) -> torch.Tensor:
        """Forwards, and backwards through flipped copies; the token itself is counted twice and halved."""
        backwards = self.form(q.flip(1), k.flip(1), v.flip(1), gb.flip(1)).flip(1)
        return (self.form(q, k, v, gf) + backwards) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = x.transpose(1, 2).reshape(len(x), WIDTH, HEIGHT, HEIGHT)
        local = F.silu(self.dw(image)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(local).chunk(3, -1)
        gf, gb = (F.logsigmoid(self.g(local)) / 16).chunk(2, -1)
        y = F.rms_norm(self.both(q, k, v, gf, gb), (WIDTH,))
        gate = torch.sigmoid(self.gp(local))
        return self.o(y * gate + F.rms_norm(local, (WIDTH,)) * (1 - gate))


class TwiceTheBatch(Mixer):
    """As in training: the flipped copies beside the others in one batch."""

    form = staticmethod(masked)

    def both(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gf: torch.Tensor, gb: torch.Tensor) -> torch.Tensor:
        q, k, v = (torch.cat([z, z.flip(1)]) for z in (q, k, v))
        forwards, backwards = self.form(q, k, v, torch.cat([gf, gb.flip(1)])).chunk(2)
        return 0.5 * (forwards + backwards.flip(1))


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, TOKENS, WIDTH),)


@each(
    two_passes=Mixer,
    twice_the_batch=TwiceTheBatch,
)
def test_no_flip_is_left(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    has(outcome, Concat=0, ReverseSequence=0)
    backwards = [n for n in outcome.nodes("Slice") if any((v.const_value is not None and v.const_value.size == 1 and v.const_value.numpy().item() == -1) for v in n.inputs[4:5])]
    assert not backwards, outcome.graph
    assert sum(outcome.ops.values()) <= 40, outcome.graph
    record(PAPER, outcome)
