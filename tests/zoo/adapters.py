"""Small networks with adapters of several kinds; all adapter weights random, so that a wrong merge shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zoo.torchvision_import import make_importable

make_importable()
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(F.gelu(self.a(x)))
        return out


class Convolutions(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
        self.b = nn.Conv2d(16, 8, 3, stride=2, padding=1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(F.relu(self.a(x)))
        return out


class ParallelAdapter(nn.Module):
    """A feed-forward layer with ReLU, and beside it a scaled bottleneck with ``activation``. ReLU: one wider layer. Other: not."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor], adapted: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.narrow, self.wide = nn.Linear(12, 4), nn.Linear(4, 12)
        self.activation, self.adapted = activation, adapted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(F.relu(self.up(x)))
        return out + 4.0 * self.wide(self.activation(self.narrow(x))) if self.adapted else out


class GroupedAdapter(nn.Module):
    """A grouped convolution and a low-rank one beside it, of the same groups: A and B both stay inside them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.a = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.b = nn.Conv2d(8, 16, 1, groups=4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + 0.5 * self.b(self.a(x))
        return out


def randomised(module: Any, seed: int = 0) -> Any:
    """Random adapter weights; scales around one."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if any(part in name for part in ("lora_", "hada_", "ia3_")):
            scale = "ia3_" in name or "magnitude" in name
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3 + float(scale)
    return module.eval()


BOTH = ["a", "b"]
CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(r=4, target_modules=BOTH),
    "dora": lambda: LoraConfig(r=4, target_modules=BOTH, use_dora=True),
    "ia3": lambda: IA3Config(target_modules=BOTH, feedforward_modules=["b"]),
    "loha": lambda: LoHaConfig(r=4, target_modules=BOTH),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": Perceptron,
    "conv": Convolutions,
    "grouped_conv": lambda: Convolutions(groups=4),
}


def plain(network: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return NETWORKS[network]().eval()


def adapted(network: str, adapter: str, seed: int = 0) -> Any:
    """``plain(network)`` with an adapter on each of its layers."""
    torch.manual_seed(seed)
    return randomised(get_peft_model(NETWORKS[network](), CONFIGS[adapter]()))


def example(network: str, seed: int = 1) -> torch.Tensor:
    shape = (2, 5, 12) if network == "linear" else (2, 8, 9, 9)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
