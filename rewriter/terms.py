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
    rowmap(f, x)        a function of each vector along the last axis (Softmax)
    norm(k, x, e)       each vector along the last axis over the root of its mean square plus e; k "layer": its mean taken away first
    normed(k, x, e, g, b)  the same with a scale and a bias along the last axis, in one
    move(m, x)          x with its elements in other places, some repeated (``rewriter.move``)
    slice(x, a, i, j)   elements i to j, exclusive, along axis a
    cat(x, y, a)        concatenation of two tensors
    pick(E, i)          rows of a table E by index
    rows(x, g)          x times g, whose last axis has length 1: a number for each vector of x
    product(x, y)       matmul of two tensors, leading axes broadcast
    max_pool(x, w)      the greatest element under each window
    rest                operators on weights that laws introduce: see ``OPERATORS``
    op(signature, ...)  everything else: opaque, equal only to itself

Linear maps carry their bias, zero where the model has none: affine maps are closed under sums, scales and composition, so each such
step is one law with one result. With biases as sums of their own, the orders in which they can be added explode.

Every operator has three readings: as a pattern in the e-graph (``Patterns``), as arrays (``Arrays``; any dtype, also exact
fractions), and as ONNX nodes (``rewriter.decode``). A law is written once against ``Reading`` and is run by all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from rewriter.move import Move, reshape, transpose
from rewriter.move import compose as compose_moves
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
        Operator("rowmap", "st"),
        Operator("norm", "stt"),
        Operator("normed", "stttt"),
        Operator("move", "st"),
        Operator("slice", "tiii"),
        Operator("cat", "tti"),
        Operator("pick", "tt"),
        Operator("rows", "tt"),
        Operator("product", "tt"),
        Operator("mean_pool", "ts"),
        Operator("max_pool", "ts"),
        Operator("matmul", "tt", True),
        Operator("divide", "tt", True),
        Operator("inverse", "t", True),
        Operator("middle", "t", True),
        Operator("sign", "t", True),
        Operator("tile", "tii", True),
        Operator("padded", "tii", True),
        Operator("transposed", "t", True),
        Operator("block_compose", "ttii", True),
        Operator("block_sum", "ttii", True),
        Operator("flat_kernel", "t", True),
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
    """A relation between terms and attributes. ``holds`` is its meaning on arrays (None: decided by structure alone).

    One with ``of`` binds what follows its first ``inputs`` arguments, as a table does, but of a term and not of its attributes.
    """

    name: str
    kinds: str
    holds: Callable[..., bool] | None = None
    inputs: int = 0
    of: Callable[..., tuple[Any, ...] | None] | None = None


def _zero(x: np.ndarray) -> bool:
    return bool(np.all(x == 0))


def _one(x: np.ndarray) -> bool:
    return bool(np.all(x == 1))


def _nonzero(x: np.ndarray) -> bool:
    return bool(np.all(np.asarray(x) != 0))


def _integer(x: np.ndarray) -> bool:
    values = np.asarray(x).astype(np.float64)
    return bool(np.all(values == np.round(values)) and np.all(np.abs(values) < 1 << 20))


def _positive(x: np.ndarray) -> bool:
    return bool(np.all(np.asarray(x) > 0))


MONOTONE = {"Relu", "Sigmoid", "Tanh", "Exp", "LeakyRelu", "Ceil", "Floor", "Round", "HardSigmoid", "Softplus", "Softsign", "Elu", "Selu", "Celu",
            "Erf", "Sign", "Atan", "Sinh"}  # fmt: skip
"""Never decreasing, with the standard's default attributes."""
HOMOGENEOUS = {"Relu", "LeakyRelu", "Abs", "Neg"}
"""f(c x) = c f(x) for every c > 0."""

IDEMPOTENT = {"Relu", "Abs", "Ceil", "Floor", "Round", "Sign"}


