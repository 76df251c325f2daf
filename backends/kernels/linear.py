"""Products of matrices: floats by BLAS in their own type, integers exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.kernels.registry import Array, Call, kernel, raised


def matmul(a: Array, b: Array) -> Array:
    """``a @ b`` in ``a``'s type; half types accumulate in float32; integer products are exact modulo their width."""
    if a.dtype.kind in "iu" and a.dtype.itemsize <= 2:
        # products of 16-bit numbers summed over fewer than 2**21 terms are exact in float64, where BLAS is fast
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64).astype(a.dtype)
    return np.matmul(raised(a), raised(b)).astype(a.dtype, copy=False)


@kernel("MatMul")
def _matmul(call: Call, a: Array, b: Array) -> Array:
    return matmul(a, b)


@kernel("Gemm")
def gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Any:
    left = a.T if call.get("transA") else a
    right = b.T if call.get("transB") else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    y = matmul(left, right) if a.dtype.kind in "iu" else np.matmul(raised(left), raised(right))
    y = y if alpha == 1 else alpha * y
    if c is not None:
        y = y + (raised(c) if beta == 1 else beta * raised(c))
    return y.astype(a.dtype, copy=False)


@kernel("Einsum")
def einsum(call: Call, *xs: Array) -> Any:
    wide = [raised(x) for x in xs]
    return np.asarray(np.einsum(call.get("equation"), *wide, optimize=len(xs) > 2)).astype(xs[0].dtype, copy=False)


@kernel("MatMulInteger")
def matmul_integer(call: Call, a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None) -> Any:
    left, right = a.astype(np.float64), b.astype(np.float64)  # 8-bit products: exact in float64
    if a_zero is not None:
        left = left - (a_zero.astype(np.float64)[..., None] if a_zero.ndim else float(a_zero))
    if b_zero is not None:
        right = right - b_zero.astype(np.float64)
    return np.matmul(left, right).astype(np.int32)
