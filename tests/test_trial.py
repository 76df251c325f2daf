"""Times of variants on a machine that is not always as fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import read

from rewriter.errors import RewriterError
from rewriter.trial import FEWEST, ROUNDS, Trials

X = [np.zeros(1, np.float32)]


def nodes(count: int) -> ir.Model:
    return read("main (float[1] x) => (float[1] y) { " + " ".join(f"a{k} = Neg({f'a{k - 1}' if k else 'x'})" for k in range(count)) + f" y = Neg(a{count - 1}) }}")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Trials, list[str]]]:
    """Trials whose graphs take a millisecond for each node, times the ``slowness`` of that turn; what is timed, in its order."""

    def made(slowness: Callable[[int], float]) -> tuple[Trials, list[str]]:
        turns: list[str] = []

        def load(self: Trials, model: ir.Model, worker: object = None) -> str:
            if len(model.graph) > 90:
                raise RewriterError("too long")
            key = f"{len(model.graph)}"
            self._notes[key] = []
            return key

        def turn(self: Trials, key: str, inputs: Sequence[np.ndarray], seconds: float) -> list[float]:
            turns.append(key)
            return [9.0, int(key) * slowness(len(turns)), int(key) * slowness(len(turns))]

        monkeypatch.setattr(Trials, "load", load)
        monkeypatch.setattr(Trials, "_turn", turn)
        return Trials(tmp_path), turns

    return made


def test_turns_alternate_and_the_first_call_of_each_is_dropped(machine: Callable[..., tuple[Trials, list[str]]]) -> None:
    trials, turns = machine(lambda _: 1.0)
    assert trials.times({"a": (nodes(2), X), "b": (nodes(4), X)}) == {"a": 3000.0, "b": 5000.0}
    assert turns[:4] in (["3", "5", "5", "3"], ["5", "3", "3", "5"]) and len(turns) == 2 * (ROUNDS + 1)


def test_a_machine_that_is_slow_most_of_the_time_decides_nothing(machine: Callable[..., tuple[Trials, list[str]]]) -> None:
    trials, _ = machine(lambda turn: 1.0 if 8 <= turn < 18 else 2.0)
    assert trials.times({"a": (nodes(2), X), "b": (nodes(4), X)}) == {"a": 3000.0, "b": 5000.0}


def test_times_of_different_comparisons_are_of_one_pace(machine: Callable[..., tuple[Trials, list[str]]]) -> None:
    slow = [1.0]
    trials, turns = machine(lambda _: slow[0])
    whole = nodes(9)
    assert trials.times({"a": (nodes(2), X)}) == {"a": 3000.0}
    trials.pace_by(whole, X)
    assert trials.times({"a": (nodes(2), X)}) == {"a": 3000.0}
    slow[0] = 2.5
    assert trials.times({"a": (nodes(2), X)}) == {"a": 3000.0}
    turns.clear()
    assert trials.times({"before": (whole, X), "a": (nodes(2), X)}) == {"before": 10000.0, "a": 3000.0}
    assert turns.count("10") == ROUNDS + 1  # not a second time for the pace


def test_what_does_not_run_takes_for_ever(machine: Callable[..., tuple[Trials, list[str]]]) -> None:
    trials, _ = machine(lambda _: 1.0)
    trials.pace_by(nodes(95), X)
    assert trials.times({"a": (nodes(2), X), "b": (nodes(99), X)}) == {"a": 3000.0, "b": float("inf")}


def test_long_calls_take_fewer_turns(machine: Callable[..., tuple[Trials, list[str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    trials, turns = machine(lambda _: 1.0)
    clock = iter(range(10**6))
    monkeypatch.setattr("rewriter.trial.time.monotonic", lambda: float(next(clock)))
    trials.times({"a": (nodes(2), X)})
    assert len(turns) == FEWEST + 1
