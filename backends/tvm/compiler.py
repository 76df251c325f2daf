"""What runs in the compiler's process: folding, lowering, measuring, compiling, and trying the result."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

Reply = tuple[Any, list[Any]]


Types = dict[str, tuple[int, list[int]]]


def fold(values: list[Any], *, source: str, result: str, types: Types | None = None, fixed: str = "") -> Reply:
    """Fold the constants and shape arithmetic of the model ``source`` into ``result``; large weights lie beside it, in ``NAME.data``.

    ``types``: element type and shape of each input, by name; the model with these is written to ``fixed``, in the folder of
    ``source``. None: they are those that it declares. The reply has the digest of the ``weights``' file.
    """
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    if types is not None:
        _fix(source, types, fixed)
    path, data = source if types is None else fixed, Path(result).with_suffix(".data")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = result
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data.name)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.disable_prepacking", "1")  # the session never runs
    options.log_severity_level = 4
    # it would put a Reshape between a product and what can follow it in registers
    unwanted = ["MatMulAddFusion"]
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=unwanted)
    return {"weights": _digest_of(data) if data.exists() else ""}, []


def _fix(source: str, types: Types, target: str) -> None:
    import onnx
    from onnx import helper, inliner

    model = onnx.load(source, load_external_data=False)
    if model.functions:
        model = inliner.inline_local_functions(model)
    del model.graph.value_info[:]
    for value in model.graph.input:
        if value.name in types:
            value.type.CopyFrom(helper.make_tensor_type_proto(*types[value.name]))
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    Path(target).write_bytes(model.SerializeToString())


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compile_region(
    values: list[Any], *, source: str, library: str, threads: int, tune: int = 0, fast: int = 4, progress: str | None = None
) -> Reply:
    """Compile the model ``source`` (fixed shapes) to ``library``: machine code, weights beside it, and what to call it with.

    ``fast``: the largest Winograd tile allowed; the reply says whether any was used (``fast``), how many kernels there are, and
    the ``digest`` of the machine code. ``progress``: a file for what is told of measuring. What the database has needs no compiler:
    then TVM is not even imported.
    """
    import onnx

    from backends.tvm import module
    from backends.tvm.database import Database, digest
    from backends.tvm.graph import read
    from backends.tvm.lower import lower
    from backends.tvm.machine import detect
    from backends.tvm.tune import choose

    database = Database()
    machine = detect(threads, database=database)
    graph = read(onnx.load(source, load_external_data=False), folder=Path(source).parent)
    low = lower(graph, machine, fast)
    configs = choose(low, database, tune=tune, progress=lambda text: _tell(progress, text))
    layout = module.plan(low, configs)
    name = digest(machine, module.structure(low, configs, layout))
    code = database.library(name)
    if code is None:
        module.build(low, configs, layout, library)
        database.keep_library(name, Path(library).read_bytes())
    else:
        Path(library).write_bytes(code)
    with Path(library).with_suffix(".weights").open("wb") as file:
        layout.weights.write(file)
    Path(library).with_suffix(".json").write_text(json.dumps(module.signature(low, layout)))
    used = any("Winograd" in launch.label for launch in low.launches)
    return {"kernels": len(configs), "launches": len(low.launches), "fast": used, "digest": name}, []


def _tell(path: str | None, text: str) -> None:
    if path is not None:
        Path(path).with_suffix(".new").write_text(text)
        Path(path).with_suffix(".new").replace(path)


def try_region(values: list[Any], *, library: str) -> Reply:
    """The results of a compiled region, computed here, where a crash is harmless."""
    from backends.tvm.runtime import Library

    return None, Library(library, None)(values)


REMOTE = {"fold": fold, "compile_region": compile_region, "try_region": try_region}

if "torch" not in sys.modules:
    sys.modules["torch"] = None  # type: ignore[assignment] # TVM would import it, which takes seconds and is of no use here
