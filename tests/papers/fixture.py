"""What the papers' tests share: a paper, the two front doors, the figures that can be asserted, and the record for docs/papers.md.

A module goes through a door (from PyTorch, or from an ONNX file whose names say nothing), and what comes out is compared with the module
itself in float64. A figure is then a statement about the graph that came out, usually that it is the graph of another, plain module.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import rewriter
from papers.catalogue import PAPERS
from rewriter.read_torch import one_registry, read_torch
from rewriter.text import text
from zoo import ort
from zoo.renamed import renamed

DOORS = ("torch", "onnx")
EXACT = 1e-5
"""Relative to the largest value: what float32 leaves of an equality over the reals."""


@dataclass(frozen=True)
class Paper:
    """``figure``: what its test shows, in a few words."""

    number: int
    figure: str

    @property
    def title(self) -> str:
        return PAPERS[self.number].title

    @property
    def klass(self) -> str:
        return PAPERS[self.number].klass


@dataclass
class Outcome:
    """What a door gave, what it costs, and the largest error of its outputs on all inputs."""

    result: rewriter.Optimized
    error: float
    door: str
    outputs: list[np.ndarray] = field(default_factory=list)
    """On the first input."""

    @property
    def ops(self) -> dict[str, int]:
        return self.result.report.after.ops

    @property
    def macs(self) -> int:
        return self.result.report.after.macs

    @property
    def weight_bytes(self) -> int:
        return self.result.report.after.weight_bytes

    @property
    def graph(self) -> str:
        return text(self.result.ir_model)

    @property
    def products(self) -> int:
        """Matrix products and convolutions."""
        return sum(self.ops.get(op, 0) for op in ("MatMul", "Gemm", "Conv"))

    def nodes(self, op: str) -> list[Any]:
        return [n for n in self.result.ir_model.graph if n.op_type == op]

    def weights(self) -> list[np.ndarray]:
        """All stored floating-point weights."""
        values = self.result.ir_model.graph.initializers.values()
        arrays = [v.const_value.numpy() for v in values if v.const_value is not None]
        return [a for a in arrays if a.dtype.kind == "f"]

    def matrices(self) -> list[tuple[int, ...]]:
        """Shapes of the stored weights of matrix products and convolutions, sorted."""
        readers = [n for n in self.result.ir_model.graph if n.op_type in ("MatMul", "Gemm", "Conv")]
        read = {v for n in readers for v in n.inputs[:2] if v is not None and v.const_value is not None}
        return sorted(tuple(v.const_value.shape.numpy()) for v in read if v.const_value is not None)


Build = Callable[[], nn.Module]
Inputs = Sequence[torch.Tensor]


def through(
    door: str, module: nn.Module, inputs: Inputs, *, also: Sequence[Inputs] = (), constants: Mapping[str, Any] | None = None, **options: Any
) -> Outcome:
    """The module optimised through a door. ``also``: more inputs (adversarial ones) on which its outputs must be right."""
    module.eval()
    constants = dict(constants or {})
    names = list(inspect.signature(module.forward).parameters)[: len(inputs)]
    if door == "torch":
        result = rewriter.optimize(module, tuple(inputs), constants=constants, **options)
    else:
        proto = renamed(exported(module, inputs))
        ports = dict(zip(names, (p.name for p in proto.graph.input), strict=True))
        result = rewriter.optimize(proto, constants={ports[n]: v for n, v in constants.items()}, **options)
    kept = [i for i, name in enumerate(names) if name not in constants]
    runs = [_run(result.model, [each[i] for i in kept]) for each in (inputs, *also)]
    errors = [_error(got, truth(module, each)) for got, each in zip(runs, (inputs, *also), strict=True)]
    return Outcome(result, max(errors), door, runs[0])


def exported(module: nn.Module, inputs: Inputs) -> onnx.ModelProto:
    """The module as PyTorch's own exporter writes it, without its optimiser; what it cannot write (seeded draws, complex weights) as read."""
    silence = (warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), torch.no_grad(), one_registry())
    with contextlib.ExitStack() as stack:
        for each in silence:
            stack.enter_context(each)
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(module, tuple(inputs), dynamo=True, optimize=False, verbose=False, external_data=False)
            assert program is not None
            return program.model_proto
        except Exception:  # noqa: BLE001  whatever PyTorch fails on
            return ir.to_proto(read_torch(module, tuple(inputs)).model)


def from_onnx(proto: onnx.ModelProto, feeds: Sequence[Sequence[np.ndarray]], want: Sequence[Sequence[np.ndarray]] = (), **options: Any) -> Outcome:
    """A hand-written ONNX model through its door; without ``want`` it is compared with itself on ONNX Runtime."""
    proto = renamed(proto)
    result = rewriter.optimize(proto, **options)
    want = want or [ort.run(proto, ort.feed_of(proto, feed)) for feed in feeds]
    runs = [_run(result.model, feed) for feed in feeds]
    return Outcome(result, max(_error(g, w) for g, w in zip(runs, want, strict=True)), "onnx", runs[0])


