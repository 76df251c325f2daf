"""What an answer has to meet, and what the next one is told by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from passes.approximate.candidate import Candidate
from rewriter.budget import Budget
from rewriter.candidate_costs import Measured
from rewriter.choice import Option, Problem
from rewriter.joint_choice import LOOSER, TIGHTER, Point, Search
from rewriter.metric import Worsening, bounded

BUDGET = 0.01
DRIFTS = (0.002, 0.004)


def search(part: float, lost: float = 0.0) -> Search:
    """Over two candidates with known drifts, which by themselves lost as much as they drifted."""
    graph: Any = object()
    work: Any = SimpleNamespace(
        graph=graph, begin=graph, exact=graph, lost=Worsening(lost, lost), judge=SimpleNamespace(additive=True), budget=Budget(BUDGET),
        memory=False, wants_bytes=False,
    )  # fmt: skip
    measured = [
        Measured(Candidate(f"kind{k}", f"v{k}", frozenset({f"v{k}"}), lambda _: None), -10.0, Worsening(drift, drift), drift)
        for k, drift in enumerate(DRIFTS)
    ]
    options = [Option(m.latency, m.error.upper, covers=m.candidate.covers) for m in measured]
    return Search(work, measured, Problem(options), range(2), lambda model: model, BUDGET * part, last=part == 1.0)


def point(*splits: float) -> Point:
    return Point(frozenset({0, 1}), 0.0, bounded(splits, answers=5), 1, 1.0)


def test_the_last_stage_needs_proof() -> None:
    assert search(1.0)._within(Worsening(0.001, BUDGET)) and not search(1.0)._within(Worsening(0.001, BUDGET * 1.001))


@pytest.mark.parametrize(
    "mean, spread, upper, enough",
    [
        (0.003, 0.001, 0.009, True),  # likely within half, surely within all
        (0.003, 0.001, 0.011, False),  # perhaps beyond all
        (0.0045, 0.004, 0.009, False),  # beyond half with its standard error
        (-0.001, 0.001, 0.0099, True),
    ],
)
def test_a_stage_before_it_needs_to_be_likely(mean: float, spread: float, upper: float, enough: bool) -> None:
    splits = (mean - spread / 2**0.5, mean, mean, mean + spread / 2**0.5)  # of these the standard deviation is spread / sqrt 3
    assert search(0.5)._within(Worsening(mean, upper, splits)) is enough


def test_what_missed_counts_for_more_and_is_out() -> None:
    one = search(1.0)
    before = one.predicted(frozenset({0, 1}))
    one._tighten(frozenset({0, 1}), point(0.02, 0.02, 0.02))
    assert one._additive().excluded == [frozenset({0, 1})]
    assert before < one.predicted(frozenset({0, 1})) == pytest.approx(0.02)
    slightly = search(1.0)
    slightly._worth = 0.0101 / sum(DRIFTS)  # it lost what was predicted, and that was too much
    slightly._tighten(frozenset({0, 1}), point(0.0101, 0.0101))
    assert slightly.predicted(frozenset({0, 1})) == pytest.approx(TIGHTER * 0.0101)


def test_what_lost_little_counts_for_less_but_not_by_much_at_once() -> None:
    one = search(1.0)
    before = one.predicted(frozenset({0, 1}))
    one._loosen(frozenset({0, 1}), point(0.0, 0.0, 0.0))
    assert one.predicted(frozenset({0, 1})) == pytest.approx(before / LOOSER)


def test_between_an_answer_that_met_and_one_that_missed() -> None:
    """As much as the first showed is too little, as much as the second showed may be chance: the middle of both, in the geometric sense."""
    one = search(1.0)
    worth = one._worth
    one._loosen(frozenset({0, 1}), point(0.0, 0.0, 0.0))
    one._tighten(frozenset({0, 1}), point(0.05, 0.05, 0.05))
    assert one._worth == pytest.approx(max(TIGHTER * worth / LOOSER, worth / LOOSER**0.5))
    assert worth / LOOSER < one._worth < worth


def test_what_was_lost_before_takes_room() -> None:
    assert search(1.0, lost=0.004)._room(BUDGET) == pytest.approx(0.006) and search(1.0, lost=-0.004)._room(BUDGET) == BUDGET


@pytest.mark.parametrize("likely, rounds", [(0.002, 2), (0.0075, 1)])
def test_a_bolder_answer_follows_one_that_is_likely_to_leave_room(likely: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is proved of both leaves none."""
    answers = iter([frozenset({0}), frozenset({0, 1})])
    monkeypatch.setattr("rewriter.joint_choice.solve", lambda *_: next(answers))
    one = search(1.0)
    one.exact_ms = 10.0
    one._work.progress, one._work.data = (lambda _: None), SimpleNamespace(splits=[[0], [1]])  # type: ignore[method-assign, assignment]
    error = Worsening(likely - 0.001, 0.009, (likely - 0.002, likely))
    assert error.likely == pytest.approx(likely)
    model: Any = object()
    monkeypatch.setattr(one, "_searched_again", lambda taken: (model, Point(taken, 0.0, error, 1, 5.0 / len(taken))))
    if rounds == 2:
        answers = iter([frozenset({0}), frozenset({0, 1}), frozenset({0, 1})])
    assert one.run()[1] is not None and len(one.rounds) == rounds
