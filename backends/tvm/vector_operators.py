"""The operators of ``pointwise``, each on vectors of one width, with ONNX's meaning.

A definition gets the emitter, its step, its arguments (None where an optional one is missing), each computed once, and of
each the number that it is, if it is one. NaN goes through minima, maxima and everything made of them, as in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

from backends.tvm import vector_math as vm
from backends.tvm.emit import Emitter, Expr, splat, stored
from backends.tvm.kernel import Step
from backends.tvm.vector_math import constant, where

Arguments = Sequence[Any]
Definition = Callable[[Emitter, Step, Arguments, Sequence[Any]], Expr]
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}


def fixed(value: Any, dtype: str, lanes: int) -> Expr:
    """A number as a vector."""
    kind = stored(dtype)
    return splat(tirx.const(float(value) if kind.startswith("float") else int(value), kind), lanes)


def _simple(function: Callable[..., Expr]) -> Definition:
    return lambda e, step, args, known: function(*args)


def _emitted(function: Callable[..., Expr]) -> Definition:
    return lambda e, step, args, known: function(e, *args)


def _called(name: str) -> Definition:
    return lambda e, step, args, known: vm.scalar_call(e, name, *args)


def _library(name: str) -> Definition:
    return lambda e, step, args, known: vm.library_call(e, name, *args)


def _compared(function: Callable[[Expr, Expr], Expr]) -> Definition:
    return lambda e, step, args, known: _byte(function(*args))


def _logical(function: Callable[..., Expr]) -> Definition:
    return lambda e, step, args, known: _byte(function(*(_truth(a) for a in args)))


def _folded(function: Callable[[Emitter, Expr, Expr], Expr]) -> Definition:
    """Of two or more arguments, from the left."""

    def define(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
        total = args[0]
        for other in args[1:]:
            total = e.bind(function(e, total, other))
        return total

    return define


def _truth(value: Expr) -> Expr:
    return tirx.Not(tirx.EQ(value, constant(0, value)))  # NE of NaN would be false


def _byte(condition: Expr) -> Expr:
    return vm.cast(condition, "int8")


def _floating(value: Expr) -> bool:
    return vm.element(value).startswith("float")


def _attribute(step: Step, name: str, default: Any) -> Any:
    return dict(step.attributes).get(name, default)


def _maximum(e: Emitter, a: Expr, b: Expr) -> Expr:
    larger = where(a > b, a, b)
    return where(vm.is_nan(a), a, larger) if _floating(a) else larger


def _minimum(e: Emitter, a: Expr, b: Expr) -> Expr:
    smaller = where(a < b, a, b)
    return where(vm.is_nan(a), a, smaller) if _floating(a) else smaller


def _mean(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    return _folded(lambda _, a, b: a + b)(e, step, args, known) * constant(1.0 / len(args), args[0])


def _divide(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    a, b = args
    if _floating(a):
        return a / b
    return tirx.truncdiv(a, _divisor(b, known[1]))


def _divisor(b: Expr, known: Any) -> Expr:
    """Integers: never 0, which ends the process."""
    return b if known else where(tirx.EQ(b, constant(0, b)), constant(1, b), b)


def _modulo(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    a, b = args
    if _floating(a):
        return vm.library_call(e, "fmod", a, b)
    b = _divisor(b, known[1])
    rest = e.bind(tirx.truncmod(a, b))
    if _attribute(step, "fmod", 0):
        return rest
    zero = constant(0, a)  # the sign of the divisor
    return where(tirx.And(tirx.NE(rest, zero), tirx.NE(_byte(rest < zero), _byte(b < zero))), rest + b, rest)


def _power(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    x, exponent = args[0], known[1]
    short: Mapping[float, Callable[[], Expr]] = {
        0.0: lambda: constant(1.0, x),
        1.0: lambda: x,
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
        4.0: lambda: e.bind(x * x) * e.bind(x * x),
        -1.0: lambda: constant(1.0, x) / x,
        -2.0: lambda: constant(1.0, x) / (x * x),
        # roots of -0.0 are -0.0, where powers are 0.0, and of -inf NaN, where powers are inf and 0.0
        0.5: lambda: _without_sign(x, 0.0, math.inf, tirx.sqrt(x)),
        -0.5: lambda: _without_sign(x, math.inf, 0.0, constant(1.0, x) / tirx.sqrt(x)),
    }
    if exponent is not None and float(exponent) in short:
        return short[float(exponent)]()
    return vm.scalar_call(e, "pow", x, vm.cast(args[1], vm.element(x)))


def _without_sign(x: Expr, of_zero: float, of_infinity: float, otherwise: Expr) -> Expr:
    inner = where(tirx.EQ(x, constant(-math.inf, x)), constant(of_infinity, x), otherwise)
    return where(tirx.EQ(x, constant(0.0, x)), constant(of_zero, x), inner)


def _sign(x: Expr) -> Expr:
    zero = constant(0, x)
    return where(x > zero, constant(1, x), where(x < zero, constant(-1, x), x))


def _clip(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    x = args[0]
    bounds = [args[i] if len(args) > i else None for i in (1, 2)]
    low, high = (b if b is not None else _attribute(step, n, None) for b, n in zip(bounds, ("min", "max"), strict=True))
    if low is not None:
        x = vm.at_least(e, x, low)
    return x if high is None else vm.at_most(e, x, high)


def _relu(e: Emitter, x: Expr) -> Expr:
    return vm.at_least(e, x, 0)


def _leaky(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    return _slope(args[0], constant(_attribute(step, "alpha", 0.01), args[0]))


def _slope(x: Expr, slope: Expr) -> Expr:
    return where(x < constant(0.0, x), x * slope, x)


def _elu(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    (x,) = args
    return where(x < constant(0.0, x), constant(_attribute(step, "alpha", 1.0), x) * _below(e, x), x)


def _selu(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    (x,) = args
    alpha, gamma = _attribute(step, "alpha", 1.67326319217681884765625), _attribute(step, "gamma", 1.05070102214813232421875)
    return constant(gamma, x) * where(x < constant(0.0, x), constant(alpha, x) * _below(e, x), x)


def _celu(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    (x,), alpha = args, _attribute(step, "alpha", 1.0)
    scaled = e.bind(x / constant(alpha, x))
    return where(x < constant(0.0, x), constant(alpha, x) * _below(e, scaled), x)


def _below(e: Emitter, x: Expr) -> Expr:
    """e^x - 1 where x < 0; anything elsewhere."""
    return e.bind(vm.expm1_of_negative(e, vm.at_most(e, x, 0.0)))


def _ramp(e: Emitter, x: Expr, slope: float, start: float) -> Expr:
    return vm.at_most(e, vm.at_least(e, x * constant(slope, x) + constant(start, x), 0.0), 1.0)


def _hard_sigmoid(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    return _ramp(e, args[0], _attribute(step, "alpha", 0.2), _attribute(step, "beta", 0.5))


def _hard_swish(e: Emitter, x: Expr) -> Expr:
    return x * _ramp(e, x, 1 / 6, 0.5)


def _softsign(x: Expr) -> Expr:
    return x / (constant(1.0, x) + vm.magnitude(x))


def _mish(e: Emitter, x: Expr) -> Expr:
    """x tanh(log(1 + n)) with n = e^x is x (n^2 + 2 n) / (n^2 + 2 n + 2); from 20 on it is x."""
    n = e.bind(vm.exp(e, vm.at_most(e, x, 20.0)))
    two = constant(2.0, x)
    w = e.bind(n * (n + two))
    return x * (w / (w + two))


def _thresholded(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    (x,) = args
    return where(x > constant(_attribute(step, "alpha", 1.0), x), x, constant(0.0, x))


def _shrink(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    (x,), limit, bias = args, _attribute(step, "lambd", 0.5), _attribute(step, "bias", 0.0)
    inner = where(x > constant(limit, x), x - constant(bias, x), constant(0.0, x))
    return where(x < constant(-limit, x), x + constant(bias, x), inner)


def _gelu(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    (x,) = args
    if _attribute(step, "approximate", "none") not in ("tanh", b"tanh"):
        return x * vm.normal_cdf(e, x)
    # x / 2 (1 + tanh(u)) is x sigmoid(2 u); where u overflows to -inf, so does not x
    inner = e.bind(x * x) * constant(2 * math.sqrt(2 / math.pi) * 0.044715, x) + constant(2 * math.sqrt(2 / math.pi), x)
    return x * vm.sigmoid(e, e.bind(x * inner))


def _is_infinite(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    (x,) = args
    found = _byte(vm.is_infinite(x))
    zero = constant(0, found)
    if not _attribute(step, "detect_positive", 1):
        found = where(x > constant(0.0, x), zero, found)
    if not _attribute(step, "detect_negative", 1):
        found = where(x < constant(0.0, x), zero, found)
    return found


def _cast(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    (x,) = args
    kind = stored(step.dtype)
    if step.dtype == "bool":
        return _byte(_truth(x))
    if _floating(x) and kind in ("int8", "uint8"):
        return vm.cast(e.bind(vm.cast(x, "int32")), kind)  # wraps around, as C does by way of int
    return vm.cast(x, kind)


def _where(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    return where(_truth(condition), then, otherwise)


def _quantize(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    """saturate(round(x / scale) + zero), in float32, which holds all these whole numbers."""
    x, scale, zero = (*args, None)[:3]
    kind = step.dtype
    low, high = _LIMITS[kind]
    value = vm.scalar_call(e, "nearbyint", e.bind(vm.cast(x, "float32") / scale))
    if zero is not None:
        value = value + vm.cast(zero, "float32")
    value = vm.at_most(e, vm.at_least(e, value, float(low)), float(high))
    return vm.cast(e.bind(vm.cast(value, "int32")), kind)


def _dequantize(e: Emitter, step: Step, args: Arguments, known: Sequence[Any]) -> Expr:
    x, scale, zero = (*args, None)[:3]
    whole = vm.cast(x, "int32")
    if zero is not None:
        whole = whole - vm.cast(zero, "int32")
    return vm.cast(whole, "float32") * scale


OPERATORS: Mapping[str, Definition] = {
    "Identity": _simple(lambda x: x),
    "Cast": _cast,
    "Where": _simple(_where),
    "Add": _simple(lambda a, b: a + b),
    "Sub": _simple(lambda a, b: a - b),
    "Mul": _simple(lambda a, b: a * b),
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _power,
    "Sum": _folded(lambda _, a, b: a + b),
    "Mean": _mean,
    "Min": _folded(_minimum),
    "Max": _folded(_maximum),
    "Neg": _simple(lambda x: x * constant(-1, x)),
    "Abs": _simple(lambda x: x if vm.element(x) == "uint8" else vm.magnitude(x)),
    "Sign": _simple(_sign),
    "Clip": _clip,
    "Relu": _emitted(_relu),
    "Equal": _compared(tirx.EQ),
    "Less": _compared(lambda a, b: a < b),
    "Greater": _compared(lambda a, b: a > b),
    "LessOrEqual": _compared(lambda a, b: a <= b),
    "GreaterOrEqual": _compared(lambda a, b: a >= b),
    "And": _logical(tirx.And),
    "Or": _logical(tirx.Or),
    "Xor": _simple(lambda a, b: _byte(tirx.NE(a, b))),
    "Not": _simple(lambda x: _byte(tirx.EQ(x, constant(0, x)))),
    "BitwiseAnd": _simple(lambda a, b: a & b),
    "BitwiseOr": _simple(lambda a, b: a | b),
    "BitwiseXor": _simple(lambda a, b: a ^ b),
    "BitwiseNot": _simple(lambda x: x ^ constant(255 if vm.element(x) == "uint8" else -1, x)),
    "Sqrt": _simple(lambda x: tirx.sqrt(x)),
    "Reciprocal": _simple(lambda x: constant(1.0, x) / x),
    "Exp": _emitted(vm.exp),
    "Log": _emitted(vm.log),
    "Sigmoid": _emitted(vm.sigmoid),
    "Tanh": _emitted(vm.tanh),
    "Erf": _emitted(vm.erf),
    "Gelu": _gelu,
    "LeakyRelu": _leaky,
    "PRelu": _simple(_slope),
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _emitted(_hard_swish),
    "Softplus": _emitted(vm.softplus),
    "Softsign": _simple(_softsign),
    "Mish": _emitted(_mish),
    "ThresholdedRelu": _thresholded,
    "Shrink": _shrink,
    "Floor": _simple(lambda x: tirx.floor(x)),
    "Ceil": _simple(lambda x: tirx.ceil(x)),
    "Round": _simple(lambda x: tirx.nearbyint(x)),
    "IsNaN": _simple(lambda x: _byte(vm.is_nan(x))),
    "IsInf": _is_infinite,
    **{name: _called(name.lower()) for name in ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh")},
    **{name: _library(name.lower()) for name in ("Asinh", "Acosh", "Atanh")},
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
