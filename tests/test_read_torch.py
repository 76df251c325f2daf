"""PyTorch programs: what they compute, how their arguments and results nest, and what is refused."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.utils._pytree as pytree
from onnx_text import run
from torch import Tensor, nn

from rewriter.errors import InvalidInput, RewriterError, UnsupportedModel
from rewriter.read_torch import TorchProgram, read_torch
from rewriter.structure import Structure

Pair = namedtuple("Pair", "first second")


class Nested(nn.Module):
    """Takes and returns most things a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("bonus", torch.arange(5.0))

    def forward(self, x: Tensor, y: Tensor | None = None, *, factor: float = 2.0, more: Any = None) -> dict[str, Any]:
        z = self.norm(self.linear(x))
        if y is not None:
            z = z + y
        if more is not None:
            z = z + more["deep"][0]
        return {"plain": z, "list": [z * factor, x, None, 3], "pair": Pair(z + 1, self.bonus)}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def call(program: TorchProgram, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
    leaves = program.inputs.flatten(args, kwargs)
    names = [value.name or "" for value in program.model.graph.inputs]
    results = run(program.model, {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)})
    return program.outputs.unflatten([torch.from_numpy(np.array(each)) for each in results])


def agree(module: nn.Module, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, example: Any = None) -> TorchProgram:
    program = read_torch(module, example if example is not None else args or kwargs)
    with torch.no_grad():
        want = module(*args, **(kwargs or {}))
    got = call(program, args, kwargs)
    wanted, spec = pytree.tree_flatten(want)
    found, found_spec = pytree.tree_flatten(got)
    assert spec == found_spec
    for one, other in zip(wanted, found, strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
        else:
            assert one == other
    return program


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.ones(3, 4),), {}),
        ((torch.ones(3, 4), torch.ones(5)), {}),
        ((torch.ones(3, 4), None), {}),
        ((), {"x": torch.ones(3, 4), "factor": 3.0, "more": {"deep": (torch.ones(5),)}}),
    ],
)
def test_arguments_and_results_nest_as_they_did(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    program = agree(Nested().eval(), args, kwargs)
    again = Structure.from_json(json.loads(json.dumps(program.outputs.to_json())))
    assert again.leaves == program.outputs.leaves == len(program.model.graph.outputs)
    plain = again.unflatten(list(range(again.leaves)))
    assert plain["pair"] == {"first": 3, "second": 4}
    assert plain["list"][2:] == [None, 3]


def test_one_tensor_alone() -> None:
    module = nn.Linear(4, 2).eval()
    program = agree(module, (torch.ones(3, 4),), example=torch.ones(3, 4))
    assert program.outputs.to_json() == {"leaf": None}


def test_weights_have_their_state_dict_names_and_are_shared() -> None:
    module = Nested().eval()
    weights = read_torch(module, (torch.ones(3, 4),)).model.graph.initializers
    for name, value in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            data = weights[name].const_value
            assert data is not None and data.numpy().ctypes.data == value.data_ptr(), name


def test_graph_modules_and_exported_programs() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    agree(torch.fx.symbolic_trace(module), (torch.ones(2, 3),))
    exported = torch.export.export(module, (torch.ones(2, 3),))
    program = read_torch(exported)
    torch.testing.assert_close(call(program, (torch.ones(2, 3),)), module(torch.ones(2, 3)).detach())


def test_symbolic_dims_of_an_exported_program_stay() -> None:
    module = nn.Linear(3, 4).eval()
    exported = torch.export.export(module, (torch.ones(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program = read_torch(exported)
    x, y = program.model.graph.inputs[0], program.model.graph.outputs[0]
    assert x.shape is not None and y.shape is not None
    assert isinstance(x.shape[0], ir.SymbolicDim) and x.shape[0].value and x.shape[0] == y.shape[0]
    torch.testing.assert_close(call(program, (torch.ones(7, 3),)), module(torch.ones(7, 3)).detach())


def test_silence(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    read_torch(nn.Linear(3, 4).eval(), (torch.ones(2, 3),))
    out, err = capfd.readouterr()
    assert (out, err, len(recwarn)) == ("", "", 0)


class Counts(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


class ChangesItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1) * 2


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x + 1


class Decomposes(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.linalg.svd(x)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Linear(3, 3), ["Linear", "training", ".eval()"]),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout()).eval().append(nn.Dropout()), ["'2'", "training"]),
        (Counts().eval(), ["buffer 'calls'"]),
        (ChangesItsInput().eval(), ["input 'x'"]),
        (Branches().eval(), ["torch.export", "Branches"]),
        (Decomposes().eval(), ["svd"]),
    ],
)
def test_what_is_no_function_or_cannot_be_exported(module: nn.Module, words: list[str]) -> None:
    refused(module, (torch.ones(3, 3),), UnsupportedModel, *words)


def test_an_exported_program_that_trains() -> None:
    exported = torch.export.export(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), (torch.ones(2, 3),))
    refused(exported, None, UnsupportedModel, "dropout", "eval")


def test_examples_that_do_not_fit() -> None:
    module = nn.Linear(3, 3).eval()
    refused(module, None, InvalidInput, "example_inputs")
    refused(module, (1, 2, 3), InvalidInput, "Linear", "positional")
    refused(module, {"wrong": torch.ones(2, 3)}, InvalidInput, "wrong")


