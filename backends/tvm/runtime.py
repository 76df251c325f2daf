"""Compiled libraries without the compiler: loaded through ``tvm_ffi`` and TVM's small runtime library."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import os
import platform
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import InvalidInput

Array = np.ndarray[Any, Any]
ALIGNMENT = 64  # bytes; compiled code reads whole vectors, and dies of an input that is not aligned


class Library:
    """One compiled region: arrays in the order of its inputs in, arrays in the order of its outputs out.

    Calls from several threads wait for each other: they share one workspace.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None) -> None:
        self._ffi = ffi(threads)
        path = Path(path).absolute()
        signature = json.loads(path.with_suffix(".json").read_text())
        self._run = self._ffi.load_module(str(path))["region"]
        self._inputs = [(tuple(shape), np.dtype(dtype)) for shape, dtype in signature["inputs"]]
        self._outputs = [(tuple(shape), np.dtype(dtype)) for shape, dtype in signature["outputs"]]
        self._memory = [_read(path.with_suffix(".weights")), room((signature["workspace"],), np.dtype(np.int8))]
        self._fixed = [self._ffi.from_dlpack(array) for array in self._memory]
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        for array, (shape, dtype) in zip(inputs, self._inputs, strict=True):
            if array.shape != shape or array.dtype != dtype:
                raise InvalidInput(f"compiled for {dtype}{list(shape)}, called with {array.dtype}{list(array.shape)}")
        results = [room(shape, dtype) for shape, dtype in self._outputs]
        given = [self._ffi.from_dlpack(_plain(aligned(array))) for array in inputs]
        places = [self._ffi.from_dlpack(_plain(array)) for array in results]
        with self._lock:
            self._run(*given, *places, *self._fixed)
        return results


def aligned(array: Array) -> Array:
    """The array itself if its memory is contiguous, writable and starts at a multiple of ALIGNMENT; else such a copy."""
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous and array.flags.writeable:
        return array
    copy = room(array.shape, array.dtype)
    copy[...] = array
    return copy


def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Memory for an array that starts at a multiple of ALIGNMENT; what it holds is undefined."""
    size = math.prod(shape) * dtype.itemsize
    place = np.empty(size + ALIGNMENT, np.uint8)
    start = -place.ctypes.data % ALIGNMENT
    return place[start : start + size].view(dtype).reshape(shape)


def _read(path: Path) -> Array:
    array = room((path.stat().st_size,), np.dtype(np.int8))
    with path.open("rb") as file:
        file.readinto(array.data)
    return array


def _plain(array: Array) -> Array:
    """Truth values are bytes for compiled code."""
    return array.view(np.int8) if array.dtype == np.bool_ else array


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
def ffi(threads: int | None) -> Any:
    folder = runtime_folder()
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")  # a millisecond; for 150 ms, it would keep others from the cores
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


def runtime_folder() -> Path:
    found = importlib.util.find_spec("tvm")  # looked for, not imported
    if found is None or not found.submodule_search_locations:
        raise InvalidInput("backend tvm is not installed; install apache-tvm, or choose onnxruntime")
    return Path(found.submodule_search_locations[0]) / "lib"
