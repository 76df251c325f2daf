"""Pairs of quantisers that are the identity on codes go; codes stay bit-equal; what rounds stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx_text import parse, run_ort

import rewriter
from benchmarks.qdq import SUBJECTS, measure
from benchmarks.subjects import Subject
from zoo.packages import Missing


def optimised(body: str) -> tuple[onnx.ModelProto, rewriter.Optimized]:
    proto = parse(body)
    return proto, rewriter.optimize(proto)


def codes_agree(proto: onnx.ModelProto, result: rewriter.Optimized, seed: int = 0) -> None:
    """Bit for bit, on every code there is."""
    kind = proto.graph.input[0].type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [d.dim_value for d in kind.shape.dim]
    rng = np.random.default_rng(seed)
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (-9, 9)
    x = (rng.integers(low, high + 1, shape) if dtype.kind in "iu" else rng.uniform(low, high, shape)).astype(dtype)
    for got, want in zip(run_ort(result.model, {"x": x}), run_ort(proto, {"x": x}), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


SAME = {
    "pair": "main (uint8[2,3] x) => (uint8[2,3] y) <float s = {0.07}, uint8 z = {131}> { d = DequantizeLinear(x, s, z) q = QuantizeLinear(d, s, z) y = Identity(q) }",
    "transpose": """main (int8[2,3] x) => (int8[3,2] y) <float s = {0.3}, int8 z = {-5}>
        { d = DequantizeLinear(x, s, z) t = Transpose<perm=[1,0]>(d) q = QuantizeLinear(t, s, z) y = Identity(q) }""",
    "pool": """main (uint8[1,2,6,5] x) => (uint8[1,2,3,2] y) <float s = {0.3}, uint8 z = {3}>
        { d = DequantizeLinear(x, s, z) t = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d) q = QuantizeLinear(t, s, z) y = Identity(q) }""",
    "chain": """main (uint8[2,6] x) => (uint8[3,4] y) <float s = {0.3}, uint8 z = {3}, int64[2] to = {3, 4}, int64[2] two = {4, 3}>
        { a = DequantizeLinear(x, s, z) b = Reshape(a, two) c = QuantizeLinear(b, s, z) d = DequantizeLinear(c, s, z)
          e = Transpose<perm=[1,0]>(d) q = QuantizeLinear(e, s, z) y = Identity(q) }""",
    "concat": """main (uint8[2,3] x) => (uint8[2,6] y) <float s = {0.3}, uint8 z = {3}>
        { a = DequantizeLinear(x, s, z) b = Concat<axis=1>(a, a) q = QuantizeLinear(b, s, z) y = Identity(q) }""",
}


@pytest.mark.parametrize("name", SAME)
def test_codes_stay_codes(name: str) -> None:
    proto, result = optimised(SAME[name])
    assert "QuantizeLinear" not in result.report.after.ops and "DequantizeLinear" not in result.report.after.ops
    codes_agree(proto, result)


def test_a_quantiser_clamps_by_itself() -> None:
    proto, result = optimised("main (float[2,3] x) => (uint8[2,3] y) <float s = {0.05}, uint8 z = {0}> { r = Relu(x) y = QuantizeLinear(r, s, z) }")
    assert "Relu" not in result.report.after.ops
    codes_agree(proto, result)


DIFFERENT = {
    "scale": """main (uint8[2,3] x) => (uint8[2,3] y) <float s = {0.07}, float t = {0.071}, uint8 z = {131}>
        { d = DequantizeLinear(x, s, z) q = QuantizeLinear(d, t, z) y = Identity(q) }""",
    "zero_point": """main (uint8[2,3] x) => (uint8[2,3] y) <float s = {0.07}, uint8 z = {131}, uint8 w = {130}>
        { d = DequantizeLinear(x, s, z) q = QuantizeLinear(d, s, w) y = Identity(q) }""",
    "arithmetic": """main (uint8[2,3] x) => (uint8[2,3] y) <float s = {0.07}, uint8 z = {131}>
        { d = DequantizeLinear(x, s, z) h = Sigmoid(d) q = QuantizeLinear(h, s, z) y = Identity(q) }""",
    "per_channel": """main (uint8[2,3] x) => (uint8[3,2] y) <float[3] s = {0.07, 0.1, 0.2}, uint8[3] z = {131, 3, 4}>
        { d = DequantizeLinear<axis=1>(x, s, z) t = Transpose<perm=[1,0]>(d) q = QuantizeLinear<axis=0>(t, s, z) y = Identity(q) }""",
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_rounds_stays(name: str) -> None:
    proto, result = optimised(DIFFERENT[name])
    assert result.report.after.ops["QuantizeLinear"] == 1
    codes_agree(proto, result)


def test_a_clamp_above_the_least_code_stays() -> None:
    proto, result = optimised("main (float[2,3] x) => (uint8[2,3] y) <float s = {0.05}, uint8 z = {7}> { r = Relu(x) y = QuantizeLinear(r, s, z) }")
    assert result.report.after.ops["Relu"] == 1
    codes_agree(proto, result)


@pytest.mark.usefixtures("without_race")
def test_new_scales_that_part_are_refused() -> None:
    """Two scales that were equal let a pair go; an update that makes them differ is no update of this graph."""
    body = """main (float[2,3] x) => (float[2,3] y) <float s = {0.07}, float t = {0.07}, uint8 z = {131}>
        { a = QuantizeLinear(x, s, z) d = DequantizeLinear(a, s, z) b = Transpose<perm=[1,0]>(d) q = QuantizeLinear(b, t, z) e = DequantizeLinear(q, t, z)
          y = Transpose<perm=[1,0]>(e) }"""
    compiled = rewriter.compile(parse(body), backend="onnxruntime")
    with pytest.raises(rewriter.RewriterError):
        compiled.update({"s": np.float32(0.07), "t": np.float32(0.08), "z": np.uint8(131)})


def test_weights_of_an_integer_kernel_stay_codes() -> None:
    """However small they are: runtimes compute a product of dequantised codes on the codes."""
    body = """main (uint8[2,3] x) => (float[2,2] y) <float s = {0.07}, uint8 z = {131}, int8[3,2] w = {1, -2, 3, 4, -5, 6}, float t = {0.1}, int8 o = {0}>
        { d = DequantizeLinear(x, s, z) v = DequantizeLinear(w, t, o) y = MatMul(d, v) }"""
    proto, result = optimised(body)
    assert result.report.after.ops["DequantizeLinear"] == 2
    codes_agree(proto, result)


@pytest.mark.parametrize(
    "scale", ["float[2] s = {0.5, 0.25}, int8[2] z = {0, 3}", "float s = {0.5}, int8 z = {3}"], ids=["for each channel", "for all"]
)
def test_stored_codes_are_turned_once(scale: str) -> None:
    """A Gemm that reads its weight turned around: nothing is turned when the model runs, and the weight is still codes."""
    axis = "<axis=0>" if "[2]" in scale else ""
    proto = parse(f"""main (uint8[4,3] x) => (uint8[4,2] y) <int8[2,3] w = {{1, -2, 3, 40, 5, -60}}, {scale}, float t = {{0.1}}, uint8 u = {{7}}, float[2] b = {{0.3, -0.2}}>
        {{ d = DequantizeLinear(x, t, u) m = DequantizeLinear{axis}(w, s, z) g = Gemm<transB=1>(d, m, b) y = QuantizeLinear(g, t, u) }}""")
    result = rewriter.optimize(proto)
    assert "Transpose" not in result.report.after.ops
    assert any(v.dtype == onnx_ir.DataType.INT8 and v.const_value.size == 6 for v in result.ir_model.graph.initializers.values())  # type: ignore[union-attr]
    codes_agree(proto, result)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_nothing_that_algebra_can_remove_is_left_of_a_real_quantiser(subject: Subject, tmp_path: Path) -> None:
    try:
        row = measure(subject, tmp_path)
    except Missing as missing:
        pytest.skip(str(missing))
    assert row[-2:] == ["0", "equal"], row
