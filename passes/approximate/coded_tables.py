"""Embedding tables in 8 bits, with a scale for each row: ``E[i] ≈ s[i] Q[i]`` (paper 17's weights, for rows that are looked up).

A row is read whole, so its own largest number sets its scale: ``|s Q - E| <= max |E[i]| / 254``, whatever other rows hold. A quarter of the
bytes; looking up takes a cast and a multiplication more, so it competes where bytes count.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Refusal, Site, Wanted
from passes.approximate.rounding import output_error
from passes.approximate.substitution import Substitution
from rewriter.edit import is_op, required, tensor

Array = np.ndarray
LEAST = 1 << 14
"""Numbers below which nothing is gained."""


class CodedTables:
    """Tables of floats that nothing but Gather reads, by rows."""

    name = "quantise/table"

    def wants(self, model: ir.Model) -> Wanted:
        names = [name for _, nodes in tables(model) for n in nodes for name in (n.outputs[0].name, required(n, 1).name)]
        return Wanted(frozenset(n or "" for n in names))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for table, nodes in tables(site.model):
            data = tensor(table)
            assert data is not None
            codes, scales = coded_rows(data.numpy())
            results = [n.outputs[0].name or "" for n in nodes]
            places = required(nodes[0], 1).name or ""
            yield Candidate(
                f"{self.name}-8-bit", results[0], frozenset(results), _Apply(results, codes, scales),
                bytes=codes.nbytes + scales.nbytes - data.nbytes, unit=((places,), results[0]),
                lost=output_error(data.numpy(), codes * scales, None), bound="each number within 1/254 of its row's largest",
            )  # fmt: skip


def tables(model: ir.Model) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """(table [rows, width], the nodes that look rows up by indices that are computed)."""
    for value in model.graph.initializers.values():
        data = tensor(value)
        if data is None or data.dtype != ir.DataType.FLOAT or len(data.shape) != 2 or data.size < LEAST or value.is_graph_output():
            continue
        nodes = [use.node for use in value.uses()]
        lookups = [n for n in nodes if is_op(n, "Gather") and n.inputs[0] is value and n.attributes.get_int("axis", 0) == 0]
        if nodes and lookups == nodes and all(tensor(n.inputs[1]) is None and required(n, 1).name for n in nodes):
            yield value, nodes


def coded_rows(table: Array) -> tuple[Array, Array]:
    """(codes [rows, width] int8, scales [rows, 1] float32)."""
    top = np.abs(table).max(axis=1, keepdims=True)
    scales = np.where(top > 0, top / 127, 1.0).astype(np.float32)
    return np.clip(np.round(table / scales), -127, 127).astype(np.int8), scales


class _Apply:
    def __init__(self, results: list[str], codes: Array, scales: Array) -> None:
        self._results, self._codes, self._scales = results, codes, scales

    def __call__(self, graph: Substitution) -> None:
        editor = graph.editor
        codes, scales = graph.stored(self._codes, f"{self._results[0]}_codes"), graph.stored(self._scales, f"{self._results[0]}_scales")
        for name in self._results:
            node = graph.maker(name)
            old, places = node.outputs[0], required(node, 1)
            narrow = None if old.shape is None else [*old.shape[:-1], 1]
            rows = editor.emit(node, "Gather", [codes, places], {"axis": 0}, dtype=ir.DataType.INT8, shape=old.shape)
            numbers = editor.emit(node, "Cast", [rows], {"to": int(ir.DataType.FLOAT)}, dtype=old.dtype, shape=old.shape)
            factors = editor.emit(node, "Gather", [scales, places], {"axis": 0}, dtype=old.dtype, shape=narrow)
            graph.replace(name, editor.emit(node, "Mul", [numbers, factors], dtype=old.dtype, shape=old.shape))
