"""Approximate rewrites, one file each; what competes under a budget (``rewriter.approximate``), by itself or in stages."""

from __future__ import annotations

from passes.approximate.averaged_experts import AveragedExperts
from passes.approximate.binary_codes import BinaryCodes
from passes.approximate.blockwise_weights import BlockwiseWeights
from passes.approximate.candidate import Approximation
from passes.approximate.coded_tables import CodedTables
from passes.approximate.constant_gates import ConstantGates
from passes.approximate.dropped_blocks import DroppedBlocks
from passes.approximate.few_levels import FewLevels
from passes.approximate.int8_activations import Int8Activations
from passes.approximate.int8_products import Int8Products
from passes.approximate.linear_attention import LinearAttention
from passes.approximate.log2_softmax import Log2Softmax
from passes.approximate.low_rank import LowRank
from passes.approximate.mean_gates import MeanGates
from passes.approximate.pruned_channels import PrunedChannels
from passes.approximate.transported_scales import TransportedScales
from passes.approximate.truncated_kernels import TruncatedKernels

PARTS: tuple[Approximation, ...] = (AveragedExperts(), DroppedBlocks(), ConstantGates(), MeanGates(), TruncatedKernels(), LinearAttention())
"""Whole parts of a network that go or become simpler. They stand in few places, and are always tried."""
SIZES: tuple[Approximation, ...] = (PrunedChannels(), LowRank())
"""Smaller matrices, wherever there is one: tried where fewer bits leave much of the budget."""
NUMBERS: tuple[Approximation, ...] = (Int8Products(), Int8Activations(), TransportedScales(), BlockwiseWeights(), Log2Softmax())
"""The same operators on numbers of fewer bits."""
BYTES: tuple[Approximation, ...] = (CodedTables(), BinaryCodes(), FewLevels())
"""Weights that are unpacked when they are read: they save no time, and compete where bytes count."""
ALL = PARTS + SIZES + NUMBERS + BYTES


def competing(*, for_bytes: bool) -> tuple[tuple[tuple[Approximation, ...], ...], ...]:
    """Plans, each a sequence of stages: structure first, and then numbers on whatever is left of it."""
    numbers = NUMBERS + (BYTES if for_bytes else ())
    return (PARTS, numbers), (PARTS + SIZES, numbers)
