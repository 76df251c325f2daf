"""Which channels go, and what the layers that read them become.

A layer ``y = W h + b`` that reads hidden channels h can do with the channels S of them; the best V and d instead of W are, on calibration data,
the least-squares solution (C is the covariance of h, m its mean; without an offset the second moments and 0)::

    min_{V,d} E||W h - V h_S - d||²   ->   V = W C[:, S] (C[S, S] + e I)⁻¹,   d = W m - V m_S

whose loss is ``tr((W - V P_S) C (W - V P_S)ᵀ)``. Which channels: of two orders the one that loses less. By what they contribute by themselves,
``||W[:, c]||² C[c, c]`` (the magnitude of weights, in the metric of the data); or one after the other, always the one whose loss is least when
all others are fitted again (optimal brain surgeon, Hassibi and Stork 1993, a channel at a time), with ``H = C + e I`` of the channels that are left::

    loss_c = tr(V_c (H⁻¹)_cc⁻¹ V_cᵀ)        V -> V - V_c (H⁻¹)_cc⁻¹ (H⁻¹)_c:        H⁻¹ -> H⁻¹ - (H⁻¹)_:c (H⁻¹)_cc⁻¹ (H⁻¹)_c:

Of two channels that are the same it takes one away for nothing; by itself either contributes. Where several layers read the channels, each is
fitted by itself, and a channel costs what all of them lose, each in parts of its own result's energy and weighted by ``Reading.share``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from passes.approximate.fitted_product import damped

Array = np.ndarray
BATCH = 32
"""One channel in so many is looked at together with others for which of them go next."""
ELIMINATED = 2048
"""Depth of a layer up to which channels are taken away one after the other: beyond it a layer takes 5 seconds and more."""
RIDGE = 1e-2
"""Of the mean square of a channel: what is fitted to few inputs must not follow their noise."""


@dataclass(frozen=True)
class Reading:
    """A layer that reads the channels. ``weights``: [outputs, channels * taps]; ``gram``: the mean of x xᵀ over what it reads; ``mean``: of x, for
    layers that can take an offset; ``share``: how much its loss counts."""

    weights: Array
    gram: Array
    mean: Array | None
    taps: int
    share: float = 1.0

    @property
    def energy(self) -> float:
        """The mean of ||W x||²."""
        wide = self.weights.astype(np.float64)
        return max(float(np.sum((wide @ self.gram) * wide)), 1e-30)

    def moments(self) -> Array:
        """C: covariances, or second moments for a layer that takes no offset."""
        return self.gram if self.mean is None else self.gram - np.outer(self.mean, self.mean)

    def damped(self) -> Array:
        """H = C + e I."""
        return damped(self.moments(), RIDGE)


@dataclass(frozen=True)
class Kept:
    """``channels``, ascending; of each layer the weights that read them and the offset; ``lost``: the part of the last layer's energy."""

    channels: Array
    weights: tuple[Array, ...]
    offsets: tuple[Array | None, ...]
    lost: float


def orders(readings: Sequence[Reading], channels: int, least: int) -> list[Array]:
    """Channels, those that go first last; below ``least`` of them no order is looked for."""
    found = [_by_contribution(readings, channels)]
    return [*found, _by_elimination(readings, channels, least)] if max(len(r.gram) for r in readings) <= ELIMINATED else found


def best(readings: Sequence[Reading], found: Sequence[Array], size: int) -> Kept:
    """So many channels, by the order that loses less."""
    return min((keep(readings, order[:size]) for order in found), key=lambda kept: kept.lost)


def keep(readings: Sequence[Reading], channels: Array) -> Kept:
    """These channels, and every layer fitted to them."""
    kept = np.sort(channels)
    fitted = [_fitted(r, _columns(kept, r.taps)) for r in readings]
    return Kept(kept, tuple(w for w, _, _ in fitted), tuple(d for _, d, _ in fitted), fitted[-1][2])


def _fitted(reading: Reading, columns: Array) -> tuple[Array, Array | None, float]:
    """The best weights on those columns only, their offset, and the part of the output's energy that is lost."""
    inner, c, wide = reading.damped()[np.ix_(columns, columns)], reading.moments(), reading.weights.astype(np.float64)
    fitted = np.linalg.solve(inner, (wide @ c[:, columns]).T).T
    left = wide.copy()
    left[:, columns] -= fitted
    lost = float(np.sum((left @ c) * left)) / reading.energy
    return fitted.astype(np.float32), None if reading.mean is None else (left @ reading.mean).astype(np.float32), lost


