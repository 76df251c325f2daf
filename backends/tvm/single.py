"""One template at a time as something that can be called: for tests and for timing, without a graph around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tvm  # type: ignore[import-untyped, unused-ignore]
from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

from backends.tvm.codegen import compile_functions
from backends.tvm.kernel import Config, Kernel, Machine

Array = np.ndarray[Any, Any]


class Single:
    """A template's function, of flat arrays: the inputs in order, the chain's operands, and what the output holds before."""

    def __init__(self, kernel: Kernel, function: Any, scratch: int) -> None:
        self.kernel = kernel
        self._function = function
        self._scratch = [tvm.runtime.tensor(np.zeros(scratch, np.uint8))] if scratch else []

    def bound(self, *arrays: Array) -> tuple[Any, Any]:
        """A function without arguments that runs it, and the output that it fills (``.numpy()``)."""
        places = [tvm.runtime.tensor(_stored(array)) for array in arrays]
        function, scratch = self._function, self._scratch
        return lambda: function(*places, *scratch), places[-1]

    def on(self, *arrays: Array) -> Callable[[], Any]:
        """A function without arguments that runs it on these very arrays, which are aligned, flat and of the stored types."""
        places = [tvm.runtime.from_dlpack(array) for array in arrays]
        function, scratch = self._function, self._scratch
        return lambda: function(*places, *scratch)

    def __call__(self, *arrays: Array) -> Array:
        """The output after one run, of the type of the last array."""
        run, out = self.bound(*arrays)
        run()
        return np.asarray(out.numpy()).view(arrays[-1].dtype)


def build(kernels: Sequence[Kernel], machine: Machine, configs: Sequence[Config | None] | None = None) -> list[Single]:
    """The ``kernels``, each in its first configuration or the one given, compiled together: on all cores, since LLVM lets go of the interpreter."""
    pairs = [(k, c if c is not None else k.configs(machine)[0]) for k, c in zip(kernels, configs or [None] * len(kernels), strict=True)]
    count = max(1, min(machine.threads, len(pairs)))
    with ThreadPoolExecutor(count) as pool:
        shares = list(pool.map(lambda start: _built(pairs[start::count], machine), range(count)))
    return [shares[index % count][index // count] for index in range(len(pairs))]


def _built(pairs: Sequence[tuple[Kernel, Config]], machine: Machine) -> list[Single]:
    parts: dict[Any, Any] = {}
    for i, (kernel, config) in enumerate(pairs):
        inner = tvm.ir.GlobalVar(f"kernel{i}")
        parts[inner] = kernel.write(config, machine)
        parts[tvm.ir.GlobalVar(f"main{i}")] = _entry(f"main{i}", inner, parts[inner])
    library = compile_functions(parts, machine)
    return [Single(kernel, library[f"main{i}"], kernel.scratch(config, machine)) for i, (kernel, config) in enumerate(pairs)]


def _entry(name: str, inner: Any, function: Any) -> Any:
    """A function of flat arrays of any length that calls ``inner`` with their addresses."""
    buffers = []
    for i, parameter in enumerate(function.params):
        dtype = str(parameter.ty.element_type.dtype)
        length = tirx.Var(f"n{i}", "int64")
        buffers.append(tirx.decl_buffer((length,), dtype, name=f"x{i}", data_alignment=64))
    call = tvm.ir.Call(inner, [buffer.data for buffer in buffers], ret_ty=tvm.ir.PrimType("int32"))
    return tirx.PrimFunc(buffers, tirx.Evaluate(call)).with_attr("global_symbol", name)


def _stored(array: Array) -> Array:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.int8) if flat.dtype == np.bool_ else flat
