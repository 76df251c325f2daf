"""How the threads share a kernel's work: a range of equal units, an even part of it for each."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from backends.tvm.kernel import Machine

_WAKING = 8000.0  # cycles of work under which waking another thread (1 to 2 us) does not pay


def threads_for(cycles: float, units: int, machine: Machine) -> int:
    """How many threads ``units`` are shared by, of ``cycles`` in all."""
    return max(1, min(machine.threads, units, int(cycles // _WAKING) + 1))


@contextlib.contextmanager
def shared(e: Any, sizes: Sequence[int], threads: int) -> Iterator[list[Any]]:
    """A body that runs once for each coordinate of the grid ``sizes``, in row-major order within a thread."""
    total = math.prod(sizes)
    if threads <= 1:
        with contextlib.ExitStack() as nest:
            yield [nest.enter_context(e.loop(size, "u")) for size in sizes]
        return
    with e.loop(threads, "thread", parallel=True) as thread:
        first = e.bind(_scaled(thread, total, threads))
        count = e.bind(_scaled(thread + 1, total, threads) - first)
        with e.loop(count, "unit", start=first) as unit:
            yield decoded(e, unit, sizes)


def decoded(e: Any, index: Any, sizes: Sequence[int]) -> list[Any]:
    """The coordinates of ``index`` in a row-major grid."""
    from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

    places: list[Any] = []
    ahead = math.prod(sizes)  # of the axes from the first to this one
    for size in reversed(sizes):
        if size == 1:
            places.append(0)
        elif size == ahead:
            places.append(index)
        else:
            places.append(e.bind(tirx.truncmod(index, size)))
            index = e.bind(tirx.truncdiv(index, size))
        ahead //= size
    return places[::-1]


def offset(places: Sequence[Any], strides: Sequence[int]) -> Any:
    """The sum of places times strides; zeros drop out."""
    total: Any = 0
    for place, stride in zip(places, strides, strict=True):
        if stride and not (isinstance(place, int) and place == 0):
            total = total + (place if stride == 1 else place * stride)
    return total


def _scaled(thread: Any, total: int, threads: int) -> Any:
    """thread * total / threads without overflow, for totals up to 2^31 - threads."""
    from tvm import tirx

    whole, rest = divmod(total, threads)
    return thread * whole + (tirx.truncdiv(thread * rest, threads) if rest else 0)
