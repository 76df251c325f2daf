"""Shapes and types for every value, by ONNX's own inference on a copy of the model without its large weights."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnx_ir as ir

from rewriter.edit import graphs, nodes
from rewriter.errors import InvalidModel

# Shape arithmetic reads small integer tensors; everything larger only has its shape read.
_SMALL = 1024
_PATIENCE = 60
# An error within the first error is in the standard's own definition of an operator, not in the model, unless the operator is
# one whose subgraph the model brings. Later errors mostly follow from the first.
_STANDARDS_OWN = re.compile(rb"E\[\w+\] Inference error\(s\): \(op_type:(?!If\b|Loop\b|Scan\b|SequenceMap\b)[^\n]*Inference error\(s\)")


def infer(model: ir.Model, *, untrusted: bool = False, opaque_shapes: bool = True) -> None:
    """Afterwards every value has the shape and type that can be derived, and no stale ones.

    Graph inputs, initialisers and the declared outputs of the main graph keep theirs. What an operator of an unknown
    domain makes keeps what the file says of it, without its shape where `opaque_shapes` is False.
    untrusted: the inference runs in a process of its own, and an operator that does not fit its inputs raises
    InvalidModel; otherwise its outputs stay unknown.
    """
    declared = [(output, output.shape) for output in model.graph.outputs]
    before = {v: v.shape for n in nodes(model) for v in n.outputs if v.shape is not None}
    _forget(model, opaque_shapes)
    proto = skeleton(model)
    if untrusted:
        proto = _infer_apart(model, proto)
    else:
        with contextlib.suppress(Exception):  # the native code raises several types; what is unknown stays so
            proto = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    _merge(model.graph, proto.graph)
    _recall(model, before)
    for output, shape in declared:
        if shape is not None:
            output.shape = shape


def _recall(model: ir.Model, before: Mapping[ir.Value, ir.Shape]) -> None:
    """Where the inference lost a symbol (it does at every broadcast) and the value had it, the symbol stands again.

    Only symbols of the model's inputs: sizes that a file declares may be those of one traced example.
    """
    symbols = {d.value for v in model.graph.inputs for d in v.shape or () if isinstance(d, ir.SymbolicDim) and d.value}
    for value, old in before.items():
        new = value.shape
        if new is None or len(new) != len(old):
            continue
        lost = [isinstance(d, ir.SymbolicDim) and (d.value is None or d.value.startswith("unk__")) for d in new]
        kept = [o if gone and isinstance(o, ir.SymbolicDim) and o.value in symbols else d for o, d, gone in zip(old, new, lost, strict=True)]
        value.shape = ir.Shape(kept)


def _infer_apart(model: ir.Model, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The inferred model, by a child process; InvalidModel for the reason it gives or the way it ends."""
    data = proto.SerializeToString()
    answer = _ask(data, "strict")
    if _STANDARDS_OWN.match(answer):
        answer = _ask(data, "lenient")
    if answer.startswith(b"E"):
        raise InvalidModel(_explain(model, answer[1:].decode(errors="replace")))
    inferred = onnx.ModelProto()
    inferred.ParseFromString(answer[1:])
    return inferred


def _ask(data: bytes, manner: str) -> bytes:
    native = find_spec("onnx.onnx_cpp2py_export")
    assert native is not None and native.origin is not None
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("infer_child.py")), native.origin, manner]
    try:
        child = subprocess.run(command, input=data, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise InvalidModel(f"ONNX type inference of the model did not end in {_PATIENCE} s: it is no usable model") from None
    if child.returncode != 0 or not child.stdout:
        raise InvalidModel(f"ONNX type inference does not survive the model (exit status {child.returncode}): correct it")
    return child.stdout


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The model as a protobuf message of its structure: small weights with data, large ones as inputs."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    proto.graph.name = model.graph.name or "graph"
    for value in model.graph.inputs:
        proto.graph.input.append(ir.serde.serialize_value(value))
    inputs = {id(value) for value in model.graph.inputs}
    for value in model.graph.initializers.values():
        data = value.const_value
        if id(value) not in inputs:
            proto.graph.input.append(ir.serde.serialize_value(value))
        if data is not None and data.size <= _SMALL:
            proto.graph.initializer.append(ir.serde.serialize_tensor(data))
            proto.graph.initializer[-1].name = value.name or ""
    for node in model.graph:
        proto.graph.node.append(ir.serde.serialize_node(node))
        for output in node.outputs:
            if output.type is not None and output.name and not output.is_graph_output():
                proto.graph.value_info.append(ir.serde.serialize_value(output))
    for value in model.graph.outputs:
        proto.graph.output.append(ir.serde.serialize_value(value))
    for function in model.functions.values():
        proto.functions.append(ir.serde.serialize_function(function))
    return proto


def _forget(model: ir.Model, opaque_shapes: bool) -> None:
    known = {"", *(domain for domain, _, _ in model.functions)}
    returned = set(model.graph.outputs)
    for node in nodes(model):
        for output in node.outputs:
            if node.domain in known:
                output.shape = None
                output.type = output.type if output in returned else None
            elif not opaque_shapes:
                output.shape = None
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.shape = ir.Shape(value.const_value.shape.numpy())
            value.type = ir.TensorType(value.const_value.dtype)


def _merge(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    found = {info.name: info for info in (*proto.value_info, *proto.output)}
    for node, made in zip(graph, proto.node, strict=True):
        for output in node.outputs:
            info = found.get(output.name or "")
            if info is not None and info.HasField("type"):
                _learn(output, info.type)
        inner = {each.name: each for each in made.attribute}
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH:
                _merge(attribute.as_graph(), inner[name].g)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for one, other in zip(attribute.as_graphs(), inner[name].graphs, strict=True):
                    _merge(one, other)


def _learn(value: ir.Value, proto: onnx.TypeProto) -> None:
    kind = ir.serde.deserialize_type_proto_for_type(proto)
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    if kind is not None and value.type is None:
        value.type = kind
    if shape is not None and value.shape is None:
        value.shape = shape


def _explain(model: ir.Model, message: str) -> str:
    """`(op_type:MatMul, node name: mm): [ShapeInferenceError] Incompatible ...` -> `MatMul node 'mm': Incompatible ...`."""
    match = re.search(r"\(op_type:(\w+)(?:, node name: (.*?))?\): (.*)", message, re.DOTALL)
    if match is None:
        return "the model does not pass ONNX type inference: " + re.sub(r"\[\w+Error\]\s*", "", message)
    op_type, name, reason = match.groups()
    reason = re.sub(r"\[\w+Error\]\s*", "", reason)
    named = f"{op_type} node '{name}'" if name else _only(model, op_type)
    return f"{named} does not fit its inputs: {reason}; correct the model"


def _only(model: ir.Model, op_type: str) -> str:
    """Without a name, say which value the node makes where only one node can be meant."""
    found = [node for graph in graphs(model) for node in graph if node.op_type == op_type]
    if len(found) == 1:
        return f"{op_type} node that makes '{found[0].outputs[0].name}'"
    return f"one of the {len(found)} unnamed {op_type} nodes"
