"""Parts that are timed by themselves compute what they compute in the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx_text import parse, run_ort

from passes.approximate.candidate import Candidate, Site
from passes.approximate.int8_products import Int8Products
from passes.calibrate import record, with_outputs
from rewriter.infer_onnx import infer
from rewriter.unit_cost import UnitCosts

Array = np.ndarray
RANDOM = np.random.default_rng(3)


class Watched:
    """Takes the place of trials: keeps what it is asked to time."""

    def __init__(self, engine: str) -> None:
        self.engine, self.left = engine, dict[str, str]()
        self.seen: list[Mapping[str, tuple[ir.Model, Sequence[Array]]]] = []

    def times(self, variants: Mapping[str, tuple[ir.Model, Sequence[Array]]], **_: Any) -> dict[str, float]:
        self.seen.append(variants)
        return dict.fromkeys(variants, 1.0)


@pytest.mark.parametrize("engine, last", [("tvm", True), ("onnxruntime", False)])
@pytest.mark.parametrize("shape, window", [((1, 6, 9, 7), (3, 3)), ((2, 6, 11), (3,))])
def test_images_have_their_channels_where_the_engine_keeps_them(engine: str, last: bool, shape: tuple[int, ...], window: tuple[int, ...]) -> None:
    pads = ",".join(["1"] * 2 * len(window))
    sizes = ",".join(map(str, shape))
    proto = parse(f"g (float[{sizes}] x) => (z) {{ r = Abs (x)\n c = Conv <pads=[{pads}]> (r, w, b)\n y = Relu (c)\n z = Exp (y) }}")
    for name, array in (("w", RANDOM.normal(size=(16, 6, *window)) / 9), ("b", RANDOM.normal(size=16))):
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    model = ir.from_proto(proto)
    infer(model)
    feeds = [{"x": RANDOM.normal(size=shape).astype(np.float32)} for _ in range(4)]
    wanted = Int8Products().wants(model)
    names = sorted(wanted.values)
    probe = ir.to_proto(with_outputs(model, names))
    recorded = record(model, names, wanted.grams, feeds, lambda feed: run_ort(probe, feed))
    candidates = [c for c in Int8Products().propose(Site(model, recorded)) if isinstance(c, Candidate)]
    trials = Watched(engine)
    costs = UnitCosts(model, recorded, trials)  # type: ignore[arg-type]
    costs.measure(candidates, 60.0)
    (variants,) = trials.seen
    assert len(variants) == 3, "the part, and its results as codes and as floats"
    whole = dict(zip(["z", *names], run_ort(probe, feeds[0]), strict=True))
    for name, (part, arrays) in variants.items():
        assert arrays[0].shape == (np.moveaxis(whole["r"], 1, -1) if last else whole["r"]).shape
        if name.endswith("per-channel"):
            continue  # codes
        given = dict(zip((v.name or "" for v in part.graph.inputs), arrays, strict=True))
        if arrays[0].dtype == np.float32:
            got = run_ort(ir.to_proto(part), given)[0]
            want = np.moveaxis(whole["y"], 1, -1) if last else whole["y"]
            np.testing.assert_allclose(got, want, atol=1e-5 if name == "exact" else 0.05)


def test_conversions_are_timed_with_what_they_may_be_done_with_at_once() -> None:
    proto = parse("g (float[2,3] x) => (y) { y = Exp (x) }")
    model = ir.from_proto(proto)
    x = RANDOM.normal(size=(2, 3)).astype(np.float32)
    recorded = record(model, ["x"], frozenset(), [{"x": x}], lambda feed: run_ort(proto, feed))
    trials = Watched("onnxruntime")
    assert UnitCosts(model, recorded, trials).conversion("x") == (0.0, 0.0)  # type: ignore[arg-type]
    (variants,) = trials.seen
    codes = np.full((2, 3), 118, np.uint8)
    given = {"idle": x, "encode": x, "decode": codes}
    want = {"idle": np.abs(x), "encode": np.clip(np.rint(np.abs(x) / np.float32(0.05)) + 128, 0, 255), "decode": np.full((2, 3), 0.5)}
    for name, (part, arrays) in variants.items():
        assert arrays[0].dtype == given[name].dtype
        np.testing.assert_allclose(run_ort(ir.to_proto(part), {"v0": given[name]})[0], want[name], atol=1e-6)
