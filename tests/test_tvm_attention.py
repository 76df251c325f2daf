"""Attention against its definition in float64: shared heads, masks, causality, single queries, any strides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm_kernels import filled, in_order, machines, seen, some, step

from backends.tvm import single
from backends.tvm.kernel import Chain, Machine, Operand
from backends.tvm.kernels.attention import Attention

Array = np.ndarray[Any, Any]
MACHINES = machines(threads=2)
each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")
TOKENS_FIRST = (0, 2, 1, 3)  # [batch, heads, tokens, depth] as projections write it


def attention(
    heads: int, groups: int, queries: int, keys: int, depth: int, width: int | None = None, mask: str = "", causal: bool = False,
    order: tuple[int, ...] = TOKENS_FIRST, chain: bool = False,
) -> Attention:  # fmt: skip
    """``mask``: "add", "bool", or "row" for one of [batch, 1, 1, keys]."""
    width, batch = width or depth, 2

    def operand(h: int, n: int, d: int, gap: int = 0) -> Operand:
        return Operand("float32", in_order((batch, h, n, d), order, gap))

    out = operand(heads, queries, width)
    strides = {"row": (keys, 0, 0, 1)}.get(mask, in_order((batch, heads, queries, keys)))
    given = Operand("bool" if mask == "bool" else "float32", strides) if mask else None
    steps = Chain((out,), (step("Add", 0, 1),)) if chain else Chain()
    return Attention(
        batch, heads, groups, queries, keys, depth, width, depth**-0.5, operand(heads, queries, depth, 3), operand(groups, keys, depth),
        operand(groups, keys, width), out, given, causal, steps,
    )  # fmt: skip


CASES = [
    *[attention(2, 2, n, n, 16) for n in (1, 2, 3, 5, 16, 17, 33)],
    *[attention(2, 1, 7, 19, depth) for depth in (1, 4, 8, 20, 32, 72)],
    *[attention(6, 2, 1, keys, 32) for keys in (1, 15, 16, 33, 129)],
    *[attention(4, 4, 1, 21, depth) for depth in (3, 24, 64)],
    *[attention(6, 3, n, n, 16, causal=True) for n in (1, 2, 17, 40)],
    attention(2, 2, 5, 37, 16, causal=True),
    *[attention(4, 2, 9, 21, 16, mask=mask) for mask in ("add", "bool", "row")],
    *[attention(4, 2, 1, 21, 16, mask=mask) for mask in ("add", "bool", "row")],
    attention(4, 2, 12, 21, 16, mask="add", causal=True),
    attention(3, 3, 6, 11, 8, width=37),
    attention(3, 3, 1, 11, 8, width=37),
    attention(3, 3, 6, 11, 16, order=(0, 1, 2, 3), chain=True),
    attention(3, 3, 6, 11, 16, order=(0, 1, 3, 2)),
    attention(3, 3, 1, 11, 16, order=(0, 1, 3, 2)),
    attention(3, 3, 5, 37, 24, order=(0, 1, 3, 2)),
    attention(8, 8, 40, 40, 32),
]  # fmt: skip


def arrays(kernel: Attention) -> tuple[list[Array], list[tuple[int, ...]]]:
    shapes = [
        (2, kernel.heads, kernel.queries, kernel.depth), (2, kernel.groups, kernel.keys, kernel.depth),
        (2, kernel.groups, kernel.keys, kernel.width), (2, kernel.heads, kernel.queries, kernel.keys),
    ]  # fmt: skip
    operands = [kernel.query, kernel.key, kernel.value, kernel.mask]
    shapes = [shape for shape, operand in zip(shapes, operands, strict=True) if operand]
    given = [operand for operand in operands if operand]
    made = []
    for i, (shape, operand) in enumerate(zip(shapes, given, strict=True)):
        if 0 in operand.strides:
            shape = shapes[i] = (2, 1, 1, kernel.keys)
        made.append(filled(shape, operand, i))
    return made, shapes


def exact(kernel: Attention, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    shared = kernel.heads // kernel.groups
    k, v = k.repeat(shared, 1), v.repeat(shared, 1)
    scores = kernel.scale * (q @ k.swapaxes(2, 3))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if kernel.causal:
        seen = np.arange(kernel.keys) <= np.arange(kernel.queries)[:, None] + kernel.keys - kernel.queries
        scores = np.where(seen, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True) @ v)


def check(kernel: Attention, run: single.Single, given: list[Array], shapes: list[tuple[int, ...]]) -> None:
    operands = [o for o in (kernel.query, kernel.key, kernel.value, kernel.mask) if o]
    views = [seen(a, s, o) for a, s, o in zip(given, shapes, operands, strict=True)]
    wide = [view.astype(np.float64) if view.dtype != bool else view for view in views]
    expected = exact(kernel, *wide, *([None] if kernel.mask is None else []))
    shape = (2, kernel.heads, kernel.queries, kernel.width)
    others = [filled(shape, operand, 8) for operand in kernel.chain.operands]
    for other in others:
        expected = expected + seen(other, shape, kernel.out)
    got = seen(run(*given, *others, filled(shape, kernel.out, 9)), shape, kernel.out)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6, err_msg=str(kernel))


@each_machine
def test_attention(machine: Machine) -> None:
    chosen = some(CASES, machine, MACHINES[0])
    for kernel, run in zip(chosen, single.build(chosen, machine), strict=True):
        given, shapes = arrays(kernel)
        if kernel.mask and kernel.mask.dtype == "bool":
            given[3][::7] = True
        check(kernel, run, given, shapes)


def test_every_tile() -> None:
    machine = MACHINES[0]
    kernel = attention(4, 2, 31, 45, 24, mask="add", causal=True)
    configs = kernel.configs(machine)
    for run in single.build([kernel] * len(configs), machine, configs):
        check(kernel, run, *arrays(kernel))


@pytest.mark.parametrize("queries", [1, 6])
def test_a_row_that_sees_nothing_may_be_guarded(queries: int) -> None:
    kernel = replace(attention(2, 2, queries, 21, 16, mask="add"), guarded=True)
    (run,) = single.build([kernel], MACHINES[0])
    given, shapes = arrays(kernel)
    seen(given[3], shapes[3], kernel.mask or kernel.out)[0, 0, 0] = -np.inf
    shape = (2, 2, queries, 16)
    got = seen(run(*given, filled(shape, kernel.out, 9)), shape, kernel.out)
    assert (got[0, 0, 0] == 0).all() and np.isfinite(got).all()


@pytest.mark.parametrize("queries", [1, 6])
def test_a_row_that_sees_nothing_is_undefined_and_huge_scores_are_not(queries: int) -> None:
    kernel = attention(2, 2, queries, 21, 16, mask="add")
    (run,) = single.build([kernel], MACHINES[0])
    given, shapes = arrays(kernel)
    mask = seen(given[3], shapes[3], kernel.mask or kernel.out)
    mask[0, 0, 0] = -np.inf
    mask[1, 1, 0, 4:] = -np.inf
    given[0] *= 300
    check(kernel, run, given, shapes)
