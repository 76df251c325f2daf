"""Is this really an ONNX model? Every defect becomes one line that names the node or tensor it is in.

These checks look at the protobuf itself, before anything is built from it, and run no native code: the later,
native ones (`onnx.checker`, shape inference) then only ever see graphs whose names, sizes and calls make sense.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from rewriter.errors import InvalidModel, UnsupportedModel

OLDEST_OPSET = 7
# A model whose local functions call each other can be exponentially larger than its file.
MOST_NODES = 1_000_000

_BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 32, onnx.TensorProto.UINT8: 8, onnx.TensorProto.INT8: 8, onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT16: 16, onnx.TensorProto.INT32: 32, onnx.TensorProto.INT64: 64, onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.FLOAT16: 16, onnx.TensorProto.DOUBLE: 64, onnx.TensorProto.UINT32: 32,
    onnx.TensorProto.UINT64: 64, onnx.TensorProto.COMPLEX64: 64, onnx.TensorProto.COMPLEX128: 128,
    onnx.TensorProto.BFLOAT16: 16,
}  # fmt: skip


def check(model: onnx.ModelProto, folder: Path | None = None) -> None:
    """Raise InvalidModel or UnsupportedModel for the first defect; `folder` is where external data must lie."""
    if not model.HasField("graph"):
        raise InvalidModel("the model has no graph: this is not an ONNX model, or the file is damaged")
    if not model.graph.output:
        raise InvalidModel("the model's graph has no outputs: there is nothing to compute")
    _check_opset(model)
    _check_functions(model)
    _Scope(model.graph, frozenset(), "the graph").check()
    for value in (*model.graph.input, *model.graph.output):
        _check_sizes(value)
    for tensor in _tensors(model):
        _check_tensor(tensor, folder)


def spell(node: onnx.NodeProto) -> str:
    """How errors call a node: its operator and its name, or the value that it makes."""
    operator = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    made = next((name for name in node.output if name), "")
    return f"{operator} node '{node.name}'" if node.name else f"{operator} node that makes '{made}'"


def _check_opset(model: onnx.ModelProto) -> None:
    versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    standard = any(node.domain in ("", "ai.onnx") for node in model.graph.node)
    if len(set(versions)) > 1:
        raise InvalidModel(f"the model imports the ONNX opset {len(versions)} times: {sorted(set(versions))}")
    if not versions and standard:
        raise InvalidModel("the model uses ONNX operators but imports no opset: export it again with one")
    newest = onnx.defs.onnx_opset_version()
    if versions and not OLDEST_OPSET <= versions[0] <= newest:
        raise UnsupportedModel(
            f"the model is at ONNX opset {versions[0]}; opsets {OLDEST_OPSET} to {newest} are read: export it again"
        )


def _check_functions(model: onnx.ModelProto) -> None:
    """No recursion, and no more nodes after inlining than MOST_NODES."""
    functions = {(each.domain, each.name, each.overload): each for each in model.functions}
    if len(functions) < len(model.functions):
        raise InvalidModel("two local functions of the model have the same domain and name")
    sizes: dict[tuple[str, str, str], int] = {}
    waiting: set[tuple[str, str, str]] = set()

    def size(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(1 if key not in functions else expand(key) for key in map(_callee, _all_nodes(nodes)))

    def expand(key: tuple[str, str, str]) -> int:
        if key in waiting:
            raise InvalidModel(f"the local function '{key[0]}::{key[1]}' calls itself")
        if key not in sizes:
            waiting.add(key)
            sizes[key] = size(functions[key].node)
            waiting.discard(key)
        return sizes[key]

    try:
        total = size(model.graph.node)
        for key in functions:
            expand(key)
    except RecursionError:
        raise UnsupportedModel("the model's local functions are nested too deeply") from None
    if total > MOST_NODES:
        raise UnsupportedModel(f"the model has {total} nodes once its functions are inlined; at most {MOST_NODES}")
    for function in model.functions:
        _Scope.of_function(function).check()


def _callee(node: onnx.NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _graphs(node):
            yield from _all_nodes(graph.node)


class _Scope:
    """The names of one graph: each made once, each that is read made somewhere, none made from itself."""

    def __init__(self, graph: onnx.GraphProto, outer: frozenset[str], where: str) -> None:
        self.outer, self.where = outer, where
        self.nodes = list(graph.node)
        self.given = [each.name for each in graph.input]
        self.weights = [each.name for each in graph.initializer]
        self.returned = [each.name for each in graph.output]
        if graph.sparse_initializer:
            raise UnsupportedModel(f"{where} has sparse initialisers: export the model with dense ones")
        if outer and not self.returned:
            raise InvalidModel(f"{where} returns nothing")

    @classmethod
    def of_function(cls, function: onnx.FunctionProto) -> _Scope:
        scope = cls.__new__(cls)
        scope.outer, scope.where = frozenset(), f"the function '{function.domain}::{function.name}'"
        scope.nodes, scope.given, scope.weights = list(function.node), list(function.input), []
        scope.returned = list(function.output)
        return scope

    def check(self) -> None:
        maker = self._makers()
        known = self.outer | maker.keys()
        for node in self.nodes:
            for name in node.input:
                if name and name not in known:
                    raise InvalidModel(f"{spell(node)} reads '{name}', which nothing in {self.where} defines")
            for graph in _graphs(node):
                _Scope(graph, known, f"a subgraph of {spell(node)}").check()
        for name in self.returned:
            if name not in maker:
                raise InvalidModel(f"{self.where} returns '{name}', which nothing in it defines")
        self._check_acyclic(maker)

    def _makers(self) -> dict[str, int]:
        """Name -> index of the node that makes it; -1 for inputs and initialisers."""
        for names, kind in ((self.given, "inputs"), (self.weights, "initialisers")):
            twice = _first_twice(names)
            if twice is not None:
                raise InvalidModel(f"two {kind} of {self.where} are called '{twice}'")
        maker = dict.fromkeys((*self.given, *self.weights), -1)
        for index, node in enumerate(self.nodes):
            if not node.op_type:
                raise InvalidModel(f"{spell(node)} in {self.where} has no operator")
            for name in node.output:
                if name and name in maker:
                    raise InvalidModel(f"{spell(node)} defines '{name}', which {self.where} has already defined")
                if name:
                    maker[name] = index
        return maker

    def _check_acyclic(self, maker: dict[str, int]) -> None:
        reads = [{maker.get(name, -1) for name in _reads(node)} - {-1} for node in self.nodes]
        readers: list[list[int]] = [[] for _ in self.nodes]
        for index, sources in enumerate(reads):
            for source in sources:
                readers[source].append(index)
        missing = [len(sources) for sources in reads]
        ready = [index for index, count in enumerate(missing) if count == 0]
        done = 0
        while ready:
            done += 1
            for reader in readers[ready.pop()]:
                missing[reader] -= 1
                if missing[reader] == 0:
                    ready.append(reader)
        if done < len(self.nodes):
            stuck = next(node for node, count in zip(self.nodes, missing, strict=True) if count)
            raise InvalidModel(f"{spell(stuck)} is part of, or reads from, a cycle in {self.where}")


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node needs, including what its subgraphs capture."""
    yield from node.input
    for graph in _graphs(node):
        inside = {each.name for each in graph.input} | {each.name for each in graph.initializer}
        inside |= {name for inner in graph.node for name in inner.output}
        for inner in graph.node:
            yield from (name for name in _reads(inner) if name not in inside)


