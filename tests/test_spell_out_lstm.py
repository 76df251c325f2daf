"""LSTMs as the products, gates and sums that they stand for."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import parse, run, run_ort
from proposals import normal

from passes.spell_out_lstm import spell_out_lstm
from rewriter.infer_onnx import infer
from rewriter.lstm_steps import STEPS


def lstm(steps: int, batch: int, inputs: str, outputs: str, attributes: str = "") -> onnx.ModelProto:
    """``x`` [steps, batch, 6], five hidden numbers; ``outputs`` are three, empty where one is not wanted."""
    made = [name.strip() for name in outputs.split(",")]
    last = " ".join(f"{name}2 = Neg({name})" for name in made if name)
    given = ", ".join(f"{name}2" for name in made if name)
    proto = parse(
        f"main (float[{steps},{batch},6] x, float[1,{batch},5] h, float[1,{batch},5] c, float[1,20,5] computed) => ({given}) "
        f"{{ {outputs} = LSTM <hidden_size=5{attributes}> (x, {inputs}) {last} }}"
    )
    weights = {"w": (1, 20, 6), "r": (1, 20, 5), "b": (1, 40), "p": (1, 15)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(normal(*shape), name) for name, shape in weights.items())
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(batch, steps, np.int32), "lengths"))
    return proto


def spelled(proto: onnx.ModelProto) -> ir.Model | None:
    model = ir.from_proto(proto)
    infer(model)
    return model if spell_out_lstm(model) else None


@pytest.mark.parametrize("steps, batch", [(1, 1), (1, 3), (2, 1), (STEPS, 2)])
@pytest.mark.parametrize("outputs", ["Y, H, C", "Y, , ", ", H, ", ", , C"])
@pytest.mark.parametrize("inputs", ["w, r, b, , h, c", "w, r", "w, r, , , h", "w, r, b, , , c"])
def test_the_same_numbers(steps: int, batch: int, outputs: str, inputs: str) -> None:
    proto = lstm(steps, batch, inputs, outputs)
    model = spelled(proto)
    assert model is not None and not any(node.op_type == "LSTM" for node in model.graph)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    feed = {"x": 3 * normal(steps, batch, 6), "h": normal(1, batch, 5), "c": normal(1, batch, 5), "computed": normal(1, 20, 5)}
    for engine in (run, run_ort):
        for want, got in zip(engine(proto, feed), engine(model, feed), strict=True):
            assert want.shape == got.shape
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "steps, inputs, attributes",
    [
        (STEPS + 1, "w, r", ""), (1, "w, computed", ""), (1, "w, r, b, lengths", ""), (1, "w, r, b, , h, c, p", ""), (1, "w, r", ", clip=2.0"),
        (1, "w, r", ', direction="reverse"'), (1, "w, r", ", input_forget=1"), (1, "w, r", ', activations=["Tanh", "Tanh", "Tanh"]'),
    ],
)  # fmt: skip
def test_what_stays(steps: int, inputs: str, attributes: str) -> None:
    assert spelled(lstm(steps, 1, inputs, "Y, H, C", attributes)) is None


def test_its_usual_activations_by_name() -> None:
    assert spelled(lstm(1, 1, "w, r", "Y, H, C", ', activations=["Sigmoid", "Tanh", "Tanh"]')) is not None
