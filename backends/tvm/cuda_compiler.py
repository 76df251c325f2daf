"""What runs in the process of the compiler for CUDA: lowering by TVM's importer and default GPU schedules, and NVIDIA's compiler.

No GPU is needed. Device code becomes part of the library only where TVM's CUDA runtime can be loaded, which wants the driver's
library: where there is none, one whose functions say "no device" stands in for it, in this process alone.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from backends.tvm.compiler import fold
from backends.tvm.runtime import runtime_folder

Reply = tuple[Any, list[Any]]
LIBRARY, SOURCE, PTX = "model.so", "kernels.cu", "kernels.ptx"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_DRIVER = "libcuda.so.1"


def compile_cuda(values: list[Any], *, source: str, folder: str, arch: str) -> Reply:
    """Compile the folded model ``source`` for GPUs of ``arch`` ("sm_90") to ``folder``: ``LIBRARY``, ``SOURCE`` and ``PTX``.

    Raises RuntimeError where nvcc or CUDA's runtime library is missing.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not on the PATH: install NVIDIA's CUDA toolkit where models are compiled")
    _load_runtime()
    import tvm_ffi

    target = Path(folder)

    def compiled(code: str) -> bytes:
        (target / SOURCE).write_text(code)
        number = arch.removeprefix("sm_")
        each = {"-ptx": PTX, "-fatbin": "kernels.fatbin"}
        for flag, name in each.items():
            kinds = ["-gencode", f"arch=compute_{number},code=[sm_{number},compute_{number}]"] if flag == "-fatbin" else [f"-arch={arch}"]
            command = [nvcc, flag, "-O3", *kinds, "-o", str(target / name), str(target / SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"nvcc failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[0]}")
        code_of_device = (target / "kernels.fatbin").read_bytes()
        (target / "kernels.fatbin").unlink()
        return code_of_device

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compiled, override=True)
    executable = _built(source, arch)
    executable.export_library(str(target / LIBRARY))
    return {"kernels": (target / SOURCE).read_text().count('extern "C" __global__') // 2}, []


def cuda_source(values: list[Any], *, source: str, arch: str) -> Reply:
    """The CUDA source of the folded model, where neither nvcc nor CUDA's runtime need be."""
    pending = [_built(source, arch).mod]
    while pending:
        module = pending.pop()
        if module.kind == "cuda":
            return module.inspect_source(), []
        pending += list(module.imports)
    raise RuntimeError("no kernel runs on the GPU")


def run_on_cpu(values: list[Any], *, source: str) -> Reply:
    """The outputs of what is lowered for CUDA, compiled for this processor instead."""
    import tvm

    from backends.tvm.virtual_machine import VirtualMachine

    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
        path = Path(folder, LIBRARY)
        tvm.compile(_lowered(source), target=tvm.target.Target({"kind": "llvm"})).export_library(str(path))
        return None, VirtualMachine(path, "cpu", None)(values)


def _lowered(source: str) -> Any:
    """The model as loop nests without a schedule."""
    import onnx
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    return relax.get_pipeline("zero")(from_onnx(onnx.load(source), keep_params_in_input=False))


def _built(source: str, arch: str) -> Any:
    import tvm
    from tvm.s_tir import dlight

    shape = {"max_shared_memory_per_block": 49152, "max_threads_per_block": 1024, "thread_warp_size": 32}
    target = tvm.target.Target({"kind": "cuda", "arch": arch, **shape}, host={"kind": "llvm"})
    gpu = dlight.gpu
    with target:
        schedules = dlight.ApplyDefaultSchedule(gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
        return tvm.compile(schedules(_lowered(source)), target=target)


def _load_runtime() -> None:
    """TVM's CUDA runtime, with the driver or what stands in for it."""
    library = runtime_folder() / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(_DRIVER, ctypes.RTLD_GLOBAL)
    except OSError:
        ctypes.CDLL(_stand_in(library), ctypes.RTLD_GLOBAL)
    import tvm

    if tvm.get_global_func("device_api.cuda", allow_missing=True) is None:
        raise RuntimeError("TVM's CUDA runtime cannot be loaded: the toolkit's libcudart must be where libraries are looked for (LD_LIBRARY_PATH)")


def _stand_in(library: Path) -> str:
    """A driver's library of the functions that ``library`` wants, which only say that there is no device."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    wanted = [name for name in names if name[:2] == "cu" and name[2:3].isupper()]
    code = "".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in wanted)
    path = os.path.join(tempfile.mkdtemp(prefix="rewriter-"), _DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path, f"-Wl,-soname,{_DRIVER}"], input=code, text=True, check=True)
    return path


REMOTE = {"fold": fold, "compile_cuda": compile_cuda, "cuda_source": cuda_source, "run_on_cpu": run_on_cpu}

if "torch" not in sys.modules:
    sys.modules["torch"] = None  # type: ignore[assignment] # TVM would import it, which takes seconds and is of no use here
