"""An ONNX model, from wherever it comes, as the checked `onnx_ir` model the passes work on.

Decisions: an initialiser that is also listed as an input (IR version 3) is a weight, no input. Local functions are
inlined, except those of domain `rewriter`, which are vocabulary. A model below opset 20 is brought to it where every
node can be; otherwise, or above it, it stays at its own opset. Operators of unknown domains are let through. Values
are looked at, never changed: a model object that is passed in stays as it was, and weights are not copied.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.passes import PassError
from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass

from rewriter.check_onnx import check, spell
from rewriter.edit import graphs, nodes
from rewriter.errors import InvalidInput, InvalidModel, RewriterError, UnsupportedModel
from rewriter.infer_onnx import infer, skeleton
from rewriter.opset import OPSET, CannotUpgrade, upgrade

# What people hand over instead of an ONNX file, by its first bytes.
_MAGIC = {
    b"PK": "a zip archive (PyTorch's .pt, .pth and .pt2 are): load it in Python and pass the module",
    b"\x80": "a pickle (an old PyTorch file is one; it is not opened): load it in Python and pass the module",
    b"GGUF": "a GGUF file: load it with its own library and pass the module",
    b"\x89HDF": "an HDF5 file: export the model to ONNX",
    b"{": "JSON text: export the model to ONNX",
    b"version https://git-lfs": "a Git LFS pointer: fetch the real file with `git lfs pull`",
}


def read_onnx(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> ir.Model:
    """The model, checked, with functions inlined, nodes in order, at opset 20 where possible, and shapes inferred.

    input_shapes: input name -> shape, makes symbolic dims fixed. constants: input name -> number or array; such an
    input becomes an initialiser. Raises InvalidModel, UnsupportedModel, or InvalidInput for a wrong path or argument.
    """
    try:
        return prepare(_load(source), input_shapes=input_shapes, constants=constants)
    except RewriterError:
        raise
    except (RecursionError, MemoryError, OSError) as error:
        raise UnsupportedModel(f"the model cannot be read: {type(error).__name__} {error}") from None
    except Exception as error:  # a defect that no check above knows: the caller still gets one line and a type
        raise InvalidModel(f"the model cannot be read: {_root(error)}") from error


def _root(error: BaseException) -> str:
    """The innermost cause, and the node that a cause on the way names."""
    node = None
    while True:
        found = re.search(r"Node\(name='(.*?)'.*?op_type='(\w+)'", str(error))
        node = node or found
        if error.__cause__ is None:
            break
        error = error.__cause__
    reason = f"{type(error).__name__} {error}"[:300]
    return reason if node is None else f"{node[2]} node '{node[1]}': {reason}"


def prepare(
    model: ir.Model,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> ir.Model:
    """All that `read_onnx` promises, for a model that the caller gives away."""
    _weights_are_no_inputs(model.graph)
    _inline_functions(model)
    _fix_constants(model, constants or {})
    fixed = _fix_shapes(model.graph, input_shapes or {})
    model.graph.sort()
    _check_operators(model)
    _infer_and_check(model, fixed)
    return _upgraded(model)


def _load(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    if isinstance(source, ir.Model):
        check(skeleton(source))
        return source.clone()
    if isinstance(source, onnx.ModelProto):
        check(source)
        return ir.serde.deserialize_model(source)
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidInput(f"a model is a path, an onnx.ModelProto or an onnx_ir.Model, not {type(source).__name__}")
    path = Path(source)
    proto = _parse(path)
    check(proto, path.parent)
    model = ir.serde.deserialize_model(proto)
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    _map_external(model)
    return model


def _map_external(model: ir.Model) -> None:
    """Weights in files beside the model become arrays mapped into memory: read when touched, and independent of where the model
    is written next."""
    for graph in graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                data = value.const_value
                value.const_value = ir.Tensor(data.numpy(), dtype=data.dtype, name=data.name)


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise InvalidInput(f"'{path}' is a folder: name the ONNX file in it")
    if not path.is_file():
        raise InvalidInput(f"there is no file '{path}'")
    data = path.read_bytes()
    if not data:
        raise InvalidModel(f"'{path}' is empty")
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            raise InvalidModel(f"'{path}' is no ONNX model but {what}")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise InvalidModel(f"'{path}' is not an ONNX model, or it is damaged or cut short") from None
    return proto


def _weights_are_no_inputs(graph: ir.Graph) -> None:
    kept = [value for value in graph.inputs if not value.is_initializer()]
    if len(kept) < len(graph.inputs):
        graph.inputs.clear()
        graph.inputs.extend(kept)


def _inline_functions(model: ir.Model) -> None:
    try:
        InlinePass(lambda function: function.domain != "rewriter")(model)
        RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    except (PassError, ValueError) as error:
        reason = error.__cause__ or error
        raise UnsupportedModel(f"the model's local functions cannot be inlined: {reason}") from None


def _input(graph: ir.Graph, name: str) -> ir.Value:
    for value in graph.inputs:
        if value.name == name:
            return value
    names = ", ".join(repr(value.name) for value in graph.inputs)
    raise InvalidInput(f"the model has no input '{name}'; it has {names or 'none'}")


def _fix_constants(model: ir.Model, constants: Mapping[str, Any]) -> None:
    """Each named input becomes an initialiser holding the given number or array."""
    for name, given in constants.items():
        value = _input(model.graph, name)
        array = _constant_array(value, given)
        model.graph.inputs.remove(value)
        value.const_value = ir.Tensor(array, name=name)
        value.shape = ir.Shape(list(array.shape))
        value.type = ir.TensorType(value.const_value.dtype)
        model.graph.register_initializer(value)


def _constant_array(value: ir.Value, given: Any) -> np.ndarray[Any, np.dtype[Any]]:
    array = np.asarray(given)
    shape = [dim if isinstance(dim, int) else None for dim in value.shape or ()]
    if value.dtype is None:
        raise InvalidInput(f"input '{value.name}' has no tensor type: it cannot be made constant")
    wanted = value.dtype.numpy()
    try:
        cast = array.astype(wanted)
    except (TypeError, ValueError):
        raise InvalidInput(f"the constant for input '{value.name}' is no {value.dtype.name}") from None
    if array.dtype.kind not in "biuf" or (wanted.kind in "biu" and not np.array_equal(cast, array)):
        raise InvalidInput(f"the constant for input '{value.name}' does not fit its type {value.dtype.name}")
    if array.ndim == 0 and shape and None not in shape:
        return np.full([size for size in shape if size is not None], cast)
    if value.shape is not None and (
        len(shape) != array.ndim or any(a not in (None, b) for a, b in zip(shape, array.shape, strict=True))
    ):
        raise InvalidInput(f"the constant for input '{value.name}' has shape {list(array.shape)}, not {value.shape}")
    return cast


def _fix_shapes(graph: ir.Graph, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Write the given sizes over symbolic dims, everywhere a symbol occurs in inputs and outputs; did that happen?"""
    bound: dict[str, set[int]] = {}
    for name, shape in shapes.items():
        value = _input(graph, name)
        _check_shape(value, shape)
        for dim, size in zip(value.shape or (), shape, strict=False):
            if not isinstance(dim, int) and dim.value is not None:
                bound.setdefault(dim.value, set()).add(size)
        value.shape = ir.Shape([int(size) for size in shape])
    # Some exporters call every unknown dim by one name: such a name says nothing about equality.
    sizes = {name: found.pop() for name, found in bound.items() if len(found) == 1 and name.isidentifier()}
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None and sizes:
            value.shape = ir.Shape([_bind(dim, sizes) for dim in value.shape])
    return bool(shapes)


