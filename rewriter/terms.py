"""The vocabulary of the algebra, and its readings.

A model becomes a term in a small language in which broadcasting is explicit, so that laws need no shape arithmetic:

    linear(x, A, b)     x[..., i] @ A[i, o] + b[o]
    conv(x, K, b, w)    convolution with bias b[o], geometry ``w`` (``rewriter.window``)
    add, mul            of two tensors of one shape
    scale(x, s, a)      x times the vector s along axis a        (axes count from the end: -1 is the last)
    bias(x, b, a)       x plus the vector b along axis a
    scalar(x, c)        x times the number c
    shift(x, c)         x plus the number c
    map(f, x)           an element-wise function, named by its ONNX operator and attributes
    move(f, x, c)       x with its elements in other places (Reshape, Transpose, ...); c: the operator's constant operand, if any
    product(x, y)       matmul of two run-time tensors
    cat(x, y, a)        concatenation of two tensors
    rest                operators on weights that laws introduce: see ``OPERATORS``
    op(signature, ...)  everything else: opaque, equal only to itself

Linear maps carry their bias, zero where the model has none: affine maps are closed under sums, scales and composition, so each such
step is one law with one result. With biases as sums of their own, the orders in which they can be added explode.

Every operator has three readings: as a pattern in the e-graph (``Patterns``), as arrays (``Arrays``; any dtype, also exact
fractions), and as ONNX nodes (``rewriter.decode``). A law is written once against ``Reading`` and is run by all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from rewriter.window import Widening, Window, compose, depthwise_identity, join

Term: TypeAlias = Any
"""A tensor: a pattern in one reading, an array in another."""


@dataclass(frozen=True)
class Operator:
    """``kinds``: one letter an argument. t tensor, i integer, s string."""

    name: str
    kinds: str
    weights_only: bool = False
    """Its arguments are constants wherever it occurs: it never runs."""


OPERATORS: dict[str, Operator] = {
    o.name: o
    for o in (
        Operator("linear", "ttt"),
        Operator("conv", "ttts"),
        Operator("add", "tt"),
        Operator("mul", "tt"),
        Operator("scale", "tti"),
        Operator("bias", "tti"),
        Operator("scalar", "tt"),
        Operator("shift", "tt"),
        Operator("map", "st"),
        Operator("move", "stt"),
        Operator("product", "tt"),
        Operator("cat", "tti"),
        Operator("mean_pool", "ts"),
        Operator("matmul", "tt", True),
        Operator("kernel_scale_inputs", "tts", True),
        Operator("kernel_sum_inputs", "tts", True),
        Operator("kernel_widen", "ts", True),
        Operator("kernel_compose", "ttss", True),
        Operator("kernel_diagonal", "ts", True),
        Operator("kernel_ones", "s", True),
        Operator("kernel_mean", "s", True),
        Operator("eye_like", "t", True),
        Operator("zero_like", "t", True),
        Operator("zero_row", "t", True),
        Operator("zero_outputs", "t", True),
    )
}
EGG_SORT = {"t": "T", "i": "i64", "s": "String"}
Reading: TypeAlias = Any
"""What a rule may say: ``Patterns`` and ``Arrays`` give the operators' names a meaning."""
MINUS_ONE = "minus_one"
"""The leaf that every program has: the number -1."""


@dataclass(frozen=True)
class Fact:
    """A relation between terms and attributes. ``holds`` is its meaning on arrays (None: decided by structure alone)."""

    name: str
    kinds: str
    holds: Callable[..., bool] | None = None


def _zero(x: np.ndarray) -> bool:
    return bool(np.all(x == 0))


def _one(x: np.ndarray) -> bool:
    return bool(np.all(x == 1))


# Facts that are derived in the e-graph, or read off the weights when a model is encoded.
FACTS: dict[str, Fact] = {
    f.name: f
    for f in (
        Fact("const", "t"),
        # Not constant: some input of the model reaches it.
        Fact("live", "t"),
        Fact("zero", "t", _zero),
        Fact("one", "t", _one),
        # The model does not store this weight in a smaller form.
        Fact("dense", "t"),
        # A number times x costs nothing: a linear map with dense weights makes x, with data movement after it at most.
        Fact("absorbs", "t"),
        # A law that builds no term made something in this class equal to a part of itself.
        Fact("erased", "ts"),
        # u is an affine map of x; y is x times a constant.
        Fact("reads", "tt"),
        Fact("multiple", "tt"),
        # Some node makes x that no law of linear maps looks into.
        Fact("other", "t"),
        # u and v are functions of affine images of one tensor: worth writing side by side.
        Fact("siblings", "tt"),
    )
}


