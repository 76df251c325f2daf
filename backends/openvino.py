"""OpenVINO on the CPU, in latency mode and float32: a peer that takes part where the user has it.

What it does not compute as the standard says is refused, as far as that can be seen in the graph: it computes float64 in float32, and its
Python side cannot hold bfloat16. It also computes 64-bit integers in 32 bits, which nobody can tell from a graph: sums of large integers
come out wrong (sizes and indices do not get there). ``rewriter.compile`` compares results before it chooses a backend.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import openvino
from onnx.inliner import inline_local_functions

from backends.onnxruntime import LARGE, save_model, write_with_external_data
from backends.program import accepted, model_inputs, ports_of
from backends.threads import thread_count
from rewriter.errors import InvalidInput, InvalidModel, UnsupportedModel

if TYPE_CHECKING:
    import onnx_ir

EXACT = ("float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")
"""Types that can cross the border as they are."""


def refuses(node: onnx_ir.Node) -> str | None:
    """Refuses foreign domains; whether a standard operator is known is for ``build`` to find out."""
    known = ("", "ai.onnx", "com.microsoft", "rewriter")  # the functions of domain rewriter are inlined
    return None if node.domain in known else f"OpenVINO does not know the domain {node.domain!r}"


def build(
    model: onnx.ModelProto | str | os.PathLike[str], *, target: str = "cpu", threads: int | None = None, example_inputs: Any = None
) -> OpenVinoProgram:
    """``model`` (a proto, or a path whose external data lies beside it) compiled for latency on ``threads`` threads.

    ``example_inputs`` are not needed. Raises UnsupportedModel with OpenVINO's reason.
    """
    if target != "cpu":
        raise InvalidInput(f"the openvino backend has no target {target!r}; there is 'cpu'")
    if isinstance(model, (str, os.PathLike)) and not Path(model).is_file():
        raise InvalidModel(f"{model}: no such file")
    return OpenVinoProgram(model if isinstance(model, onnx.ModelProto) else Path(model), thread_count(threads))


def restore(directory: str | os.PathLike[str], threads: int | None = None) -> OpenVinoProgram:
    """The program that was saved in ``directory``; it is compiled again, which takes as long as the first time."""
    return build(Path(directory, "model.onnx"), threads=threads)


class OpenVinoProgram:
    """A compiled model and one request, which calls from several threads take in turns: latency mode has one stream."""

    def __init__(self, source: onnx.ModelProto | Path, threads: int) -> None:
        graph = (source if isinstance(source, onnx.ModelProto) else onnx.load(source, load_external_data=False)).graph
        self.inputs, self.outputs = model_inputs(graph), ports_of(graph.output)
        self.notes: list[str] = []
        self._source = source
        for port in (*self.inputs, *self.outputs):
            if port.dtype not in EXACT:
                raise UnsupportedModel(f"OpenVINO does not take {port.name!r} of type {port.dtype or 'sequence, map or optional'} as it is")
        with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
            compiled = _compiled(source, Path(folder), threads)
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()
        taken = {port.any_name for port in compiled.inputs}  # those that nothing reads are dropped
        self._feeds = [port.name in taken for port in self.inputs]
        if len(compiled.outputs) != len(self.outputs) or len(taken) != sum(self._feeds):
            raise UnsupportedModel(f"OpenVINO gives {len(compiled.outputs)} outputs where the model has {len(self.outputs)}")

    def __call__(self, *inputs: Any) -> list[Any]:
        arrays = accepted(self.inputs, inputs)
        feeds = {p.name: _plain(a) for p, a, taken in zip(self.inputs, arrays, self._feeds, strict=True) if taken}
        with self._lock:
            try:
                results = self._request.infer(feeds, share_inputs=True, share_outputs=False)
            except RuntimeError as error:
                raise InvalidInput(f"OpenVINO could not run the model: {_reason(error)}") from None
            return list(results.to_tuple())

    def save(self, directory: str | os.PathLike[str]) -> None:
        save_model(self._source, Path(directory, "model.onnx"))


def _compiled(source: onnx.ModelProto | Path, folder: Path, threads: int) -> Any:
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
        # Without these it takes bfloat16 where the processor has it, and quantises activations of some products.
        "EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    try:
        model = core.read_model(_readable(source, folder))
        _check_types(model)
        return core.compile_model(model, "CPU", settings)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedModel(f"OpenVINO refuses the model: {_reason(error)}") from None


def _readable(source: onnx.ModelProto | Path, folder: Path) -> bytes | str:
    """The model without local functions, which OpenVINO does not read: its bytes, or the path to a file where it is large."""
    if isinstance(source, Path) and not onnx.load(source, load_external_data=False).functions:
        return str(source)
    proto = onnx.load(source) if isinstance(source, Path) else source
    if proto.functions:
        proto = inline_local_functions(proto)
    if proto.ByteSize() < LARGE:
        return bytes(proto.SerializeToString())
    write_with_external_data(proto, folder / "model.onnx")
    return str(folder / "model.onnx")


def _check_types(model: Any) -> None:
    """Raises UnsupportedModel where something is computed in float64."""
    for op in model.get_ops():
        if op.get_type_name() not in ("Constant", "Convert") and any(o.get_element_type() == openvino.Type.f64 for o in op.outputs()):
            raise UnsupportedModel(f"OpenVINO computes float64 in float32, and {op.get_friendly_name()!r} is float64")


def _plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array that OpenVINO can read in place."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native if native.flags.c_contiguous else native.copy()


def _reason(error: Exception) -> str:
    """What a message of many lines says: its last line that is no source position and no advertisement."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("Exception from ", "Check '", "To facilitate", "Encountered unconverted", "Summary:")
    said = [line for line in lines if not line.startswith(noise)] or lines or [type(error).__name__]
    return said[-1].removeprefix("-- ")[:300]
