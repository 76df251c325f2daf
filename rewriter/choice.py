"""Which candidates to take: one integer program over all of them (HiGHS).

Binary ``y_c`` for every candidate; where none that covers a value is taken, the exact graph stands::

    min   sum_c latency_c y_c  +  sum_v enter_v w_v  +  sum_v leave_v u_v        (microseconds against the exact graph)
    s.t.  sum_{c covers v} y_c <= 1            for every value v that several candidates cover
          sum_c error_c y_c <= E               sum_c bytes_c y_c <= M
          w_v >= y_c - sum_{d writes v} y_d    for every c that reads v as codes: v is encoded once, for all of them
          u_v >= sum_{d writes v} y_d - sum_{c of reader r that reads v} y_c   for every reader r of v: v is decoded once
          sum_{c in S} y_c <= |S| - 1          for every set S that was measured and missed the budget

Errors are upper bounds, floored at ``FLOOR`` so that noise is never a gain (paper 17, the authors' code). They are assumed to add, which
they need not: what is chosen is measured as a whole, and the program solved again with a smaller ``E``. Taking nothing is always feasible
unless ``M`` asks for fewer bytes; then there may be no solution. With ``memory`` bytes and latency change places in the objective.
A little of the errors stands in the objective, too: latencies are measured, and noise should not choose the less exact of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

FLOOR = 1e-6


@dataclass(frozen=True)
class Option:
    """A candidate in numbers. ``latency``: microseconds, and ``bytes``, beyond the exact graph's. ``error``: an upper bound."""

    latency: float
    error: float
    bytes: int = 0
    covers: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Problem:
    """``enter``, ``leave``: microseconds to encode and decode a value. ``readers``: of a value that may be codes, which values its readers
    make. ``excluded``: sets of options, by place, that are known to fail together."""

    options: Sequence[Option]
    enter: Mapping[str, float] = field(default_factory=dict)
    leave: Mapping[str, float] = field(default_factory=dict)
    readers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    excluded: Sequence[frozenset[int]] = ()
    memory: bool = False
    accuracy: float = 0.0
    """Microseconds that a unit of error has to gain: between options that take as long, up to noise, the more exact one."""

    def floored(self, k: int) -> float:
        return max(self.options[k].error, FLOOR)

    def weight(self, k: int) -> float:
        """Of one option in the objective."""
        o = self.options[k]
        return o.bytes + 1e-6 * o.latency if self.memory else o.latency + 1e-9 * o.bytes + self.accuracy * self.floored(k)

    def cost(self, taken: frozenset[int]) -> float:
        """The objective of an assignment, conversions included: the definition that the program is tested against."""
        total = sum(self.weight(k) for k in taken)
        scale = 1e-6 if self.memory else 1.0
        written = frozenset().union(*(self.options[k].writes for k in taken))
        for v in self.coded():
            wanted = any(v in self.options[k].reads for k in taken)
            total += scale * self.enter.get(v, 0.0) * (wanted and v not in written)
            takers = [self._reads(r, v, taken) for r in self.readers.get(v, ())]
            total += scale * self.leave.get(v, 0.0) * (v in written and not all(takers))
        return total

    def feasible(self, taken: frozenset[int], error: float, most_bytes: float | None) -> bool:
        covered = [v for k in taken for v in self.options[k].covers]
        return (
            len(covered) == len(set(covered))
            and sum(self.floored(k) for k in taken) <= error + 1e-12
            and (most_bytes is None or sum(self.options[k].bytes for k in taken) <= most_bytes)
            and not any(s <= taken for s in self.excluded)
        )

    def coded(self) -> list[str]:
        """Values that some option reads or writes as codes."""
        return sorted(frozenset().union(*(o.reads | o.writes for o in self.options)))

    def _reads(self, reader: str, value: str, taken: frozenset[int]) -> bool:
        return any(reader in self.options[k].covers and value in self.options[k].reads for k in taken)


