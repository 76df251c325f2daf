"""Image networks whose training-time branches merge: plain traces of timm's, with random BatchNorm statistics."""

from __future__ import annotations

import copy
from typing import Any

import torch

from zoo.packages import importable
from zoo.torchvision_import import make_importable

CONVOLUTIONS = {"repvgg_a0": (44, 22), "mobileone_s0": (191, 43), "fastvit_t8": (68, 52)}
"""Before and after ``timm.utils.reparameterize_model``."""


def _import_timm() -> Any:
    importable()
    make_importable()
    import timm

    return timm


def network(name: str, seed: int = 0) -> Any:
    """A network of timm in evaluation mode, random weights, its BatchNorms and layer scales far from the identity."""
    torch.manual_seed(seed)
    module = _import_timm().create_model(name)
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.1, generator=generator)
    for key, weight in module.named_parameters():
        if "gamma" in key or "layer_scale" in key:
            weight.data.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def merged_by_timm(module: Any) -> Any:
    """A copy that timm has reparameterised."""
    _import_timm()
    from timm.utils import reparameterize_model

    return reparameterize_model(copy.deepcopy(module)).eval()
