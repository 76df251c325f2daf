"""The models that engines are compared on: each is written once, as an ONNX file of fixed shapes with example inputs beside it.

Networks of timm carry random weights (no latency depends on them) with batch norms far from the identity; MiniLM, PP-OCR, magika and
DNSMOS are trained. What comes from PyTorch is also kept as an exported program (``NAME.pt2``), which is what PyTorch's own engines run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quantised import crops, in_blocks, noisy, quantised
from zoo import onnx_models
from zoo.onnx_models import Feed, OnnxModel

OPSET = 20


@dataclass(frozen=True)
class Files:
    """``program``: the exported program, where the model comes from PyTorch. ``feed``: inputs by name, in order."""

    model: Path
    program: Path | None
    feed: Feed


@dataclass(frozen=True)
class Subject:
    """``write(stem)`` makes ``stem.onnx``, and perhaps ``stem.pt2``, and gives the inputs; ``Missing`` where a package is not there."""

    name: str
    write: Callable[[Path], Feed]

    def files(self, folder: Path) -> Files:
        """The subject's files in ``folder``, written now unless they are there."""
        stem = folder / self.name
        model, program, inputs = (stem.with_suffix(suffix) for suffix in (".onnx", ".pt2", ".npz"))
        if not inputs.exists():  # written last
            np.savez(inputs, **self.write(stem))  # type: ignore[arg-type, unused-ignore]
        with np.load(inputs) as stored:
            return Files(model, program if program.exists() else None, dict(stored))


def from_torch(make: Callable[[], tuple[Any, dict[str, Any]]]) -> Callable[[Path], Feed]:
    """``make()`` gives a module and its inputs by name, in the order in which it takes them."""

    def write(stem: Path) -> Feed:
        import torch

        module, inputs = make()
        with torch.no_grad():
            program = torch.export.export(module.eval(), tuple(inputs.values()), strict=False)
        torch.export.save(program, stem.with_suffix(".pt2"))
        torch.onnx.export(
            program, (), str(stem.with_suffix(".onnx")), dynamo=True, opset_version=OPSET, input_names=list(inputs), external_data=False,
            verbose=False,
        )  # fmt: skip
        return {name: value.numpy() for name, value in inputs.items()}

    return write


def from_onnx(model: OnnxModel) -> Callable[[Path], Feed]:
    """The file, its input shapes fixed to those of its example, at ``OPSET`` where its operators can be."""

    def write(stem: Path) -> Feed:
        from rewriter.read_onnx import read_onnx
        from rewriter.write_onnx import write_onnx

        feed = model.feed()
        fixed = read_onnx(model.file(), input_shapes={name: array.shape for name, array in feed.items()})
        write_onnx(fixed, stem.with_suffix(".onnx"))
        return {value.name or "": feed[value.name or ""] for value in fixed.graph.inputs}

    return write


def image(network: str, size: int = 224, batch: int = 1) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """A network of timm, random weights."""

    def make() -> tuple[Any, dict[str, Any]]:
        import torch

        from zoo.reparameterise import network as randomised

        return randomised(network), {"x": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))}

    return make


def minilm(length: int, lora: bool = False) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """MiniLM-L6 over one text of ``length`` tokens, no padding; beyond 512, where it ends, a network of its sizes."""

    def make() -> tuple[Any, dict[str, Any]]:
        from zoo import minilm
        from zoo.recordings import SENTENCES

        text = " ".join(SENTENCES * (1 + length // 100))
        network = minilm.longer(length) if length > 512 else minilm.with_lora() if lora else minilm.plain()
        return minilm.embedder(network), minilm.tokens([text], length)

    return make


def vit_with_lora() -> tuple[Any, dict[str, Any]]:
    """ViT-tiny with LoRA on its attention and feed-forward layers."""
    import torch
    from peft import LoraConfig, get_peft_model

    module, inputs = image("vit_tiny_patch16_224")()
    torch.manual_seed(0)
    adapted = get_peft_model(module, LoraConfig(r=8, lora_alpha=16, target_modules=["qkv", "proj", "fc1", "fc2"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return adapted.eval(), inputs


def smollm(new: int, past: int = 0) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """A network of SmolLM2-135M's sizes that reads ``new`` tokens after ``past`` cached ones: logits of the last, and the cache."""

    def make() -> tuple[Any, dict[str, Any]]:
        from zoo import smollm

        return smollm.like(), smollm.step(new, past)

    return make


PP_OCR = dict(zip(("ppocr_det", "ppocr_rec", "ppocr_cls"), onnx_models.OCR, strict=True))
WHOLE = (
    Subject("resnet18", from_torch(image("resnet18"))),
    Subject("resnet50", from_torch(image("resnet50"))),
    Subject("mobilenetv3_small", from_torch(image("mobilenetv3_small_100"))),
    Subject("efficientnet_b0", from_torch(image("efficientnet_b0"))),
    Subject("vit_tiny", from_torch(image("vit_tiny_patch16_224"))),
    Subject("minilm_32", from_torch(minilm(32))),
    Subject("minilm_128", from_torch(minilm(128))),
    Subject("smollm2_prefill128", from_torch(smollm(128))),
    Subject("smollm2_decode", from_torch(smollm(1, past=128))),
    *(Subject(name, from_onnx(model)) for name, model in PP_OCR.items()),
    Subject("magika", from_onnx(onnx_models.MAGIKA)),
    Subject("dnsmos", from_onnx(onnx_models.DNSMOS[0])),
)
"""The models that figures are promised for."""
STRUCTURED = (
    Subject("minilm_lora_32", from_torch(minilm(32, lora=True))),
    Subject("minilm_lora_128", from_torch(minilm(128, lora=True))),
    Subject("vit_tiny_lora", from_torch(vit_with_lora)),
    *(Subject(name, from_torch(image(name))) for name in ("repvgg_a0", "mobileone_s0", "fastvit_t8")),
)
"""Models that carry what training added: adapters, parallel branches, layer scales."""
INT8 = (
    Subject("resnet18_int8", quantised(from_torch(image("resnet18")), noisy)),
    Subject("minilm_128_int8", quantised(from_torch(minilm(128)), noisy)),
    Subject("ppocr_rec_int8", quantised(from_onnx(PP_OCR["ppocr_rec"]), crops)),
    Subject("smollm2_decode_weights8", in_blocks(from_torch(smollm(1, past=128)), bits=8, block=32)),
    Subject("smollm2_decode_weights4", in_blocks(from_torch(smollm(1, past=128)), bits=4, block=32)),
)
"""Networks in 8 bits (QDQ), and with weights alone in 8 and 4 bits."""
GROWTH = (
    *(Subject(f"resnet18_batch{n}", from_torch(image("resnet18", batch=n))) for n in (1, 2, 4, 8, 16, 32)),
    *(Subject(f"minilm_{n}", from_torch(minilm(n))) for n in (16, 32, 64, 128, 256, 512, 1024, 2048)),
    *(Subject(f"mobilenetv3_{n}", from_torch(image("mobilenetv3_small_100", size=n))) for n in (96, 160, 224, 320, 384)),
)
"""The same network at growing sizes."""
