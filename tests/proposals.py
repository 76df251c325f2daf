"""What approximate rewrites propose for small models, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx_text import parse, run_ort

from backends.instructions import saturating
from passes.approximate.candidate import Approximation, Candidate, Refusal, Site, substituted
from passes.calibrate import Feed, record, with_outputs
from rewriter.infer_onnx import infer

Array = np.ndarray
RANDOM = np.random.default_rng(0)


def model(body: str, **weights: Array) -> ir.Model:
    proto = parse(body)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    found = ir.from_proto(proto)
    infer(found)
    return found


def normal(*shape: int, scale: float = 1.0) -> Array:
    return np.asarray(RANDOM.normal(size=shape) * scale, np.float32)


def proposed(kind: Approximation, exact: ir.Model, feeds: Sequence[Feed]) -> list[Candidate | Refusal]:
    wanted = kind.wants(exact)
    names = sorted(wanted.values | wanted.grams)
    probe = ir.to_proto(with_outputs(exact, names))
    return list(kind.propose(Site(exact, record(exact, names, wanted.grams, feeds, lambda feed: run_ort(probe, feed)), saturating=saturating())))


def candidates(kind: Approximation, exact: ir.Model, feeds: Sequence[Feed]) -> list[Candidate]:
    return [c for c in proposed(kind, exact, feeds) if isinstance(c, Candidate)]


def applied(exact: ir.Model, *chosen: Candidate) -> onnx.ModelProto:
    proto = ir.to_proto(substituted(exact, chosen))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def lost(exact: ir.Model, chosen: Candidate, feed: Feed) -> float:
    """||y - y'|| / ||y||"""
    want, got = run_ort(ir.to_proto(exact), feed)[0], run_ort(applied(exact, chosen), feed)[0]
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def inputs(*shape: int, count: int = 16) -> list[Feed]:
    return [{"x": normal(*shape)} for _ in range(count)]