def _windows_unpadded(w: str) -> bool:
    return not Window.parse(w).padded


def _join(a: str, b: str) -> tuple[str, str, str] | None:
    joined = join(Window.parse(a), Window.parse(b))
    return None if joined is None else (str(joined[0]), str(joined[1]), str(joined[2]))


def _compose(a: str, b: str) -> tuple[str] | None:
    c = compose(Window.parse(a), Window.parse(b))
    return None if c is None else (str(c),)


def _identity(a: str) -> tuple[str] | None:
    d = depthwise_identity(Window.parse(a))
    return None if d is None else (str(d),)


def _channels(a: str) -> tuple[int]:
    return (Window.parse(a).channel_axis,)


@dataclass(frozen=True)
class Table:
    """A function of windows, computed for the windows of a model and given to the e-graph as facts.

    ``inputs`` windows give ``outputs`` strings, or None. The fact in a rule's guard is ``(name, *inputs, *outputs)``.
    """

    name: str
    inputs: int
    of: Callable[..., tuple[Any, ...] | None]
    creates: tuple[int, ...] = ()
    """Which of the outputs are windows, themselves arguments of tables."""
    outputs: str = ""
    """A letter for each output: s or i."""


TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        Table("unpadded", 1, lambda a: () if _windows_unpadded(a) else None),
        Table("unit_stride", 1, lambda a: () if all(s == 1 for s in Window.parse(a).strides) else None),
        Table("channels", 1, _channels, outputs="i"),
        Table("joins", 2, _join, (0,), "sss"),
        Table("composes", 2, _compose, (0,), "s"),
        Table("identity_window", 1, _identity, (0,), "s"),
    )
}


class Patterns:
    """Reading as patterns: a term is ``(operator, *arguments)``, a variable is a string."""

    def __getattr__(self, name: str) -> Callable[..., Term]:
        if name in OPERATORS:
            return lambda *arguments: (name, *arguments)
        raise AttributeError(name)

    @staticmethod
    def less(axis: Any, by: int) -> Any:
        return ("-", axis, by)

    minus_one = (MINUS_ONE,)


def _along(v: np.ndarray, axis: int) -> np.ndarray:
    return v.reshape(v.shape + (1,) * (-1 - axis))


MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Relu": lambda x: np.maximum(x, 0 * x),
    "Abs": np.abs,
    "Neg": np.negative,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "Exp": np.exp,
    "Square": lambda x: x * x,
}
"""Meanings that the rules' tests draw from. A model may hold any element-wise operator: laws do not look inside ``map``."""


MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "swap": lambda x: np.swapaxes(x, -1, -2),
    "flat": lambda x: x.reshape(x.shape[0], -1),
    "reverse": lambda x: x[..., ::-1],
}
"""As ``MAPS``, for ``move``."""


