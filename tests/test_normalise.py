"""Each normalising pass: the text it makes, that it keeps the meaning, and where it must keep its hands off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import assert_same, parse, read, run, run_ort

from passes import NORMALISE, normalise
from passes.batchnorm_to_affine import batchnorm_to_affine
from passes.choose_constant_branch import choose_constant_branch
from passes.drop_identity import drop_identity
from passes.drop_impulse import RELIED, drop_impulse
from passes.einsum_to_matmul import einsum_to_matmul
from passes.fold_shapes import MOST_NUMBERS, fold_shapes
from passes.gathernd_to_gather import gathernd_to_gather
from passes.gemm_to_matmul import gemm_to_matmul
from passes.inline_constants import inline_constants
from passes.one_hot_to_gather import one_hot_to_gather
from passes.pad_into_conv import pad_into_conv
from passes.recognise_gelu import recognise_gelu
from passes.recognise_layernorm import recognise_layernorm
from passes.recognise_relu import recognise_relu
from passes.recognise_rmsnorm import recognise_rmsnorm
from passes.sequence_to_split import sequence_to_split
from passes.stack_to_sum import stack_to_sum
from passes.sum_to_einsum import sum_to_einsum
from rewriter.infer_onnx import infer
from rewriter.read_onnx import read_onnx
from rewriter.text import text

Golden = Callable[[str], None]
Pass = Callable[[ir.Model], ir.Model]


def check(golden: Golden, body: str, *steps: Pass, rtol: float = 0.0, **sizes: int) -> ir.Model:
    """The golden text shows before and after; several seeds agree."""
    before, after = parse(body), read(body)
    shown = text(after)
    for step in steps:
        after = step(after)
    golden(f"before\n{shown}\n\nafter\n{text(after)}")
    for seed in range(3):
        assert_same(before, after, rtol, seed, engine=run, **sizes)
    return after


def untouched(body: str, *steps: Pass) -> None:
    """No step changes the text."""
    model = read(body)
    shown = text(model)
    for step in steps:
        model = step(model)
    assert text(model) == shown


def ops(model: ir.Model) -> list[str]:
    return sorted(node.op_type for node in model.graph)


# --- inline_constants


def test_constants_become_initialisers(golden: Golden) -> None:
    check(golden, """main (float[2] x) => (float[2] y, float z) {
        two = Constant <value_float: float = 2.0> ()
        y = Mul(x, two)
        z = Constant <value_float: float = 3.0> ()
    }""", inline_constants)  # fmt: skip


def test_constants_of_branches_move_out(golden: Golden) -> None:
    body = """main (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = yes () => (float[2] a) { k = Constant <value_float: float = 2.0> ()  a = Mul(x, k) },
            else_branch = no () => (float[2] b) { k = Constant <value_float: float = 5.0> ()  b = Mul(x, k) }
        >
    }"""
    after = check(golden, body, inline_constants)
    for condition, factor in ((True, 2.0), (False, 5.0)):
        feed = {"c": np.array(condition), "x": np.array([1, 2], dtype=np.float32)}
        np.testing.assert_array_equal(run(after, feed)[0], feed["x"] * np.float32(factor))


# --- drop_identity


def test_identities_go(golden: Golden) -> None:
    check(golden, """main (float[2, 3] x) => (float[2, 3] y)
        <int64[2] shape = {2, 3}, int64[4] none = {0, 0, 0, 0}, int64[1] from = {0}, int64[1] to = {9}> {
        a = Identity(x)
        b, mask = Dropout(a)
        c = Cast <to: int = 1> (b)
        d = Reshape(c, shape)
        e = Pad(d, none)
        f = Slice(e, from, to)
        g = Transpose <perm: ints = [0, 1]> (f)
        h = Concat <axis: int = 0> (g)
        i = Expand(h, shape)
        r = Relu(i)
        y = Identity(r)
    }""", drop_identity)  # fmt: skip


def test_an_output_that_is_an_input_stays() -> None:
    untouched("main (float[2] x) => (float[2] y) { y = Identity(x) }", drop_identity)


def test_an_output_returned_twice_keeps_both_names() -> None:
    body = "main (float[2] x) => (float[2] y, float[2] z) { y = Relu(x)  z = Identity(y) }"
    after = drop_identity(read(body))
    assert_same(parse(body), after, 0.0)
    assert ops(after) == ["Identity", "Relu"]


@pytest.mark.parametrize(
    ("node", "output"),
    [
        ("y = Reshape(x, flat)", "float[a] y"),
        ("y = Cast <to: int = 11> (x)", "double[a, b] y"),
        ("y = Slice(x, one, nine, zero)", "float[a, b] y"),
        ("y = Slice(x, zero, nine, one, two)", "float[a, b] y"),
        ("y = Pad(x, pads)", "float[a, b] y"),
        ("y = Transpose(x)", "float[a, b] y"),
        ("y = Dropout(x, ratio, training)", "float[a, b] y"),
        ("y = Expand(x, more)", "float[a, b, c] y"),
        ("y, mask = Dropout(x)", "float[a, b] y, bool[a, b] mask"),
    ],
)
def test_what_changes_its_input_stays(node: str, output: str) -> None:
    untouched(f"""main (float[2, 2] x) => ({output}) <int64[1] flat = {{4}}, int64[1] zero = {{0}}, int64[1] one = {{1}},
        int64[1] nine = {{9}}, int64[1] two = {{2}}, int64[4] pads = {{0, 0, 0, 1}}, float ratio = {{0.5}},
        bool training = {{1}}, int64[3] more = {{1, 1, 1}}> {{ {node} }}""", drop_identity)  # fmt: skip


def test_dims_of_one_meaningless_name_are_not_equal() -> None:
    """Some exporters call every unknown dim `?`."""
    model = read("main (float[a, b] x, int64[2] s) => (float[c, d] y) { r = Reshape(x, s)  y = Relu(r) }")
    reshape = model.graph[0]
    for value in (reshape.inputs[0], reshape.outputs[0]):
        assert value is not None
        value.shape = ir.Shape(["?", "?"])
    assert ops(drop_identity(model)) == ["Relu", "Reshape"]


# --- fold_shapes


def test_shape_arithmetic_with_a_symbol_becomes_a_target(golden: Golden) -> None:
    body = """main (float[n, 4, 8] x) => (float[n, m] y)
        <int64 zero = {0}, int64[1] first = {0}, int64[1] minus = {-1}> {
        s = Shape(x)
        n = Gather(s, zero)
        rows = Unsqueeze(n, first)
        target = Concat <axis: int = 0> (rows, minus)
        y = Reshape(x, target)
    }"""
    for n in (1, 5):
        check(golden, body, fold_shapes, n=n)


def test_known_shapes_are_computed(golden: Golden) -> None:
    check(golden, """main (float[6, 4] x) => (float[a, b, c] y, int64[d] z)
        <int64 zero = {0}, int64 one = {1}, int64[1] at = {0}, int64 two = {2}> {
        s = Shape(x)
        rows = Gather(s, zero)
        columns = Gather(s, one)
        half = Div(rows, two)
        h = Unsqueeze(half, at)
        c = Unsqueeze(columns, at)
        t = Unsqueeze(two, at)
        target = Concat <axis: int = 0> (t, h, c)
        y = Reshape(x, target)
        z = Range(zero, rows, two)
    }""", fold_shapes)  # fmt: skip


def test_a_known_condition_takes_its_branch(golden: Golden) -> None:
    check(golden, """main (float[1, 4] x) => (float[a] y) <int64 one = {1}, int64[1] axis = {0}> {
        s = Shape(x)
        rows = Gather <axis: int = 0> (s, axis)
        c = Equal(rows, one)
        y = If (c) <
            then_branch = yes () => (float[a] p) { p = Squeeze(x, axis) },
            else_branch = no () => (float[a] q) { q = Identity(x) }
        >
    }""", fold_shapes)  # fmt: skip


def test_expand_to_its_own_symbol_goes(golden: Golden) -> None:
    for n in (1, 3):
        check(golden, """main (float[n, 4] x) => (float[n, 4] y) {
            s = Shape(x)
            e = Expand(x, s)
            y = Relu(e)
        }""", fold_shapes, drop_identity, n=n)  # fmt: skip


def test_integer_division_goes_towards_zero() -> None:
    body = "main (float[2] x) => (int64 z) <int64 a = {-7}, int64 b = {2}> { z = Div(a, b) }"
    assert run(fold_shapes(read(body)), {"x": np.zeros(2, np.float32)})[0] == -3


@pytest.mark.parametrize("node", ["z = Div(a, zero)", "z = Mod(a, zero)", "z = Div(least, minus)"])
def test_undefined_integer_division_is_left_alone(node: str) -> None:
    untouched(f"""main (float[2] x) => (int64 z) <int64 a = {{-7}}, int64 zero = {{0}}, int64 minus = {{-1}},
        int64 least = {{-9223372036854775808}}> {{ {node} }}""", fold_shapes)  # fmt: skip


@pytest.mark.parametrize(
    "node",
    ["y = ConstantOfShape(size)", "y = Expand(one, size)", "y = Tile(ones, size)", "y = Range(zero, many, step)"],
)
def test_huge_results_are_not_computed(node: str) -> None:
    kind = "float[n]" if "ConstantOfShape" in node else "int64[n]"
    untouched(f"""main (float[2] x) => ({kind} y) <int64[1] size = {{{MOST_NUMBERS + 1}}}, int64 one = {{1}}, int64 zero = {{0}},
        int64[1] ones = {{1}}, int64 many = {{{MOST_NUMBERS + 1}}}, int64 step = {{1}}> {{ {node} }}""", fold_shapes)  # fmt: skip


def test_an_old_operator_is_computed_by_its_own_opset() -> None:
    """The Resize keeps this model at opset 10, where axes are attributes."""
    before = parse("""main (float[1, 1, 4, 4] x, float[4] s, float[2, 3] z) => (float[a, b, c, d] y, int64[e] k)
        <int64[2, 2] table = {1, 2, 3, 4}> {
        y = Resize <mode: string = "nearest"> (x, s)
        k = ReduceSum <axes: ints = [0], keepdims: int = 0> (table)
    }""", opset=10)  # fmt: skip
    after = fold_shapes(read_onnx(before))
    assert after.opset_imports[""] == 10 and ops(after) == ["Identity", "Resize"]
    source = after.graph[[node.op_type for node in after.graph].index("Identity")].inputs[0]
    assert source is not None and source.const_value is not None
    assert source.const_value.numpy().tolist() == [4, 6]


def test_float_weights_stay_symbolic() -> None:
    untouched("main (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { r = Sqrt(w)  y = Mul(x, r) }", fold_shapes)


def test_quantised_weights_stay_symbolic() -> None:
    untouched("""main (float[2] x) => (float[2] y) <int8[2] w = {1, 2}, float s = {0.5}> {
        f = Cast <to: int = 1> (w)
        g = Mul(f, s)
        y = Mul(x, g)
    }""", fold_shapes)  # fmt: skip


def test_a_declared_output_symbol_is_no_fact() -> None:
    """The file says that y has the shape of x; it has not."""
    body = """main (float[n, m] x, int64[2] s) => (float[n, m] y, float[k, l] z) {
        y = Reshape(x, s)
        t = Shape(x)
        z = Reshape(y, t)
    }"""
    after = normalise(read(body))
    feed = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.array([3, 2])}
    for want, got in zip(run(parse(body), feed), run(after, feed), strict=True):
        np.testing.assert_array_equal(got, want)


# --- gemm_to_matmul


def test_gemm_is_a_product_and_a_sum(golden: Golden) -> None:
    check(golden, """main (float[3, 2] x) => (float[2, 1] y) <float[1, 3] w = {1.0, 2.0, 3.0}, float[1] b = {4.0}> {
        y = Gemm <alpha: float = 0.5, beta: float = 2.0, transA: int = 1, transB: int = 1> (x, w, b)
    }""", gemm_to_matmul, rtol=1e-6)  # fmt: skip


def test_gemm_without_a_bias(golden: Golden) -> None:
    check(golden, "main (float[n, 3] x, float[3, 2] w) => (float[n, 2] y) { y = Gemm(x, w) }", gemm_to_matmul, rtol=1e-6, n=4)


# --- einsum_to_matmul


@pytest.mark.parametrize(
    ("equation", "a", "b"),
    [
        ("ij,jk->ik", "2, 3", "3, 4"),
        ("bid,bjd->bij", "2, 3, 4", "2, 5, 4"),
        ("bhid,bhjd->bhij", "2, 1, 3, 4", "2, 1, 5, 4"),
        ("bhij,bhjd->bihd", "2, 3, 4, 5", "2, 3, 5, 6"),
        ("nd,hdk->nhk", "2, 3", "4, 3, 5"),
        ("abc,bcd->ad", "2, 3, 4", "3, 4, 5"),
        ("i,j->ij", "2", "3"),
        ("ij,ij->ij", "2, 3", "2, 3"),
        ("ij,j->ji", "2, 3", "3"),
        ("ij,jk", "2, 3", "3, 4"),
        ("ijk,jl->il", "2, 3, 4", "3, 5"),
        ("i,i->", "3", "3"),
        ("bi,bi->b", "2, 3", "2, 3"),
        ("nti,oi->nto", "2, 3, 4", "5, 4"),
        ("...i,oi->...o", "2, 3, 4", "5, 4"),
        ("...ij,...jk->...ik", "2, 3, 4", "2, 4, 5"),
        ("i...,i->...", "3, 2", "3"),
        ("brct,htc->brh", "2, 3, 4, 5", "6, 5, 4"),
        ("brh,ohr->bo", "2, 3, 4", "5, 4, 3"),
    ],
)
def test_einsum_is_a_product(equation: str, a: str, b: str) -> None:
    ellipsis = "xyz"[: a.count(",") + 1 - len(equation.partition(",")[0].replace("...", ""))]
    result = equation.partition("->")[2].replace("...", ellipsis) if "->" in equation else "ik"
    body = f"""main (float[{a}] a, float[{b}] b) => (float[{", ".join(f"r{each}" for each in result)}] y) {{
        y = Einsum <equation: string = "{equation}"> (a, b)
    }}"""
    after = einsum_to_matmul(read(body))
    assert "Einsum" not in ops(after)
    assert_same(parse(body), after, 1e-6)


def test_einsum_with_symbols(golden: Golden) -> None:
    check(golden, """main (float[b, i, 4] a, float[b, j, 4] c) => (float[b, i, j] y) {
        y = Einsum <equation: string = "bid,bjd->bij"> (a, c)
    }""", einsum_to_matmul, rtol=1e-6, b=2, i=1, j=3)  # fmt: skip


def test_einsum_of_a_chain_is_products_from_the_input_on() -> None:
    """x·A·B, written with the weights first: no product of the two weights, which may be dearer."""
    body = """main (float[n, 4, 3] x) => (float[n, 4, 5] y) <float[2, 3] a = {1, 2, 3, 4, 5, 6}, float[5, 2] b = {1, 0, 2, 1, 3, 5, 1, 1, 2, 2}> {
        y = Einsum <equation: string = "ri,or,nti->nto"> (a, b, x)
    }"""
    after = einsum_to_matmul(read(body))
    first, second = (node for node in after.graph if node.op_type == "MatMul")
    assert first.inputs[0] is after.graph.inputs[0] and second.inputs[0] is first.outputs[0]
    assert "Reshape" not in ops(after)
    assert_same(parse(body), after, 1e-6, n=2)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("k,kro,kri->oi", ("3", "3, 2, 4", "3, 2, 5")), ("tk,sk,tsk->ts", ("3, 2", "4, 2", "3, 4, 2")), ("i,i,i->", ("3", "3", "3")), ("...ij->...ji", ("2, 3",))],
)
def test_einsum_of_any_number_of_operands(equation: str, shapes: tuple[str, ...]) -> None:
    inputs = ", ".join(f"float[{shape}] x{place}" for place, shape in enumerate(shapes))
    names = ", ".join(f"x{place}" for place in range(len(shapes)))
    result = ", ".join(f"r{each}" for each in equation.partition("->")[2].replace("...", ""))
    body = f'main ({inputs}) => (float[{result}] y) {{ y = Einsum <equation: string = "{equation}"> ({names}) }}'
    after = einsum_to_matmul(read(body))
    assert "Einsum" not in ops(after)
    assert_same(parse(body), after, 1e-6)


@pytest.mark.parametrize("equation", ["ii->i", "...ij"])
def test_other_einsums_stay(equation: str) -> None:
    inputs = ", ".join(f"float[2, 2] x{place}" for place in range(equation.count(",") + 1))
    names = ", ".join(f"x{place}" for place in range(equation.count(",") + 1))
    result = "a" if equation == "ii->i" else "a, b"
    untouched(
        f'main ({inputs}) => (float[{result}] y) {{ y = Einsum <equation: string = "{equation}"> ({names}) }}',
        einsum_to_matmul,
    )


# --- batchnorm_to_affine

_STATISTICS = "float[2] g = {1.5, -2.0}, float[2] b = {0.5, 1.0}, float[2] m = {0.1, -3.0}, float[2] v = {0.25, 4.0}"


def test_batchnorm_is_affine(golden: Golden) -> None:
    check(golden, f"""main (float[n, 2, 3, 1] x) => (float[n, 2, 3, 1] y) <{_STATISTICS}> {{
        y = BatchNormalization <epsilon: float = 0.001> (x, g, b, m, v)
    }}""", batchnorm_to_affine, rtol=1e-6, n=3)  # fmt: skip


def test_batchnorm_of_a_matrix(golden: Golden) -> None:
    check(golden, f"main (float[3, 2] x) => (float[3, 2] y) <{_STATISTICS}> {{ y = BatchNormalization(x, g, b, m, v) }}",
          batchnorm_to_affine, rtol=1e-6)  # fmt: skip


def test_batchnorm_in_training_stays() -> None:
    untouched(f"""main (float[3, 2] x) => (float[3, 2] y) <{_STATISTICS}> {{
        y, mean, variance = BatchNormalization <training_mode: int = 1> (x, g, b, m, v)
    }}""", batchnorm_to_affine)  # fmt: skip


def test_batchnorm_by_computed_statistics_stays() -> None:
    untouched(
        f"main (float[3, 2] x, float[2] mean) => (float[3, 2] y) <{_STATISTICS}> "
        "{ y = BatchNormalization(x, g, b, mean, v) }",
        batchnorm_to_affine,
    )


# --- recognise_layernorm

_AXES = "int64[1] last = {-1}, float e = {0.00001}, float two = {2.0}, float[3] s = {1.0, 2.0, 3.0}, float[3] b = {1.0, 0.0, -1.0}"
_LAYER_NORM = """
    mean = ReduceMean(x, last)
    d = Sub(x, mean)
    q = Pow(d, two)
    var = ReduceMean(q, last)
    shifted = Add(var, e)
    root = Sqrt(shifted)
    unit = Div(d, root)
