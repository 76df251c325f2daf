"""A recurrence over a batch that was put together is taken apart where it is split again; flipped parts run the other way."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.drop_dead import drop_dead
from passes.part_batch import part_batch
from rewriter.functions import define
from rewriter.infer_onnx import infer
from zoo import ort

BATCH, TIME, KEYS, VALUES = 2, 5, 3, 4
WIDTHS = {"q": KEYS, "k": KEYS, "v": VALUES, "g": KEYS}
FLIP = {"begin": [-1], "end": [-(1 << 62)], "axis": [1], "step": [-1]}


def twice(flipped: str = "qkvg", pieces: tuple[int, int] = (BATCH, BATCH), axis: int = 1, read: bool = False) -> ir.Model:
    """``flipped``: of the second half of the batch; ``axis``: that is flipped; ``read``: the whole result is an output too."""
    numbers = {**FLIP, "axis": [axis], "pieces": list(pieces)}
    flip = ["begin", "end", "axis", "step"]
    nodes = [helper.make_node("Slice", [name, *flip], [f"{name}f"]) for name in WIDTHS]
    nodes += [helper.make_node("Concat", [n, f"{n}f" if n in flipped else n], [f"{n}2"], axis=0) for n in WIDTHS]
    nodes.append(helper.make_node("LinearRecurrence", ["q2", "k2", "v2", "g2"], ["o"], domain="rewriter"))
    nodes.append(helper.make_node("Split", ["o", "pieces"], ["a", "r"], axis=0))
    nodes.append(helper.make_node("Slice", ["r", *flip], ["b"]))
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [BATCH, TIME, w]) for n, w in WIDTHS.items()]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("a", "b", *(["o"] if read else []))]
    weights = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in numbers.items()]
    graph = helper.make_graph(nodes, "twice", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("rewriter", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    define(model, "LinearRecurrence")
    infer(model)
    return model


def outputs(model: ir.Model) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    feed = {n: random.normal(size=(BATCH, TIME, w)).astype(np.float32) for n, w in WIDTHS.items()}
    feed["g"] = -np.abs(feed["g"])
    return ort.run(ir.to_proto(model), feed)


@pytest.mark.parametrize(("options", "reverse", "slices"), [({}, [0, 1], 0), ({"flipped": ""}, [0, 0], 1), ({"flipped": "qkv"}, [0, 0], 4)])
def test_each_part_runs_by_itself(options: dict[str, str], reverse: list[int], slices: int) -> None:
    """Only where all four are flipped does a part run backwards."""
    want, model = outputs(twice(**options)), twice(**options)
    assert part_batch(model) == 1
    drop_dead(model)
    runs = [n.attributes.get_int("reverse", 0) for n in model.graph if n.op_type == "LinearRecurrence"]
    assert sorted(runs) == reverse
    assert [n.op_type for n in model.graph].count("Slice") == slices
    assert "Concat" not in [n.op_type for n in model.graph]
    for got, expected in zip(outputs(model), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"pieces": (1, 3)}, {"read": True}], ids=["other pieces", "the whole is read"])
def test_left_alone(options: dict[str, object]) -> None:
    model = twice(**options)  # type: ignore[arg-type]
    assert part_batch(model) == 0


def test_features_that_are_flipped_are_not_time() -> None:
    want, model = outputs(twice(axis=2)), twice(axis=2)
    part_batch(model)
    assert [n.attributes.get_int("reverse", 0) for n in model.graph if n.op_type == "LinearRecurrence"] == [0, 0]
    for got, expected in zip(outputs(model), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
