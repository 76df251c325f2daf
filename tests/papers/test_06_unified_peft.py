"""A unified view of tuning methods: LoRA merges, a prefix is rows of the keys and values, a parallel adapter is a wider layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from papers.fixture import Paper, awake, each, has, is_plain, normal, plain, right, run_time_only, through

PAPER = Paper(6, "a LoRA encoder is the base; a prefix is constant rows of K and V; a parallel ReLU adapter is a wider layer")
WIDTH, HEADS, HIDDEN, RANK, SCALE = 16, 2, 24, 4, 0.5


def inputs() -> tuple[torch.Tensor]:
    return (normal(2, 6, WIDTH),)


# LoRA in an encoder


class LoRA(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(n, m), nn.Linear(n, RANK, bias=False), nn.Linear(RANK, m, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x)) * SCALE


class LoRAByEinsum(LoRA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = torch.einsum("...i,ri->...r", x, SCALE * self.down.weight)
        return torch.einsum("...r,or->...o", low, self.up.weight) + F.linear(x, self.base.weight) + self.base.bias


class Unadapted(LoRA):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x)


class Encoder(nn.Module):
    layer = LoRA

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = self.layer(WIDTH, WIDTH), self.layer(WIDTH, WIDTH)
        self.k, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.f1, self.f2 = self.layer(WIDTH, HIDDEN), self.layer(HIDDEN, WIDTH)
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.n1(x)
        q, k, v = (heads(p(h)) for p in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.f2(F.gelu(self.f1(self.n2(x))))


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class EncoderByEinsum(Encoder):
    layer = LoRAByEinsum


class PlainEncoder(Encoder):
    layer = Unadapted


def plain_encoder() -> nn.Module:
    return awake(PlainEncoder())


@each(linear=Encoder, einsum=EncoderByEinsum)
def test_a_lora_encoder_is_the_base(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    is_plain(outcome, plain(plain_encoder, inputs))
    record(PAPER, outcome)


# Prefixes


class Prefixed(nn.Module):
    """Attention with rows made by a small network from an embedding: the network is constant, the rows join K and V."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.embedding = nn.Parameter(normal(3, RANK, seed=5))
        self.mlp = nn.Sequential(nn.Linear(RANK, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * WIDTH))

    def rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made = self.mlp(self.embedding).expand(x.shape[0], -1, -1)
        return made[..., :WIDTH], made[..., WIDTH:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pk, pv = self.rows(x)
        q, k, v = heads(self.q(x)), heads(torch.cat([pk, self.k(x)], 1)), heads(torch.cat([pv, self.v(x)], 1))
        weights = (q @ k.mT / (WIDTH / HEADS) ** 0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class PrefixAsGate(Prefixed):
    """As the paper writes it: lambda attn(q, P_k, P_v) + (1 - lambda) attn(q, K, V), lambda from the two normalisers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pk, pv = (heads(p) for p in self.rows(x))
        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        scale = (WIDTH / HEADS) ** -0.5
        prefix, own = q @ pk.mT * scale, q @ k.mT * scale
        gate = torch.sigmoid(prefix.logsumexp(-1, keepdim=True) - own.logsumexp(-1, keepdim=True))
        mixed = gate * (prefix.softmax(-1) @ pv) + (1 - gate) * (own.softmax(-1) @ v)
        return mixed.transpose(1, 2).flatten(2)


@each(concatenated=Prefixed, gated=PrefixAsGate, missing={"gated": "two softmaxes that a gate of their normalisers mixes are not joined"})
def test_a_prefix_is_constant_rows_of_the_keys_and_values(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    run_time_only(outcome)
    has(outcome, Tanh=0, Softmax=1, ReduceLogSumExp=0, Sigmoid=0)
    record(PAPER, outcome)


# Parallel adapters


class Parallel(nn.Module):
    """A feed-forward layer, and a scaled bottleneck beside it on the same input."""

    def __init__(self, activation: Any = F.relu) -> None:
        super().__init__()
        self.f1, self.f2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.dn, self.up = nn.Linear(WIDTH, RANK), nn.Linear(RANK, WIDTH)
        self.norm, self.activation = nn.LayerNorm(WIDTH), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f2(F.relu(self.f1(x))) + 4.0 * self.up(self.activation(self.dn(x)))


class ParallelConvolutions(Parallel):
    """The same as 1 x 1 convolutions, channels second."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def conv(layer: nn.Linear, y: torch.Tensor) -> torch.Tensor:
            return F.conv1d(y, layer.weight[..., None], layer.bias)

        x = x.transpose(1, 2)
        return conv(self.f2, conv(self.f1, x).clamp(min=0)) + conv(self.up, F.relu(conv(self.dn, x))) * 4.0


@each(linear=Parallel, convolution=ParallelConvolutions)
def test_a_parallel_adapter_is_a_wider_layer(module: Any, door: str, record: Any) -> None:
    outcome = through(door, awake(module()), inputs())
    right(outcome)
    assert outcome.products == 2, outcome.graph
    assert outcome.ops.get("Relu", 0) + outcome.ops.get("Clip", 0) + outcome.ops.get("Max", 0) == 1, outcome.graph
    record(PAPER, outcome)


# Traps


def test_gelu_beside_relu_is_left_alone() -> None:
    outcome = through("torch", awake(Parallel(F.gelu)), inputs())
    right(outcome)
    has(outcome, Relu=1, Gelu=1, MatMul=4)


class OtherInput(Parallel):
    """The adapter reads x, the layer its norm: two inputs, no wider layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f2(F.relu(self.f1(F.layer_norm(x, (WIDTH,))))) + self.up(F.relu(self.dn(x)))


class NormOnTheWayOut(Parallel):
    """The adapter's output is normalised: not linear in its hidden layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f2(F.relu(self.f1(x))) + self.norm(self.up(F.relu(self.dn(x))))


def test_an_adapter_on_another_input_is_left_alone() -> None:
    outcome = through("torch", awake(OtherInput()), inputs())
    right(outcome)
    has(outcome, Relu=2, MatMul=4)


def test_an_adapter_whose_output_is_normalised_is_left_alone() -> None:
    """One product for both first layers, if it pays; the second ones stay apart."""
    outcome = through("torch", awake(NormOnTheWayOut()), inputs())
    right(outcome)
    has(outcome, LayerNormalization=1)
    assert outcome.ops["MatMul"] >= 3, outcome.graph


def test_gates_that_do_not_come_from_the_normalisers_stay() -> None:
    """A gate of half the difference is no softmax over both sets of rows."""

    class Halved(PrefixAsGate):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pk, pv = (heads(p) for p in self.rows(x))
            q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
            prefix, own = q @ pk.mT, q @ k.mT
            gate = torch.sigmoid(0.5 * (prefix.logsumexp(-1, keepdim=True) - own.logsumexp(-1, keepdim=True)))
            return (gate * (prefix.softmax(-1) @ pv) + (1 - gate) * (own.softmax(-1) @ v)).transpose(1, 2).flatten(2)

    outcome = through("torch", awake(Halved()), inputs())
    right(outcome)
    has(outcome, Softmax=2)
