"""The cheapest equal graph: every shared term paid once.

1. Classes made of weights alone are free leaves at run time; which expression computes them is chosen apart (``cheapest_trees``).
2. A class is *needed* if every solution contains it. Needed classes are paid for in any case, so they cut the problem: the choices
   below one needed class touch those below another only where they share a class that is not needed. Such regions are solved one by
   one, which is exact; equal regions (the blocks of a transformer) are solved once.
3. A region is solved greedily and by an integer program (HiGHS), and the better solution stands.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NEAREST = 64
"""How many of the nearest needed classes are remembered per class: enough for a block, and linear in the depth."""


@dataclass(frozen=True)
class Choice:
    """One way to make a class: ``node`` (an index the caller understands), its own cost, and the run-time classes it reads."""

    node: int
    cost: float
    reads: tuple[int, ...]


@dataclass(frozen=True)
class Extraction:
    """``chosen``: one choice for each class of the solution. ``cost``: their sum. ``gap``: how far from proved optimal, relative."""

    chosen: dict[int, Choice]
    cost: float
    method: str
    gap: float
    seconds: float
    regions: int
    solved: int


def extract(classes: Mapping[int, Sequence[Choice]], roots: Iterable[int], *, seconds: float = 20.0) -> Extraction:
    """The cheapest acyclic selection that contains the roots. Classes are the run-time ones. Raises ``KeyError`` if a root has none."""
    started = time.monotonic()
    roots = list(dict.fromkeys(roots))
    order, classes = _acyclic(classes, roots)
    rank = {c: i for i, c in enumerate(order)}
    needed = _needed(classes, order, rank, roots)
    chosen: dict[int, Choice] = {}
    memo: dict[Any, tuple[list[int], float, str]] = {}
    lost, methods, regions = 0.0, set(), 0
    for region in _regions(classes, needed, rank):
        if all(len(classes[c]) == 1 for c in region):
            chosen.update((c, classes[c][0]) for c in region)
            continue
        regions += 1
        key = _key(region, classes, needed)
        if key not in memo:
            left = max(0.5, seconds - (time.monotonic() - started))
            memo[key] = _solve(region, classes, needed, left)
        picks, gap, method = memo[key]
        lost += gap
        methods.add(method)
        chosen.update((c, classes[c][p]) for c, p in zip(region, picks, strict=True) if p >= 0)
    solution = _reachable(chosen, roots)
    cost = sum(c.cost for c in solution.values())
    method = "greedy" if methods == {"greedy"} else "ilp" if methods else "forced"
    return Extraction(solution, cost, method, lost / cost if cost else 0.0, time.monotonic() - started, regions, len(memo))


def cheapest_trees(classes: Mapping[int, Sequence[Choice]]) -> dict[int, Choice]:
    """The cheapest expression of each class, every use of a term counted, by Knuth's generalisation of Dijkstra; cheapest first.

    Classes that no finite term can build are absent. Good enough for weights, which are computed once, ahead of time.
    """
    readers: dict[int, list[int]] = {}
    missing: list[int] = []
    flat: list[tuple[int, Choice]] = []
    heap: list[tuple[float, int, int]] = []
    total: list[float] = []
    for cls, choices in classes.items():
        for choice in choices:
            k = len(flat)
            flat.append((cls, choice))
            total.append(choice.cost)
            inputs = set(choice.reads)
            missing.append(len(inputs))
            for r in inputs:
                readers.setdefault(r, []).append(k)
            if not inputs:
                heapq.heappush(heap, (choice.cost, k, cls))
    best: dict[int, Choice] = {}
    while heap:
        cost, k, cls = heapq.heappop(heap)
        if cls in best:
            continue
        best[cls] = flat[k][1]
        for reader in readers.get(cls, ()):
            total[reader] += cost
            missing[reader] -= 1
            if not missing[reader] and flat[reader][0] not in best:
                heapq.heappush(heap, (total[reader], reader, flat[reader][0]))
    return best


def _acyclic(classes: Mapping[int, Sequence[Choice]], roots: Sequence[int]) -> tuple[list[int], dict[int, list[Choice]]]:
    """Classes reachable from the roots, children first, without choices that would close a cycle.

    Laws such as ``x * 1 == x`` put a term below itself. Where classes read each other in a circle, an order among them is fixed: exact
    outside such circles, and they are rare.
    """
    buildable = set(cheapest_trees(classes))
    kept: dict[int, list[Choice]] = {}
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        c = stack.pop()
        if c in seen:
            continue
        seen.add(c)
        kept[c] = _undominated([n for n in classes[c] if all(r in buildable and r != c for r in n.reads)])
        stack.extend(r for n in kept[c] for r in n.reads)
    order, looping = _topological(kept)
    if looping:
        # Inside cycles only: read classes that are cheaper to build. Every class keeps the choice that is its cheapest as a tree.
        place = {c: i for i, c in enumerate(cheapest_trees(kept))}
        cycle = _components({c: sorted({r for n in kept[c] for r in n.reads if r in looping}) for c in sorted(looping)})
        for c in looping:
            kept[c] = [n for n in kept[c] if all(r not in looping or cycle[r] != cycle[c] or place[r] < place[c] for r in n.reads)]
        order, looping = _topological(kept)
        assert not looping
    return order, kept


def _undominated(choices: Sequence[Choice]) -> list[Choice]:
    best: dict[tuple[int, ...], Choice] = {}
    for n in choices:
        reads = tuple(sorted(set(n.reads)))
        if reads not in best or n.cost < best[reads].cost:
            best[reads] = Choice(n.node, n.cost, reads)
    return list(best.values())


def _topological(classes: Mapping[int, Sequence[Choice]]) -> tuple[list[int], set[int]]:
    """Children before parents; the second is what lies on, or above, a cycle."""
    below = {c: {r for n in ns for r in n.reads} for c, ns in classes.items()}
    waiting = {c: len(b) for c, b in below.items()}
    readers: dict[int, list[int]] = {}
    for c, b in below.items():
        for r in b:
            readers.setdefault(r, []).append(c)
    order = [c for c, n in waiting.items() if n == 0]
    for c in order:
        for reader in readers.get(c, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                order.append(reader)
    return order, set(classes) - set(order)


def _components(below: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """The strongly connected component of every vertex, by the name of one of its vertices (Tarjan 1972, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    component: dict[int, int] = {}
    path: list[int] = []
    for root in below:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        path.append(root)
        stack = [(root, iter(below[root]))]
        while stack:
            vertex, edges = stack[-1]
            for other in edges:
                if other not in index:
                    index[other] = low[other] = len(index)
                    path.append(other)
                    stack.append((other, iter(below[other])))
                    break
                if other not in component:
                    low[vertex] = min(low[vertex], index[other])
            else:
                stack.pop()
                if stack:
                    low[stack[-1][0]] = min(low[stack[-1][0]], low[vertex])
                while low[vertex] == index[vertex] and vertex not in component:
                    component[path.pop()] = vertex
    return component


def _needed(classes: Mapping[int, Sequence[Choice]], order: Sequence[int], rank: Mapping[int, int], roots: Sequence[int]) -> set[int]:
    """Classes that every solution contains (a subset is found: the nearest ``NEAREST`` below each class)."""
    must: dict[int, frozenset[int]] = {}
    for c in order:
        common: set[int] | None = None
        for n in classes[c]:
            below: set[int] = set()
            for r in n.reads:
                below |= must[r]
            common = below if common is None else common & below
        found = (common or set()) | {c}
        if len(found) > NEAREST:
            found = set(sorted(found, key=rank.__getitem__)[-NEAREST:])
        must[c] = frozenset(found)
    needed: set[int] = set()
    stack = list(roots)
    while stack:
        c = stack.pop()
        if c not in needed:
            needed.add(c)
            stack.extend(must[c] - needed)
    return needed


def _regions(classes: Mapping[int, Sequence[Choice]], needed: set[int], rank: Mapping[int, int]) -> list[list[int]]:
    """Needed classes with the classes that only their choices can need, joined where they share one. Each in rank order."""
    owner: dict[int, int] = {}
    parent: dict[int, int] = {c: c for c in needed}

    def find(c: int) -> int:
        while parent[c] != c:
            parent[c] = parent[parent[c]]
            c = parent[c]
        return c

    members: dict[int, list[int]] = {}
    for top in sorted(needed, key=rank.__getitem__):
        stack = [top]
        while stack:
            c = stack.pop()
            for n in classes[c]:
                for r in n.reads:
                    if r in needed:
                        continue
                    if r in owner:
                        parent[find(top)] = find(owner[r])
                    else:
                        owner[r] = top
                        stack.append(r)
    for c in [*needed, *owner]:
        members.setdefault(find(owner.get(c, c)), []).append(c)
    return [sorted(m, key=rank.__getitem__) for _, m in sorted(members.items(), key=lambda m: rank[m[0]])]


def _key(region: Sequence[int], classes: Mapping[int, Sequence[Choice]], needed: set[int]) -> Any:
    """Equal for regions that differ in nothing but the names of classes."""
    local = {c: i for i, c in enumerate(region)}
    return tuple(
        (c in needed, tuple((round(n.cost, 9), tuple(sorted(local[r] for r in n.reads if r in local and r not in needed))) for n in classes[c]))
        for c in region
    )


def _solve(region: Sequence[int], classes: Mapping[int, Sequence[Choice]], needed: set[int], seconds: float) -> tuple[list[int], float, str]:
    """(choice index per class or -1, absolute gap, method)."""
    local = set(region) - needed
    inside = {c: [Choice(i, n.cost, tuple(r for r in n.reads if r in local)) for i, n in enumerate(classes[c])] for c in region}
    tops = [c for c in region if c in needed]
    greedy = _greedy(inside, region, tops)
    greedy_cost = sum(inside[c][p].cost for c, p in greedy.items())
    exact = _integer_program(inside, region, tops, seconds)
    if exact is None:
        return [greedy.get(c, -1) for c in region], greedy_cost, "greedy"
    picks, cost, bound = exact
    if greedy_cost <= cost + 1e-9:
        picks, cost = greedy, greedy_cost
    return [picks.get(c, -1) for c in region], max(0.0, cost - bound), "ilp"


def _greedy(inside: Mapping[int, Sequence[Choice]], region: Sequence[int], tops: Sequence[int]) -> dict[int, int]:
    """Bottom-up: each class takes the choice whose set of terms, shared ones counted once, is cheapest."""
    sets: dict[int, dict[int, float]] = {}
    pick: dict[int, int] = {}
    for c in region:
        best: dict[int, float] | None = None
        for i, n in enumerate(inside[c]):
            terms = {c: n.cost}
            for r in n.reads:
                terms.update(sets[r])
            if best is None or sum(terms.values()) < sum(best.values()):
                best, pick[c] = terms, i
        sets[c] = best or {}
    chosen: dict[int, int] = {}
    stack = list(tops)
    while stack:
        c = stack.pop()
        if c not in chosen:
            chosen[c] = pick[c]
            stack.extend(inside[c][pick[c]].reads)
    return chosen


def _integer_program(
    inside: Mapping[int, Sequence[Choice]], region: Sequence[int], tops: Sequence[int], seconds: float
) -> tuple[dict[int, int], float, float] | None:
    """Choose exactly one way for each class that is read: the classic program (TENSAT), acyclic by construction."""
    import highspy
    import numpy as np
    from highspy._core import _Highs  # the wrapper prints a banner before it can be told to be silent

    flat = [(c, i) for c in region for i in range(len(inside[c]))]
    if len(flat) > 20_000:
        return None
    column = {key: k for k, key in enumerate(flat)}
    solver = _Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("time_limit", seconds)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("mip_rel_gap", 0.0)
    costs = np.array([inside[c][i].cost for c, i in flat])
    solver.addVars(len(flat), np.zeros(len(flat)), np.ones(len(flat)))
    every = np.arange(len(flat), dtype=np.int32)
    solver.changeColsCost(len(flat), every, costs)
    solver.changeColsIntegrality(len(flat), every, np.full(len(flat), highspy.HighsVarType.kInteger))
    top = set(tops)
    for c in region:
        own = [column[c, i] for i in range(len(inside[c]))]
        if c in top:
            solver.addRow(1.0, 1.0, len(own), np.array(own, np.int32), np.ones(len(own)))
    for c, i in flat:
        for r in inside[c][i].reads:
            makers = [column[r, k] for k in range(len(inside[r]))]
            cells = np.array([*makers, column[c, i]], np.int32)
            solver.addRow(0.0, highspy.kHighsInf, len(cells), cells, np.array([1.0] * len(makers) + [-1.0]))
    solver.run()
    if solver.getModelStatus() not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kTimeLimit):
        return None
    values = solver.getSolution().col_value
    if not values:
        return None
    available = {c: [i for i in range(len(inside[c])) if values[column[c, i]] > 0.5] for c in region}
    chosen: dict[int, int] = {}
    stack = list(tops)
    while stack:
        c = stack.pop()
        if c in chosen:
            continue
        if not available[c]:
            return None
        chosen[c] = available[c][0]
        stack.extend(inside[c][chosen[c]].reads)
    cost = sum(inside[c][i].cost for c, i in chosen.items())
    return chosen, cost, min(cost, solver.getInfo().mip_dual_bound)


def _reachable(chosen: Mapping[int, Choice], roots: Sequence[int]) -> dict[int, Choice]:
    solution: dict[int, Choice] = {}
    stack = list(roots)
    while stack:
        c = stack.pop()
        if c not in solution:
            solution[c] = chosen[c]
            stack.extend(chosen[c].reads)
    return solution
