"""A PyTorch program as the same `onnx_ir` model that ONNX files become, by `torch.export` and PyTorch's exporter.

Weights keep their `state_dict` names and are shared with the module, not copied: to change the module's parameters
in place is to change the model. Plain numbers, strings and None among the arguments are fixed at their example value.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import re
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from rewriter.complex_weights import fold_complex_weights
from rewriter.edit import Editor
from rewriter.errors import InvalidInput, UnsupportedModel
from rewriter.opset import OPSET
from rewriter.read_onnx import prepare
from rewriter.seeded import SeededDraws
from rewriter.structure import LEAF, Builder, Structure, Tree


@dataclass(frozen=True)
class TorchProgram:
    """A model and how the module's arguments flatten to its inputs, and its outputs back to the module's results."""

    model: ir.Model
    inputs: Structure
    outputs: Structure
    call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    """The example as the module takes it, with inputs that are declared constant at their constants."""
    example: list[Any] | None = None
    """The same as the model's inputs."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Weights that are part of the program, and the digests of their values."""
    literals: frozenset[str] = frozenset()
    """Initialisers that are in no ``state_dict``: numbers of the program, not weights."""


def read_torch(
    module: torch.nn.Module | ExportedProgram,
    example_inputs: Sequence[Any] | Mapping[str, Any] | torch.Tensor | None = None,
    *,
    constants: Mapping[str, Any] | None = None,
) -> TorchProgram:
    """The program that `module` runs on inputs like `example_inputs` (a tuple, a dict by argument name, one tensor).

    ``constants``: inputs that are fixed; the example may leave them out. Raises UnsupportedModel for a module in training mode, one
    that changes its own state, or one that PyTorch cannot export; InvalidInput for example inputs that do not fit.
    """
    constants, call = dict(constants or {}), None
    if isinstance(module, ExportedProgram):
        program, names = module, None
        if example_inputs is not None:
            call = ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (_tuple(example_inputs), {})
    else:
        _refuse_training(module)
        names = list(inspect.signature(module.forward).parameters)
        call = _arguments(module, example_inputs, constants)
        program = _export(module, *call)
    _refuse_state(program)
    program, fixed = fold_complex_weights(program)
    model = _to_onnx(program)
    inputs, outputs = _input_structure(program, names), _output_structure(program)
    _one_value_per_output(model, program)
    if len(model.graph.inputs) != inputs.leaves or len(model.graph.outputs) != outputs.leaves:
        raise UnsupportedModel(
            f"the exported model has {len(model.graph.inputs)} inputs and {len(model.graph.outputs)} outputs where "
            f"the module has {inputs.leaves} and {outputs.leaves}: pass tensors and return tensors"
        )
    dropped = {place for place, value in enumerate(model.graph.inputs) if value.name in constants}
    model = prepare(model, constants=constants)
    example = None
    if call is not None:
        example = [leaf for place, leaf in enumerate(inputs.flatten(*call)) if place not in dropped]
    literals = frozenset(model.graph.initializers) - set(program.state_dict) - set(fixed) - set(constants)
    return TorchProgram(model, inputs.without(dropped) if dropped else inputs, outputs, call, example, fixed, literals)


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _refuse_training(module: torch.nn.Module) -> None:
    # A traced graph has its behaviour written out; only modules that it still calls have a mode.
    whole = not isinstance(module, torch.fx.GraphModule)
    for name, part in module.named_modules():
        if part.training and (whole or name):
            where = f"its part '{name}'" if name else type(module).__name__
            raise UnsupportedModel(f"{where} is in training mode: call .eval() on the module first")


