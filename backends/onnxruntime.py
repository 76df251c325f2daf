"""The default backend: ONNX Runtime on the CPU. It runs every model that it accepts whole; nothing is partitioned.

Every session has its own threads. By default those spin after a run, waiting for the next one, on the cores that another session of the
process wants: two models called in turns took up to twice the time of each alone. So they stop spinning when the run ends, which costs
a model of 0.1 ms nothing that could be measured. A pool that sessions share would also keep two calls at once from using twice the
threads, but the runtime then refuses every other session of the process, the caller's own too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped, unused-ignore]

from backends.arrays import as_numpy, dtype_named
from backends.program import Port
from backends.threads import thread_count
from rewriter.errors import InvalidInput, InvalidModel, UnsupportedModel

if TYPE_CHECKING:
    import onnx
    import onnx_ir

LARGE = (
    1 << 30
)  # bytes of model above which weights go to the runtime by file: protobuf stops at 2 GB, and copies add up
_KINDS = {
    "float": "float32", "float16": "float16", "double": "float64", "bfloat16": "bfloat16", "bool": "bool",
    "string": "str", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz", "int4": "int4", "uint4": "uint4",
}  # fmt: skip
_ONNX_TYPE = {
    "bfloat16": 16, "float8_e4m3fn": 17, "float8_e4m3fnuz": 18, "float8_e5m2": 19, "float8_e5m2fnuz": 20,
}  # fmt: skip
_BAD_MODEL = ("INVALID_GRAPH", "Invalid model", "INVALID_PROTOBUF", "NO_SUCHFILE", "NO_MODEL")


def refuses(node: onnx_ir.Node) -> str | None:
    """Never refuses a standard operator: whether a model runs is for ``build`` to find out."""
    known = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "rewriter")
    return None if node.domain in known else f"ONNX Runtime does not know the domain {node.domain!r}"


def build(
    model: onnx.ModelProto | str | os.PathLike[str],
    *,
    target: str = "cpu",
    threads: int | None = None,
    optimised: bool = True,
) -> OnnxRuntimeProgram:
    """A session over ``model`` (a proto, or a path whose external data lies beside it).

    ``threads`` defaults to the physical cores that this process may use. ``optimised=False`` switches the runtime's own
    graph optimiser off. Raises InvalidModel or UnsupportedModel, with the runtime's reason.
    """
    if target != "cpu":
        raise InvalidInput(f"the onnxruntime backend has no target {target!r}; there is 'cpu'")
    options = _options(threads, optimised)
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if not path.is_file():
            raise InvalidModel(f"{path}: no such file")
        return OnnxRuntimeProgram(_session(str(path), options), path, None)
    if size(model) < LARGE:
        return OnnxRuntimeProgram(_session(model.SerializeToString(), options), model, None)
    folder = tempfile.TemporaryDirectory(prefix="rewriter-")
    path = Path(folder.name, "model.onnx")
    write_with_external_data(model, path)
    return OnnxRuntimeProgram(_session(str(path), options), path, folder)


def restore(directory: str | os.PathLike[str], threads: int | None = None) -> OnnxRuntimeProgram:
    """The program that was saved in ``directory``."""
    return build(Path(directory, "model.onnx"), threads=threads)


class OnnxRuntimeProgram:
    """A loaded session. NumPy arrays and torch CPU tensors go in without a copy, and come out as the runtime's own memory."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        source: onnx.ModelProto | Path,
        folder: tempfile.TemporaryDirectory[str] | None,
    ) -> None:
        self.inputs = tuple(_port(node) for node in session.get_inputs())
        self.outputs = tuple(_port(node) for node in session.get_outputs())
        self.notes: list[str] = []
        self._session = session
        self._source = source
        self._folder = folder  # kept alive: the session maps its files
        self._names = [port.name for port in self.inputs]
        self._results = [port.name for port in self.outputs]
        # NumPy lacks these types, so they cross the border as OrtValues
        self._foreign = any(port.dtype in _ONNX_TYPE for port in (*self.inputs, *self.outputs))

    def __call__(self, *inputs: Any) -> list[Any]:
        if len(inputs) != len(self._names):
            raise InvalidInput(f"{len(inputs)} inputs were given; the model takes {len(self._names)}: {self._names}")
        arrays = [value if _passes_unchanged(value) else as_numpy(value) for value in inputs]
        try:
            if self._foreign:
                return self._run_as_values(arrays)
            # the runtime reads NumPy's memory in place, and its results own their memory: no copy either way
            return list(self._session._sess.run(self._results, dict(zip(self._names, arrays, strict=True)), None))
        except Exception as error:  # noqa: BLE001 - the bindings raise many types, none of them public
            raise InvalidInput(f"ONNX Runtime could not run the model: {error}") from None

    def save(self, directory: str | os.PathLike[str]) -> None:
        save_model(self._source, Path(directory, "model.onnx"))

    def _run_as_values(self, arrays: list[Any]) -> list[Any]:
        feeds = {name: _to_value(array)._ortvalue for name, array in zip(self._names, arrays, strict=True)}
        results = self._session._sess.run_with_ort_values(feeds, self._results, None)
        return [_from_value(onnxruntime.OrtValue(result)) for result in results]


def size(model: onnx.ModelProto) -> int:
    """Bytes of the main graph's weights; the exact size of the message takes as long to find as writing it."""
    return sum(len(t.raw_data) or t.ByteSize() for t in model.graph.initializer)


def write_with_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` to ``path`` and its large weights to ``path`` + ".data"; the caller's proto keeps its weights."""
    import onnx_ir

    onnx_ir.save(onnx_ir.from_proto(model), path, external_data=path.name + ".data")


def save_model(source: onnx.ModelProto | Path, target: Path) -> None:
    """Write ``source``, with its external data, to ``target``, unless something is there already."""
    if target.exists():
        return
    if isinstance(source, Path):
        _copy_model(source, target)
    elif size(source) < LARGE:
        target.write_bytes(source.SerializeToString())
    else:
        write_with_external_data(source, target)


def _session(source: str | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - as above
        kind = InvalidModel if any(word in str(error) for word in _BAD_MODEL) else UnsupportedModel
        raise kind(f"ONNX Runtime refuses the model: {error}") from None


def _options(threads: int | None, optimised: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # what goes wrong is raised; the log would say it twice
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _port(node: Any) -> Port:
    inner = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = _KINDS.get(inner, inner) if node.type.startswith("tensor(") else ""
    return Port(node.name, dtype, tuple(node.shape) if node.shape is not None else None)


def _passes_unchanged(value: Any) -> bool:
    return value is None or isinstance(value, (np.ndarray, list, dict))  # lists and maps: sequence and map inputs


def _to_value(array: np.ndarray[Any, Any]) -> onnxruntime.OrtValue:
    kind = _ONNX_TYPE.get(array.dtype.name)
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    if kind is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(contiguous)
    raw = contiguous.view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, kind)


def _from_value(value: onnxruntime.OrtValue) -> Any:
    names = [name for name, kind in _ONNX_TYPE.items() if kind == value.element_type()]
    if not names:
        return value.numpy()
    dtype = dtype_named(names[0])
    import ctypes

    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(bytearray(raw), dtype=np.uint8).view(dtype).reshape(value.shape())


def _copy_model(source: Path, target: Path) -> None:
    """Copy a model file and the external data files that it names."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    shutil.copyfile(source, target)
    proto = onnx.load(source, load_external_data=False)
    named = {ExternalDataInfo(t).location for t in proto.graph.initializer if uses_external_data(t)}
    for location in named:
        (target.parent / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / location, target.parent / location)
