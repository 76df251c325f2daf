"""Complex numbers that weights alone decide: ONNX has none, so they are computed while a module is read.

The kernel of a state-space layer is made of complex exponentials of its parameters. What of it is complex, up to the real (or complex) tensor
that meets the module's inputs, is evaluated in double precision and stored; the parameters behind it are then no weights of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

from rewriter.encode import digest

_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def fold_complex_weights(program: ExportedProgram) -> tuple[ExportedProgram, dict[str, str]]:
    """The program without complex values that are constant; the digests of the weights that are now fixed, by name."""
    constant = _constant(program)
    folded = [n for n in program.graph.nodes if n in constant and n.op == "call_function" and _from_complex(n, constant)]
    wanted = [n for n in folded if any(user not in constant or user.op == "output" or not _from_complex(user, constant) for user in n.users)]
    if not wanted:
        return program, {}
    values = _evaluated(program, wanted, constant)
    module = program.module()
    names = _spliced(module, program, values)
    args, kwargs = program.example_inputs or ((), {})
    again = torch.export.export(module, args, kwargs, strict=False)
    gone = _read(program) - _read(again) - names
    state = {**program.state_dict, **program.constants}
    return again, {name: digest(state[name].detach().cpu().numpy()) for name in sorted(gone) if isinstance(state.get(name), torch.Tensor)}


def _read(program: ExportedProgram) -> set[str]:
    """The weights that the program does something with."""
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    return {spec.target for spec in program.graph_signature.input_specs if spec.target and spec.arg.name in used}


def _constant(program: ExportedProgram) -> set[Node]:
    """Nodes that the module's inputs do not reach."""
    inputs = {s.arg.name for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT}
    found: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in inputs:
                found.add(node)
        elif node.op == "call_function" and all(n in found for n in node.all_input_nodes) and "nondeterministic_seeded" not in _tags(node):
            found.add(node)
    return found


def _tags(node: Node) -> set[str]:
    return {tag.name for tag in getattr(node.target, "tags", ())}


def _complex(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


def _from_complex(node: Node, constant: set[Node]) -> bool:
    """Is it complex, or made of something constant that is?"""
    return _complex(node) or any(_complex(n) for n in node.all_input_nodes if n in constant)


def _evaluated(program: ExportedProgram, wanted: list[Node], constant: set[Node]) -> dict[Node, torch.Tensor]:
    with torch.no_grad():
        try:
            known = _run(program, wanted, constant, wide=True)
        except RuntimeError:  # a number of the program fixes its own precision
            known = _run(program, wanted, constant, wide=False)
    return {node: known[node].to(node.meta["val"].dtype).contiguous() for node in wanted}


def _run(program: ExportedProgram, wanted: list[Node], constant: set[Node], wide: bool) -> dict[Node, Any]:
    values: dict[Node, Any] = {}
    needed, stack = set[Node](), list(wanted)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    for node in program.graph.nodes:
        if node not in needed:
            continue
        if node.op == "placeholder":
            value = _stored(program, node)
            values[node] = value.to(_WIDE.get(value.dtype, value.dtype)) if wide and isinstance(value, torch.Tensor) else value
        else:
            args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
            if wide and kwargs.get("dtype") in _WIDE:
                kwargs["dtype"] = _WIDE[kwargs["dtype"]]
            values[node] = node.target(*args, **kwargs)
    return values


def _stored(program: ExportedProgram, node: Node) -> Any:
    (spec,) = (s for s in program.graph_signature.input_specs if s.arg.name == node.name)
    assert spec.target is not None
    return program.state_dict.get(spec.target, program.constants.get(spec.target))


def _spliced(module: torch.fx.GraphModule, program: ExportedProgram, values: Mapping[Node, torch.Tensor]) -> set[str]:
    """Put the values in their nodes' places (nodes keep their names from the program); the buffers' names."""
    places = {node.name: node for node in module.graph.nodes}
    names = set[str]()
    for node, value in values.items():
        place = places[node.name]
        name = f"{node.name}_value"
        module.register_buffer(name, value, persistent=False)
        names.add(name)
        with module.graph.inserting_before(place):
            stored = module.graph.get_attr(name)
        stored.meta["val"] = place.meta.get("val")
        place.replace_all_uses_with(stored)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return names
