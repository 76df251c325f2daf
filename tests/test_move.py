"""Moves do in ONNX and in NumPy what the operators do that they were read from, alone and in a row."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from rewriter.move import ANY, Move, compose, expand, reshape, transpose
from rewriter.terms import Arrays

Made = tuple[Move | None, Callable[[np.ndarray], np.ndarray], Sequence[int]]


def run(move: Move, x: np.ndarray) -> np.ndarray:
    """What ONNX does with the move's operators."""
    steps = move.steps()
    assert steps is not None
    for op_type, numbers in steps:
        if op_type == "Reshape":
            x = x.reshape([x.shape[k] if d == 0 else d for k, d in enumerate(numbers)])
        elif op_type == "Transpose":
            x = x.transpose(numbers)
        else:
            x = np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(numbers)))
    return x


def drawn(rng: random.Random, shape: Sequence[int]) -> Made:
    kind = rng.choice("rte")
    if kind == "t":
        perm = rng.sample(range(len(shape)), len(shape))
        return transpose(shape, perm), lambda x: x.transpose(perm), [shape[p] for p in perm]
    if kind == "e":
        wide = [rng.choice([d, 3]) if d == 1 else d for d in shape]
        wide = [2, *wide] if rng.random() < 0.3 else wide
        return expand(shape, wide), lambda x: np.broadcast_to(x, wide), wide
    left, target = math.prod(shape), []
    while left > 1 and len(target) < 4:
        target.append(rng.choice([d for d in range(1, left + 1) if left % d == 0]))
        left //= target[-1]
    target += [left] if left > 1 or not target else []
    if rng.random() < 0.3:
        target.insert(rng.randrange(len(target) + 1), 1)
    return reshape(shape, target), lambda x: x.reshape(target), target


def test_one_move_and_two_in_a_row() -> None:
    rng = random.Random(0)
    single = double = 0
    for _ in range(6000):
        shape = [rng.choice([1, 2, 3, 4, 6]) for _ in range(rng.randint(1, 4))]
        x = np.arange(math.prod(shape)).reshape(shape)
        first, does_first, middle = drawn(rng, shape)
        if first is None:
            continue
        single += 1
        want = does_first(x)
        assert Move.parse(str(first)) == first
        assert first.shape(shape) == want.shape
        np.testing.assert_array_equal(run(first, x), want)
        np.testing.assert_array_equal(Arrays.move(str(first), x), want)
        then, does_then, _ = drawn(rng, middle)
        both = compose(first, then) if then is not None else None
        if both is not None:
            double += 1
            np.testing.assert_array_equal(run(both, x), does_then(want))
    assert single > 5000 and double > 4500


def test_spellings_are_one_move() -> None:
    """Heads split and put back: nothing moved, whatever the batch and the width of a head."""
    split = compose(reshape(("b", "s", 384), ("b", "s", 12, 32)) or pytest.fail(), transpose(("b", "s", 12, 32), (0, 2, 1, 3)))
    merge = compose(transpose(("b", 12, "s", 32), (0, 2, 1, 3)), reshape(("b", "s", 12, 32), ("b", "s", -1)) or pytest.fail())
    assert split is not None and merge is not None
    both = compose(split, merge)
    assert both is not None and both.identity
    wide = merge.anywhere()
    assert wide is not None and wide.sizes == ("b", 12, "s", ANY)
    assert split.steps() == [("Reshape", (0, 0, 12, 32)), ("Transpose", (0, 2, 1, 3))]
    assert wide.blocks() == (12, 1)


def test_a_transposition_fits_every_size() -> None:
    assert transpose((2, 3, 4), (0, 2, 1)) != transpose(("n", 7, 5), (0, 2, 1))
    assert transpose((2, 3, 4), (0, 2, 1)).anywhere() == transpose(("n", 7, 5), (0, 2, 1)).anywhere()
    assert transpose((2, 3), (1, 0)).swap and not transpose((2, 1), (1, 0)).swap


def test_what_is_no_single_move() -> None:
    assert reshape((6, 4), (4, 6)) is None  # a factor straddles
    assert reshape(("n", 4), (4, "n")) is None
    assert expand((2, 3), (2, 4)) is None
    assert compose(transpose((2, 3), (1, 0)), transpose((2, 3, 4), (0, 1, 2))) is None  # other ranks
    straddling = compose(reshape((6, 4), (24,)) or pytest.fail(), reshape((24,), (4, 6)) or pytest.fail())
    assert straddling is None
    assert (reshape((2, 3), (6,)) or pytest.fail()).anywhere() is not None and expand((1,), (3,)).anywhere() is None  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "[1]", "[[1],2,[3]]"])
def test_bad_text_is_no_move(text: str) -> None:
    with pytest.raises(ValueError, match="is not a move"):
        Move.parse(text)
