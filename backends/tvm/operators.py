"""Which operators TVM's ONNX importer is trusted with; known without importing it.

Found by compiling each alone on edge values: Max and Min make -FLT_MAX of -inf, and stay out. Relu, Clip, Elu, Selu,
HardSigmoid and Sign do not hand NaN on, as ONNX Runtime does; they stay in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

# of the importer's map: what has a shape that the input shapes decide, and is defined on dense tensors
TAKEN = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Clip", "Concat",
    "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear",
    "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements",
    "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "MatMul", "MaxPool", "Mean", "Mish", "Mod", "Mul", "Neg", "Not",
    "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh",
    "ThresholdedRelu", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
})  # fmt: skip
# inputs that must be known when the region is compiled: (operator, position); all others may come from anywhere
FIXED = {
    "Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,), "Tile": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3),
    "Squeeze": (1,), "Unsqueeze": (1,), "Resize": (1, 2, 3), "Split": (1,), "CumSum": (1,), "Trilu": (1,),
    "Clip": (1, 2), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,),
    "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,),
    "ReduceSumSquare": (1,), "DequantizeLinear": (1, 2), "QuantizeLinear": (1, 2),
}  # fmt: skip
_ONE_OUTPUT = ("BatchNormalization", "LayerNormalization", "MaxPool", "Dropout")


def peculiar(node: onnx.NodeProto, known: Mapping[str, np.ndarray[Any, Any]]) -> bool:
    """Whether the importer gets this node wrong although it takes its operator; ``known`` are the constants by name."""
    given = {a.name: a for a in node.attribute}
    if node.op_type == "MaxPool":
        return "auto_pad" in given and given["auto_pad"].s == b"SAME_LOWER"
    if node.op_type == "ConvTranspose":
        return "output_shape" in given
    if node.op_type == "LRN":
        return bool(given["size"].i % 2 == 0)
    if node.op_type == "Resize":  # it divides by the ratio of the sizes, where ONNX divides by the scale
        scales = known.get(node.input[2]) if len(node.input) > 2 else None
        whole = scales is None or bool(np.all(scales == np.rint(scales)))
        return not whole or ("antialias" in given and given["antialias"].i != 0)
    return False


def refusal(domain: str, op: str, outputs: int) -> str | None:
    """The reason why a node of this operator is left to ONNX Runtime, or None."""
    if domain not in ("", "ai.onnx"):
        return f"domain {domain!r} is left to ONNX Runtime"
    if op not in TAKEN:
        return f"{op} is left to ONNX Runtime: TVM's importer lacks it, or its result's shape depends on data"
    if outputs > 1 and op in _ONE_OUTPUT:
        return f"{op} with more than one output is left to ONNX Runtime"
    return None