def solve(problem: Problem, error: float, most_bytes: float | None = None, *, seconds: float = 20.0) -> frozenset[int] | None:
    """The cheapest set of options (by place) whose errors add up to at most ``error``; None where there is none."""
    if not problem.options:
        return frozenset() if most_bytes is None or most_bytes >= 0 else None
    program = _Program(problem)
    program.bound({k: problem.floored(k) for k in range(len(problem.options))}, error)
    if most_bytes is not None:
        program.bound({k: float(o.bytes) for k, o in enumerate(problem.options)}, most_bytes)
    return program.solve(seconds)


class _Program:
    """Rows and columns."""

    def __init__(self, problem: Problem) -> None:
        self._count = len(problem.options)
        self._costs = [problem.weight(k) for k in range(self._count)]
        self._rows: list[tuple[dict[int, float], float]] = []
        self._exclusive(problem)
        scale = 1e-6 if problem.memory else 1.0
        for value in problem.coded():
            self._conversion(problem, value, scale)
        for together in problem.excluded:
            self.bound(dict.fromkeys(together, 1.0), len(together) - 1.0)

    def bound(self, row: Mapping[int, float], most: float) -> None:
        """sum row <= most"""
        self._rows.append((dict(row), most))

    def _exclusive(self, problem: Problem) -> None:
        by_value: dict[str, list[int]] = {}
        for k, option in enumerate(problem.options):
            for value in option.covers:
                by_value.setdefault(value, []).append(k)
        for group in sorted({tuple(g) for g in by_value.values() if len(g) > 1}):
            self.bound(dict.fromkeys(group, 1.0), 1.0)

    def _conversion(self, problem: Problem, value: str, scale: float) -> None:
        options = problem.options
        writers = [k for k, o in enumerate(options) if value in o.writes]
        takers = [k for k, o in enumerate(options) if value in o.reads]
        if takers and problem.enter.get(value, 0.0) > 0:
            w = self._column(scale * problem.enter[value])
            for k in takers:
                self.bound({k: 1.0, w: -1.0} | {d: -1.0 for d in writers if d != k}, 0.0)
        if writers and problem.leave.get(value, 0.0) > 0 and problem.readers.get(value):
            u = self._column(scale * problem.leave[value])
            for reader in problem.readers[value]:
                own = [k for k in takers if reader in options[k].covers]
                row = dict.fromkeys(writers, 1.0) | {u: -1.0}
                for k in own:
                    row[k] = row.get(k, 0.0) - 1.0
                self.bound(row, 0.0)

    def _column(self, cost: float) -> int:
        self._costs.append(cost)
        return len(self._costs) - 1

    def solve(self, seconds: float) -> frozenset[int] | None:
        import highspy
        from highspy._core import _Highs  # the wrapper prints a banner before it can be told to be silent

        n = len(self._costs)
        solver = _Highs()
        for name, setting in (("output_flag", False), ("time_limit", seconds), ("threads", 1), ("mip_rel_gap", 0.0), ("mip_abs_gap", 0.0)):
            solver.setOptionValue(name, setting)
        solver.addVars(n, np.zeros(n), np.ones(n))
        every = np.arange(n, dtype=np.int32)
        solver.changeColsCost(n, every, np.array(self._costs))
        solver.changeColsIntegrality(n, every, np.full(n, highspy.HighsVarType.kInteger))
        for row, most in self._rows:
            largest = max(map(abs, row.values()), default=1.0) or 1.0  # errors of 1e-6 would drown in the solver's tolerance
            cells = np.array(list(row), np.int32)
            solver.addRow(-highspy.kHighsInf, most / largest, len(cells), cells, np.array(list(row.values())) / largest)
        solver.run()
        if solver.getModelStatus() not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kTimeLimit):
            return None
        values = solver.getSolution().col_value
        return frozenset(k for k in range(self._count) if values[k] > 0.5) if values else None
