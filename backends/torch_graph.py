"""From an ONNX graph to a ``torch.fx`` graph: the walk over the nodes, and what is known about values on the way.

A value is one of three things: an fx proxy (a tensor at run time); a NumPy array (known now: a weight, or shape
arithmetic that was folded); ``Ints`` (a shape being computed, kept as Python integers and never as a tensor, so that
reshapes and slices take it directly).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import fx

from rewriter.errors import RewriterError, UnsupportedModel

Value: TypeAlias = Any  # fx.Proxy | np.ndarray | Ints | None
_SMALL = (
    64  # elements up to which constant expressions are evaluated now; a larger one may be weights, which stay tensors
)


_COMPUTED = (
    "float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool",
)  # fmt: skip


@dataclass(frozen=True)
class Ints:
    """Integers known as Python numbers or as fx proxies of them; a scalar, or a vector."""

    items: tuple[Any, ...]
    scalar: bool = False


class Refusal(Exception):
    """Why one node has no PyTorch form."""


@dataclass(frozen=True)
class Node:
    """One ONNX node, as its converter sees it."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


class Context:
    """The fx graph being made, and what is known about each ONNX value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self._tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self._fetched: dict[int, fx.Proxy] = {}
        self._names: dict[int, str] = {}
        self._kept: list[np.ndarray[Any, Any]] = []
        self._types = _types(model)
        self.values: dict[str, Value] = {"": None}

    def placeholder(self, name: str) -> fx.Proxy:
        plain = "".join(c if c.isalnum() else "_" for c in name)
        return self.proxy(self.graph.placeholder(plain if plain[:1].isalpha() else f"input_{plain}"))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return fx.Proxy(node, self._tracer)

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Let ``array`` be the value ``name``; it becomes a parameter or buffer of that name when a tensor is asked for."""
        self.values[name] = array
        self._names[id(array)] = name
        self._kept.append(array)

    def tensor(self, value: Value) -> Any:
        """``value`` as a proxy of a tensor."""
        if isinstance(value, fx.Proxy):
            return value
        if isinstance(value, Ints):
            data = value.items[0] if value.scalar else list(value.items)
            return self.call(torch.tensor, data, dtype=torch.int64)
        if value is None:
            raise Refusal("an omitted input cannot be left out here")
        if id(value) not in self._fetched:
            if id(value) not in self._names:
                self.constant(f"constant_{len(self._kept)}", value)
            self._fetched[id(value)] = self.proxy(self.graph.get_attr(self._store(self._names[id(value)], value)))
        return self._fetched[id(value)]

    def operand(self, value: Value) -> Any:
        """``value`` as an operand next to a tensor: a scalar constant is written as a number."""
        if (
            isinstance(value, np.ndarray)
            and value.ndim == 0
            and value.dtype.kind in "fiu"
            and value.dtype != np.float64
        ):
            return value.item()
        return self.tensor(value)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Emit a call, also where no argument is a proxy."""
        plain = fx.node.map_aggregate(args, _node_of), fx.node.map_aggregate(kwargs, _node_of)
        return self.proxy(self.graph.call_function(function, *plain))

    def ints(self, value: Value, what: str) -> list[Any]:
        """``value`` (a shape, axes, ...) as a list of integers and proxies of integers."""
        if isinstance(value, Ints):
            return list(value.items)
        if isinstance(value, np.ndarray):
            return [int(v) for v in value.reshape(-1)]
        raise Refusal(f"its {what} is computed from data")

    def known(self, value: Value, what: str) -> np.ndarray[Any, Any]:
        """``value`` as an array known now."""
        if isinstance(value, np.ndarray):
            return value
        if isinstance(value, Ints) and all(isinstance(item, int) for item in value.items):
            return np.asarray(value.items[0] if value.scalar else value.items, dtype=np.int64)
        raise Refusal(f"its {what} is not a constant")

    def rank(self, name: str) -> int:
        shape = self.shape(name)
        if shape is None:
            raise Refusal(f"the rank of {name!r} is not known")
        return len(shape)

    def shape(self, name: str) -> list[int | None] | None:
        value = self.values.get(name)
        if isinstance(value, np.ndarray):
            return list(value.shape)
        if isinstance(value, Ints):
            return [] if value.scalar else [len(value.items)]
        found = self._types.get(name)
        if found is None or not found.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in found.shape.dim]

    def kind(self, name: str) -> str:
        """NumPy's name of the element type of value ``name``."""
        value = self.values.get(name)
        if isinstance(value, np.ndarray):
            return str(value.dtype)
        if isinstance(value, Ints):
            return "int64"
        found = self._types.get(name)
        if found is None or not found.elem_type:
            raise Refusal(f"the element type of {name!r} is not known")
        return _name(found.elem_type)

    def check_types(self, names: Iterable[str]) -> None:
        """Refuse element types that PyTorch stores and cannot compute with."""
        for name in names:
            found = self._types.get(name)
            value = self.values.get(name)
            kind = value.dtype.name if isinstance(value, np.ndarray) else ""
            if found is not None and found.elem_type:
                kind = _name(found.elem_type)
            if kind and kind not in _COMPUTED:
                raise Refusal(f"PyTorch does not compute with {kind}")

    def integral(self, name: str) -> bool:
        return "int" in self.kind(name)

    def _store(self, name: str, array: np.ndarray[Any, Any]) -> str:
        tensor = tensor_of(array)
        floating = tensor.is_floating_point()
        path = [part for part in name.split(".") if part] or ["constant"]
        owner = self.root
        for part in path[:-1]:
            inner = getattr(owner, part, None)
            if inner is None:
                inner = torch.nn.Module()
                owner.add_module(part, inner)
            if not isinstance(inner, torch.nn.Module):
                return self._store(name.replace(".", "_") + "_", array)
            owner = inner
        if hasattr(owner, path[-1]):  # a module, a method of nn.Module, or another weight's flattened name
            return self._store(name + "_", array)
        if floating:
            owner.register_parameter(path[-1], torch.nn.Parameter(tensor))
        else:
            owner.register_buffer(path[-1], tensor)
        return ".".join(path)


