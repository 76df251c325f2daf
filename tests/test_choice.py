"""The integer program against all assignments there are."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.choice import Option, Problem, solve

SITES = ("a", "b", "c", "d", "e", "f")
numbers = st.integers(-40, 20).map(float)
errors = st.integers(0, 12).map(lambda n: n * 0.01)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A chain of up to six sites, two ways each beside the exact one, the first of them in codes: 3^6 assignments."""
    sites = SITES[: draw(st.integers(1, 6))]
    options = []
    for place, site in enumerate(sites):
        before = frozenset({sites[place - 1]}) if place else frozenset({"x"})
        coded = draw(st.booleans())
        own = frozenset({site})
        options.append(Option(draw(numbers), draw(errors), draw(st.integers(-50, 5)), own, before, own if coded else frozenset()))
        wide = own | (frozenset({sites[place - 1]}) if place and draw(st.booleans()) else frozenset())
        options.append(Option(draw(numbers), draw(errors), draw(st.integers(-50, 5)), wide))
    enter = {v: float(draw(st.integers(0, 15))) for v in ("x", *sites)}
    leave = {v: float(draw(st.integers(0, 15))) for v in ("x", *sites)}
    readers = {v: [sites[k + 1]] if k + 1 < len(sites) else ["y"] for k, v in enumerate(sites)} | {"x": [sites[0]]}
    return Problem(options, enter, leave, readers, memory=draw(st.booleans()), accuracy=draw(st.sampled_from([0.0, 30.0])))


def brute_force(problem: Problem, error: float, most_bytes: float | None) -> float | None:
    """The least cost over every set of options that may be taken together."""
    pairs = [(None, 2 * k, 2 * k + 1) for k in range(len(problem.options) // 2)]
    sets = (frozenset(k for k in picks if k is not None) for picks in itertools.product(*pairs))
    return min((problem.cost(s) for s in sets if problem.feasible(s, error, most_bytes)), default=None)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 40), st.none() | st.integers(-150, 0))
def test_equal_to_brute_force(problem: Problem, percent: int, most_bytes: int | None) -> None:
    error = percent / 100 + 1e-5  # room for the floors of six errors of zero
    best = brute_force(problem, error, most_bytes)
    found = solve(problem, error, most_bytes)
    if best is None:
        assert found is None
        return
    assert found is not None and problem.feasible(found, error, most_bytes)
    assert abs(problem.cost(found) - best) <= 1e-4 * (1 + abs(best)) if problem.memory else abs(problem.cost(found) - best) <= 1e-6


def test_of_two_that_take_as_long_the_more_exact_one() -> None:
    options = [Option(-50.2, 0.05, covers=frozenset({"a"})), Option(-50.0, 0.01, covers=frozenset({"a"}))]
    assert solve(Problem(options), 0.1) == {0}
    assert solve(Problem(options, accuracy=20.0), 0.1) == {1}
    assert solve(Problem([options[0], Option(-40.0, 0.01, covers=frozenset({"a"}))], accuracy=20.0), 0.1) == {0}


def test_nothing_is_always_feasible() -> None:
    problem = Problem([Option(-5.0, 0.5, covers=frozenset({"a"}))])
    assert solve(problem, 0.1) == frozenset()
    assert solve(problem, 0.6) == {0}


def test_a_set_that_failed_is_not_taken_again() -> None:
    options = [Option(-5.0, 0.01, covers=frozenset({"a"})), Option(-4.0, 0.01, covers=frozenset({"b"}))]
    assert solve(Problem(options), 1.0) == {0, 1}
    assert solve(Problem(options, excluded=[frozenset({0, 1})]), 1.0) == {0}


def test_a_value_is_encoded_once_for_all_its_readers() -> None:
    options = [Option(-5.0, 0.01, covers=frozenset({name}), reads=frozenset({"x"})) for name in "ab"]
    alone, both = Problem(options[:1], enter={"x": 6.0}), Problem(options, enter={"x": 6.0})
    assert solve(alone, 1.0) == frozenset()
    assert solve(both, 1.0) == {0, 1}


def test_errors_of_zero_do_not_come_free() -> None:
    problem = Problem([Option(-5.0, 0.0, covers=frozenset({"a"}))])
    assert solve(problem, 0.0) == frozenset()
