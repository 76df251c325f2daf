"""A model on TVM: one plan for each set of input shapes, made when first called, saved with its libraries."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends import onnxruntime
from backends.arrays import as_numpy
from backends.program import Port, model_inputs, ports_of
from backends.threads import thread_count
from backends.tvm.runtime import Library, processor
from rewriter.errors import InvalidInput, InvalidModel, UnsupportedModel

if TYPE_CHECKING:
    import onnx

    from backends.tvm.regions import Plan, Progress
    from backends.worker import Worker

PLANS = 8  # sets of input shapes that are compiled; others run on ONNX Runtime
_FOLDER, _INDEX = "tvm", "plans.json"
Key = tuple[tuple[int, ...], ...]


class TvmProgram:
    """Callable on arrays in graph order. ``notes`` says which regions run on ONNX Runtime, and why."""

    def __init__(
        self,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        threads: int,
        tune: int,
        seconds: float | None,
        closed: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """``seconds`` is None for a program that was restored: it has its plans, and makes no new ones. ``closed``: the model has no
        functions of its own. ``progress`` is told how far measuring is."""
        self.inputs = inputs
        self.outputs = outputs
        self.notes: list[str] = []
        self._threads = threads
        self._tune = tune
        self._seconds = seconds
        self._plans: dict[Key, _Running] = {}
        self._started: Worker | None = None
        self._closed, self._progress = closed, progress
        self._folder = tempfile.TemporaryDirectory(prefix="rewriter-tvm-")
        self._whole = Whole(Path(self._folder.name), threads)

    def keep(self, model: onnx.ModelProto | Path, external: bool) -> None:
        """The model itself, for shapes that are not compiled yet; ``external``: does its file name others?"""
        self._whole.put(model, external)

    def keep_saved(self, model: Path) -> None:
        """As ``keep``, of a file that ``save`` wrote."""
        self._whole.link(model)

    def __call__(self, *inputs: Any) -> list[Any]:
        if len(inputs) != len(self.inputs):
            names = [port.name for port in self.inputs]
            raise InvalidInput(f"{len(inputs)} inputs were given; the model takes {len(names)}: {names}")
        arrays = [self._accept(port, value) for port, value in zip(self.inputs, inputs, strict=True)]
        running = self._running(arrays)
        return self._whole.run(arrays) if running is None else running(arrays)

    def start(self) -> None:
        """Start the compiler's process, which takes a moment, for a call of ``compile`` that will follow."""
        self._started = self._compiler()

    @property
    def compiled(self) -> int:
        """For how many sets of input shapes there is a plan."""
        return len(self._plans)

    def check(self) -> None:
        """Raises RewriterError for a model that ONNX Runtime refuses: one whose shapes are not known is compiled when it is called."""
        self._whole.session()

    def compile(self, arrays: Sequence[Any]) -> None:
        """Compile for inputs of these shapes, unless that was done."""
        self._running([self._accept(port, value) for port, value in zip(self.inputs, arrays, strict=True)])

    def save(self, directory: str | os.PathLike[str]) -> None:
        self._whole.save(directory)
        target = Path(directory, _FOLDER)
        target.mkdir()
        plans = []
        for number, (key, running) in enumerate(self._plans.items()):
            shutil.copytree(running.folder, target / str(number))
            plans.append({"shapes": key, **running.to_json()})
            np.savez(target / str(number) / "weights.npz", **dict(running.weights))
        ports = {key: [(p.name, p.dtype, p.shape) for p in getattr(self, key)] for key in ("inputs", "outputs")}
        index = {**ports, "processor": processor(), "threads": self._threads, "notes": self.notes, "plans": plans}
        (target / _INDEX).write_text(json.dumps(index, indent=1))

    def restore_plans(self, folder: Path, index: Mapping[str, Any]) -> None:
        """Take the plans that ``save`` wrote; what they need is copied, since the folder may be replaced."""
        self.notes += index["notes"]
        for number, plan in enumerate(index["plans"]):
            own = Path(self._folder.name, str(number))
            shutil.copytree(folder / str(number), own)
            with np.load(own / "weights.npz") as stored:
                weights = dict(stored)
            (own / "weights.npz").unlink()
            key = tuple(tuple(shape) for shape in plan["shapes"])
            self._plans[key] = _Running(own, plan["steps"], weights, self.inputs, self.outputs, self._threads)

    def _accept(self, port: Port, value: Any) -> Any:
        if value is None or isinstance(value, (list, dict)):
            return value
        array = as_numpy(value)
        if port.dtype and port.dtype != "str" and array.dtype.name != port.dtype:
            raise InvalidInput(f"input {port.name!r} is {array.dtype.name}; the model takes {port.dtype}")
        if port.shape is not None and not _fits(array.shape, port.shape):
            raise InvalidInput(f"input {port.name!r} has shape {list(array.shape)}; the model takes {list(port.shape)}")
        return array

    def _running(self, arrays: Sequence[Any]) -> _Running | None:
        if not all(isinstance(array, np.ndarray) and array.dtype.kind != "O" and array.size for array in arrays):
            return None  # sequences, strings and empty arrays are not worth a plan
        key = tuple(array.shape for array in arrays)
        if key not in self._plans and self._seconds is not None and len(self._plans) < PLANS:
            self._plans[key] = self._make(arrays, self._seconds)
        return self._plans.get(key)

    def _compiler(self) -> Worker:
        from backends.tvm.compiler_process import started

        worker, self._started = self._started or started(self._threads), None
        return worker

    def _make(self, arrays: Sequence[Any], seconds: float) -> _Running:
        from backends.tvm.compiler_process import lent
        from backends.tvm.regions import plan

        folder = Path(self._folder.name, str(len(self._plans)))
        folder.mkdir()
        named = {port.name: array for port, array in zip(self.inputs, arrays, strict=True)}
        # the compiler's process gets the cores; this one waits
        with lent(self._compiler(), self._threads) as worker:
            made: Plan = plan(
                self._whole.path, named, folder, worker, threads=self._threads, tune=self._tune, seconds=seconds,
                as_declared=self._closed and all(port.shape == array.shape for port, array in zip(self.inputs, arrays, strict=True)),
                progress=self._progress,
            )  # fmt: skip
        self.notes += [note for note in made.notes if note not in self.notes]
        steps = [vars(step) for step in made.steps]
        return _Running(folder, steps, made.weights, self.inputs, self.outputs, self._threads)


