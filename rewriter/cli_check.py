"""``rewriter check A.onnx B.onnx``: do they compute the same?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from rewriter.cli_inputs import accepted
from rewriter.edit import dims
from rewriter.errors import RewriterError
from rewriter.read_onnx import read_onnx
from rewriter.verify import Feed, Oracle, Verification

Step = Callable[[str], None]


def check(one: str, other: str, step: Step) -> Verification:
    """``passed`` and, if False, the ``reason``: of their signatures, else of their outputs on made-up inputs.

    Raises ``RewriterError`` if a file is no model, or if the first one cannot be run.
    """
    from backends.isolated import Isolated

    with Isolated() as isolated:
        step("reading")
        a, b = read_onnx(one), read_onnx(other)
        problem = _signatures(a.graph, b.graph)
        if problem:
            return Verification(False, reason=problem)
        _take_sizes(a.graph, b.graph)
        step(f"running {one}")
        oracle = Oracle(accepted(isolated, one, a.graph), _reference(one))
        step(f"running {other}")
        try:
            return oracle.judge(lambda feed: isolated.run(other, feed, optimised=False), _reference(other))
        except RewriterError as failure:
            return Verification(False, inputs=len(oracle.cases), reason=f"'{other}' does not run where '{one}' does: {failure}")


def _signatures(a: ir.Graph, b: ir.Graph) -> str:
    """What differs between two models' inputs and outputs: names, order, types, ranks and sizes; "" if nothing does."""
    for kind, mine, yours in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
        names = [[v.name or "" for v in side] for side in (mine, yours)]
        if names[0] != names[1]:
            return f"the {kind} are {', '.join(names[0]) or 'none'} in one and {', '.join(names[1]) or 'none'} in the other"
        for x, y in zip(mine, yours, strict=True):
            if x.dtype != y.dtype or type(x.type) is not type(y.type):
                return f"{kind[:-1]} {x.name!r} is {_type(x)} in one and {_type(y)} in the other"
            if not _agree(x, y):
                return f"{kind[:-1]} {x.name!r} has shape {x.shape} in one and {y.shape} in the other"
    return ""


def _type(value: ir.Value) -> str:
    return "of no type" if value.dtype is None else value.dtype.name


def _agree(x: ir.Value, y: ir.Value) -> bool:
    a, b = dims(x), dims(y)
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(i == j or not isinstance(i, int) or not isinstance(j, int) for i, j in zip(a, b, strict=True))


def _take_sizes(a: ir.Graph, b: ir.Graph) -> None:
    """Sizes that one model fixes and the other leaves open are fixed in ``a``, which inputs are made up for."""
    for x, y in zip(a.inputs, b.inputs, strict=True):
        if y.shape is not None:
            merged = [j if isinstance(j, int) else i for i, j in zip(x.shape if x.shape is not None else y.shape, y.shape, strict=True)]
            x.shape = ir.Shape(merged)


def _reference(path: str) -> Callable[[Feed], list[Any]]:
    """The file in float64, built when first asked."""
    built: list[Any] = []

    def run(feed: Feed) -> list[Any]:
        from backends import reference

        if not built:
            built.append(reference.build(ir.to_proto(read_onnx(path)), float64=True))
        return list(built[0](*(feed[p.name] for p in built[0].inputs)))

    return run