def to_module(model: onnx.ModelProto) -> fx.GraphModule:
    """The GraphModule that computes ``model``; its ``forward`` returns a tuple. Raises UnsupportedModel."""
    from onnx import inliner

    from backends.program import model_inputs

    if model.functions:
        model = inliner.inline_local_functions(model)
    context = Context(model)
    for port in model_inputs(model.graph):
        if not port.dtype or port.dtype == "str":
            raise UnsupportedModel(f"input {port.name!r} is not a tensor of numbers; use backend onnxruntime")
        context.values[port.name] = context.placeholder(port.name)
    for tensor in model.graph.initializer:
        context.constant(tensor.name, numpy_helper.to_array(tensor))
    opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 1)
    for proto in model.graph.node:
        _convert(context, proto, opset)
    results = []
    for output in model.graph.output:
        if output.name not in context.values:
            raise UnsupportedModel(f"output {output.name!r} is not a dense tensor; PyTorch's form has none of it")
        results.append(context.tensor(context.values[output.name]).node)
    context.graph.output(tuple(results))
    context.graph.eliminate_dead_code()
    module = fx.GraphModule(context.root, context.graph, class_name="Model")
    return module.eval()


def tensor_of(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor with the array's numbers; its memory is shared where PyTorch allows it."""
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = np.array(array, order="C")
    name = array.dtype.name
    if name == "bfloat16" or name.startswith("float8"):
        kind = getattr(torch, name, None)
        if kind is None:
            raise UnsupportedModel(f"PyTorch has no element type {name}")
        return torch.from_numpy(array.view(np.int16 if name == "bfloat16" else np.int8)).view(kind)
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise UnsupportedModel(f"PyTorch has no element type {name}") from None


def dtype_of(code: int) -> torch.dtype:
    """PyTorch's dtype for an ONNX type number."""
    name = _name(code)
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise Refusal(f"PyTorch has no element type {name}")
    return found


def _convert(context: Context, proto: onnx.NodeProto, opset: int) -> None:
    from backends.torch_nodes import CONVERTERS

    where = f"{proto.op_type} ({proto.name or (proto.output[0] if proto.output else '')!r})"
    if proto.domain not in ("", "ai.onnx") or proto.op_type not in CONVERTERS:
        raise UnsupportedModel(f"{proto.domain or 'ai.onnx'}::{where} has no PyTorch form; use backend onnxruntime")
    missing = [name for name in proto.input if name not in context.values]
    if missing:
        raise UnsupportedModel(f"{where} reads {missing[0]!r}, which no earlier node makes")
    args = [context.values[name] for name in proto.input]
    try:
        context.check_types((*proto.input, *proto.output))
        folded = _folded(proto, args, opset)
        if folded is not None:
            results: Sequence[Value] = folded
        else:
            node = Node(proto.op_type, tuple(proto.input), tuple(proto.output), _attributes(proto), opset)
            results = _tuple(CONVERTERS[proto.op_type](context, node, *args))
    except Refusal as reason:
        raise UnsupportedModel(f"{where}: {reason}; use backend onnxruntime") from None
    for name, value in zip(proto.output, results, strict=False):
        if name and isinstance(value, np.ndarray):
            context.constant(name, value)
        elif name:
            context.values[name] = value


def _folded(proto: onnx.NodeProto, args: list[Value], opset: int) -> Sequence[Value] | None:
    """The node's results if its inputs are small and known (shape arithmetic, mask constants)."""
    if not args or not all(a is None or isinstance(a, np.ndarray) and a.size <= _SMALL for a in args):
        return None
    if any(a is not None and a.dtype.kind not in "iub" and a.ndim > 1 for a in args):
        return None  # a small weight is still a weight
    from backends.kernels import KERNELS, Call

    call = Call(proto.op_type, _attributes(proto), opset, len(proto.output), float64=False)
    kernel = KERNELS.get(proto.op_type)
    if kernel is None or any(a is not None and a.dtype.name == "bfloat16" for a in args):
        return None
    try:
        with np.errstate(all="ignore"):
            result = kernel(call, *args)
    except Exception:  # noqa: BLE001 - the converter meets the same arguments, and has words for them
        return None
    if result is NotImplemented:
        return None
    # a view into another constant would be stored under two names
    return [np.array(v) for v in (result if isinstance(result, tuple) else (result,))]


def _attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for a in proto.attribute:
        value = helper.get_attribute_value(a)
        if a.type == onnx.AttributeProto.TENSOR:
            value = numpy_helper.to_array(value)
        elif a.type == onnx.AttributeProto.STRING:
            value = value.decode()
        elif a.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = list(value)
        attributes[a.name] = value
    return attributes


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """What shape inference knows; weights are left out of the copy that it works on, which keeps it below 2 GB."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model) if model.ByteSize() < 1 << 28 else _copy_without_weights(model, bare)
    try:
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RewriterError, ValueError):
        graph = bare.graph
    ports: Iterable[onnx.ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    return {port.name: port.type.tensor_type for port in ports if port.type.HasField("tensor_type")}


def _copy_without_weights(model: onnx.ModelProto, bare: onnx.ModelProto) -> None:
    bare.opset_import.extend(model.opset_import)
    bare.ir_version = model.ir_version
    graph = model.graph
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(graph.output)
    for tensor in graph.initializer:
        if tensor.ByteSize() < 1 << 12:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def _name(code: int) -> str:
    return str(np.dtype(helper.tensor_dtype_to_np_dtype(code)))


def _node_of(value: Any) -> Any:
    return value.node if isinstance(value, fx.Proxy) else value


def _tuple(result: Any) -> Sequence[Value]:
    return result if isinstance(result, tuple) else (result,)
