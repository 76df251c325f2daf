"""What runs in the compiler's process: folding, lowering, measuring, compiling, and trying the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Reply = tuple[Any, list[Any]]


def fold(values: list[Any], *, source: str, result: str) -> Reply:
    """Fold the constants and shape arithmetic of the model ``source``, whose input shapes are fixed, into ``result``."""
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = result
    options.log_severity_level = 4
    # it would put a Reshape between a product and what can follow it in registers
    unwanted = ["MatMulAddFusion"]
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"], disabled_optimizers=unwanted)
    return None, []


def compile_region(values: list[Any], *, source: str, library: str, threads: int, tune: int = 0, fast: int = 4) -> Reply:
    """Compile the model ``source`` (fixed shapes) to ``library``: machine code, weights beside it, and what to call it with.

    ``fast``: the largest Winograd tile allowed; the reply says whether any was used (``fast``), and how many kernels there are.
    """
    import onnx

    from backends.tvm import module
    from backends.tvm.database import Database, digest
    from backends.tvm.graph import read
    from backends.tvm.lower import lower
    from backends.tvm.machine import detect
    from backends.tvm.tune import choose

    machine, database = detect(threads), Database()
    low = lower(read(onnx.load(source)), machine, fast)
    configs = choose(low, database, tune=tune)
    layout = module.plan(low, configs)
    name = digest(machine, module.structure(low, configs, layout))
    code = database.library(name)
    if code is None:
        module.build(low, configs, layout, library)
        database.keep_library(name, Path(library).read_bytes())
    else:
        Path(library).write_bytes(code)
    layout.weights.tofile(Path(library).with_suffix(".weights"))
    Path(library).with_suffix(".json").write_text(json.dumps(module.signature(low, layout)))
    used = any("Winograd" in launch.label for launch in low.launches)
    return {"kernels": len(configs), "launches": len(low.launches), "fast": used}, []


def try_region(values: list[Any], *, library: str) -> Reply:
    """The results of a compiled region, computed here, where a crash is harmless."""
    from backends.tvm.runtime import Library

    return None, Library(library, None)(values)


REMOTE = {"fold": fold, "compile_region": compile_region, "try_region": try_region}

if "torch" not in sys.modules:
    sys.modules["torch"] = None  # type: ignore[assignment] # TVM would import it, which takes seconds and is of no use here
