"""Graphs through our own lowering to native code, against ONNX's reference in float64; plans of memory; the database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

pytest.importorskip("tvm_ffi")

from backends import reference
from backends.tvm import module
from backends.tvm.arena import Block, arrange
from backends.tvm.database import Database
from backends.tvm.graph import UnsupportedNode, read
from backends.tvm.kernel import Machine
from backends.tvm.lower import lower, refusals
from backends.tvm.recognise import recognise
from backends.tvm.runtime import Library
from backends.tvm.views import View, row_major

Array = np.ndarray[Any, Any]
PROCESSORS = ("x86-64", "x86-64-v3", "x86-64-v4")


def model(text: str, opset: int = 20, **weights: Any) -> onnx.ModelProto:
    """A model from ONNX's text form; ``weights`` are its initialisers."""
    made = parser.parse_model(f'<ir_version: {9 if opset == 20 else 10}, opset_import: ["": {opset}]>\n{text}')
    made.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return made


def weight(*shape: int, seed: int = 0) -> Array:
    values = np.random.default_rng([seed, *shape]).normal(size=shape) / max(1, shape[-1]) ** 0.5
    return np.asarray(values, np.float32)


def run(proto: onnx.ModelProto, *inputs: Array, folder: Path, machine: Machine, fast: int = 4) -> tuple[list[Array], Any]:
    """The results of ``proto`` as native code of this process, and its launches."""
    low = lower(read(proto), machine, fast)
    configs = {launch.kernel: launch.kernel.configs(machine)[0] for launch in low.launches}
    layout = module.plan(low, configs)
    library = folder / f"{len(list(folder.glob('*.so')))}.so"
    module.build(low, configs, layout, library)
    with library.with_suffix(".weights").open("wb") as file:
        layout.weights.write(file)
    library.with_suffix(".json").write_text(json.dumps(module.signature(low, layout)))
    return Library(library, 2)(list(inputs)), low.launches


def agree(proto: onnx.ModelProto, *inputs: Array, folder: Path, machine: Machine, near: float = 2e-6, fast: int = 4) -> list[str]:
    """The results are those of float64, within ``near`` of the largest; returns what was launched."""
    got, launches = run(proto, *inputs, folder=folder, machine=machine, fast=fast)
    want = reference.build(proto, float64=True)(*inputs)
    for mine, right in zip(got, want, strict=True):
        assert mine.shape == right.shape
        if mine.dtype.kind != "f":
            np.testing.assert_array_equal(mine, right)
            continue
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(right))
        scale = float(np.nan_to_num(np.abs(right)).max(initial=0.0)) + 1e-30
        np.testing.assert_allclose(np.nan_to_num(mine), np.nan_to_num(right), rtol=0, atol=near * scale)
    return [launch.label for launch in launches]


@pytest.fixture(scope="module", params=PROCESSORS)
def machine(request: pytest.FixtureRequest) -> Machine:
    """Vectors of 4, 8 and 16 lanes; the last two only where this processor has them."""
    from backends.tvm.machine import detect

    here, asked = detect(2), detect(2, request.param)
    if asked.lanes > here.lanes or here.processor.startswith(("arm", "apple", "generic")):
        pytest.skip("this processor cannot run it")
    return asked


@pytest.fixture(scope="module")
def here() -> Machine:
    """This processor."""
    from backends.tvm.machine import detect

    return detect(2)


# --- convolutions