class Arrays:
    """Reading as arrays. Shapes as in the module docstring; a weights-only operator says its own."""

    minus_one = np.array(-1)

    @staticmethod
    def less(axis: int, by: int) -> int:
        return axis - by

    @staticmethod
    def linear(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return Arrays.bias(x @ a, b, -1)

    @staticmethod
    def matmul(x: np.ndarray, a: np.ndarray) -> np.ndarray:
        return x @ a

    @staticmethod
    def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        _same_shape(x, y)
        return x + y

    @staticmethod
    def mul(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        _same_shape(x, y)
        return x * y

    @staticmethod
    def scale(x: np.ndarray, s: np.ndarray, axis: int) -> np.ndarray:
        _same_length(x, s, axis)
        return x * _along(s, axis)

    @staticmethod
    def bias(x: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        _same_length(x, b, axis)
        return x + _along(b, axis)

    @staticmethod
    def scalar(x: np.ndarray, c: np.ndarray) -> np.ndarray:
        return x * np.asarray(c).reshape(())[()]

    @staticmethod
    def shift(x: np.ndarray, c: np.ndarray) -> np.ndarray:
        return x + np.asarray(c).reshape(())[()]

    @staticmethod
    def map(f: str, x: np.ndarray) -> np.ndarray:
        return MAPS[f](x)

    @staticmethod
    def move(f: str, x: np.ndarray, c: np.ndarray) -> np.ndarray:
        return MOVES[f](x)

    @staticmethod
    def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x @ y

    @staticmethod
    def cat(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.concatenate([x, y], axis)

    @staticmethod
    def conv(x: np.ndarray, k: np.ndarray, b: np.ndarray, w: str) -> np.ndarray:
        """x ``[n, inputs, *spatial]``, k of the window's shape, b ``[outputs]`` -> ``[n, outputs, *spatial']``."""
        window = Window.parse(w)
        if k.shape != window.shape:
            raise ValueError(f"kernel {k.shape} does not fit window {w}")
        columns = _columns(x, window)  # [n, group, inputs/group * taps, positions]
        weight = k.reshape(window.group, window.outputs // window.group, -1)
        out = np.stack([np.stack([weight[g] @ image[g] for g in range(window.group)]) for image in columns])
        return Arrays.bias(out.reshape(x.shape[0], window.outputs, *window.size(x.shape[2:])), b, window.channel_axis)

    @staticmethod
    def mean_pool(x: np.ndarray, w: str) -> np.ndarray:
        """Mean over the window's taps, padding counted as zeros (``count_include_pad``)."""
        kernel = Arrays.kernel_mean(w)
        return Arrays.conv(x, kernel, Arrays.zero_outputs(kernel), w)

    @staticmethod
    def kernel_scale_inputs(k: np.ndarray, s: np.ndarray, w: str) -> np.ndarray:
        """K with input channel c multiplied by s[c]; s has ``inputs`` entries."""
        window = Window.parse(w)
        grouped = k.reshape(window.group, window.outputs // window.group, *k.shape[1:])
        return (grouped * s.reshape(window.group, 1, -1, *(1,) * window.rank)).reshape(k.shape)

    @staticmethod
    def kernel_sum_inputs(k: np.ndarray, c: np.ndarray, w: str) -> np.ndarray:
        """[outputs]: the response of K to an image that is c in every pixel."""
        return Arrays.kernel_scale_inputs(k, c, w).reshape(k.shape[0], -1).sum(axis=1)

    @staticmethod
    def kernel_widen(k: np.ndarray, widening: str) -> np.ndarray:
        """K surrounded by zeros, and its groups merged into ``new_group`` block-diagonal ones."""
        e = Widening.parse(widening)
        k = np.pad(k, [(0, 0), (0, 0), *zip(e.before, e.after, strict=True)])
        merged = e.old_group // e.new_group
        if merged == 1:
            return k
        outputs, inputs = k.shape[0] // e.old_group, k.shape[1]
        blocks = k.reshape(e.new_group, merged, outputs, inputs, *k.shape[2:])
        wide = np.zeros((e.new_group, merged, outputs, merged, inputs, *k.shape[2:]), k.dtype) * k.flat[0]
        for i in range(merged):
            wide[:, i, :, i] = blocks[:, i]
        return wide.reshape(k.shape[0], merged * inputs, *k.shape[2:])

    @staticmethod
    def kernel_compose(first: np.ndarray, then: np.ndarray, w1: str, w2: str) -> np.ndarray:
        """The kernel of ``then`` after ``first``; one of them is pointwise."""
        a, b = Window.parse(w1), Window.parse(w2)
        group = 1 if a.group != b.group else a.group
        ka = Arrays._regroup(first, a.group, group)
        kb = Arrays._regroup(then, b.group, group)
        ka = ka.reshape(group, -1, *ka.shape[1:])  # [g, m/g, i/g, *ka]
        kb = kb.reshape(group, -1, *kb.shape[1:])  # [g, o/g, m/g, *kb]
        parts = []
        for g in range(group):
            if b.pointwise:
                parts.append(np.tensordot(kb[g].reshape(kb.shape[1], -1), ka[g], (1, 0)))
            else:
                mixed = np.tensordot(kb[g], ka[g].reshape(ka.shape[1], -1), (1, 0))  # [o, *kb, i]
                parts.append(np.moveaxis(mixed, -1, 1))
        return np.concatenate(parts)

    @staticmethod
    def _regroup(k: np.ndarray, old: int, new: int) -> np.ndarray:
        zeros = (0,) * (k.ndim - 2)
        return k if old == new else Arrays.kernel_widen(k, str(Widening(zeros, zeros, old, new)))

    @staticmethod
    def kernel_diagonal(s: np.ndarray, w: str) -> np.ndarray:
        """The depthwise 1x1 kernel that multiplies channel c by s[c]."""
        return s.reshape(Window.parse(w).shape)

    @staticmethod
    def kernel_ones(w: str) -> np.ndarray:
        return np.ones(Window.parse(w).shape, dtype=np.int64)

    @staticmethod
    def kernel_mean(w: str) -> np.ndarray:
        """Every tap 1 / taps, exactly (fractions)."""
        window = Window.parse(w)
        return np.full(window.shape, Fraction(1, int(np.prod(window.kernel))))

    @staticmethod
    def eye_like(a: np.ndarray) -> np.ndarray:
        return np.eye(*a.shape, dtype=np.int64)

    @staticmethod
    def zero_like(a: np.ndarray) -> np.ndarray:
        return a * 0

    @staticmethod
    def zero_outputs(k: np.ndarray) -> np.ndarray:
        """[outputs] zeros for a kernel."""
        return k.reshape(k.shape[0], -1)[:, 0] * 0

    @staticmethod
    def zero_row(a: np.ndarray) -> np.ndarray:
        """[o] zeros for A[i, o]."""
        return a[0] * 0


def _same_shape(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape != y.shape:
        raise ValueError(f"shapes {x.shape} and {y.shape} differ")


def _same_length(x: np.ndarray, v: np.ndarray, axis: int) -> None:
    if v.ndim != 1 or axis >= 0 or x.shape[axis] != v.shape[0]:
        raise ValueError(f"a vector {v.shape} does not lie along axis {axis} of {x.shape}")


def _columns(x: np.ndarray, w: Window) -> np.ndarray:
    """The inputs under each window: ``[n, group, inputs / group * taps, positions]``."""
    n = w.rank
    x = np.pad(x, [(0, 0), (0, 0), *((w.pads[i], w.pads[n + i]) for i in range(n))])
    size = w.size(tuple(x.shape[2 + i] - w.pads[i] - w.pads[n + i] for i in range(n)))
    taps = []
    for tap in np.ndindex(*w.kernel):
        starts = [t * d for t, d in zip(tap, w.dilations, strict=True)]
        cut = tuple(slice(b, b + s * (m - 1) + 1, s) for b, s, m in zip(starts, w.strides, size, strict=True))
        taps.append(x[(slice(None), slice(None), *cut)].reshape(x.shape[0], x.shape[1], -1))
    stacked = np.stack(taps, axis=2)  # [n, inputs, taps, positions]
    return stacked.reshape(x.shape[0], w.group, -1, stacked.shape[-1])


def declarations() -> list[str]:
    """The egglog commands that declares sorts, operators, facts and tables."""
    lines = ["(sort T)", "(sort Ts (Vec T))", "(constructor leaf (i64) T)", "(constructor op (String Ts) T)", f"(constructor {MINUS_ONE} () T)"]
    lines += ["(function node (i64) T :no-merge)", "(function tag_op (String Ts) String :merge old)"]
    lines += [f"(function tag_{MINUS_ONE} () String :merge old)"]
    for o in OPERATORS.values():
        sorts = " ".join(EGG_SORT[k] for k in o.kinds)
        lines.append(f"(constructor {o.name} ({sorts}) T)")
        lines.append(f"(function tag_{o.name} ({sorts}) String :merge old)")
    for f in FACTS.values():
        lines.append(f"(relation {f.name} ({' '.join(EGG_SORT[k] for k in f.kinds)}))")
    for t in TABLES.values():
        lines.append(f"(relation {t.name} ({' '.join(['String'] * t.inputs + [EGG_SORT[k] for k in t.outputs])}))")
    return lines


def table_facts(windows: Iterable[str], *, limit: int = 64) -> list[tuple[Any, ...]]:
    """Every row ``(table, *inputs, *outputs)`` over the windows, and over the windows that these rows create.

    Closed under creation up to ``limit`` windows: past that, later windows meet no further laws.
    """
    known = sorted(set(windows))
    rows: dict[tuple[Any, ...], None] = {}
    done: set[tuple[str, ...]] = set()
    changed = True
    while changed:
        changed = False
        for table in TABLES.values():
            for inputs in _tuples(known, table.inputs):
                if (table.name, *inputs) in done:
                    continue
                done.add((table.name, *inputs))
                outputs = table.of(*inputs)
                if outputs is None:
                    continue
                rows[(table.name, *inputs, *outputs)] = None
                new = [outputs[i] for i in table.creates if outputs[i] not in known]
                if new and len(known) < limit:
                    known = sorted({*known, *new})
                    changed = True
    return list(rows)


def _tuples(values: list[str], n: int) -> list[tuple[str, ...]]:
    return functools.reduce(lambda acc, _: [(*t, v) for t in acc for v in values], range(n), [()])
