"""A whole model for one kind of NVIDIA GPU: compiled here without a GPU, run where there is one.

TVM's importer and its default GPU schedules (dlight) write the kernels, one Relax function for the model; nothing is tuned, since
there need not be a GPU to measure on. What is lowered is compiled for this processor, too, and its results are compared with
float64 as regions are, so that a wrong import is found here; the schedules themselves can only be tried on a GPU. An artefact has
the library (machine code of the GPU, and PTX for later ones), the CUDA source and the PTX.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.program import Port, accepted, model_inputs, ports_of
from rewriter.errors import InvalidInput, UnsupportedModel

if TYPE_CHECKING:
    import onnx

    from backends.tvm.virtual_machine import VirtualMachine

ARCHITECTURE = "sm_90"
"""Of "cuda"; "cuda:sm_86" names another."""
FOLDER = "cuda"
_INDEX, _LIBRARY = "index.json", "model.so"
Array = np.ndarray[Any, Any]


class CudaProgram:
    """Callable on arrays in graph order, of the shapes that it was compiled for; it looks for a GPU when it is first called."""

    def __init__(self, folder: Path, index: dict[str, Any], threads: int | None, kept: tempfile.TemporaryDirectory[str] | None = None) -> None:
        """``kept``: the temporary folder, if it is one that has to live as long as this."""
        self.inputs, self.outputs = ([Port.from_json(port) for port in index[key]] for key in ("inputs", "outputs"))
        self.notes: list[str] = list(index["notes"])
        self.target = f"cuda:{index['architecture']}"
        self._folder, self._index, self._threads, self._kept = folder, index, threads, kept
        self._machine: VirtualMachine | None = None

    def __call__(self, *inputs: Any) -> list[Any]:
        from backends.tvm.virtual_machine import VirtualMachine

        arrays = accepted(self.inputs, inputs)
        self._machine = self._machine or VirtualMachine(self._folder / _LIBRARY, "cuda", self._threads)
        return self._machine(arrays)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """The library, the sources, and what they are for."""
        target = Path(directory, FOLDER)
        shutil.copytree(self._folder, target)
        (target / _INDEX).write_text(json.dumps(self._index, indent=1))


def architecture(target: str) -> str:
    """Of a target "cuda" or "cuda:sm_86". Raises InvalidInput."""
    kind, _, named = target.partition(":")
    if kind != "cuda" or not re.fullmatch(r"|sm_\d+[a-z]?", named):
        raise InvalidInput(f"the tvm backend has no target {target!r}; there are 'cpu', 'cuda', and 'cuda:sm_86' for another GPU than {ARCHITECTURE}")
    return named or ARCHITECTURE


def make(
    model: onnx.ModelProto | str | os.PathLike[str],
    target: str,
    threads: int | None,
    example_inputs: Sequence[Any] | None,
    seconds: float,
) -> CudaProgram:
    """Compile ``model`` for the shapes of ``example_inputs``, or its own.

    Raises UnsupportedModel for what TVM's importer does not take or gets wrong, and where the toolkit is missing; InvalidInput where
    shapes are open.
    """
    import onnx

    arch = architecture(target)
    proto = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    inputs = model_inputs(proto.graph)
    arrays = _example(inputs, example_inputs)
    kept = tempfile.TemporaryDirectory(prefix="rewriter-cuda-")
    made = Path(kept.name, FOLDER)
    made.mkdir()
    _compile(proto, inputs, arrays, made, arch, threads, seconds)
    fixed = [Port(port.name, port.dtype, array.shape) for port, array in zip(inputs, arrays, strict=True)]
    ports = {"inputs": fixed, "outputs": ports_of(proto.graph.output)}
    note = f"compiled for CUDA {arch} with TVM's default schedules, not tuned; what is lowered was compared with float64 on this processor"
    index = {key: [port.to_json() for port in found] for key, found in ports.items()} | {"architecture": arch, "notes": [note]}
    return CudaProgram(made, index, threads, kept)


def reopen(directory: str | os.PathLike[str], threads: int | None) -> CudaProgram:
    """The program that ``save`` wrote; its files are copied, since the folder may be replaced."""
    kept = tempfile.TemporaryDirectory(prefix="rewriter-cuda-")
    made = Path(kept.name, FOLDER)
    shutil.copytree(Path(directory, FOLDER), made)
    return CudaProgram(made, json.loads((made / _INDEX).read_text()), threads, kept)


def _example(inputs: Sequence[Port], given: Sequence[Any] | None) -> list[Array]:
    from backends.measure import example_arrays

    if given is not None:
        return accepted(inputs, given)
    for port in inputs:
        if port.shape is None or not all(isinstance(d, int) and d > 0 for d in port.shape):
            raise InvalidInput(f"input {port.name!r} has open sizes, and CUDA code is of fixed ones; give example inputs or input shapes")
    return example_arrays(inputs)


def _compile(
    proto: onnx.ModelProto, inputs: Sequence[Port], arrays: Sequence[Array], made: Path, arch: str, threads: int | None, seconds: float
) -> None:
    from backends import onnxruntime
    from backends.tvm.regions import fold_model, wrong
    from backends.worker import RuntimeRefused, Worker

    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder, Worker("tvm.cuda_compiler", threads=threads, timeout=seconds) as worker:
        source, folded = Path(folder, "model.onnx"), Path(folder, "folded.onnx")
        onnxruntime.save_model(proto, source)
        named = {port.name: array for port, array in zip(inputs, arrays, strict=True)}
        try:
            fold_model(source, named, folded, worker)
            worker.call("compile_cuda", source=str(folded), folder=str(made), arch=arch)
            got = worker.call("run_on_cpu", list(arrays), source=str(folded))[1]
        except RuntimeRefused as error:
            raise UnsupportedModel(f"the model cannot be compiled for CUDA: {error}") from None
        problem = wrong(folded, list(arrays), got)
    if problem:
        raise UnsupportedModel(f"what TVM makes of the model for CUDA is not what the model computes: {problem}")