def _identity_matrix(x: np.ndarray) -> bool:
    return x.ndim == 2 and x.shape[0] == x.shape[1] and bool(np.all(x == np.eye(len(x), dtype=np.int64)))


def _default(f: str, names: Set[str]) -> bool:
    """Is the function one of these, without attributes that could change what it is? A model's maps are ``Relu{}1``, a test's ``Relu``."""
    name, _, rest = f.partition("{")
    return name in names and (not rest or rest.startswith("}") or name == "LeakyRelu" and "alpha=-" not in rest)


def monotone(f: str) -> bool:
    return _default(f, MONOTONE)


def homogeneous(f: str) -> bool:
    return _default(f, HOMOGENEOUS)


def swap_of(x: np.ndarray) -> tuple[str] | None:
    """The move that exchanges the last two axes of a tensor, whatever their lengths."""
    return (str(swap_move(x.shape).anywhere()),) if x.ndim >= 2 else None


def swap_move(shape: Sequence[int | str]) -> Move:
    n = len(shape)
    return transpose(shape, (*range(n - 2), n - 1, n - 2))


# Facts that are derived in the e-graph, or read off the weights when a model is encoded.
FACTS: dict[str, Fact] = {
    f.name: f
    for f in (
        Fact("const", "t"),
        # Not constant: some input of the model reaches it.
        Fact("live", "t"),
        Fact("zero", "t", _zero),
        Fact("one", "t", _one),
        Fact("nonzero", "t", _nonzero),
        Fact("positive", "t", _positive),
        # Whole numbers, small enough for float32 to add and take away.
        Fact("integer", "t", _integer),
        Fact("rounds", "s", lambda f: _default(f, {"Round"})),
        Fact("monotone", "s", monotone),
        Fact("homogeneous", "s", homogeneous),
        # f(f(x)) = f(x)
        Fact("idempotent", "s", lambda f: _default(f, IDEMPOTENT)),
        Fact("identity", "t", _identity_matrix),
        # A norm that takes the mean away.
        Fact("centres", "s", lambda k: bool(k == "layer")),
        # The length of the last axis; of a two-dimensional weight also that of the first.
        Fact("last", "ti", None, 1, lambda x: (x.shape[-1],) if x.ndim else None),
        # The length of an axis; said by nobody but laws of ``rules.GENERAL`` and who uses them.
        Fact("length", "tii", None, 2, lambda x, a: (x.shape[a],) if -x.ndim <= a < 0 else None),
        # The move that exchanges the last two axes of a tensor that a constant matrix multiplies from the left.
        Fact("swaps", "ts", None, 1, swap_of),
        # A convolution's window covers its whole image, which the first move makes one axis; the second restores the spatial axes.
        Fact("covers", "tsss", None, 2, lambda x, w: covering(x.shape, w)),
        # The model does not store this weight in a smaller form.
        Fact("dense", "t"),
        # A number times x costs nothing: a linear map with dense weights makes x, with data movement after it at most.
        Fact("absorbs", "t"),
        # A linear map, or a constant, with data movement after it at most: what a linear map after it may join.
        Fact("joinable", "t"),
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
COMPARISONS: dict[str, tuple[str, Callable[[int, int], bool]]] = {"at_most": ("<=", lambda a, b: a <= b)}
"""Conditions on two numbers: how egglog writes them, and what they mean."""


def covering(shape: Sequence[int | str], w: str) -> tuple[str, str] | None:
    """Moves [n, c, *image] -> [n, c * image] and [n, o] -> [n, o, 1, ...] for a window that is as large as the image, unpadded."""
    window = Window.parse(w)
    if window.padded or window.group != 1 or tuple(shape[2:]) != window.kernel or any(d != 1 for d in window.dilations):
        return None
    flat = reshape(shape, (shape[0], -1))
    back = reshape((shape[0], "outputs"), (shape[0], "outputs", *(1,) * window.rank))
    wide = back.anywhere() if back is not None else None
    return None if flat is None or wide is None else (str(flat), str(wide))


def _windows_unpadded(w: str) -> bool:
    return not Window.parse(w).padded


def _join(a: str, b: str) -> tuple[str, str, str] | None:
    joined = join(Window.parse(a), Window.parse(b))
    return None if joined is None else (str(joined[0]), str(joined[1]), str(joined[2]))


def _compose(a: str, b: str) -> tuple[str] | None:
    c = compose(Window.parse(a), Window.parse(b))
    return None if c is None else (str(c),)


def _causal(z: str) -> tuple[str] | None:
    """The window without what it adds after the last axis, where that has as much padding on either side as the kernel reaches."""
    w = Window.parse(z)
    reach = w.dilations[-1] * (w.kernel[-1] - 1)
    if reach == 0 or w.strides[-1] != 1 or (w.pads[w.rank - 1], w.pads[-1]) != (reach, reach):
        return None
    return (str(replace(w, pads=(*w.pads[:-1], 0))),)


def _identity(a: str) -> tuple[str] | None:
    d = depthwise_identity(Window.parse(a))
    return None if d is None else (str(d),)


def _splits_outputs(z: str) -> list[tuple[int, str, str]]:
    """(n, v, w): the window of the first n outputs, and of the others."""
    w = Window.parse(z)
    cuts = range(1, w.outputs) if w.group == 1 else ()
    return [(n, str(replace(w, outputs=n)), str(replace(w, outputs=w.outputs - n))) for n in cuts]


def _splits_inputs(z: str) -> list[tuple[int, str, str]]:
    w = Window.parse(z)
    cuts = range(1, w.inputs) if w.group == 1 else ()
    return [(n, str(replace(w, inputs=n)), str(replace(w, inputs=w.inputs - n))) for n in cuts]


def _core(z: str) -> tuple[str] | None:
    """The window of one tap, unpadded, that is in ``z``."""
    w = Window.parse(z)
    n = w.rank
    return (str(replace(w, kernel=(1,) * n, pads=(0,) * (2 * n), dilations=(1,) * n)),)


def _ungrouped(a: str) -> tuple[str, str]:
    """The window whose kernel is the same one in one group, and how to write the kernel so."""
    w = Window.parse(a)
    zeros = (0,) * w.rank
    return str(replace(w, group=1)), str(Widening(zeros, zeros, w.group, 1))


def _spreads(a: str) -> tuple[str, str, str] | None:
    """Of a pool that keeps an image's size: the window and the widening that write the kernel of the identity, and that of its mean."""
    w, d = Window.parse(a), depthwise_identity(Window.parse(a))
    around = tuple(k // 2 for k in w.kernel)
    if d is None or w.group != w.inputs or any(k % 2 == 0 for k in w.kernel) or w.pads != around + around or any(n != 1 for n in w.dilations):
        return None
    zeros = (0,) * w.rank
    return str(d), str(Widening(around, around, w.group, 1)), str(Widening(zeros, zeros, w.group, 1))


def _channels(a: str) -> tuple[int]:
    return (Window.parse(a).channel_axis,)


def _pointwise(m: str, w: str) -> tuple[()] | None:
    """The last axis becomes the channels of an image that a plain pointwise convolution reads."""
    move, window = Move.parse(m), Window.parse(w)
    plain = window.pointwise and window.group == 1 and all(s == 1 for s in window.strides)
    return () if plain and len(move.target) == window.rank + 2 and move.last_goes_to == 1 else None


def _moves_compose(m: str, n: str) -> tuple[str] | None:
    made = compose_moves(Move.parse(m), Move.parse(n))
    return None if made is None else (str(made),)


def _anywhere(m: str) -> tuple[str] | None:
    wide = Move.parse(m).anywhere()
    return (str(wide),) if wide is not None and str(wide) != m and (wide.identity or wide.steps() is not None) else None


def _repeats_vector(m: str) -> bool:
    """[d] -> [..., d]"""
    move = Move.parse(m)
    return len(move.source) == 1 and bool(move.source[0]) and move.target[-1:] == move.source


def _ends(w: str) -> tuple[int, int, tuple[int, ...]]:
    window = Window.parse(w)
    return window.inputs, window.outputs, window.strides


Rows: TypeAlias = "tuple[Any, ...] | list[tuple[Any, ...]] | None"


@dataclass(frozen=True)
class Table:
    """A function of windows (w) and moves (m), computed for those of a model and given to the e-graph as facts.

    ``inputs`` give ``outputs`` strings or numbers, or None, or several rows of them. The fact in a rule's guard is
    ``(name, *inputs, *outputs)``.
    """

    name: str
    inputs: str
    of: Callable[..., Rows]
    creates: tuple[int, ...] = ()
    """Which of the outputs are themselves arguments of tables, of the kind of the first input."""
    outputs: str = ""
    """A letter for each output: s or i."""
    general: bool = False
    """Only for the laws of ``rules.GENERAL``: a model's program does without."""
    meets: tuple[Callable[[str], Any], Callable[[str], Any]] | None = None
    """Of two inputs: what must be equal of the first and of the second for there to be a row."""

    def candidates(self, known: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
        """Inputs for which there may be rows."""
        if self.meets is None:
            yield from itertools.product(*(known[kind] for kind in self.inputs))
            return
        seconds: dict[Any, list[str]] = {}
        for b in known[self.inputs[1]]:
            seconds.setdefault(self.meets[1](b), []).append(b)
        for a in known[self.inputs[0]]:
            yield from ((a, b) for b in seconds.get(self.meets[0](a), ()))

    def rows(self, *inputs: str) -> list[tuple[Any, ...]]:
        found = self.of(*inputs)
        return found if isinstance(found, list) else [] if found is None else [found]


TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        Table("unpadded", "w", lambda a: () if _windows_unpadded(a) else None),
        Table("unit_stride", "w", lambda a: () if all(s == 1 for s in Window.parse(a).strides) else None),
        Table("channels", "w", _channels, outputs="i"),
        Table("joins", "ww", _join, (0,), "sss", meets=(_ends, _ends)),
        Table("composes", "ww", _compose, (0,), "s", meets=(lambda a: Window.parse(a).outputs, lambda b: Window.parse(b).inputs)),
        Table("causal", "w", _causal, (0,), "s"),
        Table("identity_window", "w", _identity, (0,), "s"),
        Table("stays", "m", lambda m: () if Move.parse(m).identity else None),
        Table("follows", "mm", _moves_compose, (0,), "s", meets=(lambda m: len(Move.parse(m).target), lambda n: len(Move.parse(n).source))),
        Table("fits_all", "m", _anywhere, (0,), "s"),
        Table("keeps_last", "m", lambda m: () if Move.parse(m).keeps_last else None),
        Table("turns_last_two", "m", lambda m: () if Move.parse(m).swap else None),
        Table("repeats_vector", "m", lambda m: () if _repeats_vector(m) else None),
        Table("makes_blocks", "m", lambda m: Move.parse(m).blocks(), outputs="ii"),
        Table("takes_axis", "m", lambda m: [(i, o) for i, o, p, q in Move.parse(m).axes() if p == q == 1], outputs="ii"),
        Table("spreads_axis", "m", lambda m: [a for a in Move.parse(m).axes() if a[2] * a[3] > 1], outputs="iiii"),
        Table("makes_channels", "mw", _pointwise),
        Table("splits_outputs", "w", _splits_outputs, outputs="iss", general=True),
        Table("splits_inputs", "w", _splits_inputs, outputs="iss", general=True),
        Table("core", "w", _core, outputs="s", general=True),
        Table("ungrouped", "w", _ungrouped, outputs="ss", general=True),
        Table("spreads", "w", _spreads, outputs="sss", general=True),
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

    @staticmethod
    def plus(n: Any, by: Any) -> Any:
        return ("+", n, by)

    @staticmethod
    def minus(n: Any, by: Any) -> Any:
        return ("-", n, by)

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
    "Round": lambda x: np.vectorize(round, otypes=[object])(x) if x.dtype == object else np.round(x),
    "LeakyRelu": lambda x: np.where(x > 0, x, x / 4),
}
"""Meanings that the rules' tests draw from. A model may hold any element-wise operator: laws do not look inside ``map``."""


ROWMAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "total": lambda x: x * 0 + x.sum(-1, keepdims=True),
    "reverse": lambda x: x[..., ::-1],
}
"""As ``MAPS``, for ``rowmap``."""


class Arrays:
    """Reading as arrays. Shapes as in the module docstring; a weights-only operator says its own."""

    minus_one = np.array(-1)

    @staticmethod
    def less(axis: int, by: int) -> int:
        return axis - by

    @staticmethod
    def plus(n: int, by: int) -> int:
        return n + by

    @staticmethod
    def minus(n: int, by: int) -> int:
        return n - by

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
    def rowmap(f: str, x: np.ndarray) -> np.ndarray:
        return ROWMAPS[f](x)

    @staticmethod
    def norm(k: str, x: np.ndarray, e: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        x = x - x.mean(-1, keepdims=True) if k == "layer" else x
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float64(np.asarray(e).reshape(())[()]))

    @staticmethod
    def normed(k: str, x: np.ndarray, e: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
        return Arrays.norm(k, x, e) * g.astype(np.float64) + b.astype(np.float64)

    @staticmethod
    def move(m: str, x: np.ndarray) -> np.ndarray:
        move = Move.parse(m)
        target = move.shape(x.shape)
        if target is None:
            raise ValueError(f"{x.shape} is not what {m} moves")
        atoms = dict(zip((a for g in move.source for a in g), move.atoms(x.shape), strict=True))
        order = [a for g in move.target for a in g]
        x = x.reshape([*atoms.values()]).transpose([list(atoms).index(a) for a in order if a in atoms])
        x = x.reshape([atoms.get(a, 1) for a in order])
        return np.broadcast_to(x, [atoms[a] if a in atoms else int(move.sizes[a]) for a in order]).reshape(target)

    @staticmethod
    def slice(x: np.ndarray, axis: int, i: int, j: int) -> np.ndarray:
        if not 0 <= i < j <= x.shape[axis]:
            raise ValueError(f"{i} to {j} of an axis of length {x.shape[axis]}")
        return np.take(x, np.arange(i, j), axis)

    @staticmethod
    def pick(e: np.ndarray, i: np.ndarray) -> np.ndarray:
        """E ``[n, ...]``, i integers ``[...]``; negative ones count from the end."""
        return e[np.asarray(i).astype(np.int64) % e.shape[0]]

    @staticmethod
    def rows(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        if (*x.shape[:-1], 1) != g.shape:
            raise ValueError(f"{g.shape} is not a number for each vector of {x.shape}")
        return x * g

    @staticmethod
    def divide(c: np.ndarray, d: np.ndarray) -> np.ndarray:
        return c / d

    @staticmethod
    def middle(c: np.ndarray) -> np.ndarray:
        """The whole number next to the mean: of the entries of a vector, a number."""
        return np.round(np.asarray(c).astype(np.float64).mean()).astype(np.int64)

    @staticmethod
    def inverse(c: np.ndarray) -> np.ndarray:
        return 1 / c

    @staticmethod
    def sign(c: np.ndarray) -> np.ndarray:
        return np.sign(np.asarray(c).astype(np.float64)).astype(np.int64)

    @staticmethod
    def tile(v: np.ndarray, p: int, q: int) -> np.ndarray:
        """Every element q times, and all of that p times."""
        return np.tile(np.repeat(v, q), p)

    @staticmethod
    def padded(a: np.ndarray, n: int, m: int) -> np.ndarray:
        """n zeros before, and m after, along the last axis."""
        zeros = [np.repeat(a[..., :1] * 0, k, -1) for k in (n, m)]
        return np.concatenate([zeros[0], a, zeros[1]], -1)

    @staticmethod
    def transposed(a: np.ndarray) -> np.ndarray:
        return np.swapaxes(a, -1, -2)

    @staticmethod
    def block_compose(a: np.ndarray, b: np.ndarray, p: int, q: int) -> np.ndarray:
        """A ``[i, d]``, B ``[p d q, o]`` -> ``[p i q, o]``: B after A on each of the p q blocks."""
        blocks = b.reshape(p, a.shape[1], q, -1).transpose(0, 2, 1, 3)  # [p, q, d, o]
        return (a @ blocks).transpose(0, 2, 1, 3).reshape(p * a.shape[0] * q, -1)

    @staticmethod
    def block_sum(v: np.ndarray, b: np.ndarray, p: int, q: int) -> np.ndarray:
        """v ``[d]``, B ``[p d q, o]`` -> ``[o]``: B of v in every block."""
        return Arrays.block_compose(v[None], b, p, q).sum(axis=0)

    @staticmethod
    def flat_kernel(k: np.ndarray) -> np.ndarray:
        """K ``[o, i, *taps]`` -> ``[i taps, o]``."""
        return k.reshape(k.shape[0], -1).T

    @staticmethod
    def max_pool(x: np.ndarray, w: str) -> np.ndarray:
        """Over the window's taps inside the image."""
        window = Window.parse(w)
        wide = [(0, 0), (0, 0), *((window.pads[i], window.pads[window.rank + i]) for i in range(window.rank))]
        inside = _columns(np.ones_like(x, dtype=np.int64), window)
        taps = _columns(np.pad(x, wide), replace(window, pads=(0,) * (2 * window.rank)))
        lowest = x.min() if x.size else 0
        taps = np.where(inside == 1, taps, lowest).reshape(x.shape[0], x.shape[1], -1, taps.shape[-1])
        return taps.max(axis=2).reshape(*x.shape[:2], *window.size(x.shape[2:]))

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
    lines += ["(constructor node (i64) T)", "(function tag_op (String Ts) String :merge old)"]
    lines += [f"(function tag_{MINUS_ONE} () String :merge old)"]
    for o in OPERATORS.values():
        sorts = " ".join(EGG_SORT[k] for k in o.kinds)
        lines.append(f"(constructor {o.name} ({sorts}) T)")
        lines.append(f"(function tag_{o.name} ({sorts}) String :merge old)")
    for f in FACTS.values():
        lines.append(f"(relation {f.name} ({' '.join(EGG_SORT[k] for k in f.kinds)}))")
    for t in TABLES.values():
        lines.append(f"(relation {t.name} ({' '.join(['String'] * len(t.inputs) + [EGG_SORT[k] for k in t.outputs])}))")
    return lines


def table_facts(windows: Iterable[str], moves: Iterable[str] = (), *, limit: int = 64, general: bool = False) -> list[tuple[Any, ...]]:
    """Every row ``(table, *inputs, *outputs)`` over the windows and moves, and over those that these rows create.

    Closed under creation up to ``limit`` of a kind: past that, later ones meet no further laws.
    """
    known = {"w": sorted(set(windows)), "m": sorted(set(moves))}
    rows: dict[tuple[Any, ...], None] = {}
    done: set[tuple[str, ...]] = set()
    changed = True
    while changed:
        changed = False
        for table in (t for t in TABLES.values() if general or not t.general):
            for inputs in list(table.candidates(known)):
                if (table.name, *inputs) in done:
                    continue
                done.add((table.name, *inputs))
                for outputs in table.rows(*inputs):
                    rows[(table.name, *inputs, *outputs)] = None
                    kind = known[table.inputs[0]]
                    new = [outputs[i] for i in table.creates if outputs[i] not in kind]
                    if new and len(kind) < limit:
                        known[table.inputs[0]] = sorted({*kind, *new})
                        changed = True
    return list(rows)