def _first_twice(names: list[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for graph in _graphs(node):
        yield from _graph_tensors(graph)


def _check_sizes(value: onnx.ValueInfoProto) -> None:
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if any(size < -1 for size in sizes):  # exporters have written -1 for a size that is not known
        raise InvalidModel(f"'{value.name}' is declared with the impossible shape {sizes}")


def _check_tensor(tensor: onnx.TensorProto, folder: Path | None) -> None:
    name = f"tensor '{tensor.name}'"
    if any(size < 0 for size in tensor.dims):
        raise InvalidModel(f"{name} has the impossible shape {list(tensor.dims)}")
    count = 1
    for size in tensor.dims:
        count *= size
    if tensor.data_type not in onnx.TensorProto.DataType.values() or tensor.data_type == onnx.TensorProto.UNDEFINED:
        raise InvalidModel(f"{name} has the unknown element type {tensor.data_type}")
    bits = _BITS.get(tensor.data_type)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, name, None if bits is None else count * bits // 8, folder)
    elif tensor.data_type == onnx.TensorProto.STRING:
        _check_count(name, tensor, len(tensor.string_data), count)
    elif tensor.HasField("raw_data"):
        if bits is not None and len(tensor.raw_data) != count * bits // 8:
            raise InvalidModel(f"{name} of shape {list(tensor.dims)} holds {len(tensor.raw_data)} bytes of data")
    elif bits is not None:
        _check_count(name, tensor, _numbers(tensor), count)


def _numbers(tensor: onnx.TensorProto) -> int:
    fields = (tensor.float_data, tensor.double_data, tensor.int32_data, tensor.int64_data, tensor.uint64_data)
    pairs = tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
    return max(len(field) for field in fields) // (2 if pairs else 1)


def _check_count(name: str, tensor: onnx.TensorProto, found: int, count: int) -> None:
    if found != count:
        raise InvalidModel(f"{name} of shape {list(tensor.dims)} holds {found} numbers")


def _check_external(tensor: onnx.TensorProto, name: str, size: int | None, folder: Path | None) -> None:
    """The file is there, inside the model's folder, and long enough: it is mapped into memory, later."""
    entries = {each.key: each.value for each in tensor.external_data}
    location = entries.get("location", "")
    path = (folder or Path()) / location
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        inside = folder is None or path.resolve().is_relative_to(folder.resolve())
        present = os.stat(path).st_size if inside and path.is_file() else -1
    except (ValueError, OSError):
        raise InvalidModel(f"{name} has unreadable external data '{location}'") from None
    if not location or not inside:
        raise InvalidModel(f"{name} keeps its data in '{location}', outside the model's own folder")
    if present < 0:
        raise InvalidModel(f"{name} keeps its data in '{location}', which is not there: put it beside the model file")
    needed = size if size is not None else max(length, 0)
    if offset < 0 or (length >= 0 and size is not None and length < size) or offset + needed > present:
        raise InvalidModel(f"{name} needs {needed} bytes at {offset} of '{location}', which has {present}")
