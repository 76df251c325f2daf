"""From a graph to launches: which operator is lowered by what."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from backends.tvm.fuse import Group, groups
from backends.tvm.graph import SPELLINGS, Graph, UnsupportedNode, read
from backends.tvm.kernel import Machine
from backends.tvm.kernels.contraction8 import convolves_fast
from backends.tvm.kernels.reduce import KINDS
from backends.tvm.lower_attention import attention
from backends.tvm.lower_convolution import convolution, transposed_convolution, wanted_halos
from backends.tvm.lower_gather import gather
from backends.tvm.lower_move import concat, elementwise, expand, reshape, slices, transpose
from backends.tvm.lower_pooling import pooling
from backends.tvm.lower_product import matmul, matmul_codes
from backends.tvm.lower_resize import resize
from backends.tvm.lower_rows import layer_norm, reduction, softmax
from backends.tvm.lower_scan import extremum, running_sum
from backends.tvm.lowering import Lowering, refuse
from backends.tvm.pointwise import SUPPORTED
from backends.tvm.recognise import recognise

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

# what computes; a chain of element-wise nodes may follow each
COMPUTING: dict[str, Callable[[Lowering, Group], None]] = {
    "MatMul": matmul, "MatMul8": matmul, "MatMulCodes": matmul_codes, "Conv": convolution, "Conv8": convolution,
    "ConvTranspose": transposed_convolution,
    "Softmax": softmax, "LogSoftmax": softmax, "LayerNormalization": layer_norm, "RMSNormalization": layer_norm,
    "Attention": attention, "Gather": gather, "GatherElements": gather, "MaxPool": pooling, "AveragePool": pooling,
    "Resize": resize, "CumSum": running_sum, **dict.fromkeys(KINDS, reduction),
}  # fmt: skip
# what moves data, or only looks at it in another way; and what no chain follows
MOVING: dict[str, Callable[[Lowering, Group], None]] = {
    "ArgMax": extremum, "ArgMin": extremum,
    "Reshape": reshape, "Transpose": transpose, "Slice": slices, "Expand": expand, "Concat": concat,
}  # fmt: skip


def lower(graph: Graph, machine: Machine, fast: int = 4, refused: dict[str, str] | None = None) -> Lowering:
    """The launches that compute ``graph``; ``fast``: the largest Winograd tile allowed.

    Raises UnsupportedNode; or notes the reason in ``refused``, by the node's first output, and goes on as if that were given.
    """
    # where bytes are not multiplied in fours, floats and fast algorithms make the better convolutions
    low = Lowering(recognise(graph, partial(convolves_fast, machine)), machine, fast)
    wanted_halos(low)
    for group in groups(graph, frozenset(COMPUTING)):
        try:
            _lower(low, group)
        except UnsupportedNode as error:
            if refused is None:
                raise
            refused[error.output] = str(error)
            for node in group.nodes:
                for name in filter(None, node.outputs):
                    low.views[name] = low.temporary(graph.shapes[name], graph.dtypes[name])
    low.finish()
    return low


def _lower(low: Lowering, group: Group) -> None:
    if group.anchor is None:
        elementwise(low, group)
        return
    rule = COMPUTING.get(group.anchor.op) or MOVING.get(group.anchor.op)
    if rule is None:
        raise refuse(group.anchor, "there is no kernel for it")
    rule(low, group)


def refusal(op: str, domain: str) -> str | None:
    """The reason why no node of this operator is lowered, or None."""
    if domain not in ("", "ai.onnx"):
        return f"domain {domain!r} is left to ONNX Runtime"
    if op in COMPUTING or op in MOVING or op in SPELLINGS or op in SUPPORTED:
        return None
    return f"{op} is left to ONNX Runtime: there is no kernel for it"


def refusals(model: onnx.ModelProto, folder: Path | None = None) -> dict[str, str]:
    """Why nodes cannot be lowered, by the name of their first output; ``model`` has fixed shapes, and external data in ``folder``.
    Compiles nothing."""
    refused: dict[str, str] = {}
    lower(read(model, refused, folder), Machine("any", 16, 32, 2, True), refused=refused)
    return refused
