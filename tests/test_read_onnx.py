"""What is read, what is refused, and how the refusal reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_text import assert_same, feeds, parse, read, run, run_ort

from rewriter.errors import InvalidInput, InvalidModel, RewriterError, UnsupportedModel
from rewriter.opset import OPSET
from rewriter.read_onnx import read_onnx

GOOD = "main (float[n, 3] x) => (float[n, 3] y) <float[3] w = {1.0, 2.0, 3.0}> { t = Mul(x, w)  y = Relu(t) }"


def refused(source: object, kind: type[RewriterError], *parts: str, **options: object) -> None:
    """The error has that type, is one line, and says all of that."""
    with pytest.raises(RewriterError) as caught:
        read_onnx(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message and len(message) < 500
    for part in parts:
        assert part in message, message


# --- files


def test_missing_folder_and_wrong_objects(tmp_path: Path) -> None:
    refused(tmp_path / "no.onnx", InvalidInput, "no.onnx", "no file")
    refused(tmp_path, InvalidInput, "folder")
    refused(3, InvalidInput, "int")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"PK\x03\x04abc", "zip"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"GGUFxxxx", "GGUF"),
        (b"hello world, no model", "not an ONNX model"),
        (b"\x00" * 64, "not an ONNX model"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    refused(path, InvalidModel, "model.pt", word)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "evil.pt"
    path.write_bytes(b"\x80\x02cbuiltins\nexec\nX\x40\x00\x00\x00" + f"open({str(mark)!r}, 'w')".ljust(64).encode()[:64] + b"\x85R.")
    refused(path, InvalidModel, "pickle")
    assert not mark.exists()


def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    data = parse(GOOD).SerializeToString()
    path = tmp_path / "cut.onnx"
    for size in range(1, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises((InvalidModel, UnsupportedModel)):
            read_onnx(path)


def test_external_data(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = parse("main (float[2, 3] x) => (float[2, 4] y) <float[3, 4] w> { y = MatMul(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    read_back = read_onnx(path)
    data = read_back.graph.initializers["w"].const_value
    assert data is not None
    np.testing.assert_array_equal(data.numpy(), weight)
    assert not data.numpy().flags.owndata  # mapped: read when touched, not before
    (tmp_path / "m.bin").write_bytes(b"\x00" * 40)
    refused(path, InvalidModel, "'w'", "m.bin", "48")
    (tmp_path / "m.bin").unlink()
    refused(path, InvalidModel, "'w'", "m.bin", "not there")


def test_external_data_stays_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\x00" * 48)
    (tmp_path / "in").mkdir()
    model = parse("main (float[2, 3] x) => (float[2, 4] y) <float[3, 4] w> { y = MatMul(x, w) }")
    tensor = TensorProto(name="w", dims=[3, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    model.graph.initializer.append(tensor)
    onnx.save(model, tmp_path / "in" / "m.onnx")
    refused(tmp_path / "in" / "m.onnx", InvalidModel, "../secret", "outside")


# --- defects


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("main (float[2] x) => (float[2] y) { y = Add(x, ghost) }", ["Add", "'ghost'"]),
        ("main (float[2] x) => (float[2] y) { t = Relu(x) }", ["'y'"]),
        ("main (float[2] x) => (float[2] y) { y = Relu(x)  y = Exp(x) }", ["Exp", "'y'"]),
        ("main (float[2] x) => (float[2] y) { x = Relu(x)  y = Exp(x) }", ["Relu", "'x'"]),
        ("main (float[2] x, float[2] x) => (float[2] y) { y = Relu(x) }", ["'x'", "two inputs"]),
        ("main (float[2] x) => (float[2] y) { t = Add(x, y)  y = Relu(t) }", ["cycle", "Add"]),
        ("main (float[2, 3] x, float[4, 5] w) => (float[a, b] y) { y = MatMul(x, w) }", ["MatMul", "'y'", "ncompatible"]),
        ("main (float[2, 3] x) => (float[2, 4] y) { y = Relu(x) }", ["'y'", "[2,4]", "[2,3]"]),
        ("main (float[2, 3] x) => (float[a, b] y) { y = Relu(x, x) }", ["Relu", "2 inputs"]),
        ("main (float[2, 3] x) => (float[a, b] y) { y = Nonsense(x) }", ["Nonsense", "opset 20"]),
        ("main (float[2, 3] x) => (float[a, b] y) { y = Concat(x, x) }", ["Concat", "axis"]),
        ("main (float[2, 3] x) => (float[a, b] y) { y = Relu <alpha: int = 1> (x) }", ["Relu", "alpha"]),
        ("main (float[2, 3] x) => (float[a, b] y) { y = Transpose <perm: ints = [0, 5]> (x) }", ["Transpose", "perm"]),
        ("main (float[2] x) => (float[a, b] y) { y = foo.Bar(x) }", ["foo::Bar", "import"]),
    ],
)
def test_defects_are_named(body: str, words: list[str]) -> None:
    refused(parse(body), InvalidModel, *words)


def test_a_named_node_is_called_by_its_name() -> None:
    model = parse("main (float[2, 3] x, float[4, 5] w) => (float[a, b] y) { y = MatMul(x, w) }")
    model.graph.node[0].name = "head"
    refused(model, InvalidModel, "MatMul node 'head'")


def test_bad_tensors() -> None:
    for change, words in (
        ({"dims": [4]}, ["'w'", "[4]"]),
        ({"dims": [-3]}, ["'w'", "[-3]"]),
        ({"data_type": 99}, ["'w'", "99"]),
    ):
        model = parse(GOOD)
        tensor = model.graph.initializer[0]
        del tensor.dims[:]
        tensor.dims.extend(change.get("dims", [3]))
        tensor.data_type = change.get("data_type", tensor.data_type)
        refused(model, InvalidModel, *words)


def test_opsets_out_of_range() -> None:
    refused(parse(GOOD, opset=6), UnsupportedModel, "opset 6")
    refused(parse(GOOD, opset=900), UnsupportedModel, "opset 900")
    model = parse(GOOD)
    del model.opset_import[:]
    refused(model, InvalidModel, "opset")


def test_an_empty_model() -> None:
    refused(onnx.ModelProto(), InvalidModel, "no graph")


def test_functions_that_call_each_other() -> None:
    body = GOOD.replace("Relu(t)", "local.f(t)")
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 20, "local" : 1]> {body}
        <domain: "local", opset_import: ["" : 20, "local" : 1]> f (a) => (b) {{ b = local.g(a) }}
        <domain: "local", opset_import: ["" : 20, "local" : 1]> g (a) => (b) {{ b = local.f(a) }}""")
    refused(model, InvalidModel, "local::", "calls itself")


