"""Arrays at a program's border: NumPy in, DLPack in, NumPy out; nothing is copied that need not be."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter.errors import InvalidInput


def dtype_named(name: str) -> np.dtype[Any]:
    """The NumPy dtype called ``name``, with ml_dtypes' bfloat16, float8 and 4-bit types."""
    try:
        dtype: np.dtype[Any] = np.dtype(name)
    except TypeError:
        import ml_dtypes

        dtype = np.dtype(getattr(ml_dtypes, name))
    return dtype


def as_numpy(value: Any) -> np.ndarray[Any, Any]:
    """``value`` as a NumPy array that shares its memory where it can: arrays, torch CPU tensors, DLPack, numbers, lists."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # a torch tensor: DLPack refuses those that need a gradient, and NumPy lacks bfloat16
        return _from_torch(value)
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InvalidInput(f"an input of type {type(value).__name__} cannot be read as an array: {error}") from None
    return np.asarray(value)


def _from_torch(tensor: Any) -> np.ndarray[Any, Any]:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    kind = str(plain.dtype).removeprefix("torch.")
    if not (kind == "bfloat16" or kind.startswith("float8")):
        return np.asarray(plain.numpy())
    import torch

    same_size = torch.int16 if kind == "bfloat16" else torch.int8
    return np.asarray(plain.contiguous().view(same_size).numpy().view(dtype_named(kind)))