def refused(module: Any, example: Any, kind: type[RewriterError], *words: str) -> None:
    with pytest.raises(RewriterError) as caught:
        read_torch(module, example)
    message = str(caught.value)
    assert type(caught.value) is kind and "\n" not in message, message
    for word in words:
        assert word in message, message


# --- Structure on its own


def test_flatten_refuses_other_structures() -> None:
    structure = Structure({"arguments": [["x", {"leaf": None}], ["k", {"constant": 3}], ["p", {"tuple": [{"leaf": None}] * 2}]], "positional": 3})
    assert structure.flatten(("a1", 3, ("b", "c"))[:0], {"x": 1.0, "p": (2.0, 4.0)}) == [1.0, 2.0, 4.0]
    for args, kwargs, word in (
        ((1.0,), {}, "'p' is missing"),
        ((1.0, 4, (1.0, 2.0)), {}, "was 3"),
        ((1.0, 3, (1.0,)), {}, "sequence of 2"),
        ((1.0, 3, (1.0, 2.0), 5), {}, "3 positional"),
        ((1.0,), {"x": 2.0}, "twice"),
        ((1.0,), {"q": 2.0}, "'q'"),
        ((None, 3, (1.0, 2.0)), {}, "'x' is NoneType"),
    ):
        with pytest.raises(InvalidInput, match=word):
            structure.flatten(args, kwargs)


def test_plain_structures() -> None:
    assert Structure.of_inputs(["a", "b"]).flatten((1,), {"b": 2}) == [1, 2]
    assert Structure.of_outputs(1).unflatten([7]) == 7
    assert Structure.of_outputs(2).unflatten([7, 8]) == (7, 8)


def test_models_come_checked() -> None:
    model = read_torch(nn.Linear(4, 2).eval(), (torch.ones(3, 4),)).model
    assert isinstance(model, ir.Model) and all(each.shape is not None for node in model.graph for each in node.outputs)


# --- seeded draws, complex weights, constants


class Draws(nn.Module):
    """Seeds its own generator and the global one in every call, and draws in many ways."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = torch.Generator().manual_seed(3)
        total = torch.rand(4, generator=own) + torch.randn(4, generator=own.manual_seed(4)) + torch.randperm(4, generator=own)
        torch.manual_seed(5)
        total = total + torch.empty(4).uniform_(-1, 1) + torch.randint(5, (4,)) + torch.rand_like(total)
        torch.manual_seed(6)
        return x + total + torch.normal(0.0, 1.0, (4,)) + torch.zeros(4).bernoulli_(0.5)


def test_what_is_drawn_from_a_seed_is_a_constant() -> None:
    module = Draws().eval()
    state = torch.random.get_rng_state()
    program = agree(module, (torch.ones(2, 4),))
    assert not any(node.op_type.startswith("Random") for node in program.model.graph)
    torch.random.set_rng_state(state)
    read_torch(module, (torch.ones(2, 4),))
    assert torch.equal(state, torch.random.get_rng_state())


def test_draws_that_nobody_seeded_stay_random() -> None:
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand(3)

    program = read_torch(Noise().eval(), (torch.ones(2, 3),))
    assert any(node.op_type.startswith("Random") for node in program.model.graph)


def test_a_generator_that_the_module_keeps_is_no_constant() -> None:
    """Its numbers differ from call to call: such a module is refused, not frozen."""

    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand(3, generator=self.generator)

    module = Kept().eval()
    state = module.generator.get_state()
    with pytest.raises(UnsupportedModel):
        read_torch(module, (torch.ones(2, 3),))
    assert torch.equal(state, module.generator.get_state())


class Spectrum(nn.Module):
    """A real kernel from complex exponentials of its weights, and an ordinary weight."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.gain = nn.Parameter(torch.tensor([0.1, 0.4])), nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 1.5, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        power = torch.exp(torch.complex(-self.rate, 3 * self.rate)[:, None] * torch.arange(5))
        return x * self.gain * power.real.sum(0)


def test_complex_numbers_of_weights_are_constants() -> None:
    program = agree(Spectrum().eval(), (torch.ones(2, 5),))
    assert set(program.fixed) == {"rate"}
    assert "gain" in program.model.graph.initializers


def test_constants_are_in_the_arguments_places() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor, times: int = 1) -> torch.Tensor:
            return x * t * times + z

    x, z = torch.ones(2, 3), torch.ones(3)
    for example in ((x, torch.tensor(9.0), z), {"x": x, "z": z}):
        program = read_torch(Scaled().eval(), example, constants={"t": 0.5, "times": 3})
        assert [value.name for value in program.model.graph.inputs] == ["x", "z"]
        assert program.inputs.flatten((x, z)) == [x, z]
        np.testing.assert_array_equal(call(program, (x, z)), np.full((2, 3), 2.5, np.float32))


@pytest.mark.parametrize("constant", ["words", [1.0, 2.0], {"a": 1}])
def test_constants_that_do_not_fit(constant: Any) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x * t

    with pytest.raises(InvalidInput, match="'t'"):
        read_torch(Scaled().eval(), (torch.ones(2, 3), torch.tensor(1.0)), constants={"t": constant})
