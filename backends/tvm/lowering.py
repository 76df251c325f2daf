"""From a graph to launches of kernels on places in memory: the state that all operators' lowerings share.

Every value gets a View. What only moves data gets another view of the same storage; a convolution's result lies channels
last, with a halo of zeros as wide as its readers pad; the parts of a Concat are written where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from backends.tvm.fuse import Group
from backends.tvm.graph import Graph, Node, UnsupportedNode
from backends.tvm.kernel import Chain, Kernel, Machine, Step
from backends.tvm.kernels.elementwise import Elementwise
from backends.tvm.views import View, in_order, memory_order, row_major

Array = np.ndarray[Any, Any]
Halo = tuple[tuple[int, ...], tuple[int, ...]]  # elements before and after each axis


_PAGE, _LINE = 4096, 64  # bytes


@dataclass
class Storage:
    """A piece of memory. ``kind``: "input", "output", "weight" or "temporary"; ``elements`` of ``dtype``."""

    kind: str
    dtype: str
    elements: int
    name: str = ""  # of an input or output
    array: Array | None = None  # of a weight


class Packed:
    """Weights that the kernel packs as its configuration asks; ``make`` gives them as it expects them, when they are needed."""

    def __init__(self, make: Callable[[], Array]) -> None:
        self._make = make

    @cached_property
    def array(self) -> Array:
        """What is to be packed."""
        return self._make()


@dataclass
class Launch:
    """One run of a kernel. ``reads`` in the order of its parameters, the chain's operands included."""

    kernel: Kernel
    reads: list[View | Packed]
    write: View
    label: str  # the operators that it computes


