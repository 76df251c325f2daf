"""How far outputs are off: the user's metric, or the normalised error of the outputs, with a confidence bound over disjoint splits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from rewriter.calibration import CalibrationSet
from rewriter.errors import BudgetError

Array = np.ndarray
Outputs = list[list[Array]]
"""For each batch, the model's outputs."""
Z95, Z99 = 1.645, 2.326
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)
"""Student's t, one-sided 95 %, for 1, 2, .. degrees of freedom (any table)."""
T99 = (31.821, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764, 2.718, 2.681, 2.650, 2.624, 2.602)
"""99 %: of five bounds that hold with that, all hold with 95 % (Bonferroni)."""
HINT = 8
"""Splits from which a worsening can be seen to be hopeless."""


@dataclass(frozen=True)
class Worsening:
    """``mean`` over the splits, and ``upper``: the one-sided 95 % confidence bound of it."""

    mean: float
    upper: float
    splits: tuple[float, ...] = ()

    @property
    def lower(self) -> float:
        """The bound on the other side."""
        return 2 * self.mean - self.upper if math.isfinite(self.mean) else self.mean

    @property
    def likely(self) -> float:
        """The mean and its standard error: what is enough to go on with, and no proof."""
        k = len(self.splits)
        return self.mean + float(np.std(self.splits, ddof=1)) / math.sqrt(k) if k > 1 and math.isfinite(self.mean) else self.upper

    def times(self, factor: float) -> Worsening:
        return Worsening(self.mean * factor, self.upper * factor, tuple(s * factor for s in self.splits))


def bounded(splits: Sequence[float], answers: int = 1) -> Worsening:
    """Mean and Student's bound: mean + t s / sqrt(k). ``answers``: of how many (five at most) that are judged on these samples the best will be
    taken: the bounds of all of them hold with 95 %."""
    mean = float(np.mean(splits))
    if not math.isfinite(mean):
        return Worsening(math.inf, math.inf, tuple(splits))
    k = len(splits)
    upper = mean if k < 2 else mean + _student(k - 1, answers) * float(np.std(splits, ddof=1)) / math.sqrt(k)
    return Worsening(mean, upper, tuple(splits))


def _student(freedom: int, answers: int) -> float:
    """The quantile; of many degrees of freedom by the first terms of its expansion (Abramowitz and Stegun 26.7.5), to three digits."""
    table, z = (T95, Z95) if answers == 1 else (T99, Z99)
    if freedom <= len(table):
        return table[freedom - 1]
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def normalised_error(outputs: Any, reference: Any) -> float:
    """||y - r|| / ||r||, of the worst output; of whole numbers the part that differs. Arrays, or tuples and lists of them."""
    if isinstance(outputs, (tuple, list)):
        return max((normalised_error(a, b) for a, b in zip(outputs, reference, strict=True)), default=0.0)
    y, r = np.asarray(outputs), np.asarray(reference)
    if y.dtype.kind not in "fc":
        return float(np.mean(y != r)) if y.size else 0.0
    difference = np.linalg.norm((y.astype(np.float64) - r.astype(np.float64)).reshape(-1))
    size = np.linalg.norm(r.astype(np.float64).reshape(-1))
    return float(difference / size) if size else float(difference)


