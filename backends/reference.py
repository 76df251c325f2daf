"""The oracle: an ONNX graph evaluated node by node in NumPy, in the model's own types or with every float in float64.

Plain formulas (``backends.kernels``) where whole models need speed, ``onnx.reference`` for the other operators, an
operator's or the model's own function body where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from backends.arrays import as_numpy
from backends.kernels import KERNELS, Call
from backends.kernels.registry import WIDENED, widened
from backends.onnxruntime import LARGE, write_with_external_data
from backends.program import Port, model_inputs, ports_of
from rewriter.errors import InvalidInput, InvalidModel, RewriterError, UnsupportedModel

if TYPE_CHECKING:
    import onnx_ir

Opsets = Mapping[str, int]


def refuses(node: onnx_ir.Node) -> str | None:
    """The reason why ``node`` cannot be evaluated, or None; a function of the model must be looked up by the caller."""
    if node.domain in ("", "ai.onnx") and (node.op_type in KERNELS or node.op_type in _CONTROL):
        return None
    if onnx.defs.has(node.op_type, node.domain):
        return None
    return f"no definition of {node.domain or 'ai.onnx'}::{node.op_type} is known"


def build(
    model: onnx.ModelProto | str | os.PathLike[str],
    *,
    target: str = "cpu",
    threads: int | None = None,
    float64: bool = False,
) -> ReferenceProgram:
    """An evaluator of ``model``. ``float64``: float16, bfloat16 and float32 become float64 throughout, in weights, inputs,
    Cast targets and outputs. ``threads`` is accepted and unused: NumPy's matrix products choose their own."""
    if target != "cpu":
        raise InvalidInput(f"the reference backend has no target {target!r}; there is 'cpu'")
    if isinstance(model, (str, os.PathLike)):
        if not Path(model).is_file():
            raise InvalidModel(f"{model}: no such file")
        model = onnx.load(model)
    return ReferenceProgram(model, float64)


def restore(directory: str | os.PathLike[str], threads: int | None = None) -> ReferenceProgram:
    """The program that was saved in ``directory``."""
    return build(Path(directory, "model.onnx"), threads=threads)


class ReferenceProgram:
    """An evaluator: arrays in graph order in, arrays in graph order out."""

    def __init__(self, model: onnx.ModelProto, float64: bool) -> None:
        self.inputs = model_inputs(model.graph)
        self.outputs = ports_of(model.graph.output)
        self.notes: list[str] = []
        self._model = model
        opsets = {entry.domain or "": entry.version for entry in model.opset_import}
        opsets.setdefault("", opsets.get("ai.onnx", 1))
        functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        self._evaluator = _Evaluator(functions, float64)
        self._opsets = opsets
        self._weights = _weights(model.graph, float64)

    def __call__(self, *inputs: Any) -> list[Any]:
        if len(inputs) != len(self.inputs):
            names = [port.name for port in self.inputs]
            raise InvalidInput(f"{len(inputs)} inputs were given; the model takes {len(names)}: {names}")
        values: dict[str, Any] = dict(self._weights)
        for port, value in zip(self.inputs, inputs, strict=True):
            values[port.name] = self._accept(port, value)
        with np.errstate(all="ignore"):
            return [_owned(v) for v in self._evaluator.graph(self._model.graph, _Scope(values), self._opsets)]

    def save(self, directory: str | os.PathLike[str]) -> None:
        path = Path(directory, "model.onnx")
        if path.exists():
            return
        if self._model.ByteSize() < LARGE:
            path.write_bytes(self._model.SerializeToString())
        else:
            write_with_external_data(self._model, path)

    def _accept(self, port: Port, value: Any) -> Any:
        if value is None or isinstance(value, list):
            return widened(value) if self._evaluator.float64 else value
        array = as_numpy(value)
        if port.shape is not None and array.ndim != len(port.shape):
            raise InvalidInput(f"input {port.name!r} has {array.ndim} dimensions; the model takes {len(port.shape)}")
        wide = self._evaluator.float64 and port.dtype in WIDENED and array.dtype == np.float64
        if port.dtype and array.dtype.name != port.dtype and port.dtype != "str" and not wide:
            raise InvalidInput(f"input {port.name!r} is {array.dtype.name}; the model takes {port.dtype}")
        return widened(array) if self._evaluator.float64 else array


