"""Block-wise compression: weights in 4 bits with a scale for each block, within a budget of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import nn

from backends import onnxruntime
from papers.fixture import Paper, awake, each, from_onnx, normal, through, truth
from passes.approximate.blockwise_weights import BlockwiseWeights
from passes.approximate.candidate import Candidate, Site, substituted
from passes.calibrate import Recorded, with_outputs
from passes.calibrate import record as recording

PAPER = Paper(69, "matrices in 4 bits with a scale for each block of 128: 7.5 times smaller")
WIDTH, HIDDEN = 128, 512


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(x)))


class LayersByEinsum(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(torch.einsum("btd,hd->bth", x, self.up.weight) + self.up.bias)
        return torch.einsum("bth,dh->btd", h, self.down.weight) + self.down.bias


def inputs() -> tuple[torch.Tensor]:
    return (normal(1, 4, WIDTH),)


def recorded(graph: ir.Model) -> dict[str, Recorded]:
    """What 24 inputs do at the products."""
    kind = BlockwiseWeights()
    names = sorted(kind.wants(graph).values)
    probe = onnxruntime.build(ir.to_proto(with_outputs(graph, names)), threads=1)
    port = graph.graph.inputs[0].name or ""
    feeds = [{port: np.random.default_rng(k).standard_normal((1, 4, WIDTH)).astype(np.float32)} for k in range(24)]
    return recording(graph, names, kind.wants(graph).grams, feeds, lambda feed: list(probe(feed[port])))


@each(modules=Layers, einsum=LayersByEinsum)
def test_weights_become_codes_of_four_bits(module: Any, door: str, record: Any) -> None:
    network = awake(module())
    exact = through(door, network, inputs())
    graph = exact.result.ir_model
    found = list(BlockwiseWeights().propose(Site(graph, recorded(graph))))
    chosen = [c for c in found if isinstance(c, Candidate) and c.rewrite.endswith("4-bit-blocks-of-128")]
    assert len(chosen) == 2 and all(c.layer_error < 0.02 for c in chosen)
    outcome = from_onnx(ir.to_proto(substituted(graph, chosen)), [[x.numpy() for x in inputs()]], [truth(network, inputs())])
    matrices = 4 * sum(p.numel() for p in network.parameters() if p.ndim > 1)
    assert outcome.weight_bytes - 4 * (WIDTH + HIDDEN) <= matrices / 7.5
    assert 0 < outcome.error < 0.5, "two layers of random weights that lose 2 % of their power each; the largest of all differences"
    record(PAPER, outcome)
