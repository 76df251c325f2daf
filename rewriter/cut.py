"""A part of a graph as a model of its own: what lies between some values and one that is computed from them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import onnx_ir as ir


def cut_out(model: ir.Model, inputs: Collection[str], output: str, shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """The nodes between ``inputs`` (values by name, of the model's inputs or in its middle) and ``output``, on a copy.

    ``shapes``: of the inputs, where they are known. A value that is neither among the inputs nor made of them or of weights is an input too.
    """
    copy = model.clone()
    values = {v.name or "": v for n in copy.graph for v in n.outputs} | {v.name or "": v for v in copy.graph.inputs}
    target = values[output]
    needed: set[ir.Node] = set()
    ports: dict[str, ir.Value] = {}
    stack = [target]
    while stack:
        value = stack.pop()
        node = value.producer()
        name = value.name or ""
        if (name in inputs and value is not target) or (node is None and not value.is_initializer()):
            ports[name] = value
        elif node is not None and node not in needed:
            needed.add(node)
            stack += [v for v in node.inputs if v is not None]
    graph = copy.graph
    order = [n for n in graph if n in needed]
    fresh = {name: _port(value, shapes.get(name)) for name, value in ports.items()}
    for node in order:
        for place, read in enumerate(node.inputs):
            if read is not None and read.name in fresh and ports[read.name] is read:
                node.replace_input_with(place, fresh[read.name])
    graph.outputs.clear()
    graph.remove(list(graph), safe=False)
    used = {v for n in order for v in n.inputs if v is not None and v.is_initializer()}
    initialisers = [ir.Value(name=v.name, type=v.type, shape=v.shape, const_value=v.const_value) for v in used]
    renamed = {v.name: w for v, w in zip(used, initialisers, strict=True)}
    for node in order:
        for place, read in enumerate(node.inputs):
            if read is not None and read in used:
                node.replace_input_with(place, renamed[read.name])
    ordered = [fresh[name] for name in sorted(fresh)]
    part = ir.Graph(ordered, [target], nodes=order, initializers=initialisers, opset_imports=dict(copy.opset_imports), name="part")
    return ir.Model(part, ir_version=copy.ir_version, functions=list(copy.functions.values()))


def _port(value: ir.Value, shape: tuple[int, ...] | None) -> ir.Value:
    return ir.Value(name=value.name, type=value.type, shape=value.shape if shape is None else ir.Shape(shape))


def kind(model: ir.Model) -> str:
    """Equal for parts that differ in nothing but names and the values of large weights: they take the same time."""
    numbers: dict[ir.Value, str] = {}
    said = []
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        data = value.const_value
        what = f"{value.dtype}{value.shape}"
        if data is not None and data.size <= 64 and data.dtype == ir.DataType.INT64:
            what += str(data.numpy().tolist())  # axes and shapes; zero points do not take time
        numbers[value] = what
    for place, node in enumerate(model.graph):
        reads = [numbers.get(v, "?") if v is not None else "-" for v in node.inputs]
        attributes = sorted(f"{a.name}={a.value}" for a in node.attributes.values())
        said.append(f"{node.domain}:{node.op_type}{reads}{attributes}")
        numbers |= {v: f"%{place}.{k}" for k, v in enumerate(node.outputs)}
    return hashlib.blake2b("\n".join(said).encode(), digest_size=16).hexdigest()