def _arguments(
    module: torch.nn.Module, example: Sequence[Any] | Mapping[str, Any] | torch.Tensor | None, constants: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The examples as one would call the module, positional as far as the signature goes, with constants in their places.

    Plain values are fixed by tracing: a constant for one is its value, and no input of the model that is left to be fixed.
    """
    if example is None:
        raise InvalidInput("a PyTorch module needs example_inputs: a tuple as it takes them, or a dict by name")
    signature = inspect.signature(module.forward)
    try:
        places, names = ((), _known(module, example)) if isinstance(example, Mapping) else (_tuple(example), {})
        bound = signature.bind_partial(*places, **names)
        for name in [name for name in constants if name in signature.parameters]:
            bound.arguments[name] = _fixed(bound.arguments.get(name), constants[name], name)
            if not isinstance(bound.arguments[name], torch.Tensor):
                del constants[name]
        signature.bind(*bound.args, **bound.kwargs)
    except TypeError as error:
        raise InvalidInput(f"example_inputs do not fit {type(module).__name__}.forward: {error}") from None
    return bound.args, dict(bound.kwargs)


def _fixed(example: Any, constant: Any, name: str) -> Any:
    """The constant in the form that the example has; as a tensor where there is no example."""
    if isinstance(example, (bool, int, float, str)):
        return type(example)(constant)
    try:
        value = torch.as_tensor(constant)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidInput(f"the constant for input '{name}' is no array") from None
    if not isinstance(example, torch.Tensor):
        return value.float() if value.dtype == torch.float64 else value
    if value.ndim and value.shape != example.shape:
        raise InvalidInput(f"the constant for input '{name}' has shape {list(value.shape)}, its example {list(example.shape)}")
    return value.to(example.dtype).expand(example.shape)


def _known(module: torch.nn.Module, example: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = inspect.signature(module.forward).parameters
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        for name in example:
            if name not in parameters:
                known = ", ".join(f"'{each}'" for each in parameters)
                raise InvalidInput(f"{type(module).__name__}.forward has no argument '{name}'; it has {known or 'none'}")
    return example


def _export(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    before = _state(module)
    try:
        with _silence(), torch.no_grad(), SeededDraws(module):
            program = torch.export.export(module, args, kwargs, strict=False)
            if any(_mutates(node) for node in program.graph.nodes):
                program = program.run_decompositions({})  # functional again; the signature then says what changed
    except Exception as error:
        raise UnsupportedModel(f"torch.export cannot trace {type(module).__name__}: {_reason(error)}") from error
    finally:
        changed = _restore(module, before)
    if changed:
        raise UnsupportedModel(f"{type(module).__name__} replaces its own '{changed[0]}' when called: make it pure")
    return program


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}


def _restore(module: torch.nn.Module, before: Mapping[str, torch.Tensor]) -> list[str]:
    """Put back the parameters and buffers that tracing replaced; their names."""
    after = _state(module)
    changed = [name for name, value in before.items() if after.get(name) is not value]
    for name in changed:
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, before[name])
    return changed


def _mutates(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def _to_onnx(program: ExportedProgram) -> ir.Model:
    try:
        with _silence(), torch.no_grad(), _arrays_only(program), one_registry():
            exported = torch.onnx.export(
                program, (), dynamo=True, optimize=False, opset_version=OPSET, verbose=False, external_data=False
            )
    except Exception as error:
        raise UnsupportedModel(f"PyTorch's ONNX exporter cannot express the module: {_reason(error)}") from error
    assert exported is not None
    model: ir.Model = exported.model
    return model


@contextlib.contextmanager
def _arrays_only(program: ExportedProgram) -> Iterator[None]:
    """PyTorch's exporter leaves out a result that is None, and fails on one that is a plain number."""
    output = program.graph.output_node()
    results = output.args
    output.args = (tuple(each if isinstance(each, torch.fx.Node) else None for each in results[0]),)
    try:
        yield
    finally:
        output.args = results


@contextlib.contextmanager
def one_registry() -> Iterator[None]:
    """PyTorch's exporter parses the source of all its 500 functions in every export: more than half of its time. Once is enough."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, KeyError):  # another version of PyTorch: slower, and as right
        yield
        return
    ONNXRegistry.from_torchlib = staticmethod(_registry)  # type: ignore[method-assign]
    _ORIGINAL.setdefault("from_torchlib", original.__get__(None, ONNXRegistry))
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]


_ORIGINAL: dict[str, Callable[..., Any]] = {}


@functools.cache
def _registry(**options: Any) -> Any:
    return _ORIGINAL["from_torchlib"](**options)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporters print, warn and log on success too."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(level)


def _reason(error: BaseException) -> str:
    """The innermost cause's first line, with the operator that any of the causes names."""
    chain = [error]
    while chain[-1].__cause__ is not None or chain[-1].__context__ is not None:
        following = chain[-1].__cause__ or chain[-1].__context__
        assert following is not None
        if following in chain:
            break
        chain.append(following)
    unknown = re.search(r"Found <class '(.*?)'> in output", str(chain[-1]))
    if unknown is not None:
        return f"it returns a {unknown[1]}: return tensors only (of a transformers model: set config.use_cache = False)"
    lines = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()]
    said = lines[0] if lines else type(chain[-1]).__name__
    operators = [found for each in chain for found in re.findall(r"\b(?:aten|prims|torchvision|\w+)\.\w+\.\w+\b", str(each))]
    named = next((name for name in operators if name.startswith(("aten.", "prims."))), None)
    return said if named is None or named in said else f"{said} (at {named})"


