"""Merging checkpoints by parameter competition balancing: the paper's formula, what never changes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

import rewriter
from rewriter.errors import InvalidInput
from rewriter.merging import merge

Array = np.ndarray[Any, Any]


def checkpoints(count: int, seed: int = 0) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    rng = np.random.default_rng(seed)
    base = {"a.weight": rng.standard_normal((5, 7)), "a.bias": rng.standard_normal(5), "steps": np.int64(3)}
    base = {n: np.asarray(v, np.float32) if v.dtype.kind == "f" else v for n, v in base.items()}
    change = lambda v: v + rng.standard_normal(v.shape).astype(np.float32) / 10 if v.dtype.kind == "f" else v  # noqa: E731
    return base, [{n: change(v) for n, v in base.items()} for _ in range(count)]


def paper(base: Array, models: list[Array], ratio: float, scale: float) -> Array:
    """The formula as the paper's program has it, all weights at once."""
    t = np.stack([m - base for m in models]).astype(np.float64)

    def norm(z: Array) -> Array:
        low, high = z.min(1, keepdims=True), z.max(1, keepdims=True)
        return (z - low) / (high - low)

    balance = np.exp(len(t) * norm(np.abs(t)) ** 2) * np.tanh(t * t.sum(0))
    s = norm(np.maximum(balance, np.quantile(balance, 1 - ratio, axis=1, keepdims=True)))
    return np.asarray(base + (scale * t * s).sum(0) / np.maximum(s.sum(0), 1e-12))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_papers_formula(count: int, ratio: float) -> None:
    base, models = checkpoints(count)
    flat = [np.concatenate([w["a.weight"].reshape(-1), w["a.bias"]]) for w in (base, *models)]
    got = merge(models, base=base, ratio=ratio, scale=0.7)
    want = paper(flat[0], flat[1:], ratio, 0.7)
    np.testing.assert_allclose(np.concatenate([got["a.weight"].reshape(-1), got["a.bias"]]), want, atol=1e-5)
    assert got["steps"] == 3 and got["a.weight"].dtype == np.float32


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.floats(0.01, 1.0), st.integers(0, 100))
def test_between_the_base_and_what_was_learned(count: int, ratio: float, seed: int) -> None:
    """Every merged change lies in the hull of the models' changes and none; a model that is the base changes nothing."""
    base, models = checkpoints(count, seed)
    got = merge([*models, base], base=base, ratio=ratio)
    for name in ("a.weight", "a.bias"):
        changes = np.stack([np.zeros_like(base[name]), *(m[name] - base[name] for m in models)])
        change = got[name] - base[name]
        assert (change <= changes.max(0) + 1e-5).all() and (change >= changes.min(0) - 1e-5).all()
    same = merge([base, base], base=base)
    assert all(np.array_equal(same[n], base[n]) for n in base)


def test_modules_with_batch_norms(recwarn: pytest.WarningsRecorder) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    make: Callable[[], Any] = lambda: torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))  # noqa: E731
    base, one, two = make(), make(), make()
    one[1].running_mean += 1.0
    before = {n: v.clone() for n, v in one.state_dict().items()}
    got = merge([one, two], base=base, ratio=0.5)
    assert type(got) is type(base) and got is not base
    torch.testing.assert_close(got[1].running_mean, torch.full((3,), 0.5))
    assert any("batch norms" in str(w.message) for w in recwarn)
    assert not torch.equal(got[0].weight, base[0].weight)
    torch.testing.assert_close(dict(one.state_dict()), before)
    kept = merge([one, two], base=base, keep=["0.*", "1.*"])
    torch.testing.assert_close(dict(kept.state_dict()), dict(base.state_dict()))


def linear(scale: float, more: str = "y = Add (p, b)") -> onnx.ModelProto:
    made = parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]>\ng (float[2,4] x) => (float[2,3] y) {{ p = MatMul (x, w)\n {more} }}')
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 3)), ("b", (3,))):
        made.graph.initializer.append(numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name))
    return made


def test_onnx_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.onnx" for k in range(3)]
    for path, scale in zip(paths, (1.0, 1.1, 1.3), strict=True):
        onnx.save(linear(scale), path)
    got = rewriter.merge(paths[1:], base=paths[0], ratio=1.0)
    assert isinstance(got, ir.Model)
    arrays = [{n: v.const_value.numpy() for n, v in m.graph.initializers.items() if v.const_value} for m in map(ir.load, paths)]
    want = merge(arrays[1:], base=arrays[0], ratio=1.0)
    for name, value in got.graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), want[name])
    assert rewriter.optimize(got).report.verification.passed


def test_what_is_refused() -> None:
    base, models = checkpoints(2)
    other = {**models[0], "a.bias": np.zeros(6, np.float32)}
    missing = {n: v for n, v in models[0].items() if n != "a.bias"}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "nothing to merge"), (models, {"ratio": 0.0}, "ratio=0.0"), (models, {"scale": [1.0]}, "each of the 2 models"),
        ([models[0], other], {}, r"'a.bias' is \[6\] in model 2 and \[5\] in base"), ([missing], {}, "no weight 'a.bias'"),
        ([{**models[0], "more": np.zeros(1)}], {}, "a weight 'more'"), ([{**models[0], "steps": np.int64(4)}], {}, "'steps' holds no real numbers"),
        ([{**models[0], "a.bias": np.full(5, np.nan, np.float32)}], {}, "not finite"), ([linear(1.0)], {}, "models of one kind"),
    ]  # fmt: skip
    for given_, options, said in cases:
        with pytest.raises(InvalidInput, match=said):
            merge(given_, base=base, **options)
    with pytest.raises(InvalidInput, match="other operators"):
        merge([linear(1.0, "q = Relu (p)\n y = Add (q, b)")], base=linear(1.0))
    assert np.array_equal(merge([models[0], other], base=base, keep=["a.bias"])["a.bias"], base["a.bias"])
