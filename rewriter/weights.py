"""Weights as programs: how each folded weight is computed from the weights that the model came with.

The program is an ONNX graph, kept beside the folded values, so that new weights (another adapter, a fine-tuned checkpoint) are
folded again without a search. What the model itself computed from its weights is computed in its own precision, bit for bit what a
runtime would; what laws introduced is computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from backends import reference
from rewriter.errors import RewriterError

LAW = "rewriter.law"
"""Marks, in a node's metadata, that a law introduced it."""

Array = np.ndarray[Any, Any]
Lookup = Callable[[str], Array]


class WeightProgram:
    """``proto``: inputs are original weights, outputs are folded ones, by the names they have in both models."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self._nodes = list(proto.graph.node)  # protobuf makes a wrapper at every look
        self._maker = {o: i for i, n in enumerate(self._nodes) for o in n.output}
        self._reads = [[r for r in n.input if r] for n in self._nodes]
        self._law = [_is_law(n) for n in self._nodes]
        self._numbers = {t.name: t for t in proto.graph.initializer}
        self._literal = set(self._numbers)

    def sources(self, name: str) -> list[str]:
        """The original weights that a weight of the result is made of: itself, if the program does not make it."""
        if name not in self._maker:
            return [name]
        return sorted({r for i in self._above(name) for r in self._reads[i] if r not in self._maker and r not in self._numbers})

    def then(self, second: WeightProgram, kept: Container[str]) -> WeightProgram | None:
        """This program and one that reads what it makes, as one that makes the weights ``kept``; None if it makes none of them."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        graph, made = proto.graph, set(self._maker)
        known = made | set(self.inputs) | set(self._numbers)
        # What the second names by itself must not be what the first named so.
        results = set(second.outputs)
        fresh = {o: f"{o}~" for n in second.proto.graph.node for o in n.output if o in known and o not in results}
        for node in second.proto.graph.node:
            added = graph.node.add()
            added.CopyFrom(node)
            for names in (added.input, added.output):
                names[:] = [fresh.get(n, n) for n in names]
        graph.initializer.extend(t for t in second.proto.graph.initializer if t.name not in known)
        graph.input.extend(v for v in second.proto.graph.input if v.name not in known)
        graph.output.extend(second.proto.graph.output)
        return WeightProgram(proto)._making(kept)

    def _making(self, kept: Container[str]) -> WeightProgram | None:
        graph = onnx.GraphProto(name=self.proto.graph.name)
        graph.output.extend(v for v in self.proto.graph.output if v.name in kept)
        needed = sorted({i for v in graph.output for i in self._above(v.name)})
        read = {r for i in needed for r in self._reads[i]}
        graph.node.extend(self._nodes[i] for i in needed)
        graph.input.extend(v for v in self.proto.graph.input if v.name in read)
        graph.initializer.extend(t for t in self.proto.graph.initializer if t.name in read)
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        proto.graph.CopyFrom(graph)
        return WeightProgram(proto) if graph.output else None

    @property
    def inputs(self) -> list[str]:
        return [v.name for v in self.proto.graph.input]

    @property
    def outputs(self) -> list[str]:
        return [v.name for v in self.proto.graph.output]

    @property
    def declared(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """(shape, dtype) of every original weight and number that the program reads."""
        known = {t.name: (tuple(t.dims), np.dtype(helper.tensor_dtype_to_np_dtype(t.data_type))) for t in self.proto.graph.initializer}
        for v in self.proto.graph.input:
            kind = v.type.tensor_type
            known[v.name] = (tuple(d.dim_value for d in kind.shape.dim), np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))
        return known

    def evaluate(self, weight: Lookup, given: Container[str] = ()) -> Iterator[tuple[str, Array]]:
        """Each folded weight in turn, one at a time, in the type that the program declares. ``weight``: an original by its name.

        Numbers are part of the program; those in ``given`` are looked up like weights.
        """
        self._literal = {name for name in self._numbers if name not in given}
        for output in self.proto.graph.output:
            wanted = helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)
            yield output.name, np.asarray(self._one(output.name, weight)).astype(wanted, copy=False)

    def in_reals(self, name: str, weight: Lookup) -> Array:
        """One folded weight with every step in float64, rounded once: what it would be if the model computed without rounding."""
        (output,) = (o for o in self.proto.graph.output if o.name == name)
        wanted = helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)
        return np.asarray(self._run(self._above(name), name, weight, {}, float64=True)).astype(wanted, copy=False)

    def _one(self, name: str, weight: Lookup) -> Array:
        nodes = self._above(name)
        exact = {o for i in nodes if not self._law[i] for o in self._nodes[i].output}
        read_by_law = {r for i in nodes if self._law[i] for r in self._reads[i]} | {name}
        known: dict[str, Array] = {}
        for value in sorted(exact & read_by_law):
            known[value] = self._run(self._above(value), value, weight, known, float64=False)
        if name in known:
            return known[name]
        return self._run([i for i in nodes if self._law[i]], name, weight, known, float64=True)

    def _run(self, places: Sequence[int], name: str, weight: Lookup, known: dict[str, Array], float64: bool) -> Array:
        nodes = [self._nodes[i] for i in places]
        made = {o for n in nodes for o in n.output}
        reads = list(dict.fromkeys(r for i in places for r in self._reads[i] if r not in made))
        literals = [self._numbers[r] for r in reads if r in self._literal]
        arrays = {r: known[r] if r in known else weight(r) for r in reads if r not in self._literal}
        inputs = [helper.make_tensor_value_info(r, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for r, a in arrays.items()]
        output = onnx.ValueInfoProto(name=name)
        graph = helper.make_graph(nodes, "fold", inputs, [output], literals)
        model = helper.make_model_gen_version(graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version)
        model.functions.extend(self.proto.functions)
        return reference.ReferenceProgram(model, float64)(*arrays.values())[0]  # type: ignore[no-any-return]

    def _above(self, name: str) -> list[int]:
        """The nodes that ``name`` is computed by, by place, in the program's order."""
        needed: set[int] = set()
        stack = [name]
        while stack:
            i = self._maker.get(stack.pop())
            if i is not None and i not in needed:
                needed.add(i)
                stack.extend(self._reads[i])
        return sorted(needed)


def _is_law(node: onnx.NodeProto) -> bool:
    return any(p.key == LAW for p in node.metadata_props)


def missing(program: WeightProgram, state: Sequence[str]) -> RewriterError:
    """The error for a state that lacks weights."""
    lacking = [n for n in program.inputs if n not in state]
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return RewriterError(f"the new weights lack {lacking[0]!r}{more}: give every weight of the model")