def _refuse_state(program: ExportedProgram) -> None:
    """A program that changes its weights, buffers or inputs, or still trains, is no function of its inputs."""
    changes = {OutputKind.BUFFER_MUTATION: "buffer", OutputKind.USER_INPUT_MUTATION: "input"}
    changes |= {kind: "parameter" for kind in OutputKind if kind.name == "PARAMETER_MUTATION"}
    for spec in program.graph_signature.output_specs:
        if spec.kind in changes:
            raise UnsupportedModel(f"the module changes its {changes[spec.kind]} '{spec.target}' when called: make it pure")
    for node in program.graph.nodes:
        place = {"aten.dropout.default": 2, "aten.batch_norm.default": 5, "aten.instance_norm.default": 5}
        index = place.get(str(node.target)) if "dropout" in str(node.target) or "batch_norm" in str(node.target) else None
        if index is not None and len(node.args) > index and node.args[index] is True:
            raise UnsupportedModel(f"the exported program trains at {node.target} '{node.name}': export it after .eval()")


def _input_structure(program: ExportedProgram, names: list[str] | None) -> Structure:
    """Arguments by place and by name; `names` are the module's own where they are known."""
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    reader = _Trees([_leaf(spec.arg) for spec in specs])
    arguments, keywords = _parts(program.call_spec.in_spec)
    known = names or []
    if names is None and len(specs) == len(_parts(arguments)):
        known = [str(spec.arg.name) for spec in specs]
    positional = [known[i] if i < len(known) else f"input_{i}" for i in range(len(_parts(arguments)))]
    trees = [[name, reader.read(spec)] for name, spec in zip(positional, _parts(arguments), strict=True)]
    trees += [[name, reader.read(spec)] for name, spec in zip(keywords.context, _parts(keywords), strict=True)]
    return Structure({"arguments": trees, "positional": len(positional)}, reader.builders)


def _output_structure(program: ExportedProgram) -> Structure:
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    reader = _Trees([_leaf(spec.arg) for spec in specs])
    return Structure(reader.read(program.call_spec.out_spec), reader.builders)


def _leaf(argument: Any) -> Tree:
    return {"constant": argument.value} if isinstance(argument, ConstantArgument) else LEAF


def _parts(spec: Any) -> list[Any]:
    return list(spec.children())


class _Trees:
    """torch's description of nesting (TreeSpec) -> ours; `leaves` are taken in order."""

    def __init__(self, leaves: list[Tree]) -> None:
        self.leaves = iter(leaves)
        self.builders: dict[str, Builder] = {}

    def read(self, spec: Any) -> Tree:
        if spec.is_leaf():
            return next(self.leaves)
        kind, children = spec.type, [self.read(each) for each in _parts(spec)]
        if kind in (tuple, list):
            return {kind.__name__: children}
        if kind is dict:
            return {"dict": [[key, each] for key, each in zip(spec.context, children, strict=True)]}
        record = spec.context if kind is namedtuple else kind  # torch's own spelling of a named tuple
        # One class may occur with several contexts (which of its fields are set): each has its own builder.
        name = f"{record.__module__}.{record.__qualname__}"
        name = name if name not in self.builders else f"{name}#{len(self.builders)}"
        self.builders[name] = _builder(kind, spec.context)
        names = _field_names(spec)
        if names is not None and len(names) == len(children):
            return {"record": name, "fields": [[key, each] for key, each in zip(names, children, strict=True)]}
        return {"object": name, "items": children}


def _field_names(spec: Any) -> list[str] | None:
    """Field names of a named tuple, or the keys that a dict-like class put in its context."""
    context = spec.context
    first = context[0] if isinstance(context, (tuple, list)) and context else None
    for names in (getattr(context, "_fields", None), context, first):
        if isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def _builder(kind: Any, context: Any) -> Builder:
    unflatten: Callable[[list[Any], Any], Any] = pytree.SUPPORTED_NODES[kind].unflatten_fn
    return lambda values: unflatten(values, context)


def _one_value_per_output(model: ir.Model, program: ExportedProgram) -> None:
    """Outputs that repeat, or that are inputs or weights, become Identity nodes: ONNX wants each made once.

    Inputs and outputs that stand for a constant of the program, not for an array, are removed.
    """
    graph = model.graph
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    dead = {spec.arg.name for spec in specs if isinstance(spec.arg, ConstantArgument)}
    kept = [value for value in graph.inputs if value.name not in dead or value.uses()]
    if len(kept) < len(graph.inputs):
        graph.inputs.clear()
        graph.inputs.extend(kept)
    editor, seen = Editor(model), set[ir.Value]()
    for index, value in enumerate(graph.outputs):
        if value in seen or value.producer() is None:
            name = editor.fresh(f"{value.name}_out")
            copy = ir.Value(name=name, type=value.type, shape=value.shape)
            graph.append(ir.Node("", "Identity", [value], outputs=[copy], name=editor.fresh("node_output")))
            graph.outputs[index] = copy
        seen.add(graph.outputs[index])
