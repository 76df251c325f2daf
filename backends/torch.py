"""PyTorch: an ONNX graph becomes a ``torch.fx.GraphModule`` of ATen calls, with its weights as parameters and buffers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from backends.arrays import as_numpy
from backends.onnxruntime import save_model
from backends.program import model_inputs, ports_of
from backends.threads import thread_count, visible_cores
from backends.torch_graph import to_module
from backends.torch_nodes import CONVERTERS
from rewriter.errors import InvalidInput, InvalidModel

if TYPE_CHECKING:
    import onnx_ir


def refuses(node: onnx_ir.Node) -> str | None:
    """The reason why ``node`` has no PyTorch form, or None. ``build`` may still refuse an attribute or a data-made shape."""
    if node.domain not in ("", "ai.onnx", "rewriter"):  # the functions of domain rewriter are inlined
        return f"domain {node.domain!r} has no PyTorch form"
    if node.domain != "rewriter" and node.op_type not in CONVERTERS:
        return f"{node.op_type} has no PyTorch form"
    return None


def build(
    model: onnx.ModelProto | str | os.PathLike[str], *, target: str = "cpu", threads: int | None = None
) -> TorchProgram:
    """``model`` as a PyTorch module. UnsupportedModel names the first node that has no PyTorch form.

    ``threads`` sets PyTorch's thread count, which is one for the whole process; None leaves it as it is.
    """
    if target != "cpu":
        raise InvalidInput(
            f"the torch backend has no target {target!r}; there is 'cpu' (move .module where you want it)"
        )
    return TorchProgram(prepared(model, threads))


def prepared(model: onnx.ModelProto | str | os.PathLike[str], threads: int | None) -> onnx.ModelProto:
    """The model, read if it is a path; and PyTorch's thread count set, which is one for the whole process."""
    if isinstance(model, (str, os.PathLike)):
        if not Path(model).is_file():
            raise InvalidModel(f"{model}: no such file")
        model = onnx.load(model)
    if threads is not None:
        torch.set_num_threads(min(thread_count(threads), visible_cores()))
    return model


def restore(directory: str | os.PathLike[str], threads: int | None = None) -> TorchProgram:
    """The program that was saved in ``directory``."""
    return build(Path(directory, "model.onnx"), threads=threads)


class TorchProgram:
    """``module`` is the model: an ordinary GraphModule whose ``forward`` takes and returns tensors in graph order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.inputs = model_inputs(model.graph)
        self.outputs = ports_of(model.graph.output)
        self.notes: list[str] = []
        self.module = to_module(model)
        self._model = model
        self._run: Callable[..., Sequence[torch.Tensor]] = self.module.forward  # not __call__: that prints a traceback before it raises

    def __call__(self, *inputs: Any) -> list[Any]:
        if len(inputs) != len(self.inputs):
            names = [port.name for port in self.inputs]
            raise InvalidInput(f"{len(inputs)} inputs were given; the model takes {len(names)}: {names}")
        tensors = [self._accept(port.name, port.dtype, value) for port, value in zip(self.inputs, inputs, strict=True)]
        with torch.no_grad():
            try:
                results = self._run(*tensors)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise InvalidInput(f"PyTorch could not run the model: {error}") from None
        return [as_numpy(result) for result in results]

    def save(self, directory: str | os.PathLike[str]) -> None:
        save_model(self._model, Path(directory, "model.onnx"))

    def _accept(self, name: str, dtype: str, value: Any) -> torch.Tensor:
        tensor = value.detach() if isinstance(value, torch.Tensor) else to_tensor(as_numpy(value))
        found = str(tensor.dtype).removeprefix("torch.")
        if found != dtype:
            raise InvalidInput(f"input {name!r} is {found}; the model takes {dtype}")
        return tensor


def to_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor over the array's memory where that is writable and contiguous, else over a copy."""
    from backends.torch_graph import tensor_of

    return tensor_of(array)
