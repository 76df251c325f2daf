"""One native function of a whole region: its kernels one after the other, on memory that is planned beforehand.

The function takes the region's inputs, its outputs, the weights and the workspace, and is called once a run: no virtual
machine, no allocation, nothing between two kernels but a call. Equal kernels are one function.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.tvm.arena import ALIGNMENT, SLACK, Block, arrange
from backends.tvm.kernel import Config, Kernel, Machine
from backends.tvm.lowering import Lowering, Packed, Storage
from backends.tvm.views import View

Array = np.ndarray[Any, Any]
ENTRY = "region"
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
    weights: Array
    workspace: int


def plan(low: Lowering, configs: Mapping[Kernel, Config]) -> Layout:
    """The memory of a region whose kernels have these configurations."""
    weights = _Weights()
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
        config = configs[launch.kernel]
        places = [
            weights.packed(launch.kernel, part, config, low.machine) if isinstance(part, Packed)
            else _shifted(storages[part.storage], part)
            for part in launch.reads
        ]  # fmt: skip
        places.append(_shifted(storages[launch.write.storage], launch.write))
        if index in scratches:
            places.append(Place("workspace", 0, scratches[index]))
        launches.append(tuple(places))
    return Layout(tuple(launches), weights.whole(), workspace)


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
    """Write the region's machine code to the shared library ``library``; ``ENTRY`` is the function to call."""
    import tvm  # type: ignore[import-untyped, unused-ignore]

    from backends.tvm.codegen import compile_functions

    parts: dict[Any, Any] = {}
    functions: dict[Kernel, Any] = {}
    for launch in low.launches:
        if launch.kernel not in functions:
            functions[launch.kernel] = variable = tvm.ir.GlobalVar(f"kernel{len(functions)}")
            parts[variable] = launch.kernel.write(configs[launch.kernel], low.machine)
    parts[tvm.ir.GlobalVar(ENTRY)] = _entry(low, layout, functions, parts)
    compile_functions(parts, low.machine).export_library(os.fspath(library))


def _entry(low: Lowering, layout: Layout, functions: Mapping[Kernel, Any], parts: Mapping[Any, Any]) -> Any:
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
            for place, parameter in zip(places, parts[function].params, strict=True)
        ]
        body.append(tirx.Evaluate(ir.Call(function, addresses, ret_ty=ir.PrimType("int32"))))
        body.append(tirx.Evaluate(tirx.call_extern("int32", "rewriter_barrier")))
    whole = tirx.SeqStmt([*body, tirx.Evaluate(tirx.IntImm("int32", 0))])
    whole = tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", ir.StringImm(_BARRIER), whole)
    return tirx.PrimFunc(list(memories.values()), whole).with_attr("global_symbol", ENTRY)


def _address(data: Any, offset: int, kind: Any) -> Any:
    """``offset`` bytes after ``data``, as a pointer of type ``kind``."""
    from tvm import ir, tirx

    return ir.Call(ir.Op.get("tirx.handle_add_byte_offset"), [data, tirx.IntImm("int64", offset)], ret_ty=kind)


class _Weights:
    """Arrays one after the other, aligned, equal ones once."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self._size = 0
        self._packed: dict[tuple[int, Kernel], int] = {}

    def packed(self, kernel: Kernel, part: Packed, config: Config, machine: Machine) -> Place:
        """The place of weights that ``kernel`` packs; a band of an image finds those of the band before."""
        key = (id(part), kernel)
        if key not in self._packed:
            self._packed[key] = self.add(kernel.pack(part.array, config, machine))  # type: ignore[attr-defined]
        return Place("weights", 0, self._packed[key])

    def add(self, array: Array) -> int:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = (flat.size, hash(flat.tobytes()))
        if key not in self._known:
            self._known[key] = self._size
            room = -(-(flat.size + SLACK) // ALIGNMENT) * ALIGNMENT
            self._arrays.append(np.pad(flat, (0, room - flat.size)))
            self._size += room
        return self._known[key]

    def whole(self) -> Array:
        return np.concatenate(self._arrays) if self._arrays else np.zeros(ALIGNMENT, np.uint8)


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
