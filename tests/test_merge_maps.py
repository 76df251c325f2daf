"""Maps of one tensor become one map where more than the product merges with them; nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import assert_same, parse, read, run

import rewriter
from passes.merge_maps import NAME, merge_maps
from rewriter.cost import Prices
from rewriter.infer_onnx import infer


def weights(count: int, *shape: int, name: str = "w") -> str:
    random = np.random.default_rng(len(name) + count)
    dims = ",".join(map(str, shape))
    return ", ".join(f"float[{dims}] {name}{k} = {{{','.join(f'{v:.3f}' for v in random.normal(size=shape).ravel())}}}" for k in range(count))


def merged(body: str) -> tuple[ir.Model, int]:
    model = read(body)
    infer(model)
    count = merge_maps(model, Prices())
    return model, count


def ops(model: ir.Model) -> dict[str, int]:
    kinds = [n.op_type for n in model.graph]
    return {k: kinds.count(k) for k in sorted(set(kinds)) if k != "Concat"}


LINES = "".join(f" a{k} = MatMul(x, w{k}) r{k} = Relu(a{k})" for k in range(3))
THREE = f"main (float[n,5] x) => (float[n,1] r0, float[n,1] r1, float[n,1] r2) <{weights(3, 5, 1)}> {{ {LINES} }}"
CELL = (
    f"main (float[1,3] x, float[1,2] h) => (float[1,2] y) <{weights(5, 3, 2)}, {weights(5, 2, 2, name='u')}, {weights(5, 2, name='b')}> {{ "
    + " ".join(f"a{k} = MatMul(x, w{k}) c{k} = MatMul(h, u{k}) s{k} = Add(c{k}, a{k}) z{k} = Add(s{k}, b{k})" for k in range(5))
    + " p = Sigmoid(z0) q = Tanh(z1) r = Mul(p, q) s = Mul(r, z2) t = Add(s, z3) y = Sub(t, z4) }"
)
IMAGE = (
    f"main (float[1,2,3,3] x) => (float[1,1,3,3] y) <{weights(4, 1, 2, 3, 3)}, {weights(4, 1, name='b')}> {{ "
    + " ".join(f"a{k} = Conv<pads=[1,1,1,1]>(x, w{k}, b{k}) r{k} = Relu(a{k})" for k in range(4))
    + " s = Mul(r0, r1) t = Sub(s, r2) y = Mul(t, r3) }"
)


@pytest.mark.parametrize(
    ("body", "count", "expected"),
    [
        (THREE, 2, {"MatMul": 1, "Relu": 1, "Split": 1}),
        (CELL, 8, {"Add": 3, "MatMul": 2, "Mul": 2, "Sigmoid": 1, "Split": 1, "Sub": 1, "Tanh": 1}),
        (IMAGE, 3, {"Conv": 1, "Mul": 2, "Relu": 1, "Split": 1, "Sub": 1}),
    ],
    ids=["function", "cell", "image"],
)
def test_what_follows_merges_too(body: str, count: int, expected: dict[str, int]) -> None:
    model, found = merged(body)
    assert (found, ops(model)) == (count, expected)
    assert_same(parse(body), model, 1e-6, 1, engine=run, n=1)
    if "[n," in body:
        assert_same(parse(body), model, 1e-6, 3, engine=run, n=3)


def bodies() -> dict[str, str]:
    """What must stay as it is, and why."""
    three = "main (float[n,5] x) => (float[n,2] y) <" + weights(3, 5, 2) + "> { "
    plain = " ".join(f"a{k} = MatMul(x, w{k})" for k in range(3))
    twice = " ".join(f"a{k} = MatMul(x, w{k}) r{k} = Relu(a{k})" for k in range(3))
    return {
        "a Split costs more than three products": f"{three}{plain} s = Mul(a0, a1) y = Sub(s, a2) }}",
        "the functions differ": f"{three}{plain} p = Relu(a0) q = Tanh(a1) r = Sigmoid(a2) s = Mul(p, q) y = Sub(s, r) }}",
        "a value is read twice": f"{three}{twice} p = Mul(r0, r1) q = Sub(p, r2) t = Add(a0, a1) v = Mul(t, a2) y = Add(q, v) }}",
        "the functions' attributes differ": f"{three}{plain} p = Elu<alpha=0.5>(a0) q = Elu<alpha=1.5>(a1) r = Elu(a2) s = Mul(p, q) y = Sub(s, r) }}",
        "one weight is read elsewhere": three.replace("float[n,2] y", "float[n,2] y, float[5,2] z")
        + " ".join(f"a{k} = MatMul(x, w{min(k, 1)}) r{k} = Relu(a{k})" for k in range(3))
        + " z = Relu(w2) s = Mul(r0, r1) y = Sub(s, r2) }",
        "another tensor": "main (float[n,5] x, float[n,5] v, float[n,5] u) => (float[n,2] y) <"
        + weights(3, 5, 2)
        + "> { a0 = MatMul(x, w0) a1 = MatMul(v, w1) a2 = MatMul(u, w2) p = Relu(a0) q = Relu(a1) r = Relu(a2) s = Mul(p, q) y = Sub(s, r) }",
    }


@pytest.mark.parametrize("reason", bodies())
def test_left_alone(reason: str) -> None:
    model, found = merged(bodies()[reason])
    assert found == 0, ops(model)
    assert "Split" not in ops(model)


def test_sums_that_broadcast_are_no_sums_of_slices() -> None:
    """h has one row, x has four: the two halves of a cell are of different sizes, and each is merged by itself or not at all."""
    body = CELL.replace("float[1,3] x", "float[4,3] x").replace("float[1,2] y", "float[4,2] y")
    model, _ = merged(body)
    assert_same(parse(body), model, 1e-6, 1, engine=run)


def test_through_the_front_door_new_weights_too() -> None:
    """It is in the report under its name, and can be switched off."""
    proto = parse(CELL)
    result = rewriter.optimize(proto)
    assert result.report.after.ops["Split"] == 1
    assert NAME in {r["rule"] for r in result.report.rewrites}
    assert "Split" not in rewriter.optimize(proto, disable=(NAME,)).report.after.ops
    assert "Split" not in rewriter.optimize(proto, objective="memory").report.after.ops


def test_updated_weights_reach_the_merged_map() -> None:
    proto = parse(CELL)
    compiled = rewriter.compile(proto, backend="onnxruntime")
    new = onnx.ModelProto()
    new.CopyFrom(proto)
    for weight in new.graph.initializer:
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    compiled.update({w.name: onnx.numpy_helper.to_array(w) for w in new.graph.initializer})
    feed = [np.array([[0.3, -1.0, 2.0]], np.float32), np.array([[0.5, -0.25]], np.float32)]
    want = rewriter.compile(new, backend="onnxruntime", disable=(NAME,))(*feed)
    np.testing.assert_allclose(np.asarray(compiled(*feed)), np.asarray(want), rtol=1e-5, atol=1e-6)