def test_functions_that_explode() -> None:
    layers = "\n".join(
        f"""<domain: "local", opset_import: ["" : 20, "local" : 1]>
        f{i} (a) => (b) {{ c = local.f{i + 1}(a)  b = local.f{i + 1}(c) }}"""
        for i in range(40)
    )
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 20, "local" : 1]>
        {GOOD.replace("Relu(t)", "local.f0(t)")} {layers}
        <domain: "local", opset_import: ["" : 20]> f40 (a) => (b) {{ b = Relu(a) }}""")
    refused(model, UnsupportedModel, "nodes")


def test_inference_that_would_take_all_memory_is_survived() -> None:
    body = "main (float[4, 4] x) => (float[a, b] y) { y, z = Split <num_outputs: int = 9223372036854775807> (x) }"
    try:
        read_onnx(parse(body))
    except RewriterError as error:
        assert "\n" not in str(error)


# --- what is accepted


def test_the_source_is_left_as_it_was() -> None:
    model = parse(GOOD, opset=13)
    before = model.SerializeToString()
    read_onnx(model, input_shapes={"x": (2, 3)})
    assert model.SerializeToString() == before
    twin = ir.from_proto(model)
    shown = str(twin)
    read_onnx(twin, constants={"x": np.ones((2, 3), np.float32)})
    assert str(twin) == shown


def test_nodes_in_any_order() -> None:
    body = "main (float[2] x) => (float[2] y) { y = Relu(t)  t = Neg(x) }"
    model = read(body)
    assert [node.op_type for node in model.graph] == ["Neg", "Relu"]


def test_unknown_domains_pass_through() -> None:
    model = parse("main (float[2] x) => (float[2] y) { t = com.acme.Magic(x)  y = Relu(t) }")
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    after = read_onnx(model)
    assert [(node.domain, node.op_type) for node in after.graph] == [("com.acme", "Magic"), ("", "Relu")]


def test_an_initialiser_that_is_an_input_is_a_weight() -> None:
    model = parse(GOOD)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    after = read_onnx(model)
    assert [value.name for value in after.graph.inputs] == ["x"]
    assert list(after.graph.initializers) == ["w"]


def test_functions_are_inlined() -> None:
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 20, "local" : 1]>
        {GOOD.replace("Relu(t)", "local.f(t)")}
        <domain: "local", opset_import: ["" : 20]> f (a) => (b) {{ c = Neg(a)  b = Relu(c) }}""")
    after = read_onnx(model)
    assert [node.op_type for node in after.graph] == ["Mul", "Neg", "Relu"] and not after.functions
    assert_same(model, after, 0.0, n=2)


