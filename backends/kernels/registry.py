"""The table of kernels, and what a kernel is told about its node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from backends.arrays import dtype_named

Array: TypeAlias = Any  # np.ndarray; NumPy's stubs lose the type at almost every operator
# (call, *inputs; None for an omitted one) -> one array, or a tuple of outputs, or NotImplemented: onnx.reference does it
Kernel = Callable[..., Any]
KERNELS: dict[str, Kernel] = {}

WIDENED = ("float16", "bfloat16", "float32")  # what float64 evaluation promotes


@dataclass(frozen=True)
class Call:
    """One node: its attributes as Python values, the opset of its domain, how many outputs are asked for."""

    op: str
    attributes: Mapping[str, Any]
    opset: int
    outputs: int
    float64: bool  # every float type up to float32 stands for float64

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def dtype(self, code: int) -> np.dtype[Any]:
        """NumPy's dtype for an ONNX type number, promoted where evaluation is in float64."""
        from onnx import helper

        dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(code)
        return np.dtype(np.float64) if self.float64 and dtype.name in WIDENED else dtype


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """Register a function as the kernel of these operators."""

    def register(function: Kernel) -> Kernel:
        for name in names:
            assert name not in KERNELS, name
            KERNELS[name] = function
        return function

    return register


def is_half(array: Array) -> bool:
    """Whether sums over this type must be kept in float32 and rounded once."""
    return array.dtype.name in ("float16", "bfloat16")


def raised(array: Array) -> Array:
    """The array in the type its sums are kept in: float32 for the half types, itself otherwise."""
    return array.astype(np.float32) if is_half(array) else array


def widened(array: Any) -> Any:
    """The array in float64 if it is a narrower ordinary float; anything else unchanged."""
    if isinstance(array, np.ndarray) and array.dtype.name in WIDENED:
        return array.astype(np.float64)
    if isinstance(array, np.generic):
        return widened(np.asarray(array))
    return [widened(item) for item in array] if isinstance(array, list) else array


__all__ = ["KERNELS", "Array", "Call", "Kernel", "dtype_named", "is_half", "kernel", "raised", "widened"]
