"""Approximate rewrites, one file each; what competes under a budget (``rewriter.approximate``), in two stages."""

from __future__ import annotations

from passes.approximate.averaged_experts import AveragedExperts
from passes.approximate.binary_codes import BinaryCodes
from passes.approximate.blockwise_weights import BlockwiseWeights
from passes.approximate.candidate import Approximation
from passes.approximate.constant_gates import ConstantGates
from passes.approximate.dropped_blocks import DroppedBlocks
from passes.approximate.few_levels import FewLevels
from passes.approximate.int8_products import Int8Products
from passes.approximate.linear_attention import LinearAttention
from passes.approximate.low_rank import LowRank
from passes.approximate.pruned_channels import PrunedChannels
from passes.approximate.truncated_kernels import TruncatedKernels

STRUCTURES: tuple[Approximation, ...] = (
    AveragedExperts(), DroppedBlocks(), ConstantGates(), PrunedChannels(), LowRank(), TruncatedKernels(), LinearAttention()
)  # fmt: skip
"""Fewer operators, or smaller ones."""
NUMBERS: tuple[Approximation, ...] = (Int8Products(), BlockwiseWeights())
"""The same operators on numbers of fewer bits."""
BYTES: tuple[Approximation, ...] = (BinaryCodes(), FewLevels())
"""Weights that are unpacked when they are read: they save no time, and compete where bytes count."""
ALL = STRUCTURES + NUMBERS + BYTES


def competing(*, for_bytes: bool) -> tuple[tuple[Approximation, ...], ...]:
    """The stages. What is left to the last is what fits any structure."""
    return STRUCTURES, NUMBERS + (BYTES if for_bytes else ())
