"""Approximate rewrites, one file each: ``ALL`` is what competes under a budget (``rewriter.approximate``)."""

from __future__ import annotations

from passes.approximate.averaged_experts import AveragedExperts
from passes.approximate.blockwise_weights import BlockwiseWeights
from passes.approximate.candidate import Approximation
from passes.approximate.constant_gates import ConstantGates
from passes.approximate.dropped_blocks import DroppedBlocks
from passes.approximate.int8_products import Int8Products
from passes.approximate.low_rank import LowRank

ALL: tuple[Approximation, ...] = (Int8Products(), BlockwiseWeights(), LowRank(), AveragedExperts(), DroppedBlocks(), ConstantGates())
