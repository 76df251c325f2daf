"""A library of Relax, TVM's own graph language, on a device: loaded through ``tvm_ffi`` without the compiler."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends.tvm.runtime import aligned, ffi, runtime_folder
from rewriter.errors import InvalidInput

Array = np.ndarray[Any, Any]
_KINDS = {"cpu": 1, "cuda": 2}  # DLPack's
_POOLED = 2  # the allocator that keeps what is freed
_FOR_CUDA, _INSTEAD = "this program was compiled for CUDA", "compile with target='cpu' to run it here"
_EXISTS = 0  # of a device's attributes


class VirtualMachine:
    """The function ``main`` of one library: arrays in order in, arrays in order out. Raises InvalidInput where there is no such device."""

    def __init__(self, path: str | os.PathLike[str], device: str, threads: int | None) -> None:
        self._ffi = ffi(threads)
        if device == "cuda":
            _need_cuda(self._ffi)
        module = self._ffi.load_module(str(Path(path).absolute()))
        self._machine = module["vm_load_executable"]()
        devices = [_KINDS[device]] if device == "cpu" else [_KINDS[device], _KINDS["cpu"]]
        self._machine["vm_initialization"](*(number for kind in devices for number in (kind, 0, _POOLED)))
        self._read = self._ffi.get_global_func("runtime.TVMTensorCopyToBytes")

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        self._machine["set_input"]("main", *(self._ffi.from_dlpack(aligned(array)) for array in inputs))
        self._machine["invoke_stateful"]("main")
        count = self._machine["get_output_arity"]("main")
        return [self._host(self._machine["get_output"]("main", *([] if count < 0 else [i]))) for i in range(max(1, count))]

    def _host(self, tensor: Any) -> Array:
        array = np.empty(tuple(tensor.shape), str(tensor.dtype))
        size = math.prod(array.shape) * array.dtype.itemsize
        self._read(tensor, ctypes.c_void_p(array.ctypes.data), size)
        return array


def _need_cuda(ffi: Any) -> None:
    """Load TVM's CUDA runtime and look for a device."""
    try:
        ctypes.CDLL(str(runtime_folder() / "libtvm_runtime_cuda.so"), ctypes.RTLD_GLOBAL)
        found = ffi.get_global_func("runtime.GetDeviceAttr")(_KINDS["cuda"], 0, _EXISTS)
    except OSError as error:
        raise InvalidInput(f"{_FOR_CUDA}, whose libraries are not here ({error}); {_INSTEAD}") from None
    if not found:
        raise InvalidInput(f"{_FOR_CUDA}, and no CUDA device was found; {_INSTEAD}")
