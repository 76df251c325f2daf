"""RepQuant: channel-wise quantisation after a norm becomes layer-wise, the channels' scales going into norm and weights, codes unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import nn

from backends import onnxruntime
from papers.fixture import Outcome, Paper, awake, each, has, normal, right, through
from passes.approximate.candidate import Candidate, Site, substituted
from passes.approximate.log2_softmax import Log2Softmax
from passes.calibrate import record as recording
from passes.calibrate import with_outputs

PAPER = Paper(
    62, "one scale and an integer zero point for the tensor, every code as before; fractional zero points are left alone; "
    "under a budget, probabilities in 4 bits as powers of the square root of two",
)  # fmt: skip
WIDTH, OUTPUTS, LEVELS, ROWS = 16, 12, 255, 40


class Quantised(nn.Module):
    """LayerNorm, a quantiser of its own for every channel, Linear: as calibration leaves it."""

    fractional = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OUTPUTS)
        generator = torch.Generator().manual_seed(8)
        self.register_buffer("s", torch.ones(WIDTH))
        self.register_buffer("z", torch.zeros(WIDTH))
        self.steps = torch.rand(WIDTH, generator=generator) * 0.02 + 0.01
        self.zeros = torch.randint(100, 156, (WIDTH,), generator=generator).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.quantise(self.norm(x)))

    def quantise(self, x: torch.Tensor) -> torch.Tensor:
        codes = torch.clamp(torch.round(x / self.s) + self.z, 0, LEVELS)
        return (codes - self.z) * self.s


class QuantisedByProducts(Quantised):
    """Reciprocal scales, the zero point inside the clamp's limits, an einsum after."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        h = F.layer_norm(features, (WIDTH,), self.norm.weight, self.norm.bias)
        centred = torch.minimum(torch.maximum((h * (1 / self.s)).round(), -self.z), LEVELS - self.z)
        return torch.einsum("ni,oi->no", centred * self.s, self.linear.weight) + self.linear.bias


class Fractional(Quantised):
    """Zero points that are no integers, as the mean in the paper's code: codes would differ by O(1)."""

    fractional = 0.5


def calibrated(module: Quantised) -> Quantised:
    awake(module)
    module.s.copy_(module.steps)
    module.z.copy_(module.zeros + module.fractional * (torch.arange(WIDTH) % 2))
    return module


def inputs() -> tuple[torch.Tensor]:
    return (normal(ROWS, WIDTH),)


def layer_wise(outcome: Outcome) -> None:
    """No constant of the quantiser is a vector: what surrounds the rounding is numbers."""
    (rounding,) = outcome.nodes("Round") or outcome.nodes("QuantizeLinear")
    around = [rounding, rounding.inputs[0].producer(), *(u.node for u in rounding.outputs[0].uses())]
    for node in (n for n in around if n is not None and n.op_type in ("Div", "Mul", "Add", "Round", "Clip", "QuantizeLinear", "DequantizeLinear")):
        for value in node.inputs[1:]:
            if value is not None and value.const_value is not None:
                assert value.const_value.size == 1, f"{node.op_type} has a vector\n{outcome.graph}"


@each(
    division=Quantised,
    products=QuantisedByProducts,
)
def test_the_quantiser_has_one_scale(module: Any, door: str, record: Any) -> None:
    outcome = through(door, calibrated(module()), inputs())
    right(outcome)
    layer_wise(outcome)
    record(PAPER, outcome)


def test_fractional_zero_points_are_left_alone() -> None:
    """Exactly the same outputs, whatever is folded around it: one code off would be 1e-2."""
    outcome = through("torch", calibrated(Fractional()), inputs(), also=[(normal(400, WIDTH, seed=5)[:ROWS],)])
    right(outcome)


class LogSqrt2(nn.Module):
    """Attention weights in powers of sqrt(2): q = round(-2 log2 a), back by 2^-ceil(q/2) and one of two constants."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Linear(WIDTH, WIDTH)

    def forward(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        q = torch.clamp(torch.round(-2 * torch.log2(scores.softmax(-1))), 0, 15)
        a = 2 ** -torch.ceil(q / 2) * ((q % 2) * (2**0.5 - 1) + 1)
        return a @ self.v(x)


def test_powers_of_the_square_root_of_two_are_right() -> None:
    """The codes decide; whatever is simplified, they stay as they are."""
    outcome = through("torch", awake(LogSqrt2()), (normal(6, ROWS), normal(ROWS, WIDTH, seed=2)))
    right(outcome)
    has(outcome, Round=1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Linear(WIDTH, WIDTH)

    def forward(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return scores.softmax(-1) @ self.v(x)


class AttentionByEinsum(Attention):
    def forward(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        v = torch.einsum("ti,oi->to", x, self.v.weight) + self.v.bias
        return torch.einsum("qt,to->qo", torch.softmax(scores, 1), v)


@each(plain=Attention, einsum=AttentionByEinsum)
def test_attention_is_quantised_as_the_paper_does_it(module: Any, door: str) -> None:
    """Within a budget, probabilities become the authors' powers: beyond the last one, which is one short of theirs here, there is nothing."""
    network, kind = awake(module()), Log2Softmax()
    exact = through(door, network, (normal(6, ROWS), normal(ROWS, WIDTH, seed=2)))
    graph = exact.result.ir_model
    names, ports = sorted(kind.wants(graph).values), [v.name or "" for v in graph.graph.inputs]
    probe = onnxruntime.build(ir.to_proto(with_outputs(graph, names)), threads=1)
    feeds = [dict(zip(ports, (normal(6, ROWS, seed=k).numpy(), normal(ROWS, WIDTH, seed=k).numpy()), strict=True)) for k in range(8)]
    recorded = recording(graph, names, frozenset(), feeds, lambda feed: list(probe(*feed.values())))
    (found,) = kind.propose(Site(graph, recorded))
    assert isinstance(found, Candidate) and found.layer_error < 0.03
    changed = substituted(graph, [found])
    zero = next(int(w.const_value.numpy()) for w in changed.graph.initializers.values() if w.name.startswith("zero"))  # type: ignore[union-attr]
    scores, x = (torch.from_numpy(f) for f in feeds[3].values())
    s = 2 ** ((15 - zero) / 2)
    q = torch.round(-2 * torch.log2(scores.double().softmax(-1) / s)).clamp(min=0)
    a = s * 2 ** -torch.ceil(q / 2) * ((q % 2) * (2**0.5 - 1) + 1) * (q < 15)
    got = onnxruntime.build(ir.to_proto(changed), threads=1)(scores.numpy(), x.numpy())[0]
    want = (a @ network.double().v(x.double())).detach().numpy()
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


class SharedNorm(Quantised):
    """The norm has another reader that is no quantiser: its scale must reach that one unchanged."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return self.linear(self.quantise(h)) + h[:, :OUTPUTS]


def test_a_norm_with_another_reader_is_right() -> None:
    outcome = through("torch", calibrated(SharedNorm()), inputs())
    right(outcome)
    assert np.isfinite(outcome.error)
