"""Operators that work element by element, with NumPy's broadcasting (which is ONNX's)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from backends.kernels.registry import Array, Call, kernel, raised


def _erf(x: Array) -> Array:
    try:
        from scipy.special import erf  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return np.vectorize(math.erf, otypes=[np.float64])(x) if x.size else x
    result: Array = erf(x)
    return result


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _softplus(x: Array) -> Array:
    result: Array = np.logaddexp(x, x.dtype.type(0))
    return result


def _gelu(call: Call, x: Array) -> Array:
    if call.get("approximate", "none") == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _selu(call: Call, x: Array) -> Array:
    alpha, gamma = call.get("alpha", 1.6732632423543772), call.get("gamma", 1.0507009873554805)
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _shrink(call: Call, x: Array) -> Array:
    lambd, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0))


_FLOAT: dict[str, Callable[[Call, Array], Array]] = {
    "Acos": lambda c, x: np.arccos(x), "Acosh": lambda c, x: np.arccosh(x), "Asin": lambda c, x: np.arcsin(x),
    "Asinh": lambda c, x: np.arcsinh(x), "Atan": lambda c, x: np.arctan(x), "Atanh": lambda c, x: np.arctanh(x),
    "Cos": lambda c, x: np.cos(x), "Cosh": lambda c, x: np.cosh(x), "Sin": lambda c, x: np.sin(x),
    "Sinh": lambda c, x: np.sinh(x), "Tan": lambda c, x: np.tan(x), "Tanh": lambda c, x: np.tanh(x),
    "Exp": lambda c, x: np.exp(x), "Log": lambda c, x: np.log(x), "Sqrt": lambda c, x: np.sqrt(x),
    "Reciprocal": lambda c, x: 1 / x, "Erf": lambda c, x: _erf(x), "Sigmoid": lambda c, x: _sigmoid(x),
    "Softplus": lambda c, x: _softplus(x), "Softsign": lambda c, x: x / (1 + np.abs(x)),
    "Mish": lambda c, x: x * np.tanh(_softplus(x)), "Gelu": _gelu, "Selu": _selu, "Shrink": _shrink,
    "Swish": lambda c, x: x * _sigmoid(c.get("alpha", 1.0) * x),
    "Elu": lambda c, x: np.where(x > 0, x, c.get("alpha", 1.0) * np.expm1(np.minimum(x, 0))),
    "Celu": lambda c, x: np.maximum(x, 0) + np.minimum(0, c.get("alpha", 1.0) * np.expm1(x / c.get("alpha", 1.0))),
    "LeakyRelu": lambda c, x: np.where(x < 0, c.get("alpha", 0.01) * x, x),
    "ThresholdedRelu": lambda c, x: np.where(x > c.get("alpha", 1.0), x, 0),
    "HardSigmoid": lambda c, x: np.clip(c.get("alpha", 0.2) * x + c.get("beta", 0.5), 0, 1),
    "HardSwish": lambda c, x: x * np.clip(x / 6 + 0.5, 0, 1),
}  # fmt: skip


@kernel(*_FLOAT)
def unary(call: Call, x: Array) -> Array:
    """A function of one float; the half types are computed in float32 and rounded once."""
    return _FLOAT[call.op](call, raised(x)).astype(x.dtype, copy=False)


_ANY: dict[str, Callable[[Array], Any]] = {
    "Abs": np.abs, "Neg": np.negative, "Ceil": np.ceil, "Floor": np.floor, "Round": np.rint, "Sign": np.sign,
    "IsNaN": np.isnan, "Not": np.logical_not, "BitwiseNot": np.invert, "Identity": lambda x: x,
    "Relu": lambda x: np.maximum(x, x.dtype.type(0)),
}  # fmt: skip


@kernel(*_ANY)
def unary_any(call: Call, x: Any) -> Any:
    return _ANY[call.op](x)


@kernel("IsInf")
def is_inf(call: Call, x: Array) -> Array:
    if not call.get("detect_positive", 1):
        return np.isneginf(x) if call.get("detect_negative", 1) else np.zeros(x.shape, bool)
    return np.isinf(x) if call.get("detect_negative", 1) else np.isposinf(x)


def _divide(x: Array, y: Array) -> Array:
    if x.dtype.kind not in "iu":
        return np.true_divide(x, y)
    quotient = np.floor_divide(x, y)
    if x.dtype.kind == "u":
        return quotient
    inexact = (quotient * y != x) & (y != 0)  # ONNX truncates towards zero
    return quotient + (inexact & ((x < 0) != (y < 0))).astype(x.dtype)


def _power(x: Array, y: Array) -> Array:
    if x.dtype.kind in "iu" and not (y.dtype.kind in "iu" and (y.size == 0 or y.min() >= 0)):
        return np.power(x.astype(np.float64), y)
    if x.dtype.kind not in "iu":
        return np.power(raised(x), y.astype(raised(x).dtype))
    return np.power(x, y)


_BINARY: dict[str, Callable[[Array, Array], Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Pow": _power,
    "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor,
}  # fmt: skip
_COMPARE: dict[str, Callable[[Array, Array], Any]] = {
    "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
}  # fmt: skip


@kernel(*_BINARY)
def binary(call: Call, x: Array, y: Array) -> Any:
    if call.opset < 7 and call.get("broadcast"):
        y = y.reshape(y.shape + (1,) * (x.ndim - call.get("axis", x.ndim - y.ndim) - y.ndim))
    return np.asarray(_BINARY[call.op](x, y)).astype(x.dtype, copy=False)


@kernel(*_COMPARE)
def compare(call: Call, x: Array, y: Array) -> Any:
    return _COMPARE[call.op](x, y)


@kernel("Mod")
def mod(call: Call, x: Array, y: Array) -> Any:
    return np.fmod(x, y) if call.get("fmod", 0) else np.mod(x, y)


@kernel("Max")
def maximum(call: Call, *xs: Array) -> Any:
    return functools.reduce(np.maximum, xs)


@kernel("Min")
def minimum(call: Call, *xs: Array) -> Any:
    return functools.reduce(np.minimum, xs)


@kernel("Sum")
def total(call: Call, *xs: Array) -> Any:
    return functools.reduce(np.add, xs)


@kernel("Mean")
def mean(call: Call, *xs: Array) -> Any:
    return functools.reduce(np.add, xs) / xs[0].dtype.type(len(xs))


@kernel("Where")
def where(call: Call, condition: Array, x: Array, y: Array) -> Any:
    return np.where(condition, x, y)


@kernel("PRelu")
def prelu(call: Call, x: Array, slope: Array) -> Any:
    if call.opset < 9 and slope.ndim == 1 and slope.size > 1:  # one slope a channel, before broadcasting was defined
        slope = slope.reshape((-1,) + (1,) * (x.ndim - 2))
    return np.where(x < 0, x * slope, x).astype(x.dtype, copy=False)


@kernel("Clip")
def clip(call: Call, x: Array, low: Any = None, high: Any = None) -> Any:
    low = call.get("min") if low is None else low
    high = call.get("max") if high is None else high
    if low is not None:
        x = np.maximum(x, np.asarray(low).astype(x.dtype))
    return x if high is None else np.minimum(x, np.asarray(high).astype(x.dtype))


def _cast(call: Call, x: Array, dtype: np.dtype[Any]) -> Any:
    if not (_plain(dtype) and _plain(x.dtype)):
        return NotImplemented
    return x.astype(dtype)


def _plain(dtype: np.dtype[Any]) -> bool:
    """NumPy's own numbers and bfloat16: ``astype`` converts those as ONNX says; float8 saturates, strings are parsed."""
    return dtype.name == "bfloat16" or (dtype.isbuiltin == 1 and dtype.kind in "bfiu")


@kernel("Cast")
def cast(call: Call, x: Array) -> Any:
    return _cast(call, x, call.dtype(call.get("to")))


@kernel("CastLike")
def cast_like(call: Call, x: Array, like: Array) -> Any:
    return _cast(call, x, like.dtype)


@kernel("Dropout")
def dropout(call: Call, x: Array, ratio: Any = None, training: Any = None) -> Any:
    if training is not None and bool(training):
        return NotImplemented
    return (x, np.ones(x.shape, bool))[: call.outputs]