CONVOLUTIONS = {
    "plain": ((1, 3, 9, 11), (8, 3, 3, 3), ""),
    "padded unevenly": ((1, 5, 7, 8), (7, 5, 3, 2), "pads = [2, 0, 1, 1]"),
    "strided": ((2, 4, 13, 9), (20, 4, 3, 3), "pads = [1, 1, 1, 1], strides = [2, 3]"),
    "dilated": ((1, 3, 12, 12), (17, 3, 3, 3), "pads = [2, 2, 2, 2], dilations = [2, 2]"),
    "one by one": ((2, 24, 5, 7), (40, 24, 1, 1), ""),
    "one by one, strided": ((1, 24, 9, 7), (16, 24, 1, 1), "strides = [2, 2]"),
    "grouped": ((2, 12, 6, 5), (8, 3, 3, 3), "group = 4, pads = [1, 1, 1, 1]"),
    "depthwise": ((2, 21, 8, 9), (21, 1, 3, 3), "group = 21, pads = [1, 1, 1, 1]"),
    "depthwise, strided": ((1, 32, 9, 9), (32, 1, 5, 5), "group = 32, pads = [2, 2, 2, 2], strides = [2, 2]"),
    "depthwise, doubled": ((1, 6, 7, 7), (12, 1, 3, 3), "group = 6"),
    "one pixel": ((1, 33, 1, 1), (3, 33, 1, 1), ""),
    "one channel": ((1, 1, 6, 6), (1, 1, 3, 3), "pads = [1, 1, 1, 1]"),
    "a line": ((2, 6, 17), (10, 6, 3), "pads = [1, 1], strides = [2]"),
    "same, lower": ((1, 2, 5, 6), (3, 2, 2, 2), 'auto_pad = "SAME_LOWER"'),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, machine: Machine, tmp_path: Path) -> None:
    x, w, attributes = CONVOLUTIONS[name]
    rank, attributes = ", ".join(map(str, x)), f"<{attributes}>" if attributes else ""
    proto = model(f"g (float[{rank}] x) => (y) {{ c = Conv {attributes} (x, w, b)\n y = Relu (c) }}", w=weight(*w), b=weight(w[0]))
    labels = agree(proto, weight(*x, seed=1), folder=tmp_path, machine=machine)
    assert sum(label.startswith("Conv") for label in labels) == 1  # with its bias and what follows, one kernel


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 9), (5, 3), (4, 30)])
@pytest.mark.parametrize("fast", [4, 2, 0])
def test_fast_convolutions(height: int, width: int, fast: int, here: Machine, tmp_path: Path) -> None:
    shape = (2, 32, height, width)
    proto = model(
        f"g (float[2,32,{height},{width}] x) => (y) {{ c = Conv <pads = [1, 1, 1, 1]> (x, w, b)\n s = Add (c, x)\n y = Relu (s) }}",
        w=weight(32, 32, 3, 3), b=weight(32),
    )  # fmt: skip
    labels = agree(proto, weight(*shape, seed=1), folder=tmp_path, machine=here, near=2e-5, fast=fast)
    assert fast or not any("Winograd" in label for label in labels)


def test_large_images_go_in_bands(here: Machine, tmp_path: Path) -> None:
    proto = model("g (float[1,64,150,150] x) => (y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }", w=weight(64, 64, 3, 3))
    x = weight(1, 64, 150, 150, seed=1)
    labels = agree(proto, x, folder=tmp_path, machine=here, near=2e-5)
    assert labels.count("Winograd input") > 1


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [(2, "strides = [2, 2]"), (3, "strides = [2, 2], pads = [1, 1, 1, 1]"), (3, ""), (4, "strides = [3, 2], pads = [1, 0, 0, 1]")],
)
def test_transposed_convolutions(kernel: int, attributes: str, here: Machine, tmp_path: Path) -> None:
    attributes = f"<{attributes}>" if attributes else ""
    proto = model(f"g (float[2,5,6,7] x) => (y) {{ y = ConvTranspose {attributes} (x, w, b) }}", w=weight(5, 9, kernel, kernel), b=weight(9))
    agree(proto, weight(2, 5, 6, 7, seed=1), folder=tmp_path, machine=here)


# --- graphs

