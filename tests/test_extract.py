"""Extraction is exact: against brute force on random graphs with sharing, and through regions and memos."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from rewriter.extract import Choice, cheapest_trees, extract


def brute_force(classes: Mapping[int, Sequence[Choice]], roots: Sequence[int]) -> float:
    """The least cost over every acyclic selection."""
    best = np.inf
    names = sorted(classes)
    for picks in itertools.product(*(range(len(classes[c])) for c in names)):
        chosen = {c: classes[c][p] for c, p in zip(names, picks, strict=True)}
        cost = _cost(chosen, roots)
        best = min(best, cost)
    return best


def _cost(chosen: Mapping[int, Choice], roots: Sequence[int]) -> float:
    """Shared terms once; infinite if the selection is cyclic."""
    seen: set[int] = set()
    path: set[int] = set()

    def walk(c: int) -> float:
        if c in path:
            return np.inf
        if c in seen:
            return 0.0
        path.add(c)
        total = chosen[c].cost + sum(walk(r) for r in chosen[c].reads)
        path.remove(c)
        seen.add(c)
        return total

    return sum(walk(r) for r in roots)


def random_classes(seed: int, count: int = 9) -> tuple[dict[int, list[Choice]], list[int]]:
    """Classes read lower ones, so that selections are acyclic; costs and sharing are random."""
    rng = np.random.default_rng(seed)
    classes: dict[int, list[Choice]] = {}
    for c in range(count):
        choices = []
        for k in range(int(rng.integers(1, 4)) if c else 1):
            reads = rng.choice(c, size=min(c, int(rng.integers(0, 4))), replace=False) if c else []
            choices.append(Choice(k, float(rng.integers(0, 20)), tuple(int(r) for r in reads)))
        classes[c] = choices
    return classes, [count - 1, int(rng.integers(0, count))]


@pytest.mark.parametrize("seed", range(120))
def test_equals_brute_force(seed: int) -> None:
    classes, roots = random_classes(seed)
    found = extract(classes, roots)
    assert found.cost == pytest.approx(brute_force(classes, list(dict.fromkeys(roots))))
    assert found.gap == pytest.approx(0.0, abs=1e-6)
    assert _cost(found.chosen, list(dict.fromkeys(roots))) == pytest.approx(found.cost)


@pytest.mark.parametrize("seed", range(40))
def test_a_circle_below_takes_nothing_from_what_lies_above_it(seed: int) -> None:
    """Laws such as x * 1 == x close one; only what lies on it loses choices."""
    classes, roots = random_classes(seed)
    above = {c + 2: [Choice(n.node, n.cost, tuple(r + 2 for r in n.reads) or (1,)) for n in choices] for c, choices in classes.items()}
    circle = {0: [Choice(0, 5.0, ()), Choice(1, 0.5, (1,))], 1: [Choice(0, 1.0, (0,)), Choice(1, 9.0, ())]}
    found = extract(circle | above, [r + 2 for r in roots])
    assert found.cost == pytest.approx(brute_force(circle | above, [r + 2 for r in roots]))


def test_shared_terms_are_paid_once() -> None:
    """A tree cost would take the two private copies (6 + 6); one shared term (8) is cheaper."""
    classes = {
        0: [Choice(0, 0.0, ())],
        1: [Choice(0, 8.0, (0,))],
        2: [Choice(0, 6.0, (0,)), Choice(1, 0.0, (1,))],
        3: [Choice(0, 6.0, (0,)), Choice(1, 0.0, (1,))],
        4: [Choice(0, 1.0, (2, 3))],
    }
    found = extract(classes, [4])
    assert found.cost == 9.0 and 1 in found.chosen


def test_equal_blocks_are_solved_once() -> None:
    """A chain of 40 blocks with a choice in each: one integer program, 40 regions."""
    classes: dict[int, list[Choice]] = {0: [Choice(0, 0.0, ())]}
    top = 0
    for _ in range(40):
        a, b, end = top + 1, top + 2, top + 3
        classes[a] = [Choice(0, 3.0, (top,))]
        classes[b] = [Choice(0, 2.0, (top,))]
        classes[end] = [Choice(0, 1.0, (a, top)), Choice(1, 1.0, (b, top))]
        top = end
    found = extract(classes, [top])
    assert found.cost == 40 * 3.0
    assert found.regions == 40 and found.solved == 1


def test_a_term_below_itself_is_not_chosen() -> None:
    """x * 1 == x puts x into its own class; two classes that read each other need one that does not."""
    classes = {0: [Choice(0, 5.0, ())], 1: [Choice(0, 0.0, (1,)), Choice(1, 1.0, (0,))]}
    assert extract(classes, [1]).cost == 6.0
    loop = {0: [Choice(0, 9.0, ()), Choice(1, 0.0, (1,))], 1: [Choice(0, 0.0, (0,)), Choice(1, 4.0, ())]}
    assert extract(loop, [0, 1]).cost == 4.0


def test_weights_take_the_cheapest_expression() -> None:
    classes = {
        0: [Choice(0, 0.0, ())],
        1: [Choice(1, 1.0, (0,))],
        2: [Choice(2, 1.0, (1,)), Choice(3, 3.0, (0,))],
        3: [Choice(4, 1.0, (2, 1)), Choice(5, 1.0, (3,))],
    }
    best = cheapest_trees(classes)
    assert best[2].node == 2 and best[3].node == 4
