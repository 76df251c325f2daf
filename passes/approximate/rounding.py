"""Scales: how numbers are written in few bits with the least square error (papers 17, 62: a grid of clipping ranges)."""

from __future__ import annotations

import numpy as np

from passes.approximate.substitution import Codes

Array = np.ndarray
SHRUNK = (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Parts of the observed range that are tried: rare large values are clipped where that makes the rest finer."""
GROWN = (2.0, 1.6, 1.4, 1.25, 1.12)
"""Parts beyond it, where larger steps keep more sums of pairs within bounds."""
ENOUGH = 1 << 16
PAIRED = 128
"""Sums of two codes of one sign up to which 255 times them stays within 16 bits."""


def activation_codes(numbers: Array, low: float, high: float, bits: int = 8) -> Codes:
    """uint8 codes with a whole zero point for numbers like these. ``low``, ``high``: of everything that was seen; zero is always a code."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        return Codes(1.0, 0)
    sample = numbers[:: max(1, numbers.size // ENOUGH)].astype(np.float32)
    steps = 2**bits - 1
    best: tuple[float, Codes] | None = None
    for part in SHRUNK:
        scale = float(np.float32((high - low) * part / steps))
        if scale <= 0:
            continue
        zero = int(np.clip(np.round(-low * part / scale), 0, steps))
        codes = np.clip(np.round(sample / scale) + zero, 0, steps)
        error = float(np.mean(((codes - zero) * scale - sample) ** 2)) if sample.size else 0.0
        if best is None or error < best[0]:
            best = error, Codes(scale, zero)
    assert best is not None
    return best[1]


def activation_error(numbers: Array, codes: Codes) -> float:
    """The mean square of what the codes lose."""
    sample = numbers[:: max(1, numbers.size // ENOUGH)].astype(np.float32)
    coded = (np.clip(np.round(sample / codes.scale) + codes.zero, 0, 255) - codes.zero) * codes.scale
    return float(np.mean((coded - sample) ** 2)) if sample.size else 0.0


def symmetric_scales(weights: Array, bits: int, importance: Array | None = None, partners: Array | None = None) -> Array:
    """One scale a row of ``weights`` [rows, depth] for codes in -(2^(bits-1)-1) .. 2^(bits-1)-1, of least square error.

    ``importance``: [depth], how much an error of that column weighs (the mean square of its input). ``partners``: as for ``rounded``.
    """
    most = 2 ** (bits - 1) - 1
    top = np.abs(weights).max(axis=1)
    top = np.where(top > 0, top, 1.0)
    best, scales = np.full(len(weights), np.inf), top / most
    for part in SHRUNK if partners is None else GROWN + SHRUNK:
        scale = (top * part / most)[:, None]
        error = (_rounded(weights, scale, most, partners) * scale - weights) ** 2
        total = error.sum(axis=1) if importance is None else error @ importance
        better = total < best
        best, scales = np.where(better, total, best), np.where(better, scale[:, 0], scales)
    return np.asarray(scales, np.float32)


def rounded(weights: Array, scales: Array, bits: int, partners: Array | None = None) -> Array:
    """The nearest codes, int8. ``scales``: [rows], or [rows, depth].

    ``partners``: [depth], for each column the one (itself: none) that integer kernels may add to it in 16 bits, which saturate: where both
    codes are of one sign their sizes together are at most ``PAIRED``, and nothing saturates for inputs of 0..255.
    """
    return np.asarray(_rounded(weights, scales.reshape(len(weights), -1), 2 ** (bits - 1) - 1, partners), np.int8)


def _rounded(weights: Array, scales: Array, most: int, partners: Array | None) -> Array:
    codes = np.asarray(np.clip(np.round(weights / scales), -most, most))
    if partners is None:
        return codes
    other, alone = codes[:, partners], partners == np.arange(len(partners))
    over = np.where((codes * other > 0) & ~alone, np.maximum(np.abs(codes) + np.abs(other) - PAIRED, 0), 0)
    share = np.where(partners > np.arange(len(partners)), np.ceil(over / 2), np.floor(over / 2))  # both give way
    return np.asarray(codes - np.sign(codes) * share)


def fitted_codes(weights: Array, scales: Array, bits: int, gram: Array, damping: float = 0.01, partners: Array | None = None) -> Array:
    """Codes [rows, depth] that make ``||(W - Ŵ) X||`` small and not ``||W - Ŵ||``: layer-wise calibration (17; the column-wise solution of
    its least squares that 18 uses, errors of a rounded column going to those that follow, by the Cholesky factor of the inverse of X Xᵀ).

    ``gram``: the mean of x xᵀ, [depth, depth]. ``scales``: [rows], or [rows, depth]. ``partners``: as for ``rounded``.
    """
    most = 2 ** (bits - 1) - 1
    h = gram.astype(np.float64).copy()
    diagonal = np.diag(h).copy()
    mean = float(diagonal.mean()) or 1.0
    h[np.diag_indices_from(h)] = diagonal + damping * mean
    order = np.argsort(-diagonal)
    h = h[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    left = weights[:, order].astype(np.float64)
    steps = np.broadcast_to(scales.reshape(len(weights), -1), weights.shape)[:, order].astype(np.float64)
    codes = np.zeros_like(left)
    place = np.argsort(order)
    partner = np.full(len(order), -1) if partners is None else place[partners[order]]
    meant = None if partners is None else _rounded(left, steps, most, partner)
    block = 64
    for start in range(0, left.shape[1], block):
        stop = min(start + block, left.shape[1])
        errors = np.empty((len(left), stop - start))
        for k in range(start, stop):
            nearest = np.round(left[:, k] / steps[:, k])
            if meant is None or partner[k] == k:
                codes[:, k] = np.clip(nearest, -most, most)
            else:  # what comes first leaves room for what its partner is meant to be
                codes[:, k] = np.clip(nearest, *_beside((codes if partner[k] < k else meant)[:, partner[k]], most))
            errors[:, k - start] = (left[:, k] - codes[:, k] * steps[:, k]) / upper[k, k]
            left[:, k + 1 : stop] -= np.outer(errors[:, k - start], upper[k, k + 1 : stop])
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    found = np.empty_like(codes)
    found[:, order] = codes
    return found.astype(np.int8)


def _beside(codes: Array, most: int) -> tuple[Array, Array]:
    """The least and the greatest codes that may stand beside these."""
    return np.maximum(-most, -PAIRED - np.minimum(codes, 0)), np.minimum(most, PAIRED - np.maximum(codes, 0))


def output_error(weights: Array, approximated: Array, gram: Array | None) -> float:
    """||(W - Ŵ) X||² / ||W X||² from the second moments of X; of the weights alone where there are none."""
    difference = (weights - approximated).astype(np.float64)
    if gram is None:
        return float(np.sum(difference**2) / max(np.sum(weights.astype(np.float64) ** 2), 1e-30))
    whole = weights.astype(np.float64)
    return float(np.sum((difference @ gram) * difference) / max(np.sum((whole @ gram) * whole), 1e-30))