GRAPHS: dict[str, tuple[str, dict[str, Array], list[tuple[int, ...]]]] = {
    "a residual block": (
        "g (float[1,8,9,9] x) => (y) { a = Conv <pads=[1,1,1,1]> (x, w)\n b = Relu (a)\n c = Conv <pads=[1,1,1,1]> (b, v)\n"
        " d = Add (c, x)\n y = Relu (d) }",
        {"w": weight(8, 8, 3, 3), "v": weight(8, 8, 3, 3, seed=2)}, [(1, 8, 9, 9)],
    ),
    "squeeze and excite": (
        "g (float[2,8,6,6] x) => (y) { a = Conv (x, w)\n m = GlobalAveragePool (a)\n n = Conv (m, v)\n s = Sigmoid (n)\n"
        " t = Mul (a, s)\n y = Add (t, a) }",
        {"w": weight(12, 8, 1, 1), "v": weight(12, 12, 1, 1)}, [(2, 8, 6, 6)],
    ),
    "parts of a Concat are written in place": (
        "g (float[1,4,6,6] x) => (y) { a = Conv <pads=[1,1,1,1]> (x, w)\n b = Relu (a)\n c = Conv (x, v)\n"
        " d = Concat <axis=1> (b, x, c, b)\n y = Conv <pads=[1,1,1,1]> (d, u) }",
        {"w": weight(5, 4, 3, 3), "v": weight(3, 4, 1, 1), "u": weight(6, 17, 3, 3)}, [(1, 4, 6, 6)],
    ),
    "products one after the other": (
        "g (float[1,48] x) => (y) { m = ReduceMax <keepdims=0> (z, axes)\n a = MatMul (m, w)\n b = Add (a, p)\n c = Relu (b)\n"
        " d = MatMul (c, v)\n e = Add (d, q)\n f = Relu (e)\n y = MatMul (f, u)\n z = Unsqueeze (x, axes) }",
        {"w": weight(48, 96), "p": weight(96), "v": weight(96, 24), "q": weight(24), "u": weight(24, 3),
         "axes": np.array([2])}, [(1, 48)],
    ),
    "batched products": (
        "g (float[2,3,5,7] x, float[2,3,7,6] z, float[7,4] v) => (y, t) { y = MatMul (x, z)\n t = MatMul (x, v) }",
        {}, [(2, 3, 5, 7), (2, 3, 7, 6), (7, 4)],
    ),
    "a product whose right side is turned": (
        "g (float[2,5,7] x, float[2,6,7] z) => (y) { k = Transpose <perm=[0,2,1]> (z)\n y = MatMul (x, k) }",
        {}, [(2, 5, 7), (2, 6, 7)],
    ),
    "a constant on the left": ("g (float[7,5] x) => (y) { y = MatMul (w, x) }", {"w": weight(3, 4, 7)}, [(7, 5)]),
    "Gemm": (
        "g (float[6,5] x) => (y) { y = Gemm <transA=1, transB=1, alpha=0.5, beta=2.0> (x, w, b) }",
        {"w": weight(9, 6), "b": weight(1, 9)}, [(6, 5)],
    ),
    "views": (
        "g (float[2,6,8] x) => (y, u) { a = Reshape (x, s)\n b = Transpose <perm=[0,2,1,3]> (a)\n c, d = Split <axis=1> (b, h)\n"
        " e = Add (c, d)\n f = Transpose <perm=[3,0,2,1]> (e)\n y = Reshape (f, r)\n u = Slice (x, st, en, ax, sp) }",
        {"s": np.array([2, 6, 4, 2]), "h": np.array([2, 2]), "r": np.array([4, 12]), "st": np.array([-1, 1]),
         "en": np.array([-100, 7]), "ax": np.array([1, 2]), "sp": np.array([-2, 3])}, [(2, 6, 8)],
    ),
    "a transformer's block": (
        "g (float[2,5,12] x) => (y) { n = LayerNormalization <axis=-1> (x, g, b)\n a = MatMul (n, w)\n c = Add (a, p)\n"
        " d = Gelu (c)\n e = MatMul (d, v)\n y = Add (e, x) }",
        {"g": weight(12), "b": weight(12, seed=2), "w": weight(12, 30), "p": weight(30), "v": weight(30, 12)}, [(2, 5, 12)],
    ),
    "softmax along the middle": ("g (float[2,7,5] x) => (y) { y = Softmax <axis=1> (x) }", {}, [(2, 7, 5)]),
    "rows a page long": (
        "g (float[9,1024] x) => (y) { a = MatMul (x, w)\n b = Relu (a)\n c = MatMul (b, v)\n y = Reshape (c, s) }",
        {"w": weight(1024, 1024), "v": weight(1024, 20), "s": np.array([4, 45])}, [(9, 1024)],
    ),
    "embeddings": (
        "g (float[1,4,6] x) => (y) { e = Gather <axis=0> (t, i)\n y = Add (x, e) }",
        {"t": weight(10, 6), "i": np.array([[3, -1, 0, 9]])}, [(1, 4, 6)],
    ),
    "pooling": (
        "g (float[2,5,9,8] x) => (y, z) { y = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)\n"
        " z = AveragePool <kernel_shape=[2,3], ceil_mode=1, strides=[2,2]> (x) }",
        {}, [(2, 5, 9, 8)],
    ),
    "resizing": (
        'g (float[1,3,5,6] x) => (y, z) { y = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor"> (x, , s)\n z = Resize <mode="linear"> (x, , , n) }',
        {"s": np.array([1, 1, 2, 2], np.float32), "n": np.array([1, 3, 8, 7])}, [(1, 3, 5, 6)],
    ),
    "the input is the output": ("g (float[3,4] x) => (y, z) { y = Identity (x)\n z = Transpose (x) }", {}, [(3, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, here: Machine, tmp_path: Path) -> None:
    text, weights, shapes = GRAPHS[name]
    if name == "products one after the other":  # nodes in an order in which they can run
        head, _, tail = text.partition("{ ")
        body, _, last = tail.rpartition("\n")
        text = f"{head}{{ {last.rstrip(' }')}\n {body} }}"
    agree(model(text, **weights), *(weight(*shape, seed=i) for i, shape in enumerate(shapes)), folder=tmp_path, machine=here)


def test_a_concat_costs_only_the_copies_that_it_must(here: Machine, tmp_path: Path) -> None:
    text, weights, shapes = GRAPHS["parts of a Concat are written in place"]
    _, launches = run(model(text, **weights), weight(*shapes[0]), folder=tmp_path, machine=here)
    assert sum(launch.label == "Concat" for launch in launches) == 3  # x, and both uses of a part that stands there twice


def test_no_load_may_cross_the_line_between_kernels(here: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backends.tvm import codegen

    written: dict[Any, Any] = {}
    compile_functions = codegen.compile_functions

    def noted(functions: Any, machine: Machine) -> Any:
        written.update({key.name_hint: function for key, function in functions.items()})
        return compile_functions(functions, machine)

    monkeypatch.setattr(codegen, "compile_functions", noted)
    proto = model("g (float[1,8] x) => (y) { a = MatMul (x, w)\n y = MatMul (a, v) }", w=weight(8, 8), v=weight(8, 4))
    _, launches = run(proto, weight(1, 8), folder=tmp_path, machine=here)
    calls = [line for line in written[module.ENTRY].script().splitlines() if "kernel" in line or '"rewriter_barrier")' in line]
    assert ["rewriter_barrier" in call for call in calls] == [False, True] * len(launches)


# --- what is recognised

SCORES = {
    "plain": "k = Transpose <perm=[0,1,3,2]> (b)\n s = MatMul (a, k)\n p = Softmax (s)",
    "scaled and masked": "k = Transpose <perm=[0,1,3,2]> (b)\n s = MatMul (a, k)\n t = Div (s, c)\n u = Add (t, m)\n p = Softmax (u)",
    "scaled before": "q = Mul (a, c)\n k = Transpose <perm=[0,1,3,2]> (b)\n l = Mul (k, c)\n s = MatMul (q, l)\n p = Softmax (s)",
    "guarded": ("k = Transpose <perm=[0,1,3,2]> (b)\n s = MatMul (a, k)\n u = Add (s, m)\n r = Softmax (u)\n i = IsNaN (r)\n p = Where (i, zero, r)"),
}


@pytest.mark.parametrize("name", SCORES)
def test_attention_is_one_kernel(name: str, machine: Machine, tmp_path: Path) -> None:
    mask = np.where(np.tril(np.ones((1, 1, 7, 9))) > 0, 0, -np.inf).astype(np.float32)
    if name == "guarded":
        mask[..., 2, :] = -np.inf  # a row without any key
    proto = model(
        f"g (float[2,3,7,8] a, float[2,3,9,8] b, float[2,3,9,5] v) => (y) {{ {SCORES[name]}\n o = MatMul (p, v)\n"
        " t2 = Transpose <perm=[0,2,1,3]> (o)\n y = Reshape (t2, shape) }",
        c=np.float32(2.5), m=mask, zero=np.float32(0), shape=np.array([2, 7, 15]),
    )  # fmt: skip
    used = {name for node in proto.graph.node for name in node.input}
    for tensor in [t for t in proto.graph.initializer if t.name not in used]:
        proto.graph.initializer.remove(tensor)
    inputs = [weight(2, 3, n, d, seed=n) for n, d in ((7, 8), (9, 8), (9, 5))]
    assert agree(proto, *inputs, folder=tmp_path, machine=machine, near=1e-5) == ["Attention"]


def test_heads_that_share_keys_are_not_copied(here: Machine, tmp_path: Path) -> None:
    spread = "\n".join(f"{n}1 = Unsqueeze ({n}, axis)\n {n}2 = Expand ({n}1, wide)\n {n}3 = Reshape ({n}2, flat)" for n in ("b", "v"))
    proto = model(
        f"g (float[1,6,4,8] a, float[1,2,4,8] b, float[1,2,4,8] v) => (y) {{ {spread}\n k = Transpose <perm=[0,1,3,2]> (b3)\n"
        " s = MatMul (a, k)\n p = Softmax (s)\n y = MatMul (p, v3) }",
        axis=np.array([2]), wide=np.array([1, 2, 3, 4, 8]), flat=np.array([1, 6, 4, 8]),
    )  # fmt: skip
    inputs = [weight(1, heads, 4, 8, seed=i) for i, heads in enumerate((6, 2, 2))]
    labels = agree(proto, *inputs, folder=tmp_path, machine=here, near=1e-5)
    assert labels == ["Attention"]


def test_what_is_only_like_attention_stays() -> None:
    shared = model("g (float[1,2,3,4] a, float[1,2,4,3] k, float[1,2,3,4] v) => (y, p) { s = MatMul (a, k)\n p = Softmax (s)\n y = MatMul (p, v) }")
    middle = model("g (float[1,2,3,3] a, float[1,2,3,3] k) => (y) { s = MatMul (a, k)\n p = Softmax <axis=2> (s)\n y = MatMul (p, a) }")
    for proto in (shared, middle):
        assert "Attention" not in {node.op for node in recognise(read(proto)).nodes}


@pytest.mark.parametrize("tail", ["r = Reciprocal (q)\n n = Mul (x, r)\n y = Mul (w, n)", "n = Div (x, q)\n y = Mul (n, w)", "y = Div (x, q)"])
def test_rms_norm_is_one_kernel(tail: str, here: Machine, tmp_path: Path) -> None:
    proto = model(
        f"g (float[3,5,10] x) => (y) {{ s = Mul (x, x)\n m = ReduceMean (s, axes)\n e = Add (m, tiny)\n q = Sqrt (e)\n {tail} }}",
        axes=np.array([-1]), tiny=np.float32(1e-3), **({"w": weight(10)} if "w" in tail else {}),
    )  # fmt: skip
    labels = agree(proto, weight(3, 5, 10, seed=1), folder=tmp_path, machine=here)
    assert labels == ["RMSNormalization"]


EIGHT = {
    "a product": ("p = MatMul (xd, wd)", (2, 5, 12), (12, 20), 1),
    "a convolution": ("p = Conv <pads=[1,0,1,2], strides=[2,1]> (xd, wd)", (1, 5, 9, 8), (18, 5, 3, 3), 0),
}


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_products_of_eight_bits(name: str, kind: str, here: Machine, tmp_path: Path) -> None:
    call, shape, weights, axis = EIGHT[name]
    random = np.random.default_rng(0)
    zero = np.asarray(131 if kind == "uint8" else -7, kind)
    proto = model(
        f"g (float[{', '.join(map(str, shape))}] x) => (y, r) {{ xq = QuantizeLinear (x, s, z)\n xd = DequantizeLinear (xq, s, z)\n"
        f" wd = DequantizeLinear <axis={axis}> (w, ws)\n {call}\n y = Relu (p)\n r = QuantizeLinear (p, s, z) }}",
        s=np.float32(0.05), z=zero, w=random.integers(-127, 128, weights, dtype=np.int8),
        ws=random.uniform(0.001, 0.01, weights[axis]).astype(np.float32),
    )  # fmt: skip
    x = random.normal(size=shape).astype(np.float32)
    labels = agree(proto, x, folder=tmp_path, machine=here)
    assert sum("8" in label for label in labels) == ("MatMul" in call or here.vnni)
    assert not any(label.startswith("DequantizeLinear") for label in labels)


def test_of_a_chain_with_codes_only_scales_and_zeros_are_operands(here: Machine, tmp_path: Path) -> None:
    """Layers share a kernel that takes its scales; a power whose exponent is an operand is no product."""
    proto = model(
        "g (float[3,40] x) => (y) { d = Abs (x)\n p = Pow (d, two)\n q = Sqrt (p)\n m = Mul (q, half)\n y = QuantizeLinear (m, s, z) }",
        two=np.float32(2), half=np.float32(0.5), s=np.float32(0.05), z=np.uint8(3),
    )  # fmt: skip
    x = weight(3, 40)
    _, (launch,) = run(proto, x, folder=tmp_path, machine=here)
    agree(proto, x, folder=tmp_path, machine=here)
    assert [operand.dtype for operand in launch.kernel.operands] == ["float32", "float32", "uint8"]
    assert [dict(step.attributes)["value"] for step in launch.kernel.chain.steps if step.op == "Constant"] == [2.0, 0.5]


@pytest.mark.parametrize("axis, block", [(0, 4), (1, 8)])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_weights_with_scales_of_blocks(axis: int, block: int, kind: str, here: Machine, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shape = [16, 24]
    shape[axis] //= block
    w = random.integers(0 if kind == "uint8" else -127, 127, (16, 24)).astype(kind)
    proto = model(
        f"g (float[3,16] x) => (y) {{ wd = DequantizeLinear <axis={axis}, block_size={block}> (w, s, z)\n y = MatMul (x, wd) }}",
        w=w, s=random.uniform(0.01, 0.1, shape).astype(np.float32), z=random.integers(0, 9, shape).astype(kind), opset=21,
    )  # fmt: skip
    assert agree(proto, random.normal(size=(3, 16)).astype(np.float32), folder=tmp_path, machine=here) == ["MatMul"]


@pytest.mark.parametrize("flipped", [False, True], ids=["depth first", "columns first"])
@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "uint4"])
def test_weights_that_floats_are_multiplied_by_stay_codes(kind: str, block: int, flipped: bool, here: Machine, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    low, high = {"int8": (-128, 128), "uint8": (0, 256), "int4": (-8, 8), "uint4": (0, 16)}[kind]
    store = np.dtype(kind if kind.endswith("8") else getattr(ml_dtypes, kind))
    depth, columns = 160, 130
    codes = random.integers(low, high, (depth, columns))
    shape = (depth // block, columns) if block else (columns,)
    scales, zeros = random.uniform(0.01, 0.1, shape).astype(np.float32), random.integers(0, 7, shape)
    if flipped:
        codes, scales, zeros = codes.T, scales.T, zeros.T
    axis = int(flipped) if block else int(not flipped)
    size = f", block_size={block}" if block else ""
    turn = "wt = Transpose <perm=[1,0]> (wd)" if flipped else "wt = Identity (wd)"
    proto = model(
        f"g (float[2,3,160] x, float[130] b) => (y) {{ wd = DequantizeLinear <axis={axis}{size}> (w, s, z)\n {turn}\n p = MatMul (x, wt)\n y = Add (p, b) }}",
        w=codes.astype(store), s=scales, z=zeros.astype(store), opset=21,
    )  # fmt: skip
    x, b = random.normal(size=(2, 3, depth)).astype(np.float32), random.normal(size=columns).astype(np.float32)
    assert agree(proto, x, b, folder=tmp_path, machine=here) == ["MatMulCodes+Add"]


def test_a_table_of_eight_bits_stays_so(here: Machine, tmp_path: Path) -> None:
    proto = model(
        "g (int64[2,3] i) => (y) { t = DequantizeLinear (w, s, z)\n y = Gather (t, i) }",
        w=np.arange(40, dtype=np.uint8).reshape(10, 4), s=np.float32(0.5), z=np.uint8(3),
    )  # fmt: skip
    labels = agree(proto, np.array([[0, 9, -1], [3, 4, 5]]), folder=tmp_path, machine=here)
    assert labels == ["Gather+DequantizeLinear"]


# --- what is refused


def test_refusals_name_the_node_and_leave_the_rest() -> None:
    proto = model(
        'g (float[1,3,4] x, int64[1] n) => (y) { a = Relu (x)\n h, c = TopK (a, n)\n b = Exp (a)\n d = Einsum <equation="abc->acb"> (b)\n'
        " y = Neg (d) }"
    )
    refused = refusals(onnx.shape_inference.infer_shapes(proto))
    assert set(refused) == {"h", "d"}
    with pytest.raises(UnsupportedNode, match="TopK 'h'"):
        read(proto)


# --- memory


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 6)), max_size=20))
def test_what_lives_at_the_same_time_does_not_overlap(spans: list[tuple[int, int, int]]) -> None:
    blocks = [Block(size, first, first + length) for size, first, length in spans]
    offsets, total = arrange(blocks)
    for i, a in enumerate(blocks):
        assert offsets[i] % 64 == 0 and offsets[i] + a.size <= total
        for j, b in enumerate(blocks[:i]):
            if a.first <= b.last and b.first <= a.last:
                assert offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms(use_true_random=False), st.booleans())