def truth(module: nn.Module, inputs: Inputs) -> list[np.ndarray]:
    """The module's outputs in float64."""
    module = copy.deepcopy(module).double().eval()
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        result = module(*wide)
    return [y.numpy() for y in (result if isinstance(result, (tuple, list)) else [result])]


def _run(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[np.ndarray]:
    return ort.run(model, ort.feed_of(model, inputs))


def _error(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> float:
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        if w.dtype.kind != "f":
            np.testing.assert_array_equal(g, w)
    return max([ort.relative(g, w) for g, w in zip(got, want, strict=True) if w.dtype.kind == "f"], default=0.0)


# Figures


@cache
def plain(build: Build, inputs: Callable[[], Inputs], *, as_built: bool = False) -> Outcome:
    """What a plain module becomes: the base that a merged one is held against. Its weights are random, or ``as_built``."""
    return through("torch", build() if as_built else awake(build()), inputs())


def is_plain(outcome: Outcome, base: Outcome, tolerance: float = EXACT) -> None:
    """The same operators on weights of the same shapes, nothing more, and the right numbers."""
    __tracebackhide__ = True
    right(outcome, tolerance)
    assert outcome.ops == base.ops, f"operators {outcome.ops}, of the plain module {base.ops}\n{outcome.graph}"
    assert outcome.matrices() == base.matrices(), f"matrices {outcome.matrices()}, of the plain module {base.matrices()}\n{outcome.graph}"
    assert outcome.macs == base.macs, f"{outcome.macs} multiply-accumulates, the plain module {base.macs}\n{outcome.graph}"


def right(outcome: Outcome, tolerance: float = EXACT, *, kept: bool = False) -> None:
    """Verified, on the way that was meant, and the numbers are the module's. ``kept``: the model as it was may be the best."""
    __tracebackhide__ = True
    report = outcome.result.report
    assert report.verification.passed, f"verification: {report.verification.reason}\n{outcome.graph}"
    bad = [n for n in report.notes if ("was kept" in n and not kept) or "wrong result" in n or "limit of" in n]
    assert not bad, f"{bad}\n{outcome.graph}"
    assert math.isfinite(outcome.error) and outcome.error <= tolerance, f"error {outcome.error:.3g} > {tolerance}\n{outcome.graph}"


def has(outcome: Outcome, **counts: int) -> None:
    """That many operators of each kind."""
    __tracebackhide__ = True
    got = {op: outcome.ops.get(op, 0) for op in counts}
    assert got == counts, f"{got}, expected {counts}\n{outcome.graph}"


def at_most(outcome: Outcome, macs: float) -> None:
    __tracebackhide__ = True
    assert outcome.macs <= macs, f"{outcome.macs} multiply-accumulates, at most {macs:g} expected\n{outcome.graph}"


def run_time_only(outcome: Outcome) -> None:
    """Nothing is left that weights alone decide: every node hangs on an input of the model."""
    __tracebackhide__ = True
    graph = outcome.result.ir_model.graph
    live = set(graph.inputs)
    for node in graph:
        if any(v in live for v in node.inputs):
            live.update(node.outputs)
    dead = [n.op_type for n in graph if not any(v in live for v in n.inputs)]
    assert not dead, f"computed from weights at run time: {dead}\n{outcome.graph}"


# Modules


def awake(module: nn.Module, seed: int = 0) -> Any:
    """Random weights everywhere, the same for every instance: what training starts at zero or one would let a wrong merge pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(noise.abs() + 0.5)
            elif value.ndim > 1:
                value.copy_(noise / math.sqrt(value[0].numel()))
            else:  # around one what starts at one (scales of norms), around zero the rest
                value.copy_(0.3 * noise + float(bool((value == 1).all())))
    return module.eval()


def normal(*shape: int, seed: int = 1, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def each(missing: Mapping[str, str] | None = None, **spellings: Any) -> Any:
    """Parametrise a test over spellings and doors. ``missing``: a spelling (or "door-spelling") to the reason why it cannot pass yet.

    A third spelling and more go through the ONNX door only in the slow tests: two suffice to see that no name or operator is meant.
    """
    reasons = dict(missing or {})
    cases = []
    for door in DOORS:
        for place, (name, module) in enumerate(spellings.items()):
            reason = reasons.get(f"{door}-{name}", reasons.get(name))
            marks = [] if reason is None else [pytest.mark.xfail(strict=True, reason=reason)]
            if door == "onnx" and place > 1:
                marks.append(pytest.mark.slow)
            cases.append(pytest.param(module, door, id=f"{door}-{name}", marks=marks))
    return pytest.mark.parametrize(("module", "door"), cases)