"""


def test_layernorm(golden: Golden) -> None:
    check(golden, f"main (float[n, 3] x) => (float[n, 3] y) <{_AXES}> {{ {_LAYER_NORM} t = Mul(s, unit)  y = Add(t, b) }}",
          recognise_layernorm, rtol=1e-5, n=4)  # fmt: skip


def test_layernorm_bare_with_reciprocal(golden: Golden) -> None:
    body = _LAYER_NORM.replace("Pow(d, two)", "Mul(d, d)").replace("unit = Div(d, root)", "r = Reciprocal(root) y = Mul(r, d)")
    check(golden, f"main (float[2, 5, 3] x) => (float[2, 5, 3] y) <{_AXES}> {{ {body} }}", recognise_layernorm, rtol=1e-5)


def test_layernorm_whose_middle_is_an_output_keeps_it() -> None:
    body = f"main (float[4, 3] x) => (float[4, 3] y, float[4, 3] unit) <{_AXES}> {{ {_LAYER_NORM} y = Mul(unit, s) }}"
    after = recognise_layernorm(read(body))
    assert ops(after) == ["LayerNormalization", "Mul"]
    assert_same(parse(body), after, 1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ReduceMean(q, last)", "ReduceMean(q, first)"),
        ("ReduceMean(x, last)", "ReduceMean(x, first)"),
        ("Pow(d, two)", "Pow(d, three)"),
        ("Pow(d, two)", "Pow(x, two)"),
        ("Div(d, root)", "Div(x, root)"),
        ("Div(d, root)", "Div(root, d)"),
        ("Sub(x, mean)", "Sub(mean, x)"),
    ],
)
def test_what_resembles_layernorm_stays(old: str, new: str) -> None:
    assert old in _LAYER_NORM
    weights = _AXES + ", int64[1] first = {0}, float three = {3.0}"
    untouched(f"main (float[3, 3] x) => (float[3, 3] unit) <{weights}> {{ {_LAYER_NORM.replace(old, new)} }}",
              recognise_layernorm)  # fmt: skip


def test_layernorm_in_double_stays() -> None:
    """LayerNormalization would compute it in float32."""
    body = f"main (double[3, 3] x) => (double[3, 3] unit) <{_AXES.replace('float', 'double')}> {{ {_LAYER_NORM} }}"
    untouched(body, recognise_layernorm)


# --- recognise_rmsnorm

_RMS_NORM = """
    q = Mul(x, x)
    mean = ReduceMean(q, last)
    shifted = Add(mean, e)
    root = Sqrt(shifted)
    r = Reciprocal(root)
    unit = Mul(x, r)
    y = Mul(s, unit)