def _by_contribution(readings: Sequence[Reading], channels: int) -> Array:
    """Channels by what they contribute by themselves, the largest first."""
    total = np.zeros(channels)
    for r in readings:
        blocks = r.weights.reshape(len(r.weights), channels, r.taps)
        own = np.einsum("ctcs->cts", r.moments().reshape(channels, r.taps, channels, r.taps))
        total += r.share / r.energy * np.einsum("oct,cts,ocs->c", blocks, own, blocks)
    return np.argsort(-total, kind="stable")


class _Left:
    """A layer's problem with some channels gone: V, scaled so that its losses add up with others', and H⁻¹."""

    def __init__(self, weights: Array, inverse: Array, taps: int) -> None:
        self.weights, self.inverse, self.taps = weights, inverse, taps

    @classmethod
    def of(cls, reading: Reading) -> _Left:
        scale = np.sqrt(reading.share / reading.energy)
        return cls(reading.weights.astype(np.float64) * scale, np.linalg.inv(reading.damped()), reading.taps)

    def costs(self) -> Array:
        """What each channel's removal loses: tr(V_c (H⁻¹)_cc⁻¹ V_cᵀ)."""
        count = self.weights.shape[1] // self.taps
        blocks = self.inverse.reshape(count, self.taps, count, self.taps)
        own = np.einsum("ctcs->cts", blocks)
        read = self.weights.reshape(-1, count, self.taps).transpose(1, 2, 0)
        return np.asarray(np.sum(read * np.linalg.solve(own, read), axis=(1, 2)))

    def only(self, channels: Array) -> _Left:
        """The part of the problem that is about these."""
        columns = _columns(channels, self.taps)
        return _Left(self.weights[:, columns], self.inverse[np.ix_(columns, columns)], self.taps)

    def without(self, channels: Array) -> _Left:
        """V and H⁻¹ when these are gone and the others fitted again."""
        columns = _columns(channels, self.taps)
        step = np.linalg.solve(self.inverse[np.ix_(columns, columns)], self.inverse[columns])
        left, inverse = self.weights - self.weights[:, columns] @ step, self.inverse - self.inverse[:, columns] @ step
        stay = np.delete(np.arange(len(inverse)), columns)
        return _Left(left[:, stay], inverse[np.ix_(stay, stay)], self.taps)


def _by_elimination(readings: Sequence[Reading], channels: int, least: int) -> Array:
    """Channels, those that go first last, until ``least`` are left.

    The cheapest few are taken out of their own part of H⁻¹ one by one, as long as they cost no more than others did, and of the whole at once.
    """
    left = [_Left.of(r) for r in readings]
    alive, gone = np.arange(channels), np.zeros(0, np.int64)
    while len(alive) > least:
        batch = max(4, len(alive) // BATCH)
        costs = np.sum([one.costs() for one in left], axis=0)
        cheapest = np.argsort(costs, kind="stable")
        bound = float(costs[cheapest[batch]]) if batch < len(alive) else np.inf
        picked = _cheapest([one.only(cheapest[:batch]) for one in left], bound, min(batch, len(alive) - least))
        out = cheapest[picked]
        left = [one.without(out) for one in left]
        gone = np.append(gone, alive[out])
        alive = np.delete(alive, out)
    return np.concatenate([alive, gone[::-1]])


def _cheapest(left: list[_Left], bound: float, most: int) -> list[int]:
    """Which of these few channels go, in order: those that cost at most ``bound``, and in any case a quarter of them."""
    alive, gone = list(range(left[0].weights.shape[1] // left[0].taps)), list[int]()
    fewest = max(1, len(alive) // 4)
    while len(gone) < most:
        costs = np.sum([one.costs() for one in left], axis=0)
        place = int(np.argmin(costs))
        if costs[place] > bound and len(gone) >= fewest:
            break
        left = [one.without(np.array([place])) for one in left]
        gone.append(alive.pop(place))
    return gone


def _columns(channels: Array, taps: int) -> Array:
    """Where a channel's weights stand."""
    return np.asarray((channels[:, None] * taps + np.arange(taps)).reshape(-1))
