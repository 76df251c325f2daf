"""torchvision beside a build of torch that its compiled operators do not fit."""

from __future__ import annotations

import contextlib
from typing import Any

_library: Any = None


def make_importable() -> None:
    """Declare the two operators without which ``import torchvision`` fails; timm, and transformers where it is installed, import it."""
    global _library
    if _library is not None:
        return
    import torch

    with contextlib.suppress(ImportError):
        try:
            import torchvision
        except RuntimeError:
            _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            for name in ("nms", "qnms"):
                _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision  # noqa: F401
