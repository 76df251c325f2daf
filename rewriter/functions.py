"""The operators of domain `rewriter`: each is defined by an ONNX function body, so any ONNX runtime can run it."""

from __future__ import annotations

import onnx
import onnx_ir as ir

DOMAIN = "rewriter"
VERSION = 1
CHUNK = 16
"""Steps of a recurrence that meet each other in a product."""

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
    # o_t = q_t S_t, S_t = diag(exp g_t) S_(t-1) + k_t' v_t: q, k [batch, time, i], v [batch, time, j], g [batch, time, i] or of length 1
    # in any axis (log gates, none above 0) -> [batch, time, j], float32; ``reverse``: from the last step to the first. In chunks of 16:
    # within one only differences of gates are exponentiated, none of which is above 0, between them the state is passed on (paper 55).
    "LinearRecurrence": """
        <domain: "rewriter", opset_import: ["" : 20]>
        LinearRecurrence <reverse: int = 0>(q, k, v, g) => (o)
        {
            zero = Constant <value_ints: ints = [0]> ()
            one = Constant <value_ints: ints = [1]> ()
            two = Constant <value_ints: ints = [2]> ()
            three = Constant <value_ints: ints = [3]> ()
            minus = Constant <value_ints: ints = [-1]> ()
            chunk = Constant <value_ints: ints = [16]> ()
            axis = Constant <value_int: int = 2> ()
            forward = Constant <value_int: int = @reverse> ()
            flag = Cast <to = 9> (forward)
            kshape = Shape (k)
            vshape = Shape (v)
            g0 = Expand (g, kshape)
            batch = Slice (kshape, zero, one)
            time = Slice (kshape, one, two)
            features = Slice (kshape, two, three)
            values = Slice (vshape, two, three)
            over = Mod (time, chunk)
            short = Sub (chunk, over)
            padding = Mod (short, chunk)
            nothing = Sub (zero, zero)
            before = Where (flag, padding, nothing)
            after = Where (flag, nothing, padding)
            pads = Concat <axis: int = 0> (zero, before, zero, zero, after, zero)
            q1 = Pad (q, pads)
            k1 = Pad (k, pads)
            v1 = Pad (v, pads)
            g1 = Pad (g0, pads)
            split = Concat <axis: int = 0> (batch, minus, chunk, features)
            vsplit = Concat <axis: int = 0> (batch, minus, chunk, values)
            q2 = Reshape (q1, split)
            k2 = Reshape (k1, split)
            v2 = Reshape (v1, vsplit)
            g2 = Reshape (g1, split)
            rising = CumSum <exclusive: int = 0, reverse: int = 0> (g2, axis)
            falling = CumSum <exclusive: int = 0, reverse: int = 1> (g2, axis)
            b = Where (flag, falling, rising)
            row = Unsqueeze (b, three)
            column = Unsqueeze (b, two)
            difference = Sub (row, column)
            square = Concat <axis: int = 0> (chunk, chunk)
            ones = ConstantOfShape <value: tensor = float[1] {1.0}> (square)
            lower = Trilu <upper: int = 0> (ones)
            upper = Trilu <upper: int = 1> (ones)
            seen = Where (flag, upper, lower)
            visible = Cast <to = 9> (seen)
            mask = Unsqueeze (visible, minus)
            never = Constant <value_float: float = -inf> ()
            logs = Where (mask, difference, never)
            ratio = Exp (logs)
            qq = Unsqueeze (q2, three)
            kk = Unsqueeze (k2, two)
            qk = Mul (qq, kk)
            weighted = Mul (qk, ratio)
            scores = ReduceSum <keepdims: int = 0> (weighted, minus)
            inside = MatMul (scores, v2)
            eb = Exp (b)
            qe = Mul (q2, eb)
            sums = ReduceSum <keepdims: int = 1> (g2, two)
            rest = Sub (sums, b)
            er = Exp (rest)
            ke = Mul (k2, er)
            kt = Transpose <perm: ints = [0, 1, 3, 2]> (ke)
            update = MatMul (kt, v2)
            es = Exp (sums)
            decay = Transpose <perm: ints = [0, 1, 3, 2]> (es)
            fill = Concat <axis: int = 0> (batch, features, values)
            start = ConstantOfShape <value: tensor = float[1] {0.0}> (fill)
            states = If (flag) <then_branch = last_to_first () => (float[batch,chunks,i,j] backwards_states) {
                backwards_last, backwards_states = Scan <body = backwards (float[batch,i,j] s, float[batch,i,j] u, float[batch,i,one] d)
                        => (float[batch,i,j] next, float[batch,i,j] was) {
                    was = Identity (s)
                    kept = Mul (d, s)
                    next = Add (kept, u)
                }, num_scan_inputs: int = 2, scan_input_axes: ints = [1, 1], scan_input_directions: ints = [1, 1],
                        scan_output_axes: ints = [1], scan_output_directions: ints = [1]> (start, update, decay)
            }, else_branch = first_to_last () => (float[batch,chunks,i,j] forwards_states) {
                forwards_last, forwards_states = Scan <body = forwards (float[batch,i,j] s, float[batch,i,j] u, float[batch,i,one] d)
                        => (float[batch,i,j] next, float[batch,i,j] was) {
                    was = Identity (s)
                    kept = Mul (d, s)
                    next = Add (kept, u)
                }, num_scan_inputs: int = 2, scan_input_axes: ints = [1, 1], scan_output_axes: ints = [1]> (start, update, decay)
            }>
            across = MatMul (qe, states)
            both = Add (inside, across)
            joined = Concat <axis: int = 0> (batch, minus, values)
            flat = Reshape (both, joined)
            till = Add (before, time)
            o = Slice (flat, before, till, one)
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
