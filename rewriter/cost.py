"""What a term costs: a roofline in microseconds, and a price for stored bytes.

The figures are those of a small server core pair, unless ``Rates`` of the machine at hand are given (``compile`` takes them from the
kernels that were measured here, where TVM competes): then products and convolutions cost what one of just these sizes took, or what
all that were measured took for an operation. Only ratios matter here, and a later measurement decides against the graph as it was.
The same rates give the same graph. A term of weights alone costs no time, but its bytes are stored and read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from rewriter.encode import Encoding
from rewriter.move import Move
from rewriter.terms import MINUS_ONE, OPERATORS
from rewriter.window import Window

Sizes = tuple[int, ...]
UNKNOWN = 64
"""The length that an unknown dimension is priced at; an unknown batch (the first axis) counts 1."""


@dataclass(frozen=True)
class Rates:
    """What was measured on one machine; None where too little was. ``times``: microseconds of a product by (rows, depth, columns);
    a dense convolution is one of its output's pixels by its window's depth."""

    flop: float | None = None
    depthwise_flop: float | None = None
    byte: float | None = None
    times: Mapping[tuple[int, ...], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prices:
    """Microseconds per unit.

    Arithmetic is priced high and traffic low: a rewrite that removes arithmetic is sure to pay, one that does a convolution twice
    to save an addition is not.
    """

    flop: float = 2e-5
    """50 GFLOP/s for matmuls and dense convolutions."""
    depthwise_flop: float = 1e-4
    byte: float = 2.5e-5
    """40 GB/s: activations mostly stay in cache."""
    node: float = 2.0
    """Starting a kernel."""
    stored_byte: float = 1e-7
    shares_weights: bool = False
    """Does a weight that several terms read cost its bytes once? Exact, and slower to solve: for the memory objective."""
    memory: bool = False
    """Do bytes count, and time only between equals?"""
    times: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    """As in ``Rates``."""

    @classmethod
    def for_objective(cls, objective: str, rates: Rates | None = None) -> Prices:
        """``rates`` replace the figures above, as far as there are any; for memory, time does not count."""
        if objective == "memory":
            return cls(flop=2e-11, depthwise_flop=1e-10, byte=2.5e-11, node=2e-6, stored_byte=1.0, shares_weights=True, memory=True)
        if rates is None:
            return cls()
        flop = rates.flop or cls.flop
        depthwise = rates.depthwise_flop or cls.depthwise_flop * flop / cls.flop
        return cls(flop=flop, depthwise_flop=depthwise, byte=rates.byte or cls.byte, times=rates.times)


def numbers(shape: Sequence[int | str] | None, hints: Mapping[str, int]) -> Sizes | None:
    """A shape with names replaced by hints, or by ``UNKNOWN``."""
    if shape is None:
        return None
    return tuple(d if isinstance(d, int) else hints.get(d, 1 if i == 0 and len(shape) > 1 else UNKNOWN) for i, d in enumerate(shape))


def infer(op: str, arguments: Sequence[Any], sizes: Mapping[int, Sizes]) -> Sizes | None:
    """The result's shape of one operator from its arguments' (classes with known sizes), or None."""
    tensors = [sizes.get(a) if isinstance(a, int) else None for a in arguments]
    x = tensors[0] if tensors else None
    y = tensors[1] if len(tensors) > 1 else None
    if op in ("matmul", "linear"):
        return None if x is None or y is None else (*x[:-1], *y[1:])
    if op in ("add", "mul"):
        return x or y
    if op in ("scale", "bias", "scalar", "shift", "kernel_scale_inputs", "zero_like", "eye_like", "rows", "divide", "sign", "inverse"):
        return x
    if op in ("map", "rowmap", "norm", "normed"):
        return y
    if op == "move":
        return None if y is None else Move.parse(arguments[0]).shape(y)
    if op == "slice":
        axis, begin, end = arguments[1:]
        return None if x is None else (*x[:axis], end - begin, *(x[axis + 1 :] if axis != -1 else ()))
    if op == "pick":
        return None if x is None or y is None else (*y, *x[1:])
    if op == "product":
        return None if x is None or y is None or len(x) < 2 or len(y) < 2 else (*_broadcast(x[:-2], y[:-2]), x[-2], y[-1])
    if op == "middle":
        return ()
    if op == "padded":
        return None if x is None else (*x[:-1], arguments[1] + x[-1] + arguments[2])
    if op == "tile":
        return None if x is None else (x[0] * arguments[1] * arguments[2],)
    if op == "transposed":
        return None if x is None else (*x[:-2], x[-1], x[-2])
    if op == "block_compose":
        return None if x is None or y is None else (arguments[2] * x[0] * arguments[3], y[1])
    if op == "block_sum":
        return None if y is None else (y[1],)
    if op == "flat_kernel":
        return None if x is None else (math.prod(x[1:]), x[0])
    if op == "cat":
        axis = arguments[2]
        return None if x is None or y is None else (*x[:axis], x[axis] + y[axis], *(x[axis + 1 :] if axis != -1 else ()))
    if op in ("conv", "mean_pool", "max_pool"):
        window = Window.parse(arguments[-1])
        return None if x is None else (x[0], window.outputs, *window.size(x[2:]))
    if op in ("kernel_ones", "kernel_mean", "kernel_diagonal"):
        return Window.parse(arguments[-1]).shape
    if op == "kernel_sum_inputs":
        return (Window.parse(arguments[-1]).outputs,)
    if op in ("zero_row", "zero_outputs"):
        return None if x is None else (x[1:] if op == "zero_row" else x[:1])
    return () if op == MINUS_ONE else None


def _broadcast(a: Sizes, b: Sizes) -> Sizes:
    n = max(len(a), len(b))
    wide = zip((1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b, strict=True)
    return tuple(max(d, e) for d, e in wide)


def class_sizes(
    nodes: Sequence[tuple[str, int, tuple[Any, ...], str]], encoding: Encoding, model: Mapping[int, int], hints: Mapping[str, int]
) -> dict[int, Sizes]:
    """Sizes of every class that has a known shape: the model's, and by inference those that rules made."""
    sizes: dict[int, Sizes] = {}
    for i, shape in enumerate(encoding.shapes):
        known = numbers(shape, hints)
        if known is not None:
            sizes.setdefault(model[i], known)
    pending = [n for n in nodes if n[1] not in sizes]
    while pending:
        left = []
        for op, cls, arguments, tag in pending:
            found = infer(op, arguments, sizes) if cls not in sizes else None
            if found is not None:
                sizes[cls] = found
            elif cls not in sizes:
                left.append((op, cls, arguments, tag))
        if len(left) == len(pending):
            break
        pending = left
    return sizes