def test_shapes_are_inferred_in_branches_too() -> None:
    model = read("""main (bool c, float[2, 3] x) => (float[2, 6] y) {
        y = If (c) <then_branch = yes () => (float[a, b] p) { p = Concat <axis: int = 1> (x, x) },
                    else_branch = no () => (float[a, b] q) { r = Neg(x)  q = Concat <axis: int = 1> (r, r) }>
    }""")  # fmt: skip
    inner = next(node for node in model.graph.all_nodes() if node.op_type == "Neg")
    assert inner.outputs[0].shape == ir.Shape([2, 3])


# --- input_shapes and constants


def test_input_shapes_fix_symbols_everywhere() -> None:
    model = read("main (float[n, 3] x, float[n] z) => (float[n, 3] y) { y = Relu(x) }", input_shapes={"x": (4, 3)})
    assert [value.shape for value in model.graph.inputs] == [ir.Shape([4, 3]), ir.Shape([4])]
    assert model.graph.outputs[0].shape == ir.Shape([4, 3])


def test_input_shapes_fix_sizes_that_exporters_wrote_as_minus_one() -> None:
    model = parse("main (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")
    for port in (model.graph.input[0], model.graph.output[0]):
        port.type.tensor_type.shape.dim[0].dim_value = -1
    fixed = read_onnx(model, input_shapes={"x": (4, 3)})
    assert fixed.graph.inputs[0].shape == ir.Shape([4, 3])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4  # as exporters leave it: only the output is open
    read_onnx(model)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"q": (1, 3)}, ["'q'", "'x'"]),
        ({"x": (1, 3, 5)}, ["'x'", "[1, 3, 5]"]),
        ({"x": (1, 4)}, ["'x'", "[1, 4]"]),
        ({"x": (-1, 3)}, ["'x'", "[-1, 3]"]),
    ],
)
def test_input_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], words: list[str]) -> None:
    refused(parse(GOOD), InvalidInput, *words, input_shapes=shapes)


def test_constants_leave_the_inputs() -> None:
    body = "main (float[2] x, float t, int64 k) => (float[2] y) { a = Mul(x, t)  c = Cast <to: int = 1> (k)  y = Add(a, c) }"
    after = read(body, constants={"t": 0.5, "k": np.array(3)})
    assert [value.name for value in after.graph.inputs] == ["x"]
    np.testing.assert_array_equal(run(after, {"x": np.array([2, 4], np.float32)})[0], [4, 5])


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"q": 1}, ["'q'"]),
        ({"k": 0.5}, ["'k'", "INT64"]),
        ({"t": "hello"}, ["'t'", "FLOAT"]),
        ({"x": np.zeros(3)}, ["'x'", "[3]"]),
    ],
)
def test_constants_that_do_not_fit(constants: dict[str, object], words: list[str]) -> None:
    body = "main (float[2] x, float t, int64 k) => (float[2] y) { a = Mul(x, t)  c = Cast <to: int = 1> (k)  y = Add(a, c) }"
    refused(parse(body), InvalidInput, *words, constants=constants)


# --- opset upgrades

