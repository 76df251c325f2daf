"""Four tests that every rule gets for free: it holds, it fires, it is silent where a condition is missing, it needs its conditions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rule_samples import Draw, Seeded, sample

import rules
from rewriter.egraph import Frozen, Program, Saturator
from rewriter.rule import KIND, Condition, Rule, rule, text
from rewriter.terms import COMPARISONS, FACTS, Patterns, table_facts

EVERY = (*rules.ALL, *rules.GENERAL)
each_rule = pytest.mark.parametrize("law", EVERY, ids=lambda r: f"{r.theory}/{r.name}")
searching = settings(
    max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck)
)


def counterexample(law: Rule, values: dict[str, Any]) -> str | None:
    """None where both sides agree, exactly over the rationals (a ``limit``: in float64); else a report of the point."""
    lhs, rhs = law.arrays(values)
    if lhs.shape == rhs.shape and agree(law, lhs, rhs):
        return None
    shown = [f"  {n} = {_plain(v)}" for n, v in values.items()]
    return "\n".join([f"{law.theory}/{law.name} is false: {law.statement}", *shown, f"  left  = {_plain(lhs)}", f"  right = {_plain(rhs)}"])


def agree(law: Rule, lhs: np.ndarray, rhs: np.ndarray) -> bool:
    if law.equal == "limit":
        return np.allclose(lhs.astype(np.float64), rhs.astype(np.float64), rtol=1e-9, atol=1e-9)
    return np.array_equal(lhs, rhs)


def _plain(value: Any) -> Any:
    return [str(v) for v in np.asarray(value).ravel()] if isinstance(value, np.ndarray) else value


@each_rule
@searching
@given(data=st.data())
def test_holds(law: Rule, data: Any) -> None:
    """Both sides are equal wherever the conditions that make the law true hold."""
    values = sample(law, Draw(data))
    if not law.holds_at(values):
        return
    report = counterexample(law, values)
    if report:
        pytest.fail(report, pytrace=False)


@each_rule
def test_is_tested_where_it_applies(law: Rule) -> None:
    """The samples meet the conditions often enough for ``test_holds`` to mean something."""
    met = sum(law.holds_at(sample(law, Seeded(seed))) for seed in range(40))
    assert met >= 10


@pytest.fixture(scope="module")
def saturator() -> Iterator[Saturator]:
    with Saturator() as child:
        yield child


@each_rule
def test_fires_and_stays_silent(law: Rule, saturator: Saturator) -> None:
    """The e-graph proves lhs == rhs from the rule alone, and proves nothing if any one condition is missing."""
    values = next(v for v in (sample(law, Seeded(s)) for s in range(1000)) if law.holds_at(v))
    assert _proved(law, values, saturator, without=None)
    for condition in {*law.when, *law.given}:
        assert not _proved(law, values, saturator, without=condition), condition


def _proved(law: Rule, values: dict[str, Any], saturator: Saturator, without: Condition | None) -> bool:
    """Is lhs in rhs's class after saturation with this law, given all facts but one?"""
    if without is not None and without[0] == "same":
        values = values | {without[1][1]: "Abs" if values[without[1][0]] != "Abs" else "Relu"}
    bound, _ = law.bind(values)
    if without is not None and without[0] in COMPARISONS:
        small, large = without[1]
        bound[small if small in law.free else large] = bound[large] + 1 if small in law.free else bound[small] - 1
    tensors = [n for n in law.free if law.kind(n) == "t"]
    index = {n: i for i, n in enumerate(tensors)}
    const = {a[0] for name, a in law.when if name == "const"}
    # A run-time variable stands for any tensor: a term that no analysis knows anything about.
    lines = [f"(union (node {i}) {f'(leaf {i})' if n in const else f'(cat (leaf {i}) (leaf {i}) -1)'})" for n, i in index.items()]
    for name, arguments in {*law.when, *law.given} - {without}:
        if name in FACTS:
            lines.append(f"({name} {' '.join(_written(bound[a], f'(node {index[a]})' if a in index else None) for a in arguments)})")
    lines += [f"(live (node {i}))" for n, i in index.items() if n not in const and not law.weights and without != ("live", (n,))]
    windows = [v for n, v in bound.items() if law.variables.get(n) == "window"]
    moves = [v for n, v in bound.items() if law.variables.get(n) == "move"]
    for name, *row in table_facts(windows, moves, general=True):
        if without is None or name != without[0]:
            lines.append(f"({name} {' '.join(map(_written, row))})")
    written = [_written(bound[n], f"(node {index[n]})" if n in index else None) for n in law.variables]
    lhs, rhs = law.sides(Patterns(), *written)
    n = len(index)
    lines += [f"(union (node {n}) {text(lhs)})", f"(union (node {n + 1}) {text(rhs)})"]
    frozen: Frozen = saturator.saturate(Program(lines, [law], declines=False))
    return frozen.model[n] == frozen.model[n + 1]


