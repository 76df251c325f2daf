"""What runs in the compiler's process: fixing shapes, folding, importing, compiling, and trying the result."""

from __future__ import annotations

import os
from typing import Any

Reply = tuple[Any, list[Any]]


def fold(values: list[Any], *, source: str, result: str) -> Reply:
    """Fold the constants and shape arithmetic of the model ``source``, whose input shapes are fixed, into ``result``."""
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = result
    options.log_severity_level = 4
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return None, []


def compile_region(values: list[Any], *, source: str, library: str, threads: int) -> Reply:
    """Compile the model ``source`` (fixed shapes, operators of ``operators.TAKEN``) to the shared library ``library``."""
    import onnx
    import tvm  # type: ignore[import-untyped, unused-ignore]
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx  # type: ignore[import-untyped, unused-ignore]

    target = tvm.target.Target({"kind": "llvm", "mcpu": _processor(tvm), "num-cores": threads})
    module = from_onnx(onnx.load(source), keep_params_in_input=False)
    with target:
        module = relax.get_pipeline("zero")(module)
    tvm.compile(module, target=target).export_library(library)
    return {"functions": len(module.functions)}, []


def try_region(values: list[Any], *, library: str, outputs: int) -> Reply:
    """The results of a compiled region, computed here, where a crash is harmless."""
    from backends.tvm.runtime import Library

    results = Library(library, None)(values)
    if len(results) != outputs:
        raise ValueError(f"the library returns {len(results)} results for {outputs} outputs")
    return None, results


def _processor(tvm: Any) -> str:
    return str(tvm.target.codegen.llvm_get_system_cpu())


REMOTE = {"fold": fold, "compile_region": compile_region, "try_region": try_region}

# the compiler's own pool of threads; the region's is fixed by its target
os.environ.setdefault("OMP_NUM_THREADS", "1")
