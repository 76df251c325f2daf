"""PyTorch's compiler: the GraphModule of the torch backend through ``torch.compile``, which writes C++ and needs a compiler for it.

Kernels are made for the input shapes that are called: building takes tens of seconds, and so does the first call with other shapes.
Nothing of that is kept in an artefact: ``restore`` compiles again (PyTorch's own cache on the machine may shorten it).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch._dynamo.exc import TorchDynamoException

from backends.measure import example_arrays
from backends.program import accepted
from backends.torch import TorchProgram, prepared, refuses
from rewriter.errors import InvalidInput, UnsupportedModel

__all__ = ["InductorProgram", "build", "compiled", "refuses", "restore"]


def build(
    model: onnx.ModelProto | str | os.PathLike[str], *, target: str = "cpu", threads: int | None = None, example_inputs: Any = None
) -> InductorProgram:
    """``model`` compiled, now for the shapes of ``example_inputs`` (arrays in graph order) or its own if those are fixed, else when
    it is first called.

    ``threads`` is PyTorch's, one for the whole process. Raises InvalidInput where there is no C++ compiler, UnsupportedModel where the
    model has no PyTorch form or PyTorch does not compile it.
    """
    if target != "cpu":
        raise InvalidInput(f"the inductor backend has no target {target!r}; there is 'cpu'")
    _check_compiler()
    program = InductorProgram(prepared(model, threads))
    if example_inputs is None and all(isinstance(d, int) and d > 0 for port in program.inputs for d in port.shape or ("unknown",)):
        example_inputs = example_arrays(program.inputs)
    if example_inputs is not None:
        program(*example_inputs)
    return program


def restore(directory: str | os.PathLike[str], threads: int | None = None) -> InductorProgram:
    """The program that was saved in ``directory``, compiled again."""
    return build(Path(directory, "model.onnx"), threads=threads)


class InductorProgram(TorchProgram):
    """``module`` is still the plain GraphModule."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self._run = compiled(self.module)

    def __call__(self, *inputs: Any) -> list[Any]:
        return super().__call__(*accepted(self.inputs, inputs))  # what does not fit is said here: the compiler's traces are long


def compiled(module: torch.nn.Module) -> Callable[..., Any]:
    """``module`` for inference, compiled when first called; its weights are constants, which lets Inductor pack them."""
    # fullgraph: a break would leave a part to Python, unseen
    fast = torch.compile(module, backend="inductor", dynamic=False, fullgraph=True, options={"freezing": True})

    def run(*tensors: torch.Tensor) -> Any:
        try:
            return fast(*tensors)
        except TorchDynamoException as error:
            said = " ".join([line for line in str(error).splitlines() if line.strip()][:2])  # many more follow
            raise UnsupportedModel(f"PyTorch does not compile the model: {said[:300] or type(error).__name__}") from None

    return run


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise InvalidInput("backend 'inductor' needs a C++ compiler (g++ or clang++): install one, or choose another backend") from None
