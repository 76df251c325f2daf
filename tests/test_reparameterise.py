"""Training-time branches of image networks merge, from plain traces, as timm's own reparameterisation merges them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import rewriter
from zoo import ort, packages, reparameterise

SIZE = 64


@pytest.mark.parametrize("name", reparameterise.CONVOLUTIONS)
def test_branches_merge(name: str) -> None:
    try:
        module = reparameterise.network(name)
    except (ImportError, packages.Missing) as missing:
        pytest.skip(str(missing))
    x = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    before, after = reparameterise.CONVOLUTIONS[name]
    with torch.no_grad():
        want = module(x).numpy()
        by_timm = reparameterise.merged_by_timm(module)(x).numpy()

    result = rewriter.optimize(module, (x,))
    got = ort.run(result.model, ort.feed_of(result.model, [x]))[0]

    assert result.report.verification.passed
    assert result.report.before.ops["Conv"] == before
    assert result.report.after.ops["Conv"] <= after
    assert "BatchNormalization" not in result.report.after.ops
    assert result.report.after.nodes < result.report.before.nodes
    assert ort.relative(got, want) <= 1e-5
    assert ort.relative(got, by_timm) <= 1e-5
