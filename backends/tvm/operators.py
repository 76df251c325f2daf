"""Which operators TVM's ONNX importer is trusted with; known without importing it."""

from __future__ import annotations

# of the importer's map: what has a shape that the input shapes decide, and is defined on dense tensors
TAKEN = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Clip", "Concat",
    "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear",
    "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements",
    "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not",
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


def refusal(domain: str, op: str, outputs: int) -> str | None:
    """The reason why a node of this operator is left to ONNX Runtime, or None."""
    if domain not in ("", "ai.onnx"):
        return f"domain {domain!r} is left to ONNX Runtime"
    if op not in TAKEN:
        return f"{op} is left to ONNX Runtime: TVM's importer lacks it, or its result's shape depends on data"
    if outputs > 1 and op in _ONE_OUTPUT:
        return f"{op} with more than one output is left to ONNX Runtime"
    return None
