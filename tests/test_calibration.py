"""Calibration inputs in every form, and those that represent nothing refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import parse

from rewriter import calibration as module
from rewriter.calibration import CalibrationSet, read_calibration
from rewriter.errors import BudgetError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 3)).astype("float32")
Y = np.arange(64)


def graph(inputs: str = "float[1,3] x") -> ir.Graph:
    names = [part.split()[-1] for part in inputs.split(", ")]
    body = " ".join(f"y{k} = Identity({n})" for k, n in enumerate(names))
    outputs = ", ".join(f"{part.split()[0]} y{k}" for k, part in enumerate(inputs.split(", ")))
    return ir.from_proto(parse(f"main ({inputs}) => ({outputs}) {{ {body} }}")).graph


def rows(found: CalibrationSet, name: str = "x") -> np.ndarray:
    return np.concatenate([found.feed(k)[name] for k in range(len(found.batches))])


class Loader:
    """As a DataLoader: pairs of a batch and its labels."""

    def __iter__(self) -> Iterator[Any]:
        import torch

        return ((torch.from_numpy(X[k : k + 1]), torch.tensor([int(Y[k])])) for k in range(64))


def test_every_form_gives_the_same_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=X, targets=Y)
    forms: list[Any] = [
        X, {"x": X}, tmp_path / "c.npz", str(tmp_path / "c.npz"), [x[None] for x in X], [(x[None],) for x in X], ({"x": x[None]} for x in X), Loader(),
        X[:, None, :], {"x": X, "targets": Y},
    ]  # fmt: skip
    for form in forms:
        np.testing.assert_array_equal(rows(read_calibration(form, graph())), X)


def test_targets_stay_with_their_samples(tmp_path: Path) -> None:
    for form in ({"x": X, "targets": Y}, Loader(), [((x[None],), y) for x, y in zip(X, Y, strict=True)]):
        found = read_calibration(form, graph())
        assert found.has_targets
        assert [int(t[0]) for t in found.targets(found.measuring)] == [int(Y[k]) for k in found.measuring]


@pytest.mark.parametrize("count, parts", [(5, 2), (64, 4), (320, 4), (512, 6), (1024, 14), (2040, 30), (4000, 48)])
def test_fitting_and_splits_are_disjoint_and_complete(count: int, parts: int) -> None:
    """Many samples are many parts: their spread is better known."""
    found = read_calibration(np.resize(X, (count, 3)) + np.arange(count, dtype=np.float32)[:, None], graph())
    assert len(found.splits) == parts
    assert sorted(p for part in (found.fitting, *found.splits) for p in part) == list(range(count))
    assert max(map(len, found.splits)) - min(map(len, found.splits)) <= 1


def test_an_open_batch_is_cut_into_several_samples() -> None:
    found = read_calibration(X, graph("float[n,3] x"))
    assert found.feed(0)["x"].shape == (module.BATCH, 3)
    assert found.samples == 64


def test_what_an_iterable_makes_is_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 100)
    np.testing.assert_array_equal(rows(read_calibration((x[None] for x in X), graph())), X)


def test_what_is_read_of_an_iterable_has_an_end_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 10 * X[:1].nbytes)
    assert len(read_calibration((x[None] for x in X), graph()).batches) == 11


def test_an_endless_iterable_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 50)

    def forever() -> Iterator[np.ndarray]:
        while True:
            yield RANDOM.normal(size=(1, 3)).astype("float32")

    assert len(read_calibration(forever(), graph()).batches) == 50


def _nan() -> np.ndarray:
    x = X.copy()
    x[5, 1] = np.nan
    return x


REFUSED = {
    "NaN": (_nan(), "'x' holds NaN in batch 5"),
    "infinity": (np.where(X > 2, np.inf, X), "'x' holds an infinity"),
    "constant": (np.zeros((64, 3), "float32"), "calibration is constant: all 64 samples of 'x'"),
    "equal": (np.repeat(X[:1], 64, 0), "calibration is constant"),
    "flat": (np.repeat(X[:, :1], 3, 1), "'x' holds one number throughout each batch"),
    "few": (X[:3], "calibration has 3 samples, too few"),
    "none": ([], "calibration holds no inputs"),
    "shape": ([x[None, :2] for x in X], r"'x' has shape \(1, 2\) in batch 0; the model takes \[1, 3\]"),
    "type": ([np.array([["a", "b", "c"]])] * 8, "'x' is <U1; the model takes float32"),
    "objects": ([object()] * 8, "calibration item 0, x is a object"),
    "name": ({"z": X, "w": X}, r"calibration lacks \['x'\] and has 'z', which it does not take"),
    "number": (7, "calibration is a int: give an array"),
    "file": ("/nowhere.npz", "calibration file '/nowhere.npz' cannot be read: No such file"),
    "targets": ([(X[:1], 1), X[:1]], "calibration item 1 lacks targets, unlike the first"),
    "lengths": ({"x": X, "targets": Y[:9]}, "calibration arrays differ in length"),
    "entries": ([(X[:1], Y, Y)] * 8, "calibration item 0 has 3 entries"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    given, said = REFUSED[name]
    with pytest.raises(BudgetError, match=said) as caught:
        read_calibration(given, graph())
    assert "\n" not in str(caught.value)


def test_a_file_that_would_be_unpickled_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.array([{}, 1], dtype=object))
    with pytest.raises(BudgetError, match="cannot be read"):
        read_calibration(tmp_path / "bad.npz", graph())


def test_warned_by_name() -> None:
    few = read_calibration(X[:10], graph())
    assert "only 10 samples" in few.warnings[0]
    state = np.zeros((1, 3), "float32")
    constant = read_calibration([{"x": x[None], "state": state} for x in X], graph("float[1,3] x, float[1,3] state"))
    assert constant.warnings == ["calibration input 'state' is the same in every sample: what the model does with other values was not measured"]