_OLD = {
    "softmax over several axes": (11, "main (float[2, 3, 4] x) => (float[a, b, c] y) { y = Softmax <axis: int = 1> (x) }"),
    "softmax over one axis": (9, "main (float[2, 3, 1, 1] x) => (float[a, b, c, d] y) { y = Softmax <axis: int = 1> (x) }"),
    "log softmax": (11, "main (float[2, 3, 4] x) => (float[a, b, c] y) { y = LogSoftmax (x) }"),
    "squeeze": (11, "main (float[2, 1, 4] x) => (float[a, b, c] y) { t = Squeeze <axes: ints = [1]> (x)  y = Unsqueeze <axes: ints = [0]> (t) }"),
    "reduce": (11, "main (float[2, 3] x) => (float[a, b] y) { t = ReduceSum <axes: ints = [1]> (x)  u = ReduceMax <axes: ints = [0]> (t)  y = ReduceMean (u) }"),
    "slice": (9, "main (float[4, 5] x) => (float[a, b] y) { y = Slice <starts: ints = [1, 0], ends: ints = [3, -1]> (x) }"),
    "clip": (9, "main (float[4] x) => (float[a] y) { y = Clip <min: float = -0.5, max: float = 0.25> (x) }"),
    "clip above": (9, "main (float[4] x) => (float[a] y) { y = Clip <max: float = 0.25> (x) }"),
    "pad": (9, "main (float[2, 2] x) => (float[a, b] y) { y = Pad <pads: ints = [0, 1, 1, 0], value: float = 2.0> (x) }"),
    "split": (11, "main (float[4, 2] x) => (float[a, b] y) { p, q = Split <split: ints = [1, 3]> (x)  y = Concat <axis: int = 0> (q, p) }"),
    "even split": (13, "main (float[4, 2] x) => (float[a, b] y) { p, q = Split (x)  y = Concat <axis: int = 0> (q, p) }"),
    "topk": (9, "main (float[5] x) => (float[a] y) { y, i = TopK <k: int = 2> (x) }"),
    "dropout": (9, "main (float[5] x) => (float[a] y) { y = Dropout <ratio: float = 0.9> (x) }"),
    "batchnorm": (9, "main (float[5, 2] x) => (float[a, b] y) <float[2] s = {1.0, 2.0}> { q = Mul(s, s)  y = BatchNormalization (x, s, s, s, q) }"),
}  # fmt: skip


@pytest.mark.parametrize("case", _OLD)
def test_old_opsets_keep_their_meaning(case: str) -> None:
    opset, body = _OLD[case]
    before = parse(body, opset)
    after = read_onnx(before)
    assert after.opset_imports[""] == OPSET
    assert_same(before, after, 1e-6, engine=run_ort)


def test_upsample_becomes_resize() -> None:
    before = parse("main (float[1, 1, 2, 2] x) => (float[a, b, c, d] y) <float[4] s = {1.0, 1.0, 2.0, 2.0}> { y = Upsample(x, s) }", 9)
    after = read_onnx(before)
    assert [node.op_type for node in after.graph] == ["Resize"]
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(run(after, {"x": x})[0], x.repeat(2, axis=2).repeat(2, axis=3))


def test_old_operators_in_branches_are_upgraded() -> None:
    before = parse("""main (bool c, float[2, 3] x) => (float[a] y) {
        y = If (c) <then_branch = yes () => (float[a] p) { p = ReduceSum <axes: ints = [1], keepdims: int = 0> (x) },
                    else_branch = no () => (float[a] q) { q = ReduceMax <axes: ints = [1], keepdims: int = 0> (x) }>
    }""", 11)  # fmt: skip
    after = read_onnx(before)
    for condition in (True, False):
        feed = {**feeds(before, 0), "c": np.array(condition)}
        np.testing.assert_array_equal(run(after, feed)[0], run(before, feed)[0])


def test_a_failure_inside_the_standards_own_function_body_is_not_the_models() -> None:
    """Type inference rejects the body that the standard gives MeanVarianceNormalization."""
    body = "main (float[2, 3, 4, 5] x) => (float[a, b, c, d] y) { y = MeanVarianceNormalization(x) }"
    assert [node.op_type for node in read(body, opset=13).graph] == ["MeanVarianceNormalization"]


def test_what_cannot_be_upgraded_stays_at_its_opset() -> None:
    body = "main (float[1, 1, 4, 4] x, float[4] s) => (float[a, b, c, d] y) { y = Resize <mode: string = \"nearest\"> (x, s) }"
    assert read(body, opset=10).opset_imports[""] == 10