class Whole:
    """The whole model for ONNX Runtime, which runs what is not compiled: a file, and a session from when one is needed."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.path = folder / "model.onnx"
        self._threads = threads
        self._program: onnxruntime.OnnxRuntimeProgram | None = None

    def put(self, source: onnx.ModelProto | Path, external: bool) -> None:
        """Keep the model; ``external``: has its file others beside it?"""
        if isinstance(source, Path) and not external:
            shutil.copyfile(source, self.path)
        else:
            onnxruntime.save_model(source, self.path)

    def link(self, source: Path) -> None:
        """Keep the files of a saved model, by another name if the file system can do that: nobody writes to them."""
        for file in source.parent.glob(f"{source.name}*"):
            _linked(file, self.path.with_name(file.name))

    def session(self) -> onnxruntime.OnnxRuntimeProgram:
        """It, ready to run. Raises RewriterError."""
        self._program = self._program or onnxruntime.build(self.path, threads=self._threads)
        return self._program

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """On ONNX Runtime."""
        return self.session()(*arrays)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """As another program would save it."""
        onnxruntime.save_model(self.path, Path(directory, self.path.name))


class _Running:
    """A plan with its libraries and sessions loaded."""

    def __init__(
        self,
        folder: Path,
        steps: Sequence[Mapping[str, Any]],
        weights: Mapping[str, Any],
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        threads: int,
    ) -> None:
        self.folder, self.weights = folder, weights
        self._steps = [dict(step) for step in steps]
        self._run = [_runner(folder / step["file"], step["kind"], threads) for step in steps]
        self._names, self._results = [p.name for p in inputs], [p.name for p in outputs]
        self._dying = _dying(self._steps, self._results)

    @property
    def compiled(self) -> int:
        """How many regions are native code."""
        return sum(step["kind"] == "tvm" for step in self._steps)

    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        values = {**self.weights, **dict(zip(self._names, arrays, strict=True))}
        for step, run, dying in zip(self._steps, self._run, self._dying, strict=True):
            made = run([values[name] for name in step["inputs"]])
            values.update(zip(step["outputs"], made, strict=True))
            for name in dying:
                del values[name]
        return [values[name] for name in self._results]

    def to_json(self) -> dict[str, Any]:
        return {"steps": self._steps}


def make(
    model: onnx.ModelProto | str | os.PathLike[str],
    threads: int | None,
    example_inputs: Sequence[Any] | None,
    tune: int,
    seconds: float,
    progress: Progress | None = None,
) -> TvmProgram:
    """As ``backends.tvm.build``."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    from backends.measure import example_arrays

    proto = model
    if isinstance(model, (str, os.PathLike)):
        model = Path(model)
        if not model.is_file():
            raise InvalidModel(f"{model}: no such file")
        proto = _read(model)
    assert isinstance(proto, onnx.ModelProto)
    inputs, outputs = model_inputs(proto.graph), ports_of(proto.graph.output)
    program = TvmProgram(inputs, outputs, thread_count(threads), tune, seconds, not proto.functions, progress)
    known = all(port.dtype not in ("", "str") and _static(port) for port in program.inputs)
    if known or example_inputs is not None:
        program.start()
    program.keep(model, any(map(uses_external_data, proto.graph.initializer)))
    del proto
    if example_inputs is not None:
        program.compile(example_inputs)
    elif known:
        program.compile(example_arrays(program.inputs))
    if not program.compiled:
        program.check()
    return program


