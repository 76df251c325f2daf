"""Errors of outputs: normalised, by the user's metric, with confidence bounds; scores are told from errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_calibration import X, graph

from rewriter.calibration import CalibrationSet, read_calibration
from rewriter.errors import BudgetError
from rewriter.metric import HINT, Judge, Outputs, bounded, normalised_error

LABELS = (X[:, 0] > 0).astype(np.int64)


def made(metric: Any = None, times: int = 1) -> tuple[Judge, CalibrationSet, Outputs]:
    data = read_calibration({"x": np.tile(X, (times, 1)), "targets": np.tile(LABELS, times)}, graph())
    exact = [[np.stack([-feed["x"][:, 0], feed["x"][:, 0]], 1)] for feed in data.feeds(data.measuring)]
    return Judge(metric, data, exact), data, exact


def accuracy(outputs: Any, targets: Any) -> float:
    return float(np.mean(outputs.argmax(1) == targets))


def test_normalised_error() -> None:
    assert normalised_error(X, X) == 0.0
    assert normalised_error(1.01 * X, X) == pytest.approx(0.01, rel=1e-4)
    assert normalised_error((X, 2 * X), (X, X)) == pytest.approx(1.0)
    assert normalised_error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert normalised_error(X, np.zeros_like(X)) > 0


def test_the_bound_is_students() -> None:
    found = bounded([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.upper == pytest.approx(2.5 + 2.353 * np.std([1, 2, 3, 4], ddof=1) / 2)
    assert found.lower == pytest.approx(5.0 - found.upper)
    assert bounded([np.inf, 1.0]).upper == np.inf
    assert bounded([1.0, 2.0, 3.0, 4.0], answers=5).upper == pytest.approx(2.5 + 4.541 * np.std([1, 2, 3, 4], ddof=1) / 2)
    many = np.arange(40.0)
    assert bounded(many, answers=5).upper == pytest.approx(19.5 + 2.426 * np.std(many, ddof=1) / np.sqrt(40), rel=1e-3)
    assert bounded(many).upper == pytest.approx(19.5 + 1.685 * np.std(many, ddof=1) / np.sqrt(40), rel=1e-3)
    assert bounded(many[:2], answers=5).upper == pytest.approx(0.5 + 31.821 * np.std([0, 1], ddof=1) / np.sqrt(2))


@pytest.mark.parametrize("parts", [2, 4, 16, 17, 48])
def test_of_five_answers_none_is_over_its_bound_in_95_of_100_cases(parts: int) -> None:
    random = np.random.default_rng(0)
    over = [any(bounded(list(random.normal(size=parts)), answers=5).upper < 0 for _ in range(5)) for _ in range(1000)]
    assert np.mean(over) < 0.07


def test_without_a_metric_outputs_are_compared_with_the_exact_ones() -> None:
    judge, _, exact = made()
    assert judge.worsening(exact).upper == 0.0
    assert judge.worsening([[1.1 * o for o in outputs] for outputs in exact]).mean == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("metric", [accuracy, lambda outputs, targets: 1 - accuracy(outputs, targets)], ids=["score", "error"])
def test_worse_is_worse_whichever_way_the_metric_counts(metric: Any) -> None:
    judge, _, exact = made(metric)
    assert judge.worsening(exact).mean == 0.0
    assert judge.worsening([[-o for o in outputs] for outputs in exact]).mean == pytest.approx(1.0)


def test_what_cannot_be_judged_is_infinitely_bad() -> None:
    judge, _, exact = made(accuracy)
    assert made(lambda o, t: float(o.sum()))[0].worsening([[o * np.nan for o in outputs] for outputs in exact]).upper == np.inf
    assert judge.worsening([[np.zeros(3)] for _ in exact]).upper == np.inf


def test_a_metric_that_fails_on_the_exact_outputs_is_the_users_to_repair() -> None:
    def broken(outputs: Any, targets: Any) -> float:
        raise KeyError("label")

    with pytest.raises(BudgetError, match="metric broken failed on the exact model's outputs: KeyError"):
        made(broken)
    with pytest.raises(BudgetError, match="gives nan"):
        made(lambda outputs, targets: float("nan"))


def test_outputs_of_nan_do_not_represent_the_data() -> None:
    data = read_calibration(X, graph())
    with pytest.raises(BudgetError, match="NaN or infinities on the calibration inputs"):
        Judge(None, data, [[np.full((1, 2), np.nan)] for _ in data.measuring])


def test_what_is_hopeless_is_not_measured_to_the_end() -> None:
    judge, data, exact = made(times=20)
    asked: list[int] = []

    def wrong(factor: float) -> Iterator[list[np.ndarray]]:
        for k, outputs in enumerate(exact):
            asked.append(k)
            yield [factor * o for o in outputs]

    assert judge.worsening(wrong(1.5), hopeless=0.1).mean == pytest.approx(0.5, rel=1e-5)
    assert len(asked) == sum(map(len, data.splits[: HINT])) < len(exact)
    assert judge.worsening(wrong(1.05), hopeless=0.1).mean == pytest.approx(0.05, rel=1e-4)
    assert len(asked) == sum(map(len, data.splits[: HINT])) + len(exact)


def test_what_is_likely_is_a_standard_error_above_the_mean() -> None:
    assert bounded([1.0, 2.0, 3.0, 4.0]).likely == pytest.approx(2.5 + np.std([1, 2, 3, 4], ddof=1) / 2)
    assert bounded([np.inf, 1.0]).likely == np.inf and bounded([2.0]).likely == 2.0