def test_a_view_is_reshaped_exactly_where_numpy_can(shape: list[int], random: Any, gap: bool) -> None:
    room = np.arange(np.prod(shape) * 2).reshape(*shape[:-1], shape[-1] * 2)[..., : shape[-1]] if gap else np.arange(np.prod(shape)).reshape(shape)
    array = room.transpose(random.sample(range(len(shape)), len(shape)))
    wanted, left = [], array.size
    while left > 1:
        wanted.append(random.choice([d for d in range(2, left + 1) if left % d == 0]))
        left //= wanted[-1]
    view = View(0, "int64", array.shape, tuple(s // 8 for s in array.strides)).reshaped(tuple(wanted))
    try:
        same = array.view()
        same.shape = tuple(wanted)
    except AttributeError:
        assert view is None
        return
    assert view is not None
    flat = np.lib.stride_tricks.as_strided(np.arange(10_000), view.shape, [8 * s for s in view.strides])
    np.testing.assert_array_equal(flat, array.reshape(wanted))


def test_views() -> None:
    view = View(0, "float32", (2, 3), row_major((2, 3)))
    assert view.contiguous and not view.transposed((1, 0)).contiguous
    with pytest.raises(ValueError, match="does not broadcast"):
        view.expanded((4, 3))


# --- the database


def test_the_database_remembers_and_never_fails(tmp_path: Path) -> None:
    from backends.tvm.kernel import Operand
    from backends.tvm.kernels.contraction import Contraction

    kernel = Contraction((), (1, 8), 8, (1, 1), 8, Operand("float32", (0, 8, 0, 0, 1)), Operand("float32", (0, 8, 1)))
    machine = Machine("any", 16, 32, 2, False)
    database = Database(tmp_path / "deep" / "k.sqlite")
    assert database.find(kernel, machine, 1) is None
    database.keep(kernel, machine, (1, 8, 32), 1e-6, 3)
    assert Database(tmp_path / "deep" / "k.sqlite").find(kernel, machine, 3) == (1, 8, 32)
    assert database.find(kernel, machine, 4) is None  # more are to be tried now
    assert database.find(kernel, Machine("other", 16, 32, 2, False), 1) is None
    database.keep_library("d", b"code")
    assert database.library("d") == b"code" and database.library("e") is None
    broken = tmp_path / "broken.sqlite"
    broken.write_text("this is not a database " * 100)
    lost = Database(broken)
    lost.keep(kernel, machine, (1, 8, 32), 1e-6, 3)
    assert lost.find(kernel, machine, 1) is None
    assert Database(tmp_path).find(kernel, machine, 1) is None  # a folder


def cell(steps: int, batch: int, outputs: str, states: str, bias: str = "b", attributes: str = "") -> onnx.ModelProto:
    text = f"g (float[{steps},{batch},6] x, float[1,{batch},5] h, float[1,{batch},5] c) => (y, z) {{\n" + (
        f" {outputs} = LSTM <hidden_size=5{attributes}> (x, w, r, {bias}, {states})\n y = Exp (Y)\n z = Exp (Z) }}"
    )
    return model(text, w=weight(1, 20, 6), r=weight(1, 20, 5, seed=1), b=weight(1, 40, seed=2))


@pytest.mark.parametrize("steps, batch", [(1, 1), (1, 3), (3, 1), (4, 2)])
@pytest.mark.parametrize("outputs, states, bias", [("Y, , Z", ", h, c", "b"), (", Y, Z", ", h, c", ""), ("Y, Z", "", "b"), ("Y, , Z", ", , c", "b")])
def test_an_lstm_of_few_steps(steps: int, batch: int, outputs: str, states: str, bias: str, here: Machine, tmp_path: Path) -> None:
    x, h, c = weight(steps, batch, 6, seed=5) * 3, weight(1, batch, 5, seed=6), weight(1, batch, 5, seed=7)
    proto = cell(steps, batch, outputs, states, bias)
    agree(proto, x, h, c, folder=tmp_path, machine=here)


def test_an_lstm_that_stays() -> None:
    said = {
        "more than 4": cell(5, 1, "Y, , Z", ", h, c"),
        "only forward": cell(1, 1, "Y, , Z", ", h, c", attributes=', direction="reverse"'),
        "its usual": cell(1, 1, "Y, , Z", ", h, c", attributes=', activations=["Tanh", "Tanh", "Tanh"]'),
    }
    for why, proto in said.items():
        assert any(why in reason for reason in refusals(proto).values()), why


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0, 0, 4), (0, 1, 2, 0, 0, 3), (0, -1, 2, 0, 1, -2), (1, 0, 0, 0, 0, 0)])
def test_borders(mode: str, pads: tuple[int, ...], here: Machine, tmp_path: Path) -> None:
    if min(pads) < 0 and mode != "constant":
        pads = tuple(map(abs, pads))
    shape = (2, 3, 9)
    text = f'g (float[2,3,9] x) => (y) {{ a = Abs (x)\n p = Pad <mode="{mode}"> (a, n)\n y = Exp (p) }}'
    proto = model(text, opset=20, n=np.array(pads, np.int64))
    agree(proto, weight(*shape), folder=tmp_path, machine=here)
    some = [k for k in range(3) if pads[k] or pads[k + 3]]
    proto = model(text.replace("(a, n)", "(a, n, v, k)"), n=np.array([pads[k + m] for m in (0, 3) for k in some], np.int64),
                  v=np.float32(1.5), k=np.array(some) - 3)  # fmt: skip
    agree(proto, weight(*shape), folder=tmp_path, machine=here)


def test_borders_that_stay() -> None:
    for text, why in (("x, n", "are not constants"), ('x, m', "reflect by 9")):
        proto = model(f'g (float[2,9] x, int64[4] n) => (float[2,18] y) {{ y = Pad <mode="reflect"> ({text}) }}', m=np.array([0, 0, 0, 9]), o=np.array([0, -1, 0, 1]))
        assert why in " ".join(refusals(proto).values())
