"""One native function of a whole region: its kernels one after the other, on memory that is planned beforehand.

The function takes the region's inputs, its outputs, the weights and the workspace, and is called once a run: no virtual
machine, no allocation, nothing between two kernels but a call. Equal kernels are one function.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from backends.tvm.arena import ALIGNMENT, SLACK, Block, arrange
from backends.tvm.kernel import Config, Kernel
from backends.tvm.lowering import Lowering, Packed, Storage
from backends.tvm.views import View

Array = np.ndarray[Any, Any]
ENTRY = "region"
_PLAIN_C = 1  # a calling convention for which TVM does not wrap a function: pointers go in as they are
# TVM tells LLVM that two buffers of one function never overlap. Once kernels are inlined, the output of one and the input of
# the next are two such buffers: no load may go before a store across the line between kernels. It costs no instruction.
_BARRIER = """define i32 @rewriter_barrier() alwaysinline {
  call void asm sideeffect "", "~{memory}"()
  ret i32 0
}
"""


@dataclass(frozen=True)
class Place:
    """An operand of a launch: bytes from the start of "weights", "workspace", or of input or output ``index``."""

    memory: str
    index: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """Where everything lies: for each launch the places of its parameters; the weights; the workspace's size in bytes."""

    places: tuple[tuple[Place, ...], ...]
    weights: Weights
    workspace: int


def plan(low: Lowering, configs: Mapping[Kernel, Config]) -> Layout:
    """The memory of a region whose kernels have these configurations."""
    weights = Weights()
    weights.pack(low, configs)
    storages: dict[int, Place] = {}
    for number, storage in enumerate(low.storages):
        if storage.kind == "weight":
            assert storage.array is not None
            storages[number] = Place("weights", 0, weights.add(storage.array))
    for kind, names in (("input", low.graph.inputs), ("output", low.graph.outputs)):
        for number, storage in enumerate(low.storages):
            if storage.kind == kind:
                storages[number] = Place(kind, names.index(storage.name), 0)
    temporaries, scratches, workspace = _temporaries(low, configs)
    storages.update({number: Place("workspace", 0, offset) for number, offset in temporaries.items()})
    launches = []
    for index, launch in enumerate(low.launches):
        places = [
            weights.packed(launch.kernel, part) if isinstance(part, Packed)
            else _shifted(storages[part.storage], part)
            for part in launch.reads
        ]  # fmt: skip
        places.append(_shifted(storages[launch.write.storage], launch.write))
        if index in scratches:
            places.append(Place("workspace", 0, scratches[index]))
        launches.append(tuple(places))
    return Layout(tuple(launches), weights.end(), workspace)


def structure(low: Lowering, configs: Mapping[Kernel, Config], layout: Layout) -> object:
    """All that the machine code depends on, beside the machine."""
    ports = [(low.graph.shapes[name], low.graph.dtypes[name]) for name in (*low.graph.inputs, "", *low.graph.outputs) if name]
    kernels = [(launch.kernel, configs[launch.kernel]) for launch in low.launches]
    return len(low.graph.inputs), ports, kernels, layout.places, layout.weights.nbytes, layout.workspace


def signature(low: Lowering, layout: Layout) -> dict[str, Any]:
    """How the region is called, as JSON: shapes and dtypes of inputs and outputs, bytes of its workspace."""
    graph = low.graph
    return {
        "inputs": [(graph.shapes[name], graph.dtypes[name]) for name in graph.inputs],
        "outputs": [(graph.shapes[name], graph.dtypes[name]) for name in graph.outputs],
        "workspace": layout.workspace + ALIGNMENT,
    }


def build(low: Lowering, configs: Mapping[Kernel, Config], layout: Layout, library: str | os.PathLike[str]) -> None:
    """Write the region's machine code to the shared library ``library``; ``ENTRY`` is the function to call.

    The kernels are shared out to as many objects as there are threads, and linked: LLVM takes all the time.
    """
    import tvm  # type: ignore[import-untyped, unused-ignore]
    from tvm.support.cc import create_shared  # type: ignore[import-untyped, unused-ignore]

    from backends.tvm.codegen import compile_functions

    functions: dict[Kernel, Any] = {}
    for kernel in dict.fromkeys(launch.kernel for launch in low.launches):
        written = kernel.write(configs[kernel], low.machine)
        functions[kernel] = written.with_attr({"global_symbol": f"rewriter_kernel{len(functions)}", "calling_conv": _PLAIN_C})
    parts = [_entry(low, layout, functions), *functions.values()]
    count = min(low.machine.threads, len(parts))

    def compiled(share: int) -> str:
        path = os.path.join(folder, f"{share}.o")
        named = {tvm.ir.GlobalVar(str(part.attrs["global_symbol"])): part for part in parts[share::count]}
        compile_functions(named, low.machine).write_to_file(path, "o")
        return path

    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder, ThreadPoolExecutor(count) as pool:
        own = ["-Wl,-Bsymbolic"] if sys.platform == "linux" else []  # the kernels of two libraries have the same names
        create_shared(os.fspath(library), list(pool.map(compiled, range(count))), options=own)


