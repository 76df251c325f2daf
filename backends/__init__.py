"""What a graph can run on: each backend is a module with ``refuses``, ``build`` and ``restore``, imported when first asked for."""

from __future__ import annotations

import importlib
from types import ModuleType

from backends.program import Port, Program
from rewriter.errors import InvalidInput

ENGINES = ("onnxruntime", "tvm", "openvino", "inductor", "torch")
NAMES = (*ENGINES, "reference")


def backend(name: str) -> ModuleType:
    """The backend module called ``name``; it is imported now, so a backend that nobody asks for need not be installed.

    Every backend module has ``refuses(node) -> str | None``, ``build(model, *, target, threads) -> Program`` and
    ``restore(directory, threads=None) -> Program``.
    Raises InvalidInput for a name that is not in NAMES, or whose library is not installed.
    """
    if name not in NAMES:
        raise InvalidInput(f"no backend {name!r}; there are {', '.join(NAMES)}")
    try:
        return importlib.import_module(f"backends.{name}")
    except ImportError as error:
        raise InvalidInput(f"backend {name!r} cannot be imported ({error}); install what it needs, or choose another") from None


__all__ = ["ENGINES", "NAMES", "Port", "Program", "backend"]
