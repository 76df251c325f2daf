"""PyTorch's own engines on an exported program (``.pt2``), as a module that ``backends.measure`` can run: eager, and ``torch.compile``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from backends.arrays import as_numpy
from backends.program import Port
from backends.torch import to_tensor


def build(
    path: str | os.PathLike[str], *, target: str = "cpu", threads: int | None = None, compiled: bool = False, freezing: bool = True
) -> Exported:
    """``compiled``: through Inductor, when first called. ``freezing``: with the weights as constants, which it may pack."""
    torch.set_num_threads(threads or torch.get_num_threads())
    module = torch.export.load(path).module()
    if not compiled:
        return Exported(module)
    return Exported(torch.compile(module, backend="inductor", dynamic=False, options={"freezing": freezing}))


def restore(directory: str | os.PathLike[str], threads: int | None = None) -> Exported:
    """Exported programs are not saved again."""
    raise NotImplementedError(str(directory))


class Exported:
    """Callable on arrays, in the program's order."""

    inputs: Sequence[Port] = ()
    outputs: Sequence[Port] = ()

    def __init__(self, module: Any) -> None:
        self.notes: list[str] = []
        self._module = module

    def __call__(self, *inputs: Any) -> list[Any]:
        with torch.no_grad():
            results = self._module(*(to_tensor(as_numpy(value)) for value in inputs))
        return [as_numpy(r) for r in (results if isinstance(results, (tuple, list)) else [results])]

    def save(self, directory: str | os.PathLike[str]) -> None:
        raise NotImplementedError(str(directory))
