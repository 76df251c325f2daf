"""Graph to graph: each pass is a plain function that edits a model in place and returns it."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from passes.batchnorm_to_affine import batchnorm_to_affine
from passes.choose_constant_branch import choose_constant_branch
from passes.drop_dead import drop_dead
from passes.drop_identity import drop_identity
from passes.drop_impulse import drop_impulse
from passes.einsum_to_matmul import einsum_to_matmul
from passes.fold_shapes import fold_shapes
from passes.gathernd_to_gather import gathernd_to_gather
from passes.gemm_to_matmul import gemm_to_matmul
from passes.inline_constants import inline_constants
from passes.one_hot_to_gather import one_hot_to_gather
from passes.pad_into_conv import pad_into_conv
from passes.part_batch import part_batch
from passes.recognise_gelu import recognise_gelu
from passes.recognise_layernorm import recognise_layernorm
from passes.recognise_recurrence import recognise_recurrence
from passes.recognise_relu import recognise_relu
from passes.recognise_rmsnorm import recognise_rmsnorm
from passes.sequence_to_split import sequence_to_split
from passes.stack_to_sum import stack_to_sum
from passes.sum_to_einsum import sum_to_einsum
from rewriter.infer_onnx import infer

Pass = Callable[[ir.Model], ir.Model]

NORMALISE: tuple[Pass, ...] = (
    inline_constants,
    drop_identity,
    fold_shapes,
    sequence_to_split,
    gathernd_to_gather,
    choose_constant_branch,
    drop_identity,
    recognise_relu,
    pad_into_conv,
    drop_impulse,
    recognise_layernorm,
    recognise_rmsnorm,
    recognise_gelu,
    batchnorm_to_affine,
    stack_to_sum,
    sum_to_einsum,
    einsum_to_matmul,
    gemm_to_matmul,
    one_hot_to_gather,
)


FEW_NUMBERS = 64
"""What a constant of the program text may be stored as, where memory counts."""


def normalise(model: ir.Model, *, smallest: bool = False) -> ir.Model:
    """The same program in the vocabulary that the rules are written in, with shapes inferred.

    ``smallest``: large constants that a few numbers generate (hashes, masks) stay as they are generated.
    """
    for each in NORMALISE:
        model = fold_shapes(model, FEW_NUMBERS) if smallest and each is fold_shapes else each(model)
    infer(model)
    if recognise_recurrence(model):
        infer(model)
        if part_batch(model):
            drop_dead(model)
            infer(model)
    return model