@dataclass
class Lowering:
    """The launches so far. ``machine`` decides what is worth its while; ``fast``: the largest Winograd tile allowed (0: none)."""

    graph: Graph
    machine: Machine
    fast: int = 4
    launches: list[Launch] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    views: dict[str, View] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.users = self.graph.users()
        self._weights: dict[tuple[Any, ...], View] = {}
        self._halos: dict[str, Halo] = {}  # what readers want
        self._given: dict[str, Halo] = {}  # what there is
        self._fills: dict[str, int] = {}
        self._parts: dict[str, tuple[Node, int]] = {}  # a value that a Concat puts at this place
        self._whole: dict[str, View] = {}
        for name in self.graph.inputs:
            shape, dtype = self.graph.shapes[name], self.graph.dtypes[name]
            number = self._storage(Storage("input", dtype, int(np.prod(shape)), name))
            self.views[name] = View(number, dtype, shape, row_major(shape))
        for node in self.graph.nodes:
            if node.op == "Concat":
                self._note_parts(node)

    # --- values

    def view(self, name: str) -> View:
        """Where a value lies; a constant is put among the weights."""
        if name in self.graph.constants:
            return self.weight(self.graph.constants[name])
        return self.views[name]

    def weight(self, array: Array) -> View:
        """Where this array lies among the weights: equal ones lie in one place."""
        kept = np.ascontiguousarray(array).view(np.int8) if array.dtype == np.bool_ else np.ascontiguousarray(array)
        key = (array.dtype.name, array.shape, kept.tobytes() if kept.nbytes < 4096 else hash(kept.tobytes()))
        if key not in self._weights:
            number = self._storage(Storage("weight", array.dtype.name, kept.size, array=kept.reshape(-1)))
            self._weights[key] = View(number, array.dtype.name, array.shape, row_major(array.shape))
        return self._weights[key]

    def want_halo(self, name: str, before: Sequence[int], after: Sequence[int], fill: int = 0) -> None:
        """A reader of ``name`` will look this far around it, and find ``fill`` there."""
        if self._fills.setdefault(name, fill) != fill:
            return
        old = self._halos.get(name, ((0,) * len(before), (0,) * len(before)))
        merged = tuple(tuple(max(pair) for pair in zip(mine, new, strict=True)) for mine, new in zip(old, (before, after), strict=True))
        self._halos[name] = (merged[0], merged[1])

    def has_halo(self, name: str, before: Sequence[int], after: Sequence[int], fill: int = 0) -> bool:
        """Whether ``fill`` lies around ``name``, this far."""
        if not any((*before, *after)):
            return True
        have = self._given.get(name)
        return have is not None and self._fills[name] == fill and all(h >= w for h, w in zip((*have[0], *have[1]), (*before, *after), strict=True))

    def place(self, name: str, order: Sequence[int] | None = None) -> View:
        """Where a kernel shall write ``name``; ``order``: its axes as they best lie in memory, outermost first."""
        shape, dtype = self.graph.shapes[name], self.graph.dtypes[name]
        axes = tuple(order) if order is not None else tuple(range(len(shape)))
        axes = self._as_read(name, axes)
        if name in self._parts and name not in self._halos:
            view = self._part(name, axes)
        elif name in self._halos:
            view = self._with_halo(shape, dtype, axes, self._halos[name], self._fills[name])
            self._given[name] = self._halos[name]
        elif name in self.graph.outputs and in_order(shape, axes) == row_major(shape):
            view = View(self._storage(Storage("output", dtype, int(np.prod(shape)), name)), dtype, shape, row_major(shape))
        else:
            view = self.temporary(shape, dtype, axes)
        self.views[name] = view
        return view

    def temporary(self, shape: Sequence[int], dtype: str, order: Sequence[int] | None = None) -> View:
        """Fresh memory.

        Rows that are a multiple of a page long would all fall into the same few places of the first-level cache, where a tile
        of rows could not stay: they get a cache line between them.
        """
        axes = tuple(order) if order is not None else tuple(range(len(shape)))
        item = np.dtype(dtype).itemsize
        room = list(shape)
        last = next((axis for axis in reversed(axes) if shape[axis] > 1), None)
        if last is not None and shape[last] * item % _PAGE == 0 and np.prod(shape) > 4 * shape[last]:
            room[last] += _LINE // item
        number = self._storage(Storage("temporary", dtype, int(np.prod(room))))
        return View(number, dtype, tuple(shape), in_order(room, axes))

    def finish(self) -> None:
        """What was computed into memory of its own, in order, becomes an output as it is; the rest is copied there."""
        for name in self.graph.outputs:
            view = self.view(name)
            storage = self.storages[view.storage]
            if storage.kind == "output" and storage.name == name:
                continue
            if storage.kind == "temporary" and view.contiguous and storage.elements == int(np.prod(view.shape)):
                storage.kind, storage.name = "output", name
                continue
            number = self._storage(Storage("output", view.dtype, int(np.prod(view.shape)), name))
            self.copy(view, View(number, view.dtype, view.shape, row_major(view.shape)), "copy to output")

    # --- launches

    def launch(self, kernel: Kernel, reads: Sequence[View | Packed], write: View, label: str) -> None:
        """Run ``kernel`` now."""
        self.launches.append(Launch(kernel, list(reads), write, label))

    def copy(self, source: View, target: View, label: str = "copy") -> None:
        """Write ``source`` to ``target``, which has its shape."""
        if 0 in source.shape:
            return
        kernel = Elementwise(source.shape, (source.operand(),), target.operand(), Chain())
        self.launch(kernel, [source], target, label)

    def owned(self, name: str) -> str:
        """The name of a value that does not lie in the caller's memory, after which nothing may be read."""
        view = self.view(name)
        if self.storages[view.storage].kind != "input":
            return name
        mine = f"{name}#owned"
        if mine not in self.views:
            self.views[mine] = self.temporary(view.shape, view.dtype)
            self.copy(view, self.views[mine])
        return mine

    def contiguous(self, view: View) -> View:
        """The same tensor in order, copied if need be."""
        if view.contiguous:
            return view
        made = self.temporary(view.shape, view.dtype)
        self.copy(view, made)
        return made

    def padded(self, name: str, before: Sequence[int], after: Sequence[int], fill: int = 0, last: bool = False) -> View:
        """``name`` with ``fill`` around it; ``last``: with its channels, axis 1, side by side."""
        view = self.view(name)
        if self.has_halo(name, before, after, fill) and not (last and view.strides[1] != 1):
            return view.padded(before, after)
        order = channels_last(len(view.shape)) if last else memory_order(view)
        made = self._with_halo(view.shape, view.dtype, order, (tuple(before), tuple(after)), fill)
        self.copy(view, made, "pad")
        return made.padded(before, after)

    def chain(self, group: Group, first: int) -> tuple[tuple[Step, ...], list[View]]:
        """The steps of a group's chain, and its operands broadcast to the result's shape.

        ``first`` registers are taken by the template: 1 for an anchor's result, 0 for a chain alone.
        """
        shape = self.graph.shapes[group.result]
        register: dict[str, int] = {group.anchor.outputs[0]: 0} if group.anchor is not None else {}
        operands: list[View] = []
        steps: list[Step] = []
        external = group.external(self.graph)
        scalars = [n for n in external if n in self.graph.constants and self.graph.constants[n].size == 1]
        coding = {n for node in group.chain if node.op in ("QuantizeLinear", "DequantizeLinear") for n in node.inputs[1:]}
        scalars = [n for n in scalars if n not in coding]  # every layer has its own: as operands, they leave one kernel for all
        for name in external:
            if name not in scalars and name not in register:
                register[name] = first + len(operands)
                operands.append(self.view(name).expanded(shape))
        for name in scalars:
            register[name] = first + len(operands) + len(steps)
            value = self.graph.constants[name].item()
            steps.append(Step("Constant", (), self.graph.dtypes[name], (("value", value),)))
        for node in group.chain:
            arguments = tuple(register[name] if name else -1 for name in node.inputs)
            attributes = tuple(sorted((k, _frozen(v)) for k, v in node.attributes.items()))
            register[node.outputs[0]] = first + len(operands) + len(steps)
            steps.append(Step(node.op, arguments, self.graph.dtypes[node.outputs[0]], attributes))
        return tuple(steps), operands

    # --- within

    def _storage(self, storage: Storage) -> int:
        self.storages.append(storage)
        return len(self.storages) - 1

    def _as_read(self, name: str, axes: tuple[int, ...]) -> tuple[int, ...]:
        """If all that reads the value is one Transpose, it is written as that wants it."""
        readers = self.users.get(name, [])
        if len(readers) == 1 and readers[0].op == "Transpose" and name not in self.graph.outputs:
            return tuple(readers[0].attributes["perm"])
        return axes

    def _note_parts(self, node: Node) -> None:
        axis = node.get("axis") % len(self.graph.shapes[node.outputs[0]])
        start = 0
        for name in node.inputs:
            if name not in self._parts and name not in self.graph.outputs and node.inputs.count(name) == 1:
                self._parts[name] = (node, start)
            start += self.graph.shapes[name][axis]

    def _part(self, name: str, axes: tuple[int, ...]) -> View:
        node, start = self._parts[name]
        whole = self.whole(node, axes)
        axis = node.get("axis") % len(whole.shape)
        return whole.sliced(axis, start, self.graph.shapes[name][axis])

    def whole(self, node: Node, axes: Sequence[int]) -> View:
        """Where the result of a Concat lies: decided by whoever asks first."""
        out = node.outputs[0]
        if out not in self._whole:
            self._whole[out] = self.place(out, axes)
            del self.views[out]  # it is not there yet
        return self._whole[out]

    def _with_halo(self, shape: Sequence[int], dtype: str, axes: Sequence[int], halo: Halo, fill: int) -> View:
        before, after = halo
        outer = tuple(b + s + a for b, s, a in zip(before, shape, after, strict=True))
        around = self.temporary(outer, dtype, axes)
        inner = around
        for axis, (b, a, size) in enumerate(zip(before, after, shape, strict=True)):
            for start, width in ((0, b), (b + size, a)):
                if width:
                    self._fill(inner.sliced(axis, start, width), fill)
            inner = inner.sliced(axis, b, size)  # the next strips need not cover these corners again
        return inner

    def _fill(self, view: View, fill: int) -> None:
        steps = (Step("Constant", (), view.dtype, (("value", fill),)),)
        self.launch(Elementwise(view.shape, (), view.operand(), Chain((), steps)), [], view, "halo")


def channels_last(rank: int) -> tuple[int, ...]:
    """The order in memory of an image [n, c, ...]."""
    return (0, *range(2, rank), 1)


def as_image(view: View) -> View:
    """A line [n, c, w] as an image [n, c, 1, w]."""
    return replace(view, shape=(*view.shape[:2], 1, view.shape[2]), strides=(*view.strides[:2], 0, view.strides[2]))


def refuse(node: Node, why: str) -> UnsupportedNode:
    """The error that says which node, and why not."""
    return UnsupportedNode(node.op, node.outputs[0], why)


def _frozen(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.name, value.shape, value.tobytes())
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value