class Judge:
    """Measures outputs of approximated graphs against the exact graph's, split by split."""

    def __init__(self, metric: Callable[[Any, Any], float] | None, data: CalibrationSet, exact: Outputs, answers: int = 1) -> None:
        """``exact``: the exact graph's outputs on ``data.measuring``; ``answers``: as for ``bounded``. Raises ``BudgetError`` where the metric
        makes no sense of them."""
        self._metric, self._data, self._answers = metric, data, answers
        self._exact = list(self._by_split(exact))
        self._targets = [_concatenated(data.targets(s)) if data.has_targets else None for s in data.splits]
        self.notes: list[str] = []
        self._sign = 1.0
        self._base = [0.0] * len(self._exact)
        self._check_outputs()
        if metric is not None:
            self._base = [self._own(self._reference(k), self._target(k)) for k in range(len(self._exact))]
            self._sign = self._direction()

    @property
    def additive(self) -> bool:
        """Do errors of independent changes add up as they are? Norms add in squares."""
        return self._metric is not None

    @property
    def base(self) -> float:
        """The metric of the exact graph."""
        return float(np.mean(self._base))

    def worsening(self, outputs: Iterable[list[Array]], hopeless: float = math.inf) -> Worsening:
        """How much worse than the exact graph's, over the splits; infinite where the metric fails or gives no number. ``outputs``, batch by
        batch, are not asked for any further once the worsening is surely above ``hopeless``."""
        changes: list[float] = []
        for k, part in enumerate(self._by_split(outputs)):
            changes.append(self._change(k, _joined(part)))
            if len(changes) >= HINT and bounded(changes, self._answers).lower > hopeless:
                break
        return bounded(changes, self._answers)

    def _change(self, k: int, outputs: Any) -> float:
        if self._metric is None:
            return normalised_error(outputs, self._reference(k))
        try:
            now = float(self._metric(outputs, self._target(k)))
        except Exception:  # noqa: BLE001 - outputs that a metric cannot take are as bad as can be
            return math.inf
        return self._sign * (now - self._base[k]) if math.isfinite(now) else math.inf

    def drift(self, outputs: Outputs) -> float:
        """The mean square of the normalised error, whatever the metric is: it sees changes that a metric of few samples does not."""
        return float(np.mean([normalised_error(_joined(part), self._reference(k)) ** 2 for k, part in enumerate(self._by_split(outputs))]))

    def _by_split(self, outputs: Iterable[list[Array]]) -> Iterator[Outputs]:
        rest = iter(outputs)
        for split in self._data.splits:
            yield list(islice(rest, len(split)))

    def _reference(self, k: int) -> Any:
        return _joined(self._exact[k])

    def _target(self, k: int) -> Any:
        target = self._targets[k]
        return self._reference(k) if target is None else target

    def _own(self, outputs: Any, targets: Any) -> float:
        assert self._metric is not None
        name = getattr(self._metric, "__name__", "metric")
        try:
            value = float(self._metric(outputs, targets))
        except Exception as failure:  # noqa: BLE001 - a user's function
            raise BudgetError(f"metric {name} failed on the exact model's outputs: {type(failure).__name__}: {failure}") from None
        if not math.isfinite(value):
            raise BudgetError(f"metric {name} gives {value} for the exact model's outputs: it must give a number")
        return value

    def _direction(self) -> float:
        """1 for errors, -1 for scores: outputs that belong to other samples must be worse."""
        assert self._metric is not None
        changes = []
        for k in range(len(self._exact)):
            try:
                changes.append(float(self._metric(_shuffled(self._reference(k), k), self._target(k))) - self._base[k])
            except Exception:  # noqa: BLE001 - then this split does not tell
                continue
        change = float(np.nansum(changes)) if changes else 0.0
        if change == 0.0:
            self.notes.append("metric: outputs of shuffled samples are no better and no worse, so smaller values were taken to be better")
            return 1.0
        if change < 0:
            self.notes.append("metric: larger values are better (outputs of shuffled samples give smaller ones); its worsening is its drop")
        return 1.0 if change > 0 else -1.0

    def _check_outputs(self) -> None:
        for part in self._exact:
            for outputs in part:
                if any(o.dtype.kind == "f" and not np.isfinite(o).all() for o in outputs if isinstance(o, np.ndarray)):
                    raise BudgetError(
                        "the exact model gives NaN or infinities on the calibration inputs: they do not represent its data; leave them out"
                    )
        alone = [o for part in self._exact for outputs in part for o in outputs[:1]]
        if len(alone) > 1 and all(o.shape == alone[0].shape and np.array_equal(o, alone[0]) for o in alone[1:]):
            self.notes.append("the model's first output is the same for every calibration batch: they may not represent its data")


def _joined(part: Outputs) -> Any:
    """The outputs of several batches as one: an array for one output, else a tuple."""
    if not part:
        return np.zeros(0, np.float32)
    joined = tuple(_concatenated([outputs[k] for outputs in part]) for k in range(len(part[0])))
    return joined[0] if len(joined) == 1 else joined


def _concatenated(arrays: Sequence[Array]) -> Any:
    """Along the first axis where the others agree, else the list as it is."""
    if all(a.ndim and a.shape[1:] == arrays[0].shape[1:] for a in arrays):
        return np.concatenate(arrays)
    return list(arrays)


def _shuffled(outputs: Any, seed: int) -> Any:
    """The same outputs, for other samples."""
    if isinstance(outputs, tuple):
        return tuple(_shuffled(o, seed) for o in outputs)
    order = np.random.default_rng(seed).permutation(len(outputs))
    return [outputs[k] for k in order] if isinstance(outputs, list) else outputs[order]