"""


def test_rmsnorm(golden: Golden) -> None:
    check(golden, f"main (float[n, 3] x) => (float[n, 3] y) <{_AXES}> {{ {_RMS_NORM} }}", recognise_rmsnorm, rtol=1e-5, n=4)


@pytest.mark.parametrize(
    ("old", "new"),
    [("Mul(x, x)", "Mul(x, x2)"), ("ReduceMean(q, last)", "ReduceMean(q, first)"), ("Mul(x, r)", "Mul(x2, r)")],
)
def test_what_resembles_rmsnorm_stays(old: str, new: str) -> None:
    weights = _AXES + ", int64[1] first = {0}"
    body = f"main (float[3, 3] x, float[3, 3] x2) => (float[3, 3] y) <{weights}> {{ {_RMS_NORM.replace(old, new)} }}"
    untouched(body, recognise_rmsnorm)


def test_rmsnorm_without_a_scale_as_a_sum(golden: Golden) -> None:
    """Its mean is a sum over the size; nothing is multiplied with it."""
    body = _RMS_NORM.replace("ReduceMean(q, last)", "ReduceSum(q, last)").replace("mean = ", "total = ").replace("shifted =", "mean = Div(total, three)  shifted =")
    body = body.replace("y = Mul(s, unit)", "").replace("unit = ", "y = ")
    weights = _AXES + ", float three = {3}"
    check(golden, f"main (float[n, 3] x) => (float[n, 3] y) <{weights}> {{ {body} }}", recognise_rmsnorm, rtol=1e-5, n=4)


def test_a_sum_over_another_number_is_no_mean() -> None:
    body = _RMS_NORM.replace("ReduceMean(q, last)", "ReduceSum(q, last)").replace("mean = ", "total = ").replace("shifted =", "mean = Div(total, two)  shifted =")
    untouched(f"main (float[3, 3] x) => (float[3, 3] y) <{_AXES}> {{ {body} }}", recognise_rmsnorm)


# --- recognise_relu


@pytest.mark.parametrize("form", ["Max(x, zero)", "Max(zero, x)", "Clip(x, zero)"])
def test_a_maximum_with_zero_is_relu(form: str) -> None:
    body = f"main (float[2, 3] x) => (float[2, 3] y) <float zero = {{0}}> {{ y = {form} }}"
    after = recognise_relu(read(body))
    assert ops(after) == ["Relu"]
    assert_same(parse(body), after, 0.0)


@pytest.mark.parametrize("form", ["Max(x, one)", "Clip(x, zero, one)", "Clip(x)", "Clip(x, , zero)", "Max(x, wide)", "Min(x, zero)"])
def test_other_bounds_stay(form: str) -> None:
    result = "1, 3, 3" if "wide" in form else "3, 3"
    untouched(f"main (float[3, 3] x) => (float[{result}] y) <float zero = {{0}}, float one = {{1}}, float[1, 1, 1] wide = {{0}}> {{ y = {form} }}", recognise_relu)


def test_whole_numbers_stay() -> None:
    untouched("main (int64[3] x) => (int64[3] y) <int64 zero = {0}> { y = Max(x, zero) }", recognise_relu)


# --- pad_into_conv

_KERNEL = "float[1, 1, 2, 2] k = {1, 2, 3, 4}"


def test_zeros_around_an_image(golden: Golden) -> None:
    check(golden, f"""main (float[1, 1, 3, 4] x) => (float[1, 1, 6, 5] y) <{_KERNEL}, int64[4] p = {{1, 2, 1, 0}}, int64[2] axes = {{-2, 3}}, float zero = {{0}}> {{
        a = Pad(x, p, zero, axes)
        y = Conv <pads: ints = [1, 0, 1, 0]> (a, k)
    }}""", pad_into_conv)  # fmt: skip


@pytest.mark.parametrize(
    ("pads", "mode", "value"),
    [("0, 0, 1, 1, 0, 0, 1, 1", "reflect", "0"), ("0, 0, 1, 1, 0, 0, 1, 1", "constant", "2"), ("1, 0, 1, 1, 0, 0, 1, 1", "constant", "0"), ("0, 0, -1, 1, 0, 0, 1, 1", "constant", "0")],
)
def test_other_paddings_stay(pads: str, mode: str, value: str) -> None:
    untouched(f"""main (float[1, 1, 4, 4] x) => (float[a, b, c, d] y) <{_KERNEL}, int64[8] p = {{{pads}}}, float v = {{{value}}}> {{
        z = Pad <mode: string = "{mode}"> (x, p, v)
        y = Conv(z, k)
    }}""", pad_into_conv)  # fmt: skip


# --- drop_impulse


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ("float[2, 1, 3, 3] k = {0,0,0,0,1,0,0,0,0, 0,0,0,0,1,0,0,0,0}", "group: int = 2, pads: ints = [1, 1, 1, 1]"),
        ("float[2, 2, 1, 1] k = {1, 0, 0, 1}", "group: int = 1"),
    ],
)
def test_impulses_return_their_input(kernel: str, attributes: str) -> None:
    body = f"main (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <{kernel}> {{ z = Conv <{attributes}> (x, k)  y = Relu(z) }}"
    after = drop_impulse(read(body))
    assert ops(after) == ["Relu"] and after.meta[RELIED] == {"k"}
    assert_same(parse(body), after, 0.0)


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ("float[2, 1, 3, 3] k = {0,0,0,0,1,0,0,0,0, 0,0,0,0,1,0,0,0,0}", "group: int = 2, pads: ints = [1, 1, 1, 1], strides: ints = [2, 2]"),
        ("float[2, 1, 3, 3] k = {0,0,0,0,1,0,0,0,0, 0,0,0,0,1,0,0,0,0}", "group: int = 2, pads: ints = [2, 1, 0, 1]"),
        ("float[2, 1, 3, 3] k = {0,0,0,0,1,0,0,0,0, 0,0,0,1,0,0,0,0,0}", "group: int = 2, pads: ints = [1, 1, 1, 1]"),
        ("float[2, 2, 1, 1] k = {0, 1, 1, 0}", "group: int = 1"),
        ("float[2, 2, 1, 1] k = {1, 0, 0, 1.5}", "group: int = 1"),
    ],
)
def test_other_kernels_stay(kernel: str, attributes: str) -> None:
    untouched(f"main (float[1, 2, 4, 4] x) => (float[a, b, c, d] y) <{kernel}> {{ z = Conv <{attributes}> (x, k)  y = Relu(z) }}", drop_impulse)


# --- sequence_to_split


@pytest.mark.parametrize(
    ("split", "keepdims", "places", "shapes"),
    [("int64 n = {4}", 1, (0, 2, -1), ("2, 4", "2, 2", "2, 2")), ("int64[3] n = {3, 5, 2}", 1, (1,), ("2, 5",)), ("", 0, (0, 9), ("2", "2"))],
)
def test_a_sequence_taken_apart(split: str, keepdims: int, places: tuple[int, ...], shapes: tuple[str, ...]) -> None:
    outputs = ", ".join(f"float[{shape}] y{i}" for i, shape in enumerate(shapes))
    numbers = ", ".join([*([split] if split else []), *(f"int64 at{i} = {{{place}}}" for i, place in enumerate(places))])
    readers = "  ".join(f"y{i} = SequenceAt(s, at{i})" for i in range(len(places)))
    operand = "x, n" if split else "x"
    body = f"main (float[2, 10] x) => ({outputs}) <{numbers}> {{ s = SplitToSequence <axis: int = 1, keepdims: int = {keepdims}> ({operand})  {readers} }}"
    after = sequence_to_split(read(body))
    assert not {"SplitToSequence", "SequenceAt"} & set(ops(after))
    assert_same(parse(body), after, 0.0, engine=run_ort)


@pytest.mark.parametrize("reader", ["y = SequenceLength(s)", "y = SequenceAt(s, i)"])
def test_a_sequence_that_is_used_stays(reader: str) -> None:
    result = "int64 y" if "Length" in reader else "float[2, a] y"
    untouched(f"main (float[2, 10] x, int64 i) => ({result}) <int64 n = {{4}}> {{ s = SplitToSequence <axis: int = 1> (x, n)  {reader} }}", sequence_to_split)


# --- gathernd_to_gather


@pytest.mark.parametrize("make", ["u = Unsqueeze(i, last)", "u = Reshape(i, column)"])
def test_rows_by_one_index(make: str) -> None:
    body = f"""main (float[4, 3] x) => (float[2, 3] y) <int64[2] i = {{2, -4}}, int64[1] last = {{-1}}, int64[2] column = {{2, 1}}> {{ {make}  y = GatherND(x, u) }}"""
    after = gathernd_to_gather(read(body))
    assert "GatherND" not in ops(after)
    assert_same(parse(body), after, 0.0)


def test_single_entries_stay() -> None:
    untouched("main (float[4, 3] x) => (float[1] y) <int64[1, 2] i = {2, 1}> { y = GatherND(x, i) }", gathernd_to_gather)


# --- one_hot_to_gather


TABLE = "float[4, 3] e = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}"


@pytest.mark.parametrize("numbers", ["int32[4] r = {0, 1, 2, 3}", "int32[1, 1, 4] r = {0, 1, 2, 3}"])
@pytest.mark.parametrize("order", ["i, r", "r, i"])
def test_one_hot_rows_pick_rows(numbers: str, order: str) -> None:
    """Rows that are not there are zeros."""
    body = f"""main (float[2, 6, 1] x) => (float[2, 6, 3] y) <{numbers}, {TABLE}> {{
        i = Cast<to: int = 6>(x)  m = Equal({order})  f = Cast<to: int = 1>(m)  y = MatMul(f, e) }}"""
    after = one_hot_to_gather(read(body))
    assert "MatMul" not in ops(after) and "Gather" in ops(after)
    x = np.array([[0, 1, 2, 3, -1, 4], [3, 3, -4, 100, 0, 2]], np.float32)[..., None]
    np.testing.assert_array_equal(run_ort(parse(body), {"x": x})[0], run_ort(ir.to_proto(after), {"x": x})[0])


def test_an_operator_of_that_name_counts_from_the_end() -> None:
    body = f"""main (float[7] x) => (float[7, 3] y) <int64 n = {{4}}, float[2] v = {{0, 1}}, {TABLE}> {{
        i = Cast<to: int = 7>(x)  f = OneHot(i, n, v)  y = MatMul(f, e) }}"""
    after = one_hot_to_gather(read(body))
    assert "OneHot" not in ops(after)
    x = np.array([0, 3, -1, -4, -5, 4, 90], np.float32)
    np.testing.assert_array_equal(run_ort(parse(body), {"x": x})[0], run_ort(ir.to_proto(after), {"x": x})[0])


@pytest.mark.parametrize("numbers, table, left", [
    ("int32[4] r = {0, 1, 3, 2}", TABLE, "f, e"), ("int32[4] r = {1, 2, 3, 4}", TABLE, "f, e"),
    ("int32[1, 2, 1, 4] r = {0, 1, 2, 3, 0, 1, 2, 3}", TABLE, "f, e"),
    ("int32[4] r = {0, 1, 2, 3}", "float[4, 1] e = {1, 2, inf, 3}", "f, e"), ("int32[4] r = {0, 1, 2, 3}", "float[2, 6] e = {0,0,0,0,0,0,0,0,0,0,0,0}", "e, f"),
])  # fmt: skip
def test_what_is_no_one_hot_product(numbers: str, table: str, left: str) -> None:
    given = f"""main (int32[6, 1] x) => (y) <{numbers}, {table}> {{ m = Equal(x, r)  f = Cast<to: int = 1>(m)  y = MatMul({left}) }}"""
    untouched(given, one_hot_to_gather)


# --- choose_constant_branch


@pytest.mark.parametrize(("condition", "left"), [("bool c = {1}", "a"), ("bool[2, 1] c = {0, 0}", "b")])
def test_a_decided_choice(condition: str, left: str) -> None:
    body = f"""main (float[2, 3] x, float[3] z) => (float[2, 3] y) <{condition}> {{ a = Neg(x)  b = Abs(z)  y = Where(c, a, b) }}"""
    after = choose_constant_branch(read(body))
    assert "Where" not in ops(after) and ("Neg" in ops(after)) == (left == "a")
    assert_same(parse(body), after, 0.0)


@pytest.mark.parametrize("condition", ["bool[2, 1] c = {0, 1}", ""])
def test_an_open_choice_stays(condition: str) -> None:
    inputs = "float[2, 3] x" if condition else "float[2, 3] x, bool[2, 1] c"
    untouched(f"main ({inputs}) => (float[2, 3] y) <{condition}{', ' if condition else ''}float[3] z = {{1, 2, 3}}> {{ y = Where(c, x, z) }}", choose_constant_branch)


# --- drop_identity: pooling


def test_windows_of_one_element_go() -> None:
    body = "main (float[1, 2, 5] x) => (float[1, 2, 5] y) { a = AveragePool <kernel_shape: ints = [1]> (x)  y = Relu(a) }"
    assert ops(drop_identity(read(body))) == ["Relu"]


@pytest.mark.parametrize("attributes", ["kernel_shape: ints = [2]", "kernel_shape: ints = [1], strides: ints = [2]", "kernel_shape: ints = [1], pads: ints = [1, 0]"])
def test_other_windows_stay(attributes: str) -> None:
    untouched(f"main (float[1, 2, 5] x) => (float[1, 2, n] y) {{ a = AveragePool <{attributes}> (x)  y = Relu(a) }}", drop_identity)


# --- recognise_gelu

_NUMBERS = "float h = {0.5}, float root2 = {1.41421356}, float inv = {0.70710678}, float one = {1.0}, float three = {3.0}, " \
    "float k = {0.044715}, float c = {0.7978845608}"  # fmt: skip
_ERF = {
    "divided": "a = Div(x, root2)  e = Erf(a)  p = Add(e, one)  m = Mul(x, p)  y = Mul(m, h)",
    "halved first": "a = Mul(inv, x)  e = Erf(a)  p = Add(one, e)  m = Mul(x, h)  y = Mul(p, m)",
    "halved gate": "a = Mul(inv, x)  e = Erf(a)  p = Add(one, e)  m = Mul(h, p)  y = Mul(x, m)",
}
_TANH = "q = Pow(x, three)  t = Mul(k, q)  s = Add(x, t)  u = Mul(s, c)  e = Tanh(u)  p = Add(e, one)  m = Mul(h, x)  y = Mul(m, p)"


@pytest.mark.parametrize("form", _ERF)
def test_gelu_by_erf(form: str) -> None:
    body = f"main (float[2, 5] x) => (float[2, 5] y) <{_NUMBERS}> {{ {_ERF[form]} }}"
    after = recognise_gelu(read(body))
    assert ops(after) == ["Gelu"]
    assert_same(parse(body), after, 1e-6)


def test_gelu_by_tanh(golden: Golden) -> None:
    check(golden, f"main (float[2, 5] x) => (float[2, 5] y) <{_NUMBERS}> {{ {_TANH} }}", recognise_gelu, rtol=1e-6)


@pytest.mark.parametrize(
    ("number", "wrong"), [("0.5", "0.6"), ("1.41421356", "1.5"), ("one = {1.0}", "one = {2.0}"), ("0.044715", "0.04"), ("3.0", "2.0")]
)
def test_gelu_with_a_wrong_constant_stays(number: str, wrong: str) -> None:
    numbers = _NUMBERS.replace(number, wrong)
    body = _ERF["divided"] if number not in ("0.044715", "3.0") else _TANH
    untouched(f"main (float[2, 5] x) => (float[2, 5] y) <{numbers}> {{ {body} }}", recognise_gelu)


def test_gelu_of_another_value_stays() -> None:
    body = _ERF["divided"].replace("Mul(x, p)", "Mul(z, p)")
    untouched(f"main (float[5] x, float[5] z) => (float[5] y) <{_NUMBERS}> {{ {body} }}", recognise_gelu)


# --- all of them


def test_normalising_twice_changes_nothing_more() -> None:
    body = f"main (float[4, 3] x) => (float[4, 3] y) <{_AXES}> {{ {_LAYER_NORM} y = Mul(unit, s) }}"
    once = text(normalise(read(body)))
    assert text(normalise(normalise(read(body)))) == once
    assert len(NORMALISE) == len({each.__name__ for each in NORMALISE}) + 1  # drop_identity comes twice


# --- sum_to_einsum


@pytest.mark.parametrize(
    ("factors", "steps"),
    [
        ("float[3, 1, 1] w, float[3, 2, 4] a, float[3, 4, 5] b", "p = MatMul(a, b) m = Mul(w, p)"),
        ("float[3, 1, 1] w, float[3, 2, 4] a, float[3, 4, 5] b", "u = Mul(a, w) m = MatMul(u, b)"),
        ("float[3, 2, 1] w, float[3, 2, 4] a, float[3, 4, 5] b", "p = MatMul(a, b) m = Mul(p, w)"),
        ("float[2, 5] w, float[3, 2, 4] a, float[3, 4, 5] b", "p = MatMul(a, b) m = Mul(p, w)"),
        ("float[3, 2, 7] w, float[3, 7, 4] a, float[3, 4, 5] b", "p = MatMul(a, b) m = MatMul(w, p)"),
    ],
    ids=["numbers", "inside", "rows", "matrix", "three"],
)
def test_a_sum_of_products_is_one_contraction(factors: str, steps: str) -> None:
    body = f"main ({factors}) => (float[2, 5] y) <int64[1] first = {{0}}> {{ {steps} y = ReduceSum<keepdims=0>(m, first) }}"
    model = read(body)
    infer(model)
    after = einsum_to_matmul(sum_to_einsum(model))
    assert not {"ReduceSum", "Einsum"} & set(ops(after)), ops(after)
    assert_same(parse(body), after, 1e-5)


@pytest.mark.parametrize(
    ("ports", "steps"),
    [
        ("(float[3, 2, 4] a, float[3, 4, 5] b) => (float[3, 5] y)", "m = MatMul(a, b) y = ReduceSum<keepdims=0>(m, second)"),
        ("(float[3, 2, 4] a, float[3, 4, 5] b) => (float[1, 2, 5] y)", "m = MatMul(a, b) y = ReduceSum(m, first)"),
        ("(float[3, 2, 4] a, float[3, 4, 5] b) => (float[2, 5] y, float[3, 2, 5] m)", "m = MatMul(a, b) y = ReduceSum<keepdims=0>(m, first)"),
        ("(float[3, 2, 4] a, float[3, 2, 4] b) => (float[2, 4] y)", "m = Mul(a, b) y = ReduceSum<keepdims=0>(m, first)"),
        ("(float[1, 2, 4] a, float[3, 4, 5] b) => (float[2, 5] y)", "m = MatMul(a, b) y = ReduceSum<keepdims=0>(m, first)"),
        ("(int64[3, 2, 4] a, int64[3, 4, 5] b) => (int64[2, 5] y)", "m = MatMul(a, b) y = ReduceSum<keepdims=0>(m, first)"),
    ],
    ids=["an axis of the matrices", "an axis that stays", "products that are read", "no product", "a repeated factor", "whole numbers"],
)
def test_other_sums_stay_sums(ports: str, steps: str) -> None:
    model = read(f"main {ports} <int64[1] first = {{0}}, int64[1] second = {{1}}> {{ {steps} }}")
    infer(model)
    assert "Einsum" not in ops(sum_to_einsum(model))


# --- stacks


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("reduce", ["ReduceMean", "ReduceSum"])
def test_a_reduction_of_a_stack_is_one_of_its_parts(golden: Golden, reduce: str, keep: int) -> None:
    shape = "float[2, 1, 3]" if keep else "float[2, 3]"
    body = f"""main (float[2, 3] a, float[2, 3] b, float[2, 1, 3] c) => ({shape} y) <int64[1] one = {{1}}, int64[1] back = {{-2}}> {{
        u = Unsqueeze(a, one)  v = Unsqueeze(b, back)  s = Concat<axis=1>(u, v, c)  y = {reduce}<keepdims={keep}>(s, back) }}"""
    after = check(golden, body, stack_to_sum, rtol=1e-6)
    assert not {"Concat", "ReduceMean", "ReduceSum"} & set(ops(after))


@pytest.mark.parametrize(
    ("ports", "steps"),
    [
        ("(float[2, 3] a, float[4, 3] b) => (float[3] y)", "s = Concat<axis=0>(a, b) y = ReduceMean<keepdims=0>(s, zero)"),
        ("(float[1, 3] a, float[1, 3] b) => (float[2] y)", "s = Concat<axis=0>(a, b) y = ReduceMean<keepdims=0>(s, one)"),
        ("(float[1, 3] a, float[1, 3] b) => (float[3] y, float[2, 3] s)", "s = Concat<axis=0>(a, b) y = ReduceMean<keepdims=0>(s, zero)"),
        ("(int64[1, 3] a, int64[1, 3] b) => (int64[3] y)", "s = Concat<axis=0>(a, b) y = ReduceSum<keepdims=0>(s, zero)"),
        ("(float[1, 3] a, float[1, 3] b) => (float[3] y)", "s = Concat<axis=0>(a, b) y = ReduceMax<keepdims=0>(s, zero)"),
        ("(float[n, 3] a, float[n, 3] b) => (float[3] y)", "s = Concat<axis=0>(a, b) y = ReduceMean<keepdims=0>(s, zero)"),
    ],
    ids=["long parts", "another axis", "a stack that is read", "whole numbers", "a maximum", "an open length"],
)
def test_what_is_no_sum_of_parts(ports: str, steps: str) -> None:
    untouched(f"main {ports} <int64[1] zero = {{0}}, int64[1] one = {{1}}> {{ {steps} }}", stack_to_sum)
