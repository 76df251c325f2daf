"""Approximate rewrites, one file each; what competes under a budget (``rewriter.approximate``), in two stages."""

from __future__ import annotations

from passes.approximate.binary_codes import BinaryCodes
from passes.approximate.candidate import Approximation
from passes.approximate.few_levels import FewLevels
from passes.approximate.int8_products import Int8Products
from passes.approximate.linear_attention import LinearAttention
from passes.approximate.pruned_channels import PrunedChannels
from passes.approximate.truncated_kernels import TruncatedKernels

STRUCTURES: tuple[Approximation, ...] = (PrunedChannels(), TruncatedKernels(), LinearAttention())
"""Fewer operators, or smaller ones."""
NUMBERS: tuple[Approximation, ...] = (Int8Products(),)
"""The same operators on numbers of fewer bits."""
BYTES: tuple[Approximation, ...] = (BinaryCodes(), FewLevels())
"""Weights that are unpacked when they are read: they save no time, and compete where bytes count."""


def competing(*, for_bytes: bool) -> tuple[tuple[Approximation, ...], ...]:
    """The stages. What is left to the last is what fits any structure."""
    return STRUCTURES, NUMBERS + (BYTES if for_bytes else ())
