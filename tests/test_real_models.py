"""The main job on real models: adapters of a trained sentence network vanish; trained ONNX models keep their outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import rewriter
from zoo import onnx_models, ort
from zoo.onnx_models import OnnxModel
from zoo.packages import Missing
from zoo.recordings import SENTENCES
from zoo.renamed import renamed

LENGTHS = [(SENTENCES[:1], None), (SENTENCES, None), (SENTENCES[2:5], 128), (SENTENCES[3:4], 3)]


@dataclass
class Main:
    """MiniLM with LoRA, and without, as modules and as files of open batch and length."""

    lora: Any
    plain: Any
    lora_file: Path
    plain_file: Path


@pytest.fixture(scope="module")
def main(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Main]:
    pytest.importorskip("torch")
    from zoo import minilm

    folder = tmp_path_factory.mktemp("minilm")
    try:
        lora, plain = minilm.with_lora(), minilm.plain()
    except Missing as missing:
        pytest.skip(str(missing))
    yield Main(lora, plain, minilm.export(lora, folder / "lora.onnx"), minilm.export(plain, folder / "plain.onnx"))


def hidden(module: Any, tokens: dict[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        return module(**tokens).last_hidden_state.numpy()


def difference(got: Any, want: Any, tokens: dict[str, Any]) -> float:
    """The largest difference on real tokens. What stands at padding is read by nobody, and there float32 itself is 1e-4 from exact."""
    assert got.shape == want.shape
    real = tokens["attention_mask"].numpy().astype(bool)
    assert np.abs(want[real]).max() > 1
    return float(np.abs(got - want)[real].max())


def shapes(model: rewriter.Optimized) -> list[str]:
    """Sorted weight shapes, and the outputs' shapes as they are declared."""
    graph = model.ir_model.graph
    weights = sorted(str(v.shape) for v in graph.initializers.values())
    return weights + [str(v.shape) for v in graph.outputs]


def assert_nothing_left_of_lora(got: rewriter.Optimized, plain: rewriter.Optimized) -> None:
    assert got.report.verification.passed and plain.report.verification.passed
    assert got.report.before.ops["MatMul"] > plain.report.before.ops["MatMul"]
    assert got.report.after.ops == plain.report.after.ops
    assert got.report.after.macs == plain.report.after.macs
    assert got.report.after.weight_bytes == plain.report.after.weight_bytes
    assert shapes(got) == shapes(plain)


def test_lora_vanishes_from_the_torch_module(main: Main) -> None:
    import copy

    from zoo import minilm

    tokens = minilm.tokens(SENTENCES, 32)
    got, plain = rewriter.optimize(main.lora, tokens), rewriter.optimize(main.plain, tokens)

    assert_nothing_left_of_lora(got, plain)
    output = ort.run(got.model, ort.feed_of(got.model, tokens.values()))[0]
    assert difference(output, hidden(main.lora, tokens), tokens) < 1e-5
    assert difference(output, hidden(copy.deepcopy(main.lora).merge_and_unload(), tokens), tokens) < 1e-5
    assert difference(hidden(main.plain, tokens), hidden(main.lora, tokens), tokens) > 1e-2, "LoRA must change the outputs"


def test_lora_vanishes_from_a_file_whose_names_say_nothing(main: Main) -> None:
    from zoo import minilm

    model = renamed(onnx.load(main.lora_file))
    got, plain = rewriter.optimize(model), rewriter.optimize(renamed(onnx.load(main.plain_file)))

    assert_nothing_left_of_lora(got, plain)
    assert [i.name for i in got.model.graph.input] == [i.name for i in model.graph.input]
    for sentences, length in LENGTHS:
        tokens = minilm.tokens(sentences, length)
        output = ort.run(got.model, ort.feed_of(got.model, tokens.values()))[0]
        assert difference(output, hidden(main.lora, tokens), tokens) < 1e-5


def test_a_file_with_its_weights_beside_it(main: Main, tmp_path: Path) -> None:
    """The exporter writes large weights to a second file; the result does not lean on it."""
    from zoo import minilm

    assert main.lora_file.with_name("lora.onnx.data").exists()
    result = rewriter.optimize(main.lora_file)
    saved = tmp_path / "out" / "merged.onnx"
    saved.parent.mkdir()
    result.save(saved)
    tokens = minilm.tokens(SENTENCES[:2])
    feed = ort.feed_of(result.model, tokens.values())
    assert difference(ort.run(saved, feed)[0], hidden(main.lora, tokens), tokens) < 1e-5


def models(chosen: Any) -> list[Any]:
    return [pytest.param(m, id=m.name.replace(" ", "-"), marks=[pytest.mark.slow] if m.slow else []) for m in chosen]


def load(model: OnnxModel) -> tuple[Path, dict[str, Any]]:
    try:
        return model.file(), model.feed()
    except Missing as missing:
        pytest.skip(str(missing))


TOLERANCE = {"MiniLM int8": 2e-5}
"""Where not 1e-5: relative to the largest value of an output."""


@pytest.mark.parametrize("model", models(onnx_models.ALL))
def test_a_trained_model_keeps_its_outputs(model: OnnxModel) -> None:
    """On its input; with no more nodes than it had; and the same bytes come out a second time."""
    file, feed = load(model)
    result = rewriter.optimize(file)

    assert result.report.verification.passed
    assert result.report.after.nodes <= result.report.before.nodes
    assert [(i.name, i.type) for i in result.model.graph.input] == [
        (i.name, i.type) for i in onnx.load(file).graph.input if i.name in feed
    ]
    for got, want in zip(ort.run(result.model, feed), ort.run(file, feed), strict=True):
        assert ort.relative(got, want) <= TOLERANCE.get(model.name, 1e-5)
    assert rewriter.optimize(file).model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


@pytest.mark.slow
def test_one_step_of_a_language_model(tmp_path: Path) -> None:
    from zoo import smollm

    try:
        file, feed = smollm.export(tmp_path / "smollm.onnx")
    except Missing as missing:
        pytest.skip(str(missing))
    result = rewriter.optimize(file, feed)
    saved = tmp_path / "optimised.onnx"
    result.save(saved)

    assert result.report.verification.passed
    assert result.report.after.nodes <= result.report.before.nodes
    got, want = ort.run(saved, feed)[0], ort.run(file, feed)[0]
    assert ort.relative(got, want) <= 1e-5
    assert got[0, -1].argmax() == want[0, -1].argmax()
