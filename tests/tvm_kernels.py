"""What the tests of kernels share: machines of every width, steps of chains, operands as strided arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.tvm.kernel import Machine, Operand, Step
from backends.tvm.machine import detect

Array = np.ndarray[Any, Any]
PROCESSORS = {4: "x86-64", 8: "haswell", 16: "skylake-avx512"}


def machines(threads: int = 1) -> list[Machine]:
    """The machine at hand, and each narrower one of its kind."""
    here = detect(threads)
    narrower = [PROCESSORS[lanes] for lanes in PROCESSORS if lanes < here.lanes and here.lanes > 4]
    return [here, *(detect(threads, name) for name in narrower)]


def step(op: str, *arguments: int, dtype: str = "float32", **attributes: Any) -> Step:
    """One operator of a chain."""
    return Step(op, arguments, dtype, tuple(attributes.items()))


def in_order(shape: Sequence[int], order: Sequence[int] | None = None, gap: int = 0) -> tuple[int, ...]:
    """Strides of a tensor whose axes lie in memory in ``order``, outermost first, ``gap`` elements after each line."""
    strides = [0] * len(shape)
    distance = 1
    for axis in reversed(order if order is not None else range(len(shape))):
        strides[axis] = distance
        distance = distance * shape[axis] + gap
    return tuple(strides)


def extent(shape: Sequence[int], operand: Operand) -> int:
    """How many elements of memory the operand spans."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, operand.strides, strict=True))


def filled(shape: Sequence[int], operand: Operand, seed: int = 0) -> Array:
    """Memory for the operand, with numbers in it; the gaps are NaN, so that reading them shows."""
    rng = np.random.default_rng(seed)
    count = extent(shape, operand)
    if operand.dtype == "bool":
        return rng.random(count) < 0.5
    if not operand.dtype.startswith("float"):
        return rng.integers(-5, 6, count).astype(operand.dtype)
    memory = np.full(count, np.nan, operand.dtype)
    seen(memory, shape, operand)[...] = rng.standard_normal(shape)
    return memory


def seen(memory: Array, shape: Sequence[int], operand: Operand) -> Array:
    """The operand's elements in that memory."""
    steps = tuple(stride * memory.itemsize for stride in operand.strides)
    assert extent(shape, operand) <= memory.size and math.prod(shape) >= 0
    return np.lib.stride_tricks.as_strided(memory, tuple(shape), steps)


def some(cases: Sequence[Any], machine: Machine, first: Machine) -> Sequence[Any]:
    """All cases for the machine at hand; of the others, which differ in width alone, every second one."""
    return cases if machine is first else cases[::2]