def _bind(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    return dim if isinstance(dim, int) or dim.value is None else sizes.get(dim.value, dim)


def _check_shape(value: ir.Value, shape: Sequence[int]) -> None:
    if any(isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0 for size in shape):
        raise InvalidInput(f"the shape {list(shape)} for input '{value.name}' is not a list of sizes")
    if value.shape is None:
        return
    fits = len(shape) == len(value.shape) and all(
        not isinstance(dim, int) or dim in (-1, size)  # exporters have written -1 for a size that is not known
        for dim, size in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise InvalidInput(f"input '{value.name}' has shape {value.shape}; {list(shape)} does not fit it")


def _check_operators(model: ir.Model) -> None:
    """Every standard node exists at the model's opset, with the inputs and attributes that it takes."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = dict(model.opset_imports)
    for node in nodes(model):
        if node.domain and node.domain not in model.opset_imports:
            raise InvalidModel(f"{_spell(node)} is of domain '{node.domain}', which the model does not import")
        if node.domain == "":
            _check_operator(node, model.opset_imports.get("", 0), context)


def _check_operator(node: ir.Node, opset: int, context: onnx.checker.C.CheckerContext) -> None:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        raise InvalidModel(f"{_spell(node)}: ONNX opset {opset} has no operator {node.op_type}") from None
    inputs, outputs = len(node.inputs), len(node.outputs)
    if not (schema.min_input <= inputs <= schema.max_input and schema.min_output <= outputs <= schema.max_output):
        raise InvalidModel(
            f"{_spell(node)} has {inputs} inputs and {outputs} outputs; {node.op_type} takes "
            f"{schema.min_input} to {schema.max_input} and makes {schema.min_output} to {schema.max_output}"
        )
    for index, formal in enumerate(schema.inputs[:inputs]):
        if node.inputs[index] is None and formal.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise InvalidModel(f"{_spell(node)} lacks its input '{formal.name}'")
    if schema.deprecated or any(a.type in _GRAPHS for a in node.attributes.values()):
        return  # ONNX Runtime runs deprecated operators; a checker of one node cannot see a subgraph's outer values
    try:
        onnx.checker.check_node(ir.serde.serialize_node(node), context)
    except onnx.checker.ValidationError as error:
        raise InvalidModel(f"{_spell(node)}: {str(error).splitlines()[0]}") from None


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _spell(node: ir.Node) -> str:
    return spell(
        onnx.NodeProto(
            name=node.name or "", domain=node.domain, op_type=node.op_type, output=[v.name or "" for v in node.outputs]
        )
    )


def _infer_and_check(model: ir.Model, fixed: bool) -> None:
    """Shapes everywhere; what the outputs are declared to be does not contradict what is computed."""
    declared = {value: value.shape for value in model.graph.outputs}
    for value in declared:
        value.shape = None
    infer(model, untrusted=True, opaque_shapes=not fixed)
    for value, shape in declared.items():
        derived = value.shape
        if shape is None or (fixed and derived is not None):
            continue
        value.shape = shape
        if derived is not None and not _agree(shape, derived):
            raise InvalidModel(f"output '{value.name}' is declared with shape {shape} but computed with {derived}")


def _agree(one: ir.Shape, other: ir.Shape) -> bool:
    return len(one) == len(other) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def _upgraded(model: ir.Model) -> ir.Model:
    """The model at OPSET, or unchanged where it is newer or some node cannot be expressed there."""
    if model.opset_imports.get("", OPSET) >= OPSET or model.functions:
        return model
    newer = model.clone()
    try:
        upgrade(newer, OPSET)
        newer.graph.sort()
        _check_operators(newer)
        infer(newer, untrusted=True)
    except (CannotUpgrade, InvalidModel):
        return model
    return newer
