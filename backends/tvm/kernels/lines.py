"""One line of elements, written as vectors: full ones in a loop, then what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from backends.tvm.kernel import Chain
from backends.tvm.kernels.elementwise import pieces
from backends.tvm.kernels.work import offset

_VECTORS = 4  # of one turn of the loop


def each_vector(e: Any, size: int, lanes: int, do: Callable[[Any, int], None]) -> None:
    """``do(start, lanes)`` for vectors that cover ``size`` elements; the last may overlap the one before it."""
    turn_size = _VECTORS * lanes
    whole = size // turn_size
    if whole:
        with e.loop(whole, "turn") as turn:
            for j in range(_VECTORS):
                do(turn * turn_size + j * lanes, lanes)
    for start, width in pieces(whole * turn_size, size, lanes):
        do(start, width)


def chained(e: Any, chain: Chain, value: Any, pointers: Sequence[Any], places: Sequence[Any], steps: Sequence[int], lanes: int) -> Any:
    """``value`` through the chain, whose operands lie at ``places``, ``steps`` apart."""
    from backends.tvm.pointwise import evaluate

    registers = [value]
    for pointer, place, step in zip(pointers, places, steps, strict=True):
        registers.append(e.load(pointer, place, lanes, step))
    return evaluate(e, chain.steps, registers, lanes)


def moved(base: Any, at: Any, stride: int) -> Any:
    """``at`` steps on from ``base``."""
    return base + offset([at], [stride])
