"""Graph to graph: each pass is a plain function that edits a model in place and returns it."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from passes.drop_identity import drop_identity
from passes.fold_shapes import fold_shapes
from passes.inline_constants import inline_constants

Pass = Callable[[ir.Model], ir.Model]

NORMALISE: tuple[Pass, ...] = (
    inline_constants,
    drop_identity,
    fold_shapes,
    drop_identity,
)


def normalise(model: ir.Model) -> ir.Model:
    """The same program in the vocabulary that the rules are written in."""
    for each in NORMALISE:
        model = each(model)
    return model
