"""The PyTorch form of each ONNX operator: a function that, given proxies, writes the calls."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from backends.torch_graph import Context, Ints, Node, Refusal, Value, dtype_of

Converter = Callable[..., Any]
CONVERTERS: dict[str, Converter] = {}
_FAR = 1 << 31  # exporters write the ends of slices as large numbers


def converter(*names: str) -> Callable[[Converter], Converter]:
    def register(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(names, function))
        return function

    return register


# --- element by element ---------------------------------------------------------------------------------------------

_UNARY: dict[str, Callable[[Node, Any], Any]] = {
    "Abs": lambda n, x: torch.abs(x), "Acos": lambda n, x: torch.acos(x), "Acosh": lambda n, x: torch.acosh(x),
    "Asin": lambda n, x: torch.asin(x), "Asinh": lambda n, x: torch.asinh(x), "Atan": lambda n, x: torch.atan(x),
    "Atanh": lambda n, x: torch.atanh(x), "Ceil": lambda n, x: torch.ceil(x), "Cos": lambda n, x: torch.cos(x),
    "Cosh": lambda n, x: torch.cosh(x), "Erf": lambda n, x: torch.erf(x), "Exp": lambda n, x: torch.exp(x),
    "Floor": lambda n, x: torch.floor(x), "IsNaN": lambda n, x: torch.isnan(x), "Log": lambda n, x: torch.log(x),
    "Neg": lambda n, x: torch.neg(x), "Not": lambda n, x: torch.logical_not(x),
    "BitwiseNot": lambda n, x: torch.bitwise_not(x), "Reciprocal": lambda n, x: torch.reciprocal(x),
    "Relu": lambda n, x: torch.relu(x), "Round": lambda n, x: torch.round(x), "Sigmoid": lambda n, x: torch.sigmoid(x),
    "Sign": lambda n, x: torch.sign(x), "Sin": lambda n, x: torch.sin(x), "Sinh": lambda n, x: torch.sinh(x),
    "Softplus": lambda n, x: F.softplus(x), "Softsign": lambda n, x: F.softsign(x), "Sqrt": lambda n, x: torch.sqrt(x),
    "Tan": lambda n, x: torch.tan(x), "Tanh": lambda n, x: torch.tanh(x), "Mish": lambda n, x: F.mish(x),
    "HardSwish": lambda n, x: F.hardswish(x), "Identity": lambda n, x: x,
    "Elu": lambda n, x: F.elu(x, n.get("alpha", 1.0)), "Celu": lambda n, x: F.celu(x, n.get("alpha", 1.0)),
    "LeakyRelu": lambda n, x: F.leaky_relu(x, n.get("alpha", 0.01)),
    "Gelu": lambda n, x: F.gelu(x, approximate=n.get("approximate", "none")),
    "HardSigmoid": lambda n, x: torch.clamp(x * n.get("alpha", 0.2) + n.get("beta", 0.5), 0.0, 1.0),
    "ThresholdedRelu": lambda n, x: F.threshold(x, n.get("alpha", 1.0), 0.0),
    "Swish": lambda n, x: F.silu(x) if n.get("alpha", 1.0) == 1 else x * torch.sigmoid(x * n.get("alpha")),
}  # fmt: skip


@converter(*_UNARY)
def unary(c: Context, n: Node, x: Value) -> Any:
    if n.op == "Identity" and not isinstance(x, fx.Proxy):
        return np.array(x) if isinstance(x, np.ndarray) and x.size == 0 else x
    return _UNARY[n.op](n, c.tensor(x))


@converter("Selu")
def selu(c: Context, n: Node, x: Value) -> Any:
    alpha, gamma = n.get("alpha", 1.6732632), n.get("gamma", 1.0507010)
    x = c.tensor(x)
    return torch.where(x > 0, x, torch.expm1(x) * alpha) * gamma


@converter("IsInf")
def is_inf(c: Context, n: Node, x: Value) -> Any:
    if not n.get("detect_positive", 1) and not n.get("detect_negative", 1):
        raise Refusal("it detects neither sign")
    if not n.get("detect_positive", 1):
        return torch.isneginf(c.tensor(x))
    return torch.isinf(c.tensor(x)) if n.get("detect_negative", 1) else torch.isposinf(c.tensor(x))


_ARITHMETIC: dict[str, Any] = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul}


def _pair(c: Context, a: Value, b: Value) -> tuple[Any, Any]:
    """Two operands; at most one of them is written as a number, so that the other decides the type."""
    if isinstance(a, np.ndarray) and a.ndim == 0 and not (isinstance(b, np.ndarray) and b.ndim == 0):
        return c.operand(a), c.tensor(b)
    return c.tensor(a), c.operand(b)


def _ints_pair(a: Value, b: Value) -> tuple[list[Any], list[Any]] | None:
    """Both as integers, stretched to one length, if this is shape arithmetic."""
    if not (isinstance(a, Ints) or isinstance(b, Ints)):
        return None
    both = []
    for v in (a, b):
        if isinstance(v, np.ndarray) and v.ndim <= 1 and v.dtype.kind in "iu":
            v = Ints(tuple(int(i) for i in v.reshape(-1)), v.ndim == 0)
        if not isinstance(v, Ints):
            return None
        both.append(list(v.items))
    length = max(len(v) for v in both)
    if any(len(v) not in (1, length) for v in both):
        return None
    left, right = (v * length if len(v) == 1 else v for v in both)
    return left, right


def _scalar(v: Value) -> bool:
    return v.scalar if isinstance(v, Ints) else v.ndim == 0


@converter(*_ARITHMETIC)
def arithmetic(c: Context, n: Node, a: Value, b: Value) -> Any:
    pair = _ints_pair(a, b)
    if pair is not None:
        return Ints(tuple(map(_ARITHMETIC[n.op], *pair)), _scalar(a) and _scalar(b))
    left, right = _pair(c, a, b)
    return _ARITHMETIC[n.op](left, right)


@converter("Div")
def divide(c: Context, n: Node, a: Value, b: Value) -> Any:
    pair = _ints_pair(a, b)
    if pair is not None and all(isinstance(d, int) and d > 0 for d in pair[1]):  # sizes: floor and truncation agree
        return Ints(tuple(map(operator.floordiv, *pair)), _scalar(a) and _scalar(b))
    if c.integral(n.inputs[0]):
        return torch.div(c.tensor(a), c.operand(b), rounding_mode="trunc")
    left, right = _pair(c, a, b)
    return operator.truediv(left, right)


@converter("Pow")
def power(c: Context, n: Node, a: Value, b: Value) -> Any:
    if c.integral(n.inputs[0]):
        raise Refusal("integer powers are not written")
    if isinstance(b, np.ndarray) and b.size == 1 and b.ndim <= len(c.shape(n.inputs[0]) or ()):
        return torch.pow(c.tensor(a), b.item())
    y = torch.pow(c.tensor(a), c.tensor(b))
    return y if c.kind(n.inputs[0]) == c.kind(n.inputs[1]) else y.to(getattr(torch, c.kind(n.inputs[0])))


@converter("Mod")
def modulo(c: Context, n: Node, a: Value, b: Value) -> Any:
    left, right = c.tensor(a), c.operand(b)
    return torch.fmod(left, right) if n.get("fmod", 0) else torch.remainder(left, right)


_COMPARE: dict[str, Any] = {
    "Equal": torch.eq, "Less": torch.lt, "LessOrEqual": torch.le, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
}  # fmt: skip
_LOGIC: dict[str, Any] = {
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip


@converter(*_COMPARE)
def comparison(c: Context, n: Node, a: Value, b: Value) -> Any:
    return _COMPARE[n.op](c.tensor(a), c.operand(b))


@converter(*_LOGIC)
def logic(c: Context, n: Node, a: Value, b: Value) -> Any:
    return _LOGIC[n.op](c.tensor(a), c.tensor(b))


_FOLD: dict[str, Any] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": operator.add}


@converter(*_FOLD)
def fold(c: Context, n: Node, *xs: Value) -> Any:
    return functools.reduce(_FOLD[n.op], [c.tensor(x) for x in xs])


@converter("Mean")
def mean(c: Context, n: Node, *xs: Value) -> Any:
    return functools.reduce(operator.add, [c.tensor(x) for x in xs]) / len(xs)


@converter("Where")
def where(c: Context, n: Node, condition: Value, a: Value, b: Value) -> Any:
    return torch.where(c.tensor(condition), c.tensor(a), c.tensor(b))


@converter("PRelu")
def prelu(c: Context, n: Node, x: Value, slope: Value) -> Any:
    x = c.tensor(x)
    return torch.where(x < 0, x * c.tensor(slope), x)


@converter("Clip")
def clip(c: Context, n: Node, x: Value, low: Value = None, high: Value = None) -> Any:
    least = n.get("min") if low is None else c.operand(low)
    most = n.get("max") if high is None else c.operand(high)
    x = c.tensor(x)
    if least is None and most is None:
        return x
    if isinstance(least, fx.Proxy) != isinstance(most, fx.Proxy) and least is not None and most is not None:
        least, most = c.tensor(low), c.tensor(high)
    return torch.clamp(x, least, most)


@converter("Cast")
def cast(c: Context, n: Node, x: Value) -> Any:
    dtype = dtype_of(n.get("to"))
    if isinstance(x, Ints) and dtype == torch.int64:
        return x
    return c.tensor(x).to(dtype)


@converter("CastLike")
def cast_like(c: Context, n: Node, x: Value, like: Value) -> Any:
    return c.tensor(x).to(getattr(torch, c.kind(n.inputs[1])))


@converter("Dropout")
def dropout(c: Context, n: Node, x: Value, ratio: Value = None, training: Value = None) -> Any:
    if len(n.outputs) > 1 and n.outputs[1]:
        raise Refusal("its mask is used")
    if training is not None and bool(c.known(training, "training mode")):
        raise Refusal("it is in training mode")
    return x


# --- products -------------------------------------------------------------------------------------------------------


@converter("MatMul")
def matmul(c: Context, n: Node, a: Value, b: Value) -> Any:
    return torch.matmul(c.tensor(a), c.tensor(b))


@converter("Gemm")
def gemm(c: Context, n: Node, a: Value, b: Value, bias: Value = None) -> Any:
    alpha, beta = n.get("alpha", 1.0), n.get("beta", 1.0)
    left, right = c.tensor(a), c.tensor(b)
    left = left.t() if n.get("transA") else left
    plain = alpha == 1 and (bias is None or beta == 1)
    if plain and n.get("transB") and (bias is None or len(c.shape(n.inputs[2]) or ()) == 1):
        return F.linear(left, right, None if bias is None else c.tensor(bias))
    right = right.t() if n.get("transB") else right
    if bias is not None:
        return torch.addmm(c.tensor(bias), left, right, beta=beta, alpha=alpha)
    y = torch.mm(left, right)
    return y if alpha == 1 else y * alpha


@converter("Einsum")
def einsum(c: Context, n: Node, *xs: Value) -> Any:
    return torch.einsum(n.get("equation"), *[c.tensor(x) for x in xs])


@converter("MatMulInteger")
def matmul_integer(c: Context, n: Node, a: Value, b: Value, a_zero: Value = None, b_zero: Value = None) -> Any:
    left, right = c.tensor(a).to(torch.int32), c.tensor(b).to(torch.int32)
    if a_zero is not None:
        zero = c.tensor(a_zero).to(torch.int32)
        left = left - (zero.unsqueeze(-1) if c.rank(n.inputs[2]) else zero)
    right = right if b_zero is None else right - c.tensor(b_zero).to(torch.int32)
    return torch.matmul(left, right)


# --- windows --------------------------------------------------------------------------------------------------------


def _pads(c: Context, n: Node, kernel: list[int], rank: int) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial dimension."""
    auto = n.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = c.shape(n.inputs[0])
        sizes = shape[2:] if shape else []
        if not sizes or any(s is None for s in sizes):
            raise Refusal("auto_pad needs a known input size")
        strides, dilations = n.get("strides") or [1] * rank, n.get("dilations") or [1] * rank
        before, after = [], []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            assert size is not None
            total = max(0, (math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        return before, after
    flat = [0] * (2 * rank) if auto == "VALID" else n.get("pads") or [0] * (2 * rank)
    return flat[:rank], flat[rank:]


def _padded(x: Any, before: list[int], after: list[int], value: float) -> Any:
    flat = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return F.pad(x, flat, value=value)


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _spatial(c: Context, n: Node, table: dict[int, Any]) -> int:
    rank = c.rank(n.inputs[1]) - 2 if "Conv" in n.op else len(n.get("kernel_shape"))
    if rank not in table:
        raise Refusal(f"{rank} spatial dimensions")
    return rank


@converter("Conv")
def conv(c: Context, n: Node, x: Value, w: Value, b: Value = None) -> Any:
    rank = _spatial(c, n, _CONV)
    kernel = n.get("kernel_shape") or [int(k) for k in (c.shape(n.inputs[1]) or [])[2:] if k is not None]
    before, after = _pads(c, n, kernel, rank)
    x = c.tensor(x)
    if before != after:
        x, before = _padded(x, before, after, 0.0), [0] * rank
    bias = None if b is None else c.tensor(b)
    strides, dilations = n.get("strides") or [1] * rank, n.get("dilations") or [1] * rank
    return _CONV[rank](x, c.tensor(w), bias, strides, before, dilations, n.get("group", 1))


@converter("ConvTranspose")
def conv_transpose(c: Context, n: Node, x: Value, w: Value, b: Value = None) -> Any:
    rank = _spatial(c, n, _CONV_TRANSPOSE)
    if n.get("output_shape") or n.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Refusal("output_shape and auto_pad are not written")
    flat = n.get("pads") or [0] * (2 * rank)
    before, after = flat[:rank], flat[rank:]
    strides, dilations = n.get("strides") or [1] * rank, n.get("dilations") or [1] * rank
    # unequal padding: more on one side is the same as less output there
    extra = [e + p - q for e, p, q in zip(n.get("output_padding") or [0] * rank, before, after, strict=True)]
    if any(e < 0 or e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise Refusal("its padding is unequal")
    bias = None if b is None else c.tensor(b)
    return _CONV_TRANSPOSE[rank](c.tensor(x), c.tensor(w), bias, strides, before, extra, n.get("group", 1), dilations)


@converter("MaxPool")
def max_pool(c: Context, n: Node, x: Value) -> Any:
    if len(n.outputs) > 1:
        raise Refusal("its indices are used")
    rank, kernel = _spatial(c, n, _MAX_POOL), n.get("kernel_shape")
    before, after = _pads(c, n, kernel, rank)
    x = c.tensor(x)
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        if c.integral(n.inputs[0]) or n.get("ceil_mode", 0):
            raise Refusal("its padding is unequal")
        x, before = _padded(x, before, after, -math.inf), [0] * rank
    strides, dilations = n.get("strides") or [1] * rank, n.get("dilations") or [1] * rank
    return _MAX_POOL[rank](x, kernel, strides, before, dilations, bool(n.get("ceil_mode", 0)))


@converter("AveragePool")
def average_pool(c: Context, n: Node, x: Value) -> Any:
    rank, kernel = _spatial(c, n, _AVERAGE_POOL), n.get("kernel_shape")
    if any(d != 1 for d in n.get("dilations") or []):
        raise Refusal("a dilated average is not written")
    before, after = _pads(c, n, kernel, rank)
    counted = bool(n.get("count_include_pad", 0))
    x = c.tensor(x)
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        if not counted or n.get("ceil_mode", 0):
            raise Refusal("its padding is unequal")
        x, before = _padded(x, before, after, 0.0), [0] * rank
    strides = n.get("strides") or [1] * rank
    return _AVERAGE_POOL[rank](x, kernel, strides, before, bool(n.get("ceil_mode", 0)), counted)


@converter("GlobalAveragePool", "GlobalMaxPool")
def global_pool(c: Context, n: Node, x: Value) -> Any:
    axes = list(range(2, c.rank(n.inputs[0])))
    pick = torch.mean if n.op == "GlobalAveragePool" else torch.amax
    return pick(c.tensor(x), axes, True)


# --- normalisations -------------------------------------------------------------------------------------------------


@converter("BatchNormalization")
def batch_norm(c: Context, n: Node, x: Value, scale: Value, bias: Value, mean: Value, variance: Value) -> Any:
    if n.get("training_mode", 0) or len(n.outputs) > 1:
        raise Refusal("it is in training mode")
    x, m, v, s, b = (c.tensor(p) for p in (x, mean, variance, scale, bias))
    return F.batch_norm(x, m, v, s, b, False, 0.0, n.get("epsilon", 1e-5))


def _normalised(c: Context, n: Node) -> list[int]:
    """The sizes that a layer norm runs over: those of its scale, if that covers them."""
    rank, shape, scale = c.rank(n.inputs[0]), c.shape(n.inputs[0]), c.shape(n.inputs[1])
    axis = n.get("axis", -1) % rank
    over = (shape or [])[axis:]
    if scale is None or any(d is None for d in scale) or len(scale) != rank - axis:
        raise Refusal("the shape of its scale is not that of what it normalises")
    if any(d is not None and d != s for d, s in zip(over, scale, strict=True)):
        raise Refusal("its scale is broadcast")
    if len(n.outputs) > 1 and any(n.outputs[1:]):
        raise Refusal("its mean is used")
    return [int(d) for d in scale if d is not None]


@converter("LayerNormalization")
def layer_norm(c: Context, n: Node, x: Value, scale: Value, bias: Value = None) -> Any:
    beta = None if bias is None else c.tensor(bias)
    if bias is not None and c.shape(n.inputs[2]) != c.shape(n.inputs[1]):
        raise Refusal("its bias is broadcast")
    return F.layer_norm(c.tensor(x), _normalised(c, n), c.tensor(scale), beta, n.get("epsilon", 1e-5))


@converter("RMSNormalization")
def rms_norm(c: Context, n: Node, x: Value, scale: Value) -> Any:
    return F.rms_norm(c.tensor(x), _normalised(c, n), c.tensor(scale), n.get("epsilon", 1e-5))


@converter("InstanceNormalization")
def instance_norm(c: Context, n: Node, x: Value, scale: Value, bias: Value) -> Any:
    eps = n.get("epsilon", 1e-5)
    return F.instance_norm(c.tensor(x), weight=c.tensor(scale), bias=c.tensor(bias), eps=eps)


@converter("GroupNormalization")
def group_norm(c: Context, n: Node, x: Value, scale: Value, bias: Value) -> Any:
    channels = (c.shape(n.inputs[0]) or [None, None])[1]
    if channels is None or c.shape(n.inputs[1]) != [channels]:
        raise Refusal("its scale is one number a group")
    return F.group_norm(c.tensor(x), n.get("num_groups"), c.tensor(scale), c.tensor(bias), n.get("epsilon", 1e-5))


@converter("LRN")
def local_response_norm(c: Context, n: Node, x: Value) -> Any:
    if n.get("size") % 2 == 0:
        raise Refusal("an even window")
    alpha, beta, k = n.get("alpha", 1e-4), n.get("beta", 0.75), n.get("bias", 1.0)
    return F.local_response_norm(c.tensor(x), n.get("size"), alpha, beta, k)


@converter("Softmax", "LogSoftmax")
def softmax(c: Context, n: Node, x: Value) -> Any:
    function = F.softmax if n.op == "Softmax" else F.log_softmax
    x = c.tensor(x)
    if n.opset >= 13:
        return function(x, n.get("axis", -1))
    rank = c.rank(n.inputs[0])
    axis = n.get("axis", 1) % rank
    if axis == rank - 1:
        return function(x, -1)
    return function(torch.flatten(x, axis), -1).reshape(x.shape)


# --- reductions -----------------------------------------------------------------------------------------------------

_REDUCE: dict[str, Callable[[Any, list[int], bool], Any]] = {
    "ReduceSum": lambda x, a, k: torch.sum(x, a, k, dtype=x.dtype), "ReduceMean": lambda x, a, k: torch.mean(x, a, k),
    "ReduceMax": lambda x, a, k: torch.amax(x, a, k), "ReduceMin": lambda x, a, k: torch.amin(x, a, k),
    "ReduceL1": lambda x, a, k: torch.sum(torch.abs(x), a, k, dtype=x.dtype),
    "ReduceL2": lambda x, a, k: torch.sqrt(torch.sum(x * x, a, k)),
    "ReduceSumSquare": lambda x, a, k: torch.sum(x * x, a, k, dtype=x.dtype),
    "ReduceLogSum": lambda x, a, k: torch.log(torch.sum(x, a, k)),
    "ReduceLogSumExp": lambda x, a, k: torch.logsumexp(x, a, k),
}  # fmt: skip


@converter(*_REDUCE, "ReduceProd")
def reduction(c: Context, n: Node, x: Value, axes: Value = None) -> Any:
    chosen = n.get("axes") if axes is None else [int(a) for a in c.known(axes, "axes").reshape(-1)]
    if not chosen and n.get("noop_with_empty_axes", 0):
        raise Refusal("it reduces nothing")
    rank = c.rank(n.inputs[0])
    over = sorted(a % rank for a in chosen) if chosen else list(range(rank))
    keep, x = bool(n.get("keepdims", 1)), c.tensor(x)
    if not over:
        raise Refusal("it reduces a scalar")
    if n.op != "ReduceProd":
        return _REDUCE[n.op](x, over, keep)
    for axis in reversed(over):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


@converter("ArgMax", "ArgMin")
def arg(c: Context, n: Node, x: Value) -> Any:
    if n.get("select_last_index", 0):
        raise Refusal("it wants the last index")
    pick = torch.argmax if n.op == "ArgMax" else torch.argmin
    return pick(c.tensor(x), n.get("axis", 0), bool(n.get("keepdims", 1)))


@converter("TopK")
def top_k(c: Context, n: Node, x: Value, k: Value) -> Any:
    [count] = c.ints(k, "k")
    axis = n.get("axis", -1) % c.rank(n.inputs[0])
    # torch.topk breaks ties as it likes; ONNX wants the lower index first
    order = torch.sort(c.tensor(x), dim=axis, descending=bool(n.get("largest", 1)), stable=True)
    place = (*[slice(None)] * axis, slice(None, count))
    return order[0][place], order[1][place]


@converter("CumSum")
def cumsum(c: Context, n: Node, x: Value, axis: Value) -> Any:
    [at] = c.ints(axis, "axis")
    x = c.tensor(x)
    turned = torch.flip(x, [at]) if n.get("reverse", 0) else x
    y = torch.cumsum(turned, at, dtype=turned.dtype)
    y = y - turned if n.get("exclusive", 0) else y
    return torch.flip(y, [at]) if n.get("reverse", 0) else y


# --- shapes and movement --------------------------------------------------------------------------------------------


@converter("Constant")
def constant(c: Context, n: Node) -> Any:
    if "value" in n.attributes:
        return n.get("value")
    for name, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32),
                        ("value_floats", np.float32)):  # fmt: skip
        if name in n.attributes:
            return np.asarray(n.get(name), dtype=dtype)
    raise Refusal("a string or sparse constant")


@converter("ConstantOfShape")
def constant_of_shape(c: Context, n: Node, shape: Value) -> Any:
    value = n.get("value", np.zeros(1, np.float32))
    return c.call(torch.full, c.ints(shape, "shape"), value.item(), dtype=getattr(torch, value.dtype.name))


@converter("Shape")
def shape(c: Context, n: Node, x: Value) -> Any:
    known = c.shape(n.inputs[0])
    if known is None:
        raise Refusal(f"the rank of {n.inputs[0]!r} is not known")
    axes = range(len(known))[n.get("start", 0) : n.get("end")]
    if isinstance(x, fx.Proxy):
        return Ints(tuple(known[a] if known[a] is not None else x.size(a) for a in axes))
    return Ints(tuple(known[a] for a in axes))


@converter("Size")
def size(c: Context, n: Node, x: Value) -> Any:
    return Ints((c.tensor(x).numel(),), True)


@converter("Reshape")
def reshape(c: Context, n: Node, x: Value, target: Value) -> Any:
    if isinstance(x, Ints) and isinstance(target, np.ndarray) and target.ndim == 1:
        if target.tolist() in ([-1], [len(x.items)]):
            return Ints(x.items)
        if target.size == 0 and len(x.items) == 1:
            return Ints(x.items, True)
    if isinstance(target, fx.Proxy):  # made from data: it must be read at run time, and zeros mean nothing there
        return c.tensor(x).reshape(target.tolist())
    dims, source = c.ints(target, "shape"), c.tensor(x)
    if not n.get("allowzero", 0):
        dims = [source.size(i) if isinstance(d, int) and d == 0 else d for i, d in enumerate(dims)]
    return source.reshape(dims)


@converter("Flatten")
def flatten(c: Context, n: Node, x: Value) -> Any:
    rank, axis, x = c.rank(n.inputs[0]), n.get("axis", 1), c.tensor(x)
    axis = axis + rank if axis < 0 else axis
    if axis == 0 or axis == rank:
        return x.reshape([1, -1] if axis == 0 else [-1, 1])
    return torch.flatten(torch.flatten(x, 0, axis - 1), 1) if axis > 1 else torch.flatten(x, 1)


def _axes(c: Context, n: Node, given: Value) -> list[int] | None:
    if given is None:
        return n.get("axes")  # type: ignore[no-any-return]
    return [int(a) for a in c.known(given, "axes").reshape(-1)]


@converter("Squeeze")
def squeeze(c: Context, n: Node, x: Value, axes: Value = None) -> Any:
    if isinstance(x, Ints):
        return Ints(x.items, True) if len(x.items) == 1 else c.tensor(x)
    over = _axes(c, n, axes)
    return torch.squeeze(c.tensor(x)) if over is None else torch.squeeze(c.tensor(x), over)


@converter("Unsqueeze")
def unsqueeze(c: Context, n: Node, x: Value, axes: Value = None) -> Any:
    if isinstance(x, Ints) and x.scalar:
        return Ints(x.items)
    over = _axes(c, n, axes) or []
    if len(over) > 1 and min(over) < 0:
        total = c.rank(n.inputs[0]) + len(over)
        over = [a % total for a in over]
    y = c.tensor(x)
    for axis in sorted(over):
        y = torch.unsqueeze(y, axis)
    return y


@converter("Transpose")
def transpose(c: Context, n: Node, x: Value) -> Any:
    order = n.get("perm") or list(reversed(range(c.rank(n.inputs[0]))))
    return torch.permute(c.tensor(x), order)


@converter("Concat")
def concat(c: Context, n: Node, *xs: Value) -> Any:
    if any(isinstance(x, Ints) for x in xs) and all(isinstance(x, (Ints, np.ndarray)) for x in xs):
        return Ints(tuple(item for x in xs for item in c.ints(x, "operand")))
    return torch.cat([c.tensor(x) for x in xs], n.get("axis", 0))


@converter("Split")
def split(c: Context, n: Node, x: Value, sizes: Value = None) -> Any:
    parts = n.get("split") if sizes is None else c.ints(sizes, "split")
    axis, count, x = n.get("axis", 0), len(n.outputs), c.tensor(x)
    pieces = torch.split(x, parts, axis) if parts is not None else torch.chunk(x, count, axis)
    return tuple(pieces[i] for i in range(count))


@converter("Slice")
def slice_(
    c: Context, n: Node, x: Value, starts: Value = None, ends: Value = None, axes: Value = None, steps: Value = None
) -> Any:
    first = n.get("starts") if starts is None else c.ints(starts, "start")
    last = n.get("ends") if ends is None else c.ints(ends, "end")
    over = _axes(c, n, axes) or list(range(len(first)))
    by = [1] * len(first) if steps is None else [int(s) for s in c.known(steps, "steps").reshape(-1)]
    if isinstance(x, Ints) and all(isinstance(v, int) for v in (*first, *last)):
        return Ints(x.items[first[0] : last[0] : by[0]])
    rank, y = c.rank(n.inputs[0]), c.tensor(x)
    place: list[Any] = [slice(None)] * rank
    for axis, a, b, s in zip(over, first, last, by, strict=True):
        if s < 0:
            if not (isinstance(a, int) and isinstance(b, int) and (a == -1 or a >= _FAR) and b <= -_FAR):
                raise Refusal("it goes backwards over a part")
            y, a, b, s = torch.flip(y, [axis % rank]), None, None, -s
        b = None if isinstance(b, int) and b >= _FAR else b
        place[axis % rank] = slice(None if isinstance(a, int) and a == 0 else a, b, None if s == 1 else s)
    return y[tuple(place)]


@converter("Gather")
def gather(c: Context, n: Node, x: Value, indices: Value) -> Any:
    axis = n.get("axis", 0)
    if isinstance(x, Ints) and isinstance(indices, np.ndarray) and indices.ndim <= 1:
        return Ints(tuple(x.items[int(i)] for i in indices.reshape(-1)), indices.ndim == 0)
    source = c.tensor(x)
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        return torch.select(source, axis, int(indices))
    axis = axis % c.rank(n.inputs[0]) if axis < 0 else axis
    return source[(*[slice(None)] * axis, c.tensor(indices))]


@converter("GatherElements")
def gather_elements(c: Context, n: Node, x: Value, indices: Value) -> Any:
    axis, source, at = n.get("axis", 0), c.tensor(x), c.tensor(indices).to(torch.int64)
    return torch.gather(source, axis, torch.where(at < 0, at + source.size(axis), at))


def _last(c: Context, name: str) -> int:
    shape = c.shape(name)
    if not shape or shape[-1] is None:
        raise Refusal(f"the shape of {name!r} is not known")
    return shape[-1]


@converter("GatherND")
def gather_nd(c: Context, n: Node, x: Value, indices: Value) -> Any:
    if n.get("batch_dims", 0):
        raise Refusal("batch_dims is not written")
    at = c.tensor(indices)
    return c.tensor(x)[tuple(torch.select(at, -1, i) for i in range(_last(c, n.inputs[1])))]


@converter("ScatterND")
def scatter_nd(c: Context, n: Node, x: Value, indices: Value, updates: Value) -> Any:
    if n.get("reduction", "none") not in ("none", "add"):
        raise Refusal(f"reduction {n.get('reduction')!r} is not written")
    at = c.tensor(indices)
    place = tuple(torch.select(at, -1, i) for i in range(_last(c, n.inputs[1])))
    return torch.index_put(c.tensor(x), place, c.tensor(updates), n.get("reduction", "none") == "add")


@converter("ScatterElements")
def scatter_elements(c: Context, n: Node, x: Value, indices: Value, updates: Value) -> Any:
    axis, source, at = n.get("axis", 0), c.tensor(x), c.tensor(indices).to(torch.int64)
    at = torch.where(at < 0, at + source.size(axis), at)
    how = n.get("reduction", "none")
    if how == "none":
        return torch.scatter(source, axis, at, c.tensor(updates))
    name = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[how]
    return torch.scatter_reduce(source, axis, at, c.tensor(updates), name)


@converter("Expand")
def expand(c: Context, n: Node, x: Value, target: Value) -> Any:
    dims = target.tolist() if isinstance(target, fx.Proxy) else c.ints(target, "shape")
    shell = c.call(torch.empty, [], dtype=torch.bool).expand(dims)  # ONNX broadcasts both ways, PyTorch's expand one
    return torch.broadcast_tensors(c.tensor(x), shell)[0]  # type: ignore[no-untyped-call]


@converter("Tile")
def tile(c: Context, n: Node, x: Value, repeats: Value) -> Any:
    return torch.tile(c.tensor(x), c.ints(repeats, "repeats"))


@converter("Range")
def range_(c: Context, n: Node, start: Value, limit: Value, delta: Value) -> Any:
    def number(v: Value) -> Any:
        if isinstance(v, Ints):
            return v.items[0]
        return v.item()  # an array's number now, or a tensor's at run time

    return c.call(torch.arange, number(start), number(limit), number(delta), dtype=getattr(torch, c.kind(n.inputs[0])))


@converter("Pad")
def pad(c: Context, n: Node, x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> Any:
    amounts = n.get("pads") if pads is None else c.ints(pads, "pads")
    rank, mode = c.rank(n.inputs[0]), n.get("mode", "constant")
    over = [a % rank for a in _axes(c, n, axes) or range(rank)]
    widths: list[tuple[Any, Any]] = [(0, 0)] * rank
    for i, axis in enumerate(over):
        widths[axis] = (amounts[i], amounts[i + len(over)])
    first = next((a for a, w in enumerate(widths) if w != (0, 0)), rank)
    flat = [p for w in reversed(widths[first:]) for p in w]
    if not flat:
        return x
    if mode == "constant":
        fill = n.get("value", 0.0) if value is None else c.known(value, "fill").item()
        return F.pad(c.tensor(x), flat, value=fill)
    if mode not in ("reflect", "edge") or len(flat) > 6 or rank - len(flat) // 2 not in (1, 2):
        raise Refusal(f"mode {mode!r} over these axes is not written")
    return F.pad(c.tensor(x), flat, mode="reflect" if mode == "reflect" else "replicate")


@converter("Trilu")
def trilu(c: Context, n: Node, x: Value, k: Value = None) -> Any:
    offset = 0 if k is None else int(c.known(k, "diagonal"))
    return torch.triu(c.tensor(x), offset) if n.get("upper", 1) else torch.tril(c.tensor(x), offset)


@converter("NonZero")
def nonzero(c: Context, n: Node, x: Value) -> Any:
    return torch.nonzero(c.tensor(x)).t()


@converter("OneHot")
def one_hot(c: Context, n: Node, indices: Value, depth: Value, values: Value) -> Any:
    count = int(c.known(depth, "depth").reshape(-1)[0])
    rank = c.rank(n.inputs[0])
    axis = n.get("axis", -1) % (rank + 1)
    at = torch.unsqueeze(c.tensor(indices).to(torch.int64), axis)
    steps = c.call(torch.arange, count).reshape([-1] + [1] * (rank - axis))
    off, on = torch.select(c.tensor(values), 0, 0), torch.select(c.tensor(values), 0, 1)
    return torch.where(torch.where(at < 0, at + count, at) == steps, on, off)


@converter("DepthToSpace")
def depth_to_space(c: Context, n: Node, x: Value) -> Any:
    b, x = n.get("blocksize"), c.tensor(x)
    if n.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    size = [x.size(i) for i in range(4)]
    y = x.reshape([size[0], b, b, size[1] // (b * b), size[2], size[3]]).permute([0, 3, 4, 1, 5, 2])
    return y.reshape([size[0], size[1] // (b * b), size[2] * b, size[3] * b])


@converter("SpaceToDepth")
def space_to_depth(c: Context, n: Node, x: Value) -> Any:
    b, x = n.get("blocksize"), c.tensor(x)
    size = [x.size(i) for i in range(4)]
    order = [0, 3, 5, 1, 2, 4] if n.get("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    y = x.reshape([size[0], size[1], size[2] // b, b, size[3] // b, b]).permute(order)
    return y.reshape([size[0], size[1] * b * b, size[2] // b, size[3] // b])


@converter("Resize")
def resize(c: Context, n: Node, x: Value, roi: Value = None, scales: Value = None, sizes: Value = None) -> Any:
    rank = c.rank(n.inputs[0])
    mode, how = n.get("coordinate_transformation_mode", "half_pixel"), n.get("mode", "nearest")
    by_scale = scales is not None and c.known(scales, "scales").size > 0
    given = c.known(scales, "scales").tolist() if by_scale else c.ints(sizes, "sizes")
    over = _axes(c, n, None) or list(range(rank))
    wanted = dict(zip(over, given, strict=True))
    known = c.shape(n.inputs[0]) or [None] * rank
    if any(wanted.get(a, 1) not in ((1.0, 1) if by_scale else (1, known[a])) for a in (0, 1) if a in wanted):
        raise Refusal("it resizes the batch or the channels")
    target: list[Any] = [wanted.get(a, 1.0 if by_scale else known[a]) for a in range(2, rank)]
    exact = n.get("antialias", 0) == 0 and n.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    nearest = how == "nearest" and mode == "asymmetric" and n.get("nearest_mode", "round_prefer_floor") == "floor"
    linear = how == "linear" and mode in ("half_pixel", "pytorch_half_pixel", "align_corners") and rank in (3, 4)
    if mode == "align_corners" and by_scale or not exact or not (nearest or linear) or rank > 5:
        raise Refusal(f"mode {how!r} with {mode!r} is not written")
    if linear and mode == "pytorch_half_pixel":  # it differs where one pixel is left of several
        single = any(f < 1 for f in target) if by_scale else any(not isinstance(s, int) or s < 2 for s in target)
        if single:
            raise Refusal("pytorch_half_pixel to a size of 1, or to one that is not known")
    name = "nearest" if nearest else "linear" if rank == 3 else "bilinear"
    extra: dict[str, Any] = {} if nearest else {"align_corners": mode == "align_corners"}
    if by_scale:
        # without recompute_scale_factor PyTorch divides by the scale that was given, as ONNX does
        return F.interpolate(c.tensor(x), scale_factor=target, mode=name, recompute_scale_factor=False, **extra)
    return F.interpolate(c.tensor(x), size=target, mode=name, **extra)


# --- quantisation ---------------------------------------------------------------------------------------------------


def _spread(c: Context, n: Node, value: Value, name: str) -> Any:
    if n.get("block_size", 0):
        raise Refusal("blocked quantisation is not written")
    shape, rank = c.shape(name), c.rank(n.inputs[0])
    if not shape or (len(shape) == 1 and shape[0] == 1):
        return c.tensor(value) if not shape else c.tensor(value).reshape([])
    axis = n.get("axis", 1) % rank
    return c.tensor(value).reshape([-1 if i == axis else 1 for i in range(rank)])


@converter("DequantizeLinear")
def dequantize(c: Context, n: Node, x: Value, scale: Value, zero: Value = None) -> Any:
    if "int" not in c.kind(n.inputs[0]) or "int4" in c.kind(n.inputs[0]) or "int2" in c.kind(n.inputs[0]):
        raise Refusal(f"{c.kind(n.inputs[0])} is not written")
    wide = c.tensor(x).to(torch.int32)
    if zero is not None:
        wide = wide - _spread(c, n, zero, n.inputs[2]).to(torch.int32)
    return wide.to(getattr(torch, c.kind(n.inputs[1]))) * _spread(c, n, scale, n.inputs[1])


@converter("QuantizeLinear")
def quantize(c: Context, n: Node, x: Value, scale: Value, zero: Value = None) -> Any:
    kind = "uint8" if zero is None else c.kind(n.inputs[2])
    if kind not in ("int8", "uint8") or n.get("output_dtype", 0) or c.kind(n.inputs[0]) != "float32":
        raise Refusal(f"{kind} is not written")
    y = torch.round(c.tensor(x) / _spread(c, n, scale, n.inputs[1]))
    if zero is not None:
        y = y + _spread(c, n, zero, n.inputs[2]).to(torch.float32)
    low, high = (-128, 127) if kind == "int8" else (0, 255)
    return torch.clamp(y, low, high).to(getattr(torch, kind))
