"""Compiled libraries without the compiler: loaded through ``tvm_ffi`` and TVM's small runtime library."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import InvalidInput

Array = np.ndarray[Any, Any]
ALIGNMENT = 64  # bytes; the virtual machine dies of an input that is not aligned
_CPU, _POOLED = 1, 2


class Library:
    """One compiled region: arrays in the order of its inputs in, arrays in the order of its outputs out."""

    def __init__(self, path: str | os.PathLike[str], threads: int | None) -> None:
        self._ffi = _ffi(threads)
        module = self._ffi.load_module(os.path.abspath(path))
        self._machine = module["vm_load_executable"]()
        self._machine["vm_initialization"](_CPU, 0, _POOLED)
        self._main = self._machine["main"]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        result = self._main(*[self._ffi.from_dlpack(aligned(array)) for array in inputs])
        results = [result] if hasattr(result, "shape") else list(result)
        return [np.from_dlpack(item) for item in results]


def aligned(array: Array) -> Array:
    """The array itself if its memory is contiguous, writable and starts at a multiple of ALIGNMENT; else such a copy."""
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous and array.flags.writeable:
        return array
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def processor() -> dict[str, Any]:
    """What compiled code may rely on here: the architecture, and the vector extensions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    wide = ("avx", "fma", "sse", "amx", "bmi", "f16c", "sve", "asimd", "vaes", "gfni", "popcnt", "movbe", "adx")
    return {"machine": platform.machine(), "flags": sorted(flag for flag in flags if flag.startswith(wide))}


@cache
def _ffi(threads: int | None) -> Any:
    folder = _runtime_folder()
    if threads is not None:
        os.environ.setdefault("TVM_NUM_THREADS", str(threads))  # read once, when the runtime starts its pool
    # tvm_ffi imports torch if it can, which takes seconds and is of no use here
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm_ffi
    except ImportError as error:
        raise InvalidInput(f"backend tvm needs tvm_ffi ({error}); install apache-tvm") from None
    finally:
        if hide:
            del sys.modules["torch"]
    try:
        ctypes.CDLL(str(folder / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise InvalidInput(f"TVM's runtime cannot be loaded ({error}); install apache-tvm") from None
    return tvm_ffi


def _runtime_folder() -> Path:
    found = importlib.util.find_spec("tvm")  # looked for, not imported
    if found is None or not found.submodule_search_locations:
        raise InvalidInput("backend tvm is not installed; install apache-tvm, or choose onnxruntime")
    return Path(found.submodule_search_locations[0]) / "lib"
