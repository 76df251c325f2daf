"""A copy of the exact graph into which chosen candidates are put, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, required

Array = np.ndarray


@dataclass(frozen=True)
class Codes:
    """How a tensor is written in whole numbers: ``value = (code - zero) * scale``, per tensor."""

    scale: float
    zero: int
    dtype: str = "uint8"


class Substitution:
    """Edits one model. Values are found by the names that they have in the exact graph, whoever makes them now."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.editor = Editor(model)
        self._values = {v.name or "": v for n in model.graph for v in n.outputs} | {v.name or "": v for v in model.graph.inputs}
        self._decoded: dict[str, ir.Value] = {}

    def value(self, name: str) -> ir.Value:
        """The value that now stands for the exact graph's ``name``."""
        return self._values[name]

    def maker(self, name: str) -> ir.Node:
        """The node that makes it."""
        node = self._values[name].producer()
        assert node is not None
        return node

    def replace(self, name: str, new: ir.Value) -> None:
        """Whoever read ``name`` reads ``new``, which takes the name. Nodes that nobody reads any more are left for ``drop_dead``."""
        old = self._values[name]
        if new.producer() is None or self._is_named(new):
            # An input, or a value of the exact graph that keeps its own name: readers go there, and so do later questions.
            self.editor.replace(old, new)
            self._values[name] = next((o for o in self.model.graph.outputs if o.name == name), new)
            return
        if old.is_graph_output():
            self.editor.replace(old, new)
            self._values[name] = next(o for o in self.model.graph.outputs if o.name == name)
            return
        self.editor.replace(old, new)
        old.name = self.editor.fresh(f"{name}_was")
        new.name = name
        self._values[name] = new

    def _is_named(self, value: ir.Value) -> bool:
        return self._values.get(value.name or "") is value

    def decoded(self, name: str, codes: Codes) -> ir.Value:
        """``name`` as ``DequantizeLinear(QuantizeLinear(name))``: made once, for all who want it."""
        key = f"{name}\0{codes}"
        if key not in self._decoded:
            source = self.value(name)
            first = self._first_reader(source)
            self._decoded[key] = self._pair(source, codes, first)
        return self._decoded[key]

    def codes(self, name: str, codes: Codes) -> ir.Value:
        """The codes themselves, of the same quantiser."""
        maker = self.decoded(name, codes).producer()
        assert maker is not None
        return required(maker, 0)

    def encode(self, name: str, codes: Codes) -> None:
        """Every reader of ``name`` reads it by way of codes."""
        source = self.value(name)
        readers = [(use.node, use.idx) for use in source.uses()]
        if not readers or source.is_graph_output() or any(node.op_type == "QuantizeLinear" for node, _ in readers):
            known = next((d for k, d in self._decoded.items() if k == f"{name}\0{codes}"), None)
            if known is None:
                return
            for node, place in readers:
                if node.op_type != "QuantizeLinear":
                    node.replace_input_with(place, known)
            return
        pair = self.decoded(name, codes)
        for node, place in readers:
            node.replace_input_with(place, pair)

    def _pair(self, source: ir.Value, codes: Codes, before: ir.Node) -> ir.Value:
        scale = self.editor.constant(np.array(codes.scale, np.float32), "scale")
        zero = self.editor.constant(np.array(codes.zero, codes.dtype), "zero")
        kind = ir.DataType.UINT8 if codes.dtype == "uint8" else ir.DataType.INT8
        quantised = self.editor.emit(before, "QuantizeLinear", [source, scale, zero], dtype=kind, shape=source.shape, hint=f"{source.name}_codes")
        return self.editor.emit(
            before, "DequantizeLinear", [quantised, scale, zero], dtype=source.dtype, shape=source.shape, hint=f"{source.name}_decoded"
        )

    def _first_reader(self, source: ir.Value) -> ir.Node:
        """The first node of the graph that reads it: what is made of it is made before that."""
        readers = {use.node for use in source.uses()}
        return next(node for node in self.model.graph if node in readers)

    def stored(self, array: Array, hint: str) -> ir.Value:
        """A weight."""
        return self.editor.initialiser(ir.Tensor(np.ascontiguousarray(array)), hint)

    def decoded_weight(self, before: ir.Node, codes: Array, scales: Array, axis: int | None, hint: str) -> ir.Value:
        """Weights in whole numbers, int8, with a scale for all or one for each place along ``axis``, dequantised."""
        stored = self.stored(codes, f"{hint}_codes")
        scale = self.stored(scales.astype(np.float32), f"{hint}_scale")
        attributes = {} if axis is None else {"axis": axis}
        return self.editor.emit(
            before, "DequantizeLinear", [stored, scale], attributes, dtype=ir.DataType.FLOAT, shape=codes.shape, hint=f"{hint}_decoded"
        )


def input_name(node: ir.Node, place: int = 0) -> str:
    """The name of what the node reads at that place."""
    return required(node, place).name or ""