def _entry(low: Lowering, layout: Layout, functions: Mapping[Kernel, Any]) -> Any:
    from tvm import ir, tirx  # type: ignore[import-untyped, unused-ignore]

    from backends.tvm.emit import stored

    memories: dict[tuple[str, int], Any] = {}
    for kind, names in (("input", low.graph.inputs), ("output", low.graph.outputs)):
        for index, name in enumerate(names):
            shape, dtype = low.graph.shapes[name], stored(low.graph.dtypes[name])
            memories[kind, index] = tirx.decl_buffer(shape, dtype, name=f"{kind}{index}", data_alignment=ALIGNMENT)
    for kind, size in (("weights", layout.weights.nbytes), ("workspace", layout.workspace + ALIGNMENT)):
        memories[kind, 0] = tirx.decl_buffer((size,), "int8", name=kind, data_alignment=ALIGNMENT)
    body: list[Any] = []
    for launch, places in zip(low.launches, layout.places, strict=True):
        function = functions[launch.kernel]
        addresses = [
            _address(memories[place.memory, place.index].data, place.offset, parameter.ty)
            for place, parameter in zip(places, function.params, strict=True)
        ]
        body.append(tirx.Evaluate(tirx.call_extern("int32", function.attrs["global_symbol"], *addresses)))
        body.append(tirx.Evaluate(tirx.call_extern("int32", "rewriter_barrier")))
    whole = tirx.SeqStmt([*body, tirx.Evaluate(tirx.IntImm("int32", 0))])
    whole = tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", ir.StringImm(_BARRIER), whole)
    return tirx.PrimFunc(list(memories.values()), whole).with_attr("global_symbol", ENTRY)


def _address(data: Any, offset: int, kind: Any) -> Any:
    """``offset`` bytes after ``data``, as a pointer of type ``kind``."""
    from tvm import ir, tirx

    return ir.Call(ir.Op.get("tirx.handle_add_byte_offset"), [data, tirx.IntImm("int64", offset)], ret_ty=kind)


class Weights:
    """Arrays one after the other, aligned, equal ones once."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._known: dict[tuple[int, int], list[tuple[Array, int]]] = {}  # by size and checksum
        self._packed: dict[tuple[int, Kernel], int] = {}
        self.nbytes = 0

    def pack(self, low: Lowering, configs: Mapping[Kernel, Config]) -> None:
        """Let the kernels pack their weights, on all cores: NumPy's loops leave the interpreter to others."""
        wanted: dict[tuple[int, Kernel], Packed] = {}
        for launch in low.launches:
            wanted.update({(id(part), launch.kernel): part for part in launch.reads if isinstance(part, Packed)})

        def packed(kernel: Kernel, part: Packed) -> tuple[Array, int]:
            flat = _bytes_of(kernel.pack(part.array, configs[kernel], low.machine))  # type: ignore[attr-defined]
            return flat, zlib.adler32(flat.data)

        with ThreadPoolExecutor(low.machine.threads) as pool:
            made = pool.map(lambda item: packed(item[0][1], item[1]), wanted.items())
            for key, (flat, checksum) in zip(wanted, made, strict=True):
                self._packed[key] = self._put(flat, checksum)

    def packed(self, kernel: Kernel, part: Packed) -> Place:
        """The place of weights that ``kernel`` packed; a band of an image finds those of the band before."""
        return Place("weights", 0, self._packed[id(part), kernel])

    def add(self, array: Array) -> int:
        """Where ``array`` lies, in bytes."""
        flat = _bytes_of(array)
        return self._put(flat, zlib.adler32(flat.data))

    def write(self, file: IO[bytes]) -> None:
        """All of it, in order."""
        for flat in self._arrays:
            file.write(flat.data)
            file.write(bytes(_room(flat) - flat.size))
        if not self._arrays:
            file.write(bytes(self.nbytes))

    def end(self) -> Weights:
        """These, with nothing to come."""
        self.nbytes = self.nbytes or ALIGNMENT
        return self

    def _put(self, flat: Array, checksum: int) -> int:
        alike = self._known.setdefault((flat.size, checksum), [])
        for other, offset in alike:
            if np.array_equal(flat, other):
                return offset
        alike.append((flat, self.nbytes))
        self._arrays.append(flat)
        self.nbytes += _room(flat)
        return alike[-1][1]


def _bytes_of(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _room(flat: Array) -> int:
    """Bytes from the start of ``flat`` to that of what comes next."""
    return -(-(flat.size + SLACK) // ALIGNMENT) * ALIGNMENT


def _temporaries(low: Lowering, configs: Mapping[Kernel, Config]) -> tuple[dict[int, int], dict[int, int], int]:
    """The offsets of the temporary storages and of the launches' scratch memory, and the size of it all."""
    spans: dict[int, list[int]] = {}
    for index, launch in enumerate(low.launches):
        for view in (*launch.reads, launch.write):
            if isinstance(view, View) and low.storages[view.storage].kind == "temporary":
                spans.setdefault(view.storage, [index, index])[1] = index
    blocks = [Block(_bytes(low.storages[number]), *span) for number, span in spans.items()]
    needed = [launch.kernel.scratch(configs[launch.kernel], low.machine) for launch in low.launches]
    scratches = [index for index, size in enumerate(needed) if size]
    blocks += [Block(needed[index], index, index) for index in scratches]
    offsets, total = arrange(blocks)
    return (
        dict(zip(spans, offsets[: len(spans)], strict=True)), dict(zip(scratches, offsets[len(spans) :], strict=True)), total,
    )  # fmt: skip


def _bytes(storage: Storage) -> int:
    return storage.elements * np.dtype(storage.dtype).itemsize


def _shifted(place: Place, view: View) -> Place:
    return Place(place.memory, place.index, place.offset + view.offset * np.dtype(view.dtype).itemsize)