def macs(op: str, arguments: Sequence[Any], out: Sizes | None, sizes: Mapping[int, Sizes]) -> float:
    """Multiply-accumulates of one run-time operator."""
    if out is None:
        return 0.0
    if op == "product":
        return float(math.prod(out)) * sizes.get(arguments[0], (0,))[-1]
    if op == "linear":
        return float(math.prod(sizes.get(arguments[0], ()))) * out[-1]
    if op in ("conv", "mean_pool"):
        window = Window.parse(arguments[-1])
        return float(math.prod(out)) * math.prod(window.shape[1:])
    return 0.0


FUSED = ("Relu{", "LeakyRelu{", "Sigmoid{", "Tanh{", "HardSigmoid{")
"""Activations that every runtime applies to a convolution's results before it stores them."""
AFFINE = ("scale", "bias", "scalar", "shift")
"""A factor or an offset, one for all or for each channel, of the first argument."""


def run_cost(
    op: str, cls: int, arguments: Sequence[Any], sizes: Mapping[int, Sizes], prices: Prices, zeros: Set[int], convolved: Set[int] = frozenset()
) -> float:
    """Microseconds that one run-time e-node takes. A linear map's bias costs little, one that is zero (in ``zeros``) nothing.

    ``convolved``: classes that a convolution makes.
    """
    out = sizes.get(cls)
    if op == "leaf" or (op == "op" and str(arguments[0]).startswith("output ")):
        return 0.0
    if op == "map" and arguments[1] in convolved and arguments[0].startswith(FUSED):
        return 0.25 * prices.node
    if op in AFFINE and arguments[0] in convolved:
        # Often applied to the results at once. Where it is not, to convolve again for each offset (the h + 3 of a hard swish) costs more.
        return 0.25 * prices.node
    if op == "move":
        return _move_cost(arguments[0], out, prices)
    moved = 4.0 * (math.prod(out) if out is not None else 0)
    table = arguments[0] if op == "pick" else arguments[1] if op == "op" and str(arguments[0]).startswith("Gather{") else None
    moved += sum(4.0 * math.prod(sizes[a]) for a in _tensors(op, arguments) if a in sizes and a != table)
    if op == "cat":
        # A law's concatenation that does not end in the weights breaks up what runtimes would fuse.
        return 10 * prices.node + 2 * moved * prices.byte
    if op in ("norm", "shift"):
        # A norm with a scale and a bias built in does a little more, as does a bias that differs between channels.
        return 0.95 * prices.node + moved * prices.byte
    flop = prices.flop
    if op in ("conv", "mean_pool") and (w := Window.parse(arguments[-1])).group == w.inputs > 1:
        flop = prices.depthwise_flop
    extra = 0.0
    if op == "linear" and arguments[2] not in zeros:
        extra = 0.5 * prices.node + 2.0 * math.prod(out or ()) * prices.byte
    arithmetic = prices.times.get(_product(op, arguments, out, sizes)) if prices.times else None
    if arithmetic is None:
        arithmetic = 2 * flop * macs(op, arguments, out, sizes)
    return prices.node + extra + max(arithmetic, moved * prices.byte)


def _product(op: str, arguments: Sequence[Any], out: Sizes | None, sizes: Mapping[int, Sizes]) -> tuple[int, ...]:
    """(rows, depth, columns) of the product that an operator with weights is; () of others."""
    if out is None:
        return ()
    if op == "linear":
        depth = sizes.get(arguments[0], (0,))[-1]
        return math.prod(out[:-1]), depth, out[-1]
    if op == "conv" and (window := Window.parse(arguments[-1])).group == 1:
        return math.prod(out) // max(1, out[1]), math.prod(window.shape[1:]), out[1]
    return ()


def _tensors(op: str, arguments: Sequence[Any]) -> Sequence[int]:
    if op == "op":
        return [a for a in arguments[1:] if isinstance(a, int)]
    return [a for a, kind in zip(arguments, OPERATORS[op].kinds, strict=True) if kind == "t" and isinstance(a, int)]


def _move_cost(move: str, out: Sizes | None, prices: Prices) -> float:
    """A Reshape is a name for what is there; the others copy."""
    steps = Move.parse(move).steps() or []
    copied = 8.0 * (math.prod(out) if out is not None else 0)
    return sum(0.25 * prices.node if op == "Reshape" else 0.5 * prices.node + copied * prices.byte for op, _ in steps)


def stored_cost(cls: int, sizes: Mapping[int, Sizes], prices: Prices) -> float:
    """The price of keeping one constant."""
    return 4.0 * math.prod(sizes.get(cls, ())) * prices.stored_byte
