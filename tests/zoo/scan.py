"""Gated linear attention as a loop over time, as it is written by hand in ONNX."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import parser

SCAN = """<ir_version: 9, opset_import: ["": 20]>
main (float[t,{k}] q, float[t,{k}] k, float[t,{v}] v, float[t,{k}] g) => (float[t,{v}] o) <int64[1] axis = {{1}}, int64[1] row = {{0}}> {{
    last, o = Scan <num_scan_inputs = 4, body = step (float[{k},{v}] s, float[{k}] qt, float[{k}] kt, float[{v}] vt, float[{k}] gt)
            => (float[{k},{v}] next, float[{v}] ot) {{
        d = Exp(gt)
        dk = Unsqueeze(d, axis)
        kk = Unsqueeze(kt, axis)
        vv = Unsqueeze(vt, row)
        kept = Mul(dk, s)
        new = Mul(kk, vv)
        next = Add(kept, new)
        ot = MatMul(qt, next)
    }}> (zero, q, k, v, g)
}}"""


def gated_linear_attention(keys: int, values: int) -> onnx.ModelProto:
    """o[t] = q[t] S[t], S[t] = exp(g[t]) S[t - 1] + k[t] v[t]ᵀ, one head; inputs q, k, g [t, keys] and v [t, values]."""
    model = parser.parse_model(SCAN.format(k=keys, v=values))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((keys, values), np.float32), "zero"))
    return model
