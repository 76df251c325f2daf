"""The operators of domain `rewriter`: each is defined by an ONNX function body, so any ONNX runtime can run it."""

from __future__ import annotations

import onnx
import onnx_ir as ir

DOMAIN = "rewriter"
VERSION = 1

_BODIES = {
    # y = x / sqrt(mean(x * x) + epsilon) * scale over the last axis, float32
    "RMSNorm": """
        <domain: "rewriter", opset_import: ["" : 20]>
        RMSNorm <epsilon>(x, scale) => (y)
        {
            axis = Constant <value_ints: ints = [-1]> ()
            e = Constant <value_float: float = @epsilon> ()
            square = Mul (x, x)
            mean = ReduceMean <keepdims: int = 1> (square, axis)
            shifted = Add (mean, e)
            root = Sqrt (shifted)
            unit = Div (x, root)
            y = Mul (unit, scale)
        }
    """,
}


def define(model: ir.Model, name: str) -> None:
    """Afterwards the model holds the definition of `rewriter::name` and imports the domain."""
    key = (DOMAIN, name, "")
    if key not in model.functions:
        model.functions[key] = ir.serde.deserialize_function(onnx.parser.parse_function(_BODIES[name]))
    model.opset_imports[DOMAIN] = VERSION


def names() -> tuple[str, ...]:
    """The operators that are defined here."""
    return tuple(_BODIES)
