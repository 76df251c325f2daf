"""Where each temporary lies in one piece of memory: what is never needed at the same time may share a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64
SLACK = 64  # bytes after each block: a vector may be read past the end of a tensor


@dataclass(frozen=True)
class Block:
    """``size`` bytes that are needed from step ``first`` to step ``last``, both included."""

    size: int
    first: int
    last: int


def arrange(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """The offset of each block, and the size of the whole: large blocks first, each at the lowest place that is free.

    This is the greedy-by-size planning of Pisarchyk and Lee (2020), within a few per cent of the lower bound there.
    """
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for index in sorted(range(len(blocks)), key=lambda i: (-blocks[i].size, i)):
        block = blocks[index]
        size = _rounded(block.size)
        others = sorted(
            (offsets[i], offsets[i] + _rounded(blocks[i].size)) for i in placed if blocks[i].first <= block.last and block.first <= blocks[i].last
        )
        place = 0
        for start, end in others:
            if place + size <= start:
                break
            place = max(place, end)
        offsets[index] = place
        placed.append(index)
    total = max((offset + _rounded(block.size) for offset, block in zip(offsets, blocks, strict=True)), default=0)
    return offsets, total


def _rounded(size: int) -> int:
    return -(-(size + SLACK) // ALIGNMENT) * ALIGNMENT
