"""Tensors as places in memory: a storage, an offset, and a step along each axis.

Transpose, Reshape, Slice, Squeeze, Expand and the halo around an image change the steps and move no data; so does the
choice of channels-last memory for an image. A kernel reads and writes through steps, whatever they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends.tvm.kernel import Operand, Strides

Shape = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """Element ``i`` of the tensor lies at ``offset + sum(i * strides)`` in ``storage``, counted in elements."""

    storage: int
    dtype: str
    shape: Shape
    strides: Strides
    offset: int = 0

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in order, one after the other."""
        return all(stride == want or size == 1 for size, stride, want in zip(self.shape, self.strides, row_major(self.shape), strict=True))

    def operand(self, axes: Sequence[int] | None = None) -> Operand:
        """The steps alone, along ``axes``."""
        return Operand(self.dtype, self.strides if axes is None else tuple(self.strides[axis] for axis in axes))

    def transposed(self, order: Sequence[int]) -> View:
        """Axis ``i`` of the result is axis ``order[i]``."""
        return replace(self, shape=tuple(self.shape[i] for i in order), strides=tuple(self.strides[i] for i in order))

    def sliced(self, axis: int, start: int, count: int, step: int = 1) -> View:
        """``count`` elements of ``axis``, ``step`` apart."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[axis]
        shape[axis], strides[axis] = count, strides[axis] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=offset)

    def expanded(self, shape: Shape) -> View:
        """Broadcast to ``shape``: what is repeated has step 0."""
        missing = len(shape) - len(self.shape)
        strides = [0] * missing
        for size, want, stride in zip(self.shape, shape[missing:], self.strides, strict=True):
            if size not in (1, want):
                raise ValueError(f"{self.shape} does not broadcast to {shape}")
            strides.append(stride if size == want and size != 1 else 0)
        return replace(self, shape=shape, strides=tuple(strides))

    def reshaped(self, shape: Shape) -> View | None:
        """The same elements in the same order as ``shape``, or None where that takes a copy."""
        strides = regrouped(self.shape, self.strides, shape)
        return None if strides is None else replace(self, shape=shape, strides=strides)

    def padded(self, before: Sequence[int], after: Sequence[int]) -> View:
        """The view with what lies around it; only for a view that has a halo at least as wide."""
        shape = tuple(b + s + a for b, s, a in zip(before, self.shape, after, strict=True))
        offset = self.offset - sum(b * stride for b, stride in zip(before, self.strides, strict=True))
        return replace(self, shape=shape, offset=offset)


def row_major(shape: Sequence[int]) -> Strides:
    """The steps of a contiguous tensor."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def in_order(shape: Sequence[int], order: Sequence[int]) -> Strides:
    """The steps of a tensor whose axes follow each other in memory as ``order`` says, outermost first."""
    packed = row_major([shape[axis] for axis in order])
    strides = [0] * len(shape)
    for axis, stride in zip(order, packed, strict=True):
        strides[axis] = stride
    return tuple(strides)


def memory_order(view: View) -> tuple[int, ...]:
    """The axes of ``view``, outermost in memory first; axes of one element keep their place beside their neighbours."""
    strides = list(view.strides)
    for axis in reversed(range(len(strides))):  # an axis of one element may have any step: take its neighbour's
        if view.shape[axis] == 1:
            strides[axis] = strides[axis + 1] if axis + 1 < len(strides) else 0
    return tuple(sorted(range(len(strides)), key=lambda axis: (-strides[axis], axis)))


def regrouped(shape: Shape, strides: Strides, wanted: Shape) -> Strides | None:
    """Steps for the same elements as ``wanted``, or None if no steps do that."""
    pairs = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size != 1]
    groups: list[list[int]] = []  # maximal runs that are one axis in memory: [elements, innermost step]
    for size, stride in pairs:
        if groups and groups[-1][1] == size * stride:
            groups[-1] = [groups[-1][0] * size, stride]
        else:
            groups.append([size, stride])
    result: list[int] = []
    index, left = 0, groups[0][0] if groups else 1
    for size in wanted:
        if size == 1:
            result.append(0)
            continue
        while index < len(groups) and left == 1:
            index += 1
            left = groups[index][0] if index < len(groups) else 1
        if index >= len(groups) or left % size:
            return None
        left //= size
        result.append(left * groups[index][1])
    return tuple(result)