@dataclass
class _Scope:
    """The values by name that a graph sees: its own, and those of the graphs around it."""

    values: dict[str, Any]
    outer: _Scope | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)  # what a function's ref_attr_name stands for

    def __getitem__(self, name: str) -> Any:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        raise InvalidModel(f"value {name!r} is used and never made")


class _Evaluator:
    def __init__(self, functions: Mapping[tuple[str, str, str], onnx.FunctionProto], float64: bool) -> None:
        self.float64 = float64
        self._functions = functions
        self._attributes: dict[int, dict[str, Any]] = {}  # by node identity: decoded once
        self._dying: dict[int, list[list[str]]] = {}  # by graph identity: what each node is the last to use
        self._held: list[Any] = []  # keeps generated protos alive, so that identities stay unique
        self._bodies: dict[Any, onnx.FunctionProto] = {}
        self._weights: dict[int, dict[str, Any]] = {}

    def graph(self, graph: onnx.GraphProto, scope: _Scope, opsets: Opsets) -> list[Any]:
        """Evaluate the nodes in ``scope`` (already holding inputs and weights), and return the outputs."""
        self._nodes(graph.node, [o.name for o in graph.output], scope, opsets, graph)
        return [scope[o.name] for o in graph.output]

    def subgraph(self, graph: onnx.GraphProto, scope: _Scope, opsets: Opsets, inputs: Sequence[Any]) -> list[Any]:
        """Evaluate a branch or loop body; it sees the values around it."""
        if id(graph) not in self._weights:
            self._weights[id(graph)] = _weights(graph, self.float64)
            self._held.append(graph)
        values = dict(self._weights[id(graph)])
        values.update((port.name, value) for port, value in zip(graph.input, inputs, strict=True))
        return self.graph(graph, _Scope(values, scope, scope.attributes), opsets)

    def _nodes(
        self, nodes: Sequence[onnx.NodeProto], results: list[str], scope: _Scope, opsets: Opsets, owner: Any
    ) -> None:
        if id(owner) not in self._dying:
            self._dying[id(owner)] = _last_uses(nodes, results)
            self._held.append(owner)
        for node, dying in zip(nodes, self._dying[id(owner)], strict=True):
            inputs = [scope[name] if name else None for name in node.input]
            outputs = self._node(node, inputs, scope, opsets)
            scope.values.update((name, value) for name, value in zip(node.output, outputs, strict=False) if name)
            for name in dying:
                scope.values.pop(name, None)

    def _node(self, node: onnx.NodeProto, inputs: list[Any], scope: _Scope, opsets: Opsets) -> Sequence[Any]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = self._functions.get((node.domain, node.op_type, node.overload))
        try:
            if function is not None:
                return self._call(function, inputs, self._decoded(node, scope))
            if domain == "" and node.op_type in _CONTROL:
                return list(_CONTROL[node.op_type](self, node, inputs, scope, opsets))
            if domain == "" and node.op_type in KERNELS:
                call = Call(node.op_type, self._decoded(node, scope), opsets[""], _asked(node), self.float64)
                result = KERNELS[node.op_type](call, *inputs)
                if result is not NotImplemented:
                    return _listed(result)
            return self._otherwise(node, inputs, scope, opsets)
        except RewriterError:
            raise
        except Exception as error:  # NumPy and onnx.reference raise what they like
            raise InvalidInput(
                f"{node.op_type} {node.name or node.output[0]!r} cannot be evaluated: {error}"
            ) from error

    def _otherwise(self, node: onnx.NodeProto, inputs: list[Any], scope: _Scope, opsets: Opsets) -> Sequence[Any]:
        """By ``onnx.reference``; else by the function body that the standard gives."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = opsets.get(domain, opsets.get("ai.onnx", 1))
        if _implemented(domain, node.op_type):
            results = self._by_reference(node, inputs, scope, opsets, domain, version)
            return [widened(result) for result in results] if self.float64 else results
        body = self._standard_body(node, inputs, domain, version)
        if body is None:
            raise UnsupportedModel(
                f"{node.domain or 'ai.onnx'}::{node.op_type} ({node.name or node.output[0]!r}) has no definition here; "
                "give the model a function of that name, or leave the operator to onnxruntime"
            )
        defaults = {
            name: _decode(a.default_value, self.float64)
            for name, a in onnx.defs.get_schema(node.op_type, version, domain).attributes.items()
            if a.default_value.name
        }
        return self._call(body, inputs, {**defaults, **self._decoded(node, scope)})

    def _by_reference(
        self, node: onnx.NodeProto, inputs: list[Any], scope: _Scope, opsets: Opsets, domain: str, version: int
    ) -> list[Any]:
        from onnx.reference import ReferenceEvaluator

        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        plain.domain = domain
        del plain.attribute[:]
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                plain.attribute.append(attribute)
            elif attribute.ref_attr_name in scope.attributes:
                plain.attribute.append(helper.make_attribute(attribute.name, scope.attributes[attribute.ref_attr_name]))
        names = [f"i{i}" if value is not None else "" for i, value in enumerate(inputs)]
        del plain.input[:]
        plain.input.extend(names)
        kept = [name for name in node.output if name]
        unknown = [helper.make_empty_tensor_value_info(n) for n in [n for n in names if n] + kept]
        count = len(unknown) - len(kept)
        graph = helper.make_graph([plain], "one", unknown[:count], unknown[count:])
        imports = [helper.make_opsetid(*entry) for entry in {**opsets, domain: version}.items()]
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=imports))
        made = evaluator.run(None, {n: v for n, v in zip(names, inputs, strict=True) if n})
        found = dict(zip(kept, made, strict=True))
        return [found.get(name) for name in node.output]

    def _standard_body(
        self, node: onnx.NodeProto, inputs: list[Any], domain: str, version: int
    ) -> onnx.FunctionProto | None:
        try:
            schema: Any = onnx.defs.get_schema(node.op_type, version, domain)
        except onnx.defs.SchemaError:
            return None
        if schema.has_function:
            key: Any = (domain, node.op_type, version)
            if key not in self._bodies:
                self._bodies[key] = schema.function_body
            return self._bodies[key]
        if not schema.has_context_dependent_function:
            return None
        types = [_type_of(value) for value in inputs]
        key = (node.SerializeToString(), *(t.SerializeToString() for t in types), version)
        if key not in self._bodies:
            data = schema.get_context_dependent_function(key[0], list(key[1:-1]))
            if not data:
                return None
            self._bodies[key] = onnx.FunctionProto.FromString(data)
        return self._bodies[key]

    def _call(self, function: onnx.FunctionProto, inputs: list[Any], attributes: Mapping[str, Any]) -> list[Any]:
        bound = {a.name: _decode(a, self.float64) for a in function.attribute_proto}
        bound.update(attributes)
        values = dict(zip(function.input, inputs, strict=False))
        values.update((name, None) for name in function.input[len(inputs) :])
        opsets = {entry.domain: entry.version for entry in function.opset_import}
        opsets.setdefault("", opsets.get("ai.onnx", 1))
        scope = _Scope(values, None, bound)
        self._nodes(function.node, list(function.output), scope, opsets, function)
        return [scope.values.get(name) for name in function.output]

    def _decoded(self, node: onnx.NodeProto, scope: _Scope) -> dict[str, Any]:
        if id(node) not in self._attributes:
            self._attributes[id(node)] = {
                a.name: _decode(a, self.float64) for a in node.attribute if not a.ref_attr_name
            }
            self._held.append(node)
        linked = {
            a.name: scope.attributes[a.ref_attr_name] for a in node.attribute if a.ref_attr_name in scope.attributes
        }
        return {**self._attributes[id(node)], **linked} if linked else self._attributes[id(node)]


def _if(evaluator: _Evaluator, node: onnx.NodeProto, inputs: list[Any], scope: _Scope, opsets: Opsets) -> list[Any]:
    name = "then_branch" if bool(inputs[0].reshape(-1)[0]) else "else_branch"
    return evaluator.subgraph(_graph(node, name), scope, opsets, [])


def _loop(evaluator: _Evaluator, node: onnx.NodeProto, inputs: list[Any], scope: _Scope, opsets: Opsets) -> list[Any]:
    body = _graph(node, "body")
    limit = None if inputs[0] is None else int(inputs[0].reshape(()))
    going = True if len(inputs) < 2 or inputs[1] is None else bool(inputs[1].reshape(()))
    carried, scanned = list(inputs[2:]), [[] for _ in range(len(body.output) - 1 - len(inputs[2:]))]  # type: list[Any], list[list[Any]]
    step = 0
    while going and (limit is None or step < limit):
        results = evaluator.subgraph(body, scope, opsets, [np.asarray(step, np.int64), np.asarray(going), *carried])
        going, carried = bool(results[0].reshape(())), results[1 : 1 + len(carried)]
        for rows, row in zip(scanned, results[1 + len(carried) :], strict=True):
            rows.append(row)
        step += 1
    empty = body.output[1 + len(carried) :]
    return carried + [
        np.stack(rows) if rows else _nothing(port, evaluator) for rows, port in zip(scanned, empty, strict=True)
    ]


def _scan(evaluator: _Evaluator, node: onnx.NodeProto, inputs: list[Any], scope: _Scope, opsets: Opsets) -> list[Any]:
    if opsets[""] < 9:
        raise UnsupportedModel("Scan before opset 9 is not supported; convert the model to a newer opset")
    body, given = _graph(node, "body"), evaluator._decoded(node, scope)
    count = given["num_scan_inputs"]
    states, sources = list(inputs[:-count]), inputs[-count:]
    outs = len(body.output) - len(states)
    in_axes, out_axes = given.get("scan_input_axes") or [0] * count, given.get("scan_output_axes") or [0] * outs
    in_turn, out_turn = (
        given.get("scan_input_directions") or [0] * count,
        given.get("scan_output_directions") or [0] * outs,
    )
    rows = [np.moveaxis(s, a, 0) for s, a in zip(sources, in_axes, strict=True)]
    rows = [r[::-1] if turned else r for r, turned in zip(rows, in_turn, strict=True)]
    made: list[list[Any]] = [[] for _ in range(outs)]
    for t in range(len(rows[0])):
        results = evaluator.subgraph(body, scope, opsets, [*states, *(r[t] for r in rows)])
        states = results[: len(states)]
        for kept, row in zip(made, results[len(states) :], strict=True):
            kept.append(row)
    stacked = []
    for kept, axis, turned, port in zip(made, out_axes, out_turn, body.output[len(states) :], strict=True):
        whole = np.stack(kept[::-1] if turned else kept) if kept else _nothing(port, evaluator)
        stacked.append(np.moveaxis(whole, 0, axis))
    return states + stacked


def _sequence_map(
    evaluator: _Evaluator, node: onnx.NodeProto, inputs: list[Any], scope: _Scope, opsets: Opsets
) -> list[Any]:
    body = _graph(node, "body")
    rows = [
        evaluator.subgraph(body, scope, opsets, [v[i] if isinstance(v, list) else v for v in inputs])
        for i in range(len(inputs[0]))
    ]
    return [[row[k] for row in rows] for k in range(len(body.output))]


_CONTROL = {"If": _if, "Loop": _loop, "Scan": _scan, "SequenceMap": _sequence_map}


def _graph(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    graph: onnx.GraphProto = next(a.g for a in node.attribute if a.name == name)
    return graph


def _nothing(port: onnx.ValueInfoProto, evaluator: _Evaluator) -> Any:
    """What no iteration leaves: an empty array of the type that the body declares."""
    [declared] = ports_of([port])
    dims = [d if isinstance(d, int) else 0 for d in declared.shape or ()]
    empty = np.zeros((0, *dims), as_dtype(declared.dtype))
    return widened(empty) if evaluator.float64 else empty


def as_dtype(name: str) -> Any:
    """The dtype called ``name``; float32 where the model does not say, object for strings."""
    from backends.arrays import dtype_named

    return np.dtype(object) if name == "str" else dtype_named(name or "float32")


def _weights(graph: onnx.GraphProto, float64: bool) -> dict[str, Any]:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    values.update((sparse.values.name, _dense(sparse)) for sparse in graph.sparse_initializer)
    return {name: widened(value) for name, value in values.items()} if float64 else values


def _dense(sparse: onnx.SparseTensorProto) -> Any:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _decode(attribute: onnx.AttributeProto, float64: bool) -> Any:
    kinds = onnx.AttributeProto
    if attribute.type in (kinds.GRAPH, kinds.GRAPHS):
        return attribute.g if attribute.type == kinds.GRAPH else list(attribute.graphs)
    if attribute.type == kinds.TENSOR:
        value = numpy_helper.to_array(attribute.t)
        return widened(value) if float64 else value
    if attribute.type == kinds.SPARSE_TENSOR:
        dense = _dense(attribute.sparse_tensor)
        return widened(dense) if float64 else dense
    value = helper.get_attribute_value(attribute)
    if attribute.type == kinds.STRING:
        return value.decode()
    if attribute.type == kinds.STRINGS:
        return [item.decode() for item in value]
    return list(value) if attribute.type in (kinds.INTS, kinds.FLOATS) else value


def _last_uses(nodes: Sequence[onnx.NodeProto], results: list[str]) -> list[list[str]]:
    """For each node the names that no later node, and no output, reads."""
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        last.update((name, index) for name in node.output if name)
        last.update((name, index) for name in _names_read(node))
    dying: list[list[str]] = [[] for _ in nodes]
    for name, index in last.items():
        if name not in results:
            dying[index].append(name)
    return dying


def _names_read(node: onnx.NodeProto) -> set[str]:
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            names.update(o.name for o in graph.output)
            for inner in graph.node:
                names |= _names_read(inner)
    return names


def _implemented(domain: str, op: str) -> bool:
    if domain != "":
        return domain.startswith("ai.onnx")
    from onnx.reference.ops import _op_list as table

    listed: Any = table

    if listed._registered_operators is None:  # it fills the table on first use
        listed._registered_operators = listed._build_registered_operators()
    return op in listed._registered_operators


def _type_of(value: Any) -> onnx.TypeProto:
    if value is None:
        return onnx.TypeProto()
    if isinstance(value, list):
        return helper.make_sequence_type_proto(_type_of(value[0]) if value else onnx.TypeProto())
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _asked(node: onnx.NodeProto) -> int:
    """Outputs up to the last one that has a name."""
    return max((i + 1 for i, name in enumerate(node.output) if name), default=0)


def _listed(result: Any) -> Sequence[Any]:
    if isinstance(result, tuple):
        return [item if isinstance(item, (list, np.ndarray)) else np.asarray(item) for item in result]
    return [result if isinstance(result, (list, np.ndarray)) or result is None else np.asarray(result)]


def _owned(value: Any) -> Any:
    """A view of a weight or an input must not leave: writing to it would change the program."""
    return np.array(value, order="C") if isinstance(value, np.ndarray) and not value.flags.owndata else value
