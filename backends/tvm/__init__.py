"""TVM: the regions of a model that its importer takes become native code, the rest runs on ONNX Runtime.

The compiler (``import tvm``: 3.4 s, 400 MB) runs in a child process, which may crash or be ended when it takes too long;
this process only loads the libraries that it leaves, through ``tvm_ffi``. Every region is compared with ONNX Runtime on
the example inputs, judged by the float64 oracle, before it is used; one that fails goes to ONNX Runtime, and
``Program.notes`` says why. Shapes are fixed when a region is compiled, so a model with symbolic dimensions is compiled
once for each set of input shapes that is called, up to a bound.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.tvm.lower import refusal

if TYPE_CHECKING:
    import onnx
    import onnx_ir

    from backends.tvm.cuda import CudaProgram
    from backends.tvm.program import TvmProgram
    from backends.tvm.regions import Progress


SECONDS = 300.0
"""For compiling for one set of input shapes."""


def refuses(node: onnx_ir.Node) -> str | None:
    """The reason why ``node`` is left to ONNX Runtime, or None."""
    return refusal(node.op_type, node.domain)


def build(
    model: onnx.ModelProto | str | os.PathLike[str],
    *,
    target: str = "cpu",
    threads: int | None = None,
    example_inputs: Any = None,
    tune: int = 0,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> TvmProgram | CudaProgram:
    """Compile ``model``, now for the shapes of ``example_inputs`` (arrays in graph order) or its own if those are fixed,
    else when it is first called.

    ``tune``: configurations to measure beyond the few that each kernel gets, shared by how heavy the kernels are; ``progress`` is told
    how far measuring is, and how long it will take; what is interrupted goes on from there the next time. ``seconds``: what all
    compilation for one set of shapes may take (None: ``SECONDS``, and one for each of ``tune``), after which regions go to ONNX
    Runtime. ``target``: "cpu", "cuda", or "cuda:sm_86" (``backends/tvm/cuda.py``: the whole model, for a GPU that need not be here).
    """
    seconds = SECONDS + tune if seconds is None else seconds
    if target != "cpu":
        from backends.tvm import cuda

        return cuda.make(model, target, threads, example_inputs, seconds)
    from backends.tvm.program import make

    return make(model, threads, example_inputs, tune, seconds, progress)


def restore(directory: str | os.PathLike[str], threads: int | None = None) -> TvmProgram | CudaProgram:
    """The program that was saved in ``directory``; it needs ``tvm_ffi`` and TVM's runtime, and never compiles.

    Input shapes that were not compiled run on ONNX Runtime. Raises UnsupportedModel on another kind of processor.
    """
    from backends.tvm import cuda

    if Path(directory, cuda.FOLDER).is_dir():
        return cuda.reopen(directory, threads)
    from backends.tvm.program import reopen

    return reopen(directory, threads)
