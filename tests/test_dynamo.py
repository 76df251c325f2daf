"""``torch.compile(module, backend="rewriter")``: the same results, whatever PyTorch hands over."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rewriter
from rewriter.dynamo import compile_fx


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[rewriter.Compiled, dict[str, Any]]]:
    """Every ``rewriter.compile`` that the backend makes: what it gave and its options."""
    import rewriter.pipeline as pipeline

    made: list[tuple[rewriter.Compiled, dict[str, Any]]] = []
    real = pipeline.compile

    def recorded(*arguments: Any, **options: Any) -> rewriter.Compiled:
        compiled = real(*arguments, **options)
        made.append((compiled, options))
        return compiled

    monkeypatch.setattr(pipeline, "compile", recorded)
    return made


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base, self.down, self.up = nn.Linear(6, 8), nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.base(x) + 2 * self.up(self.down(x)) + self.shift)


OPTIONS = {"backend": "onnxruntime", "threads": 1}
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
Calls = list[tuple[rewriter.Compiled, dict[str, Any]]]


def test_a_module_is_merged_and_gives_the_same(calls: Calls) -> None:
    net = Net().eval()
    fast = torch.compile(net, backend=compile_fx, options=OPTIONS)
    with torch.no_grad():
        got = fast(X)
        again = fast(X + 1)
    assert len(calls) == 1 and calls[0][1] == OPTIONS
    report = calls[0][0].report
    assert calls[0][0].backend == "onnxruntime" and report.verification.passed is True
    assert report.after.ops.get("MatMul", 0) + report.after.ops.get("Gemm", 0) == 1 < report.before.ops.get("MatMul", 0) + report.before.ops.get("Gemm", 0)
    assert isinstance(got, torch.Tensor) and not got.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(got, net(X), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again, net(X + 1), rtol=1e-5, atol=1e-5)


def test_options_reach_the_compiler(calls: Calls) -> None:
    fast = torch.compile(Net().eval(), backend=compile_fx, options={**OPTIONS, "disable": ["maps-add", "maps-compose"]})
    with torch.no_grad():
        fast(X)
    report = calls[0][0].report
    assert not {"matmul/maps-add", "matmul/maps-compose"} & {r["rule"] for r in report.rewrites}


def test_a_wrong_option_is_said_and_the_module_still_runs() -> None:
    net = Net().eval()
    fast = torch.compile(net, backend=compile_fx, options={**OPTIONS, "disable": ["maps-ad"]})
    with torch.no_grad(), pytest.warns(UserWarning, match="rewriter runs a graph in PyTorch: no rule 'maps-ad'; did you mean"):
        torch.testing.assert_close(fast(X), net(X))


def test_functions_and_several_results(calls: Calls) -> None:
    weight = torch.randn(6, 6)

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        z = x @ weight + y
        return z.sum(-1), {"z": z}

    fast = torch.compile(function, backend=compile_fx, options=OPTIONS)
    total, rest = fast(X, X + 1)
    assert len(calls) == 1
    want, want_rest = function(X, X + 1)
    torch.testing.assert_close(total, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rest["z"], want_rest["z"], rtol=1e-5, atol=1e-5)


def test_graph_breaks_and_control_flow_in_python(calls: Calls) -> None:
    net = Net().eval()

    def function(x: torch.Tensor) -> torch.Tensor:
        y = net(x)
        torch._dynamo.graph_break()
        return net(y[:, :6]) if y.sum() > 0 else y

    fast = torch.compile(function, backend=compile_fx, options=OPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(fast(X), function(X), rtol=1e-5, atol=1e-5)
    assert len(calls) >= 2


def test_another_shape_is_another_graph_or_a_dynamic_one() -> None:
    net = Net().eval()
    fast = torch.compile(net, backend=compile_fx, options=OPTIONS)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # symbolic sizes run in PyTorch, and the warning says so
        for rows in (5, 3, 1, 9):
            x = torch.ones(rows, 6)
            torch.testing.assert_close(fast(x), net(x), rtol=1e-5, atol=1e-5)


def test_weights_that_change_are_folded_again(calls: Calls) -> None:
    net, other = Net().eval(), Net().eval()
    fast = torch.compile(net, backend=compile_fx, options=OPTIONS)
    with torch.no_grad():
        fast(X)
        for parameter in other.parameters():
            parameter.mul_(-2)
        net.load_state_dict(other.state_dict())
        torch.testing.assert_close(fast(X), other(X), rtol=1e-5, atol=1e-5)
        net.shift = torch.ones(8)
        other.shift = torch.ones(8)
        torch.testing.assert_close(fast(X), other(X), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1  # no search was needed
    with torch.inference_mode():
        torch.testing.assert_close(fast(X), other(X), rtol=1e-5, atol=1e-5)


def test_a_zero_that_a_rewrite_relied_on_may_go() -> None:
    net = Net().eval()
    net.shift.zero_()
    fast = torch.compile(net, backend=compile_fx, options=OPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(fast(X), net(X), rtol=1e-5, atol=1e-5)
        net.shift.fill_(3)
        torch.testing.assert_close(fast(X), net(X), rtol=1e-5, atol=1e-5)


def test_gradients_are_the_modules() -> None:
    net, twin = Net().eval(), Net().eval()
    fast = torch.compile(net, backend=compile_fx, options=OPTIONS)
    mine, its = X.clone().requires_grad_(), X.clone().requires_grad_()
    for step in range(2):
        for module, run, x in ((net, fast, mine), (twin, twin, its)):
            run(x).square().sum().backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.01 * parameter.grad
                    parameter.grad = None
        assert mine.grad is not None and its.grad is not None and its.grad.abs().max() > 0.1
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-4, msg=f"step {step}")
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-4)


def test_a_graph_that_trains_runs_in_pytorch() -> None:
    for layer in (nn.BatchNorm1d(6), nn.Dropout(0.5)):
        net = nn.Sequential(nn.Linear(6, 6), layer).train()
        fast = torch.compile(net, backend=compile_fx, options=OPTIONS)
        with pytest.warns(UserWarning, match="training mode: call eval"):
            fast(X).sum().backward()
        assert net[0].weight.grad is not None
    norm = nn.BatchNorm1d(6).train()
    with pytest.warns(UserWarning, match="training mode"):
        torch.compile(norm, backend=compile_fx, options=OPTIONS)(X)
    assert norm.num_batches_tracked == 1 and norm.running_mean is not None and norm.running_mean.abs().max() > 0


def test_batch_norm_is_folded(calls: Calls) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    fast = torch.compile(net, backend=compile_fx, options=OPTIONS)
    image = torch.rand(1, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(fast(image), net(image), rtol=1e-5, atol=1e-5)
    assert calls[0][0].report.after.ops == {"Conv": 1}


def test_the_entry_point_is_installed_under_the_name_rewriter() -> None:
    from importlib.metadata import entry_points

    found = [e for e in entry_points(group="torch_dynamo_backends") if e.name == "rewriter"]
    if not found:
        pytest.skip("the project runs from its checkout, not installed")
    assert found[0].load() is compile_fx
    net = Net().eval()
    with torch.no_grad():
        np.testing.assert_allclose(torch.compile(net, backend="rewriter", options=OPTIONS)(X).numpy(), net(X).numpy(), rtol=1e-5, atol=1e-5)
