"""Adapters for audio transformers, as released: one computes a convolution and one a norm that nobody reads; batch norms fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import nn

from papers.fixture import Paper, awake, each, exported, from_onnx, has, normal, right, through

PAPER = Paper(51, "the dead convolution, the dead norm and the batch norm are gone")
WIDTH, RANK, KERNEL, TOKENS = 12, 4, 3, 9


class Conformer(nn.Module):
    """The norm's result is overwritten by a transpose of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.ln, self.p1, self.p2 = nn.LayerNorm(WIDTH), nn.Conv1d(WIDTH, 2 * RANK, 1), nn.Conv1d(RANK, WIDTH, 1)
        self.dw, self.bn = nn.Conv1d(RANK, RANK, KERNEL, groups=RANK, padding="same"), nn.BatchNorm1d(RANK)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln(x)
        y = x.transpose(1, 2)
        return self.p2(F.silu(self.bn(self.dw(F.glu(self.p1(y), 1))))).transpose(1, 2)


class ConformerByLinear(Conformer):
    """Pointwise layers as einsums over channels that come last; GLU by chunks, SiLU as x sigmoid(x), BN by its formula."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ln(x)
        a, g = (torch.einsum("ntd,rd->ntr", x, self.p1.weight[..., 0]) + self.p1.bias).chunk(2, -1)
        y = F.conv1d((a * torch.sigmoid(g)).transpose(1, 2), self.dw.weight, self.dw.bias, padding=KERNEL // 2, groups=RANK)
        scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
        y = y * scale[:, None] + (self.bn.bias - self.bn.running_mean * scale)[:, None]
        y = (y * torch.sigmoid(y)).transpose(1, 2)
        return y @ self.p2.weight[..., 0].t() + self.p2.bias


class Convpass(nn.Module):
    """The convolution's result is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.conv = nn.Linear(WIDTH, RANK), nn.Linear(RANK, WIDTH), nn.Conv1d(RANK, RANK, KERNEL, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.down(x))
        self.conv(y.transpose(1, 2))
        return x + self.up(y)


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, TOKENS, WIDTH),)


@each(convolutions=Conformer, linear=ConformerByLinear)
def test_dead_norm_and_batch_norm_are_gone(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    has(outcome, LayerNormalization=0, BatchNormalization=0, Sqrt=0, Div=0)
    assert outcome.products == 3, outcome.graph
    assert outcome.ops.get("Add", 0) <= 2, outcome.graph
    record(PAPER, outcome)


@each(convpass=Convpass)
def test_the_dead_convolution_is_gone(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    has(outcome, Conv=0)
    assert outcome.products == 2, outcome.graph
    record(PAPER, outcome)


def with_dead_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """As a file may have them, where PyTorch's exporter drops them: a norm and a convolution of the input that nobody reads."""
    graph, x = proto.graph, proto.graph.input[0].name
    weights = {"dead_scale": np.ones(WIDTH, np.float32), "dead_kernel": np.ones((3, TOKENS, KERNEL), np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    graph.node.extend([
        helper.make_node("LayerNormalization", [x, "dead_scale"], ["dead_norm"]),
        helper.make_node("Conv", ["dead_norm", "dead_kernel"], ["dead_conv"]),
    ])  # fmt: skip
    return proto


def test_dead_nodes_of_a_file_are_gone() -> None:
    proto = with_dead_nodes(exported(awake(Convpass()), inputs()))
    outcome = from_onnx(proto, [[inputs()[0].numpy()]])
    right(outcome)
    assert outcome.result.report.before.ops["Conv"] == 1
    has(outcome, LayerNormalization=0, Conv=0)


class UsedTwice(Conformer):
    """Here the norm is read after all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.tanh(self.ln(x))


def test_a_norm_that_is_read_stays() -> None:
    outcome = through("torch", awake(UsedTwice()), inputs())
    right(outcome)
    has(outcome, LayerNormalization=1)