def _read(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise InvalidModel(f"{path} is not an ONNX model: {error}") from None


def reopen(directory: str | os.PathLike[str], threads: int | None) -> TvmProgram:
    """As ``backends.tvm.restore``."""
    folder = Path(directory, _FOLDER)
    index = json.loads((folder / _INDEX).read_text())
    built, here = index["processor"], processor()
    lacking = sorted(set(built["flags"]) - set(here["flags"]))
    if built["machine"] != here["machine"] or lacking:
        what = lacking[0] if lacking else built["machine"]
        raise UnsupportedModel(f"{folder} was compiled for a processor with {what}, which this one lacks; compile again here")
    inputs, outputs = ([Port(name, dtype, _shape(shape)) for name, dtype, shape in index[key]] for key in ("inputs", "outputs"))
    program = TvmProgram(inputs, outputs, threads or index["threads"], 0, None)
    program.keep_saved(Path(directory, "model.onnx"))
    program.restore_plans(folder, index)
    return program


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _shape(stored: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if stored is None else tuple(stored)


def _runner(path: Path, kind: str, threads: int) -> Any:
    if kind == "tvm":
        return Library(path, threads)
    program = onnxruntime.build(path, threads=threads)
    return lambda values: program(*values)


def _dying(steps: Sequence[Mapping[str, Any]], results: Sequence[str]) -> list[list[str]]:
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        last.update(dict.fromkeys((*step["inputs"], *step["outputs"]), index))
    dying: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        if name not in results:
            dying[index].append(name)
    return dying


def _static(port: Port) -> bool:
    return port.shape is not None and all(isinstance(d, int) and d > 0 for d in port.shape)


def _fits(shape: Sequence[int], declared: Sequence[int | str | None]) -> bool:
    pairs = zip(shape, declared, strict=False)
    return len(shape) == len(declared) and all(not isinstance(d, int) or d in (-1, s) for s, d in pairs)
