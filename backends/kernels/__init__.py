"""NumPy kernels of ONNX operators for the oracle: plain formulas, fast enough for whole models; what is not here is
left to ``onnx.reference``."""

from __future__ import annotations

from backends.kernels import elementwise, linear, normalise, quantise, recurrent, reduce, resize, shapes, windows
from backends.kernels.registry import KERNELS, Call, Kernel

_FILES = (elementwise, linear, normalise, quantise, recurrent, reduce, resize, shapes, windows)  # each fills KERNELS

__all__ = ["KERNELS", "Call", "Kernel"]
