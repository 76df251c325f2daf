"""Small networks trained here on real handwritten digits: a CNN, a vision transformer, and one with experts that are averaged.

Weights are kept (safetensors, beside the other downloads) so that they are trained once. Trained on 3,500 images of ``labelled.digits``, each
turned, sized and shifted a little; 750 are for calibration, 750 for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from zoo.labelled import digits
from zoo.packages import UNPACKED
from zoo.recordings import Array

TRAINED, CALIBRATED = 3500, 750


def split() -> dict[str, tuple[Array, Array]]:
    """``train``, ``calibration``, ``test``: images and labels."""
    images, labels = digits()
    ends = {"train": (0, TRAINED), "calibration": (TRAINED, TRAINED + CALIBRATED), "test": (TRAINED + CALIBRATED, len(images))}
    return {name: (images[a:b], labels[a:b]) for name, (a, b) in ends.items()}


class Cnn(nn.Sequential):
    """Three convolutions with BatchNorm, two poolings, a hidden layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Flatten(), nn.Linear(128 * 49, 256), nn.ReLU(), nn.Linear(256, 10),
        )  # fmt: skip


class Experts(nn.Module):
    """As EWA trains (paper 2): every token goes to one expert, by a random partition; else the mean of all of them."""

    def __init__(self, width: int, hidden: int, count: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(count))
        for expert in self.experts:  # one initialisation, as in the paper
            expert.load_state_dict(self.experts[0].state_dict())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return torch.stack([expert(x) for expert in self.experts]).mean(0)
        flat = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(flat)
        for expert, places in zip(self.experts, torch.randperm(len(flat)).chunk(len(self.experts)), strict=True):
            out[places] = expert(flat[places])
        return out.view_as(x)

    @torch.no_grad()
    def share(self, part: float) -> None:
        """Each expert moves towards the mean of all, after every step."""
        for group in zip(*(e.parameters() for e in self.experts), strict=True):
            mean = torch.stack(list(group)).mean(0)
            for p in group:
                p.lerp_(mean, part)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, experts: int) -> None:
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp: nn.Module = (
            Experts(width, 2 * width, experts) if experts > 1 else nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.n2(x))


class Vit(nn.Module):
    """Patches of 4 x 4, four blocks of width 128."""

    def __init__(self, experts: int = 1, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, width, 3, 2, 1))
        self.places = nn.Parameter(torch.randn(1, 49, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, 4, experts) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


def cnn() -> nn.Module:
    return _trained("cnn", Cnn, epochs=6)


def vit() -> nn.Module:
    return _trained("vit", Vit, epochs=60)


def vit_with_experts() -> nn.Module:
    """Four experts in every block."""
    return _trained("vit_experts", lambda: Vit(experts=4), epochs=60)


def _trained(name: str, make: Callable[[], nn.Module], epochs: int) -> nn.Module:
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    module = make()
    file = UNPACKED / "trained" / f"{name}.safetensors"
    if file.exists():
        module.load_state_dict(load_file(file))
        return module.eval()
    _train(module, epochs)
    file.parent.mkdir(exist_ok=True)
    save_file(module.state_dict(), _staged := Path(f"{file}.new"))
    _staged.replace(file)
    return module.eval()


def _train(module: nn.Module, epochs: int, batch: int = 50, rate: float = 2e-3) -> None:
    images, labels = (torch.from_numpy(a) for a in split()["train"])
    steps = epochs * (len(images) // batch)
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    shared = [m for m in module.modules() if isinstance(m, Experts)]
    module.train()
    for step in range(steps):
        places = torch.randint(0, len(images), (batch,))
        loss = F.cross_entropy(module(_varied(images[places])), labels[places], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimiser.step()
        schedule.step()
        for experts in shared:
            experts.share(0.02 * step / steps)
    module.eval()


def _varied(images: torch.Tensor) -> torch.Tensor:
    """Each turned by up to 0.2 rad, sized by up to 12 %, shifted by up to 2 of 28 pixels, and bent: a smooth field moves every pixel by about one
    (elastic distortions: Simard, Steinkraus, Platt, "Best Practices for Convolutional Neural Networks", 2003)."""
    count, side = len(images), images.shape[-1]
    angle, size = (torch.rand(count) - 0.5) * 0.4, 1 + (torch.rand(count) - 0.5) * 0.24
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = maps[:, 1, 1] = torch.cos(angle) * size
    maps[:, 0, 1], maps[:, 1, 0] = -torch.sin(angle) * size, torch.sin(angle) * size
    maps[:, :, 2] = (torch.rand(count, 2) - 0.5) * 2 * 4 / side
    field = F.interpolate(torch.randn(count, 2, 5, 5) * 2 * 1.2 / side, (side, side), mode="bicubic", align_corners=True)
    places = F.affine_grid(maps, list(images.shape), align_corners=False) + field.permute(0, 2, 3, 1)
    return F.grid_sample(images, places, align_corners=False)


def accuracy(outputs: Array, labels: Array) -> float:
    """The part of images whose largest logit is the label's."""
    return float(np.mean(np.asarray(outputs).argmax(1) == np.asarray(labels)))