def _written(value: Any, node: str | None = None) -> str:
    return node or (json.dumps(value) if isinstance(value, str) else str(value))


@pytest.mark.parametrize("law", [r for r in EVERY if r.given], ids=lambda r: f"{r.theory}/{r.name}")
def test_needs_its_conditions(law: Rule) -> None:
    """At the recorded point a condition fails, and the two sides differ (or one has no value)."""
    assert law.breaks_at, "a rule with a condition records where it breaks"
    values = {n: v if law.kind(n) != "t" else np.array(v) for n, v in law.breaks_at.items()}
    assert not law.holds_at(values)
    try:
        lhs, rhs = law.arrays(values)
    except ValueError:
        return
    assert lhs.shape != rhs.shape or not agree(law, lhs, rhs)


def test_a_wrong_rule_is_reported_with_a_minimal_counterexample() -> None:
    """Hypothesis shrinks a false law to the smallest point where it fails."""

    @rule("x:nm y:nm", cite="wrong on purpose")
    def maps_are_linear(op: Any, x: Any, y: Any) -> tuple[Any, Any]:
        """f(x + y) == f(x) + f(y)"""
        return op.map("Relu", op.add(x, y)), op.add(op.map("Relu", x), op.map("Relu", y))

    found: list[dict[str, Any]] = []

    @searching
    @given(data=st.data())
    def search(data: Any) -> None:
        values = sample(maps_are_linear, Draw(data))
        report = counterexample(maps_are_linear, values)
        if report:
            found.append(values)
            raise AssertionError(report)

    with pytest.raises(AssertionError, match="maps-are-linear is false"):
        search()
    smallest = found[-1]
    assert smallest["x"].size == smallest["y"].size == 1
    assert sorted(abs(int(v.item())) for v in smallest.values()) == [1, 1]


def test_a_rule_whose_sides_swap_a_sign_is_found_out() -> None:
    """The samples are strong enough to refute a plausible mistake in a real law."""
    law = next(r for r in rules.ALL if r.name == "bias-before-map")
    wrong = replace(law, sides=lambda op, x, c, A, b: (op.linear(op.bias(x, c, -1), A, b), op.linear(x, A, op.add(c, b))))
    refuted = 0
    for seed in range(40):
        try:
            refuted += counterexample(wrong, sample(law, Seeded(seed))) is not None
        except ValueError:
            refuted += 1
    assert refuted > 20


def test_names_are_unique_and_cited() -> None:
    assert len({r.name for r in EVERY}) == len(EVERY)
    assert all(r.cite and r.statement for r in EVERY)
    assert all(r.declines for r in rules.ALL if r.given and r.name in ("kernels-add", "bias-before-convolution", "concatenation-enters-map"))


def test_a_rule_must_state_its_law_and_known_conditions() -> None:
    with pytest.raises(ValueError, match="has no statement"):

        @rule("x:n", cite="")
        def mute(op: Any, x: Any) -> tuple[Any, Any]:
            return x, x

    with pytest.raises(ValueError, match="unknown condition"):

        @rule("x:n", cite="", when="lucky(x)")
        def lucky(op: Any, x: Any) -> tuple[Any, Any]:
            """x == x"""
            return x, x

    assert set(KIND) == {"int", "window", "map", "rowmap", "move", "text"}
