"""Does the rewritten model compute what the original computes? Inputs to find out with, and the judgement.

Both models run in a child process with the runtime's own optimiser off. Where they differ by more than rounding, the float64
reference decides: a result no farther from it than a small multiple of the original's own distance is merely rounded differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.edit import const, dims, is_op
from rewriter.errors import RewriterError

Feed = dict[str, np.ndarray]
ROUNDING = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5, "float64": 1e-10}
"""Differences, relative to an output's largest value, that rounding alone explains: accepted without the reference."""
EXACT = 2e-6
"""In float64 only the rounding of folded weights to float32 is left; relative, per output. Half precision weights: ``ROUNDING``."""
ENGINE = 10.0
"""Another engine's outputs may differ by this many times ``ROUNDING`` before the reference is asked: it sums in its own order."""
WORSE = 4.0
"""How many times the original's own rounding error the result's may be."""
SIZES = ((1, 16), (1, 64), (2, 32), (1, 224), (1, 512), (1, 576), (1, 2048))
"""(batch, other) sizes to try for symbolic dimensions that nothing is known about."""


@dataclass(frozen=True)
class Verification:
    """``passed`` is None where nothing could be run. Errors are the largest over outputs and inputs; relative to the output's maximum."""

    passed: bool | None
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    inputs: int = 0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed, "max_abs_error": self.max_abs_error, "max_rel_error": self.max_rel_error, "inputs": self.inputs,
            "reason": self.reason,
        }  # fmt: skip


@dataclass
class Case:
    """Inputs on which the original was run, and what it gave."""

    feed: Feed
    outputs: list[Any]
    label: str = ""


Runner = Callable[[Sequence[Feed]], list[list[Any]]]


@dataclass
class Oracle:
    """The original's behaviour: cases, run when they are first asked for, and its float64 reading for doubtful ones."""

    made: list[Case] | Callable[[], list[Case]] = field(default_factory=list)
    reference: Callable[[Feed], list[Any]] | None = None

    @cached_property
    def cases(self) -> list[Case]:
        """Inputs, and what the original gave for them."""
        return self.made if isinstance(self.made, list) else self.made()

    def judge(self, run: Runner, reference: Callable[[Feed], list[Any]] | None) -> Verification:
        """Compare a model's outputs with the original's. ``run`` may raise ``RewriterError``."""
        if not self.cases:
            return Verification(None, reason="the original could not be run on made-up inputs: give example inputs")
        worst_abs = worst_rel = 0.0
        results = run([c.feed for c in self.cases])
        for case, outputs in zip(self.cases, results, strict=True):
            for k, (want, got) in enumerate(zip(case.outputs, outputs, strict=True)):
                absolute, relative, problem = difference(want, got)
                if problem or relative > _rounding(want):
                    problem = self._doubtful(case, k, want, got, reference)
                if problem:
                    return Verification(False, absolute, relative, len(self.cases), f"output {k} on {case.label}: {problem}")
                worst_abs, worst_rel = max(worst_abs, absolute), max(worst_rel, relative)
        return Verification(True, worst_abs, worst_rel, len(self.cases))

    def differs(self, run: Callable[[Feed], list[Any]], usual: Callable[[Feed], list[Any]] | None = None) -> str:
        """Why what another engine gives for the original's inputs is not what the original gives; empty if it is.

        ``usual``: the engine that would be used otherwise, its optimiser on: an input on which its own rounding grows large, too, is no
        reason against another.
        """
        for case in self.cases:
            for k, (want, got) in enumerate(zip(case.outputs, run(case.feed), strict=True)):
                absolute, relative, problem = difference(want, got)
                if getattr(got, "dtype", None) != getattr(want, "dtype", None):
                    problem = f"{getattr(got, 'dtype', 'no array')} where the original gives {getattr(want, 'dtype', 'none')}"
                if not problem and (relative <= ENGINE * _rounding(want) or self._as_exact(case, k, want, got, usual)):
                    continue
                text = problem or f"off by {absolute:.3g} ({relative:.2g} of its largest value)"
                return f"output {k} on {case.label}: {text}"
        return ""

    def _as_exact(self, case: Case, k: int, want: Any, got: Any, usual: Callable[[Feed], list[Any]] | None) -> bool:
        """Is ``got`` about as near to the float64 reference as ``want``, or as what ``usual`` gives?"""
        if self.reference is None:
            return False
        try:
            exact = self.reference(case.feed)[k]
            _, apart, problem = difference(exact, got)
            near = not problem and apart <= WORSE * difference(exact, want)[1] + 1e-7
            return near or (not problem and usual is not None and apart <= WORSE * difference(exact, usual(case.feed)[k])[1])
        except RewriterError:
            return False

    def _doubtful(self, case: Case, k: int, want: Any, got: Any, reference: Callable[[Feed], list[Any]] | None) -> str:
        """Empty if the difference is rounding, else what is wrong."""
        absolute, relative, problem = difference(want, got)
        text = problem or f"off by {absolute:.3g} ({relative:.2g} of its largest value)"
        if self.reference is None or reference is None:
            return text
        try:
            exact, ours = self.reference(case.feed)[k], reference(case.feed)[k]
        except RewriterError as failure:
            return f"{text}; the float64 reference cannot tell ({failure})"
        _, apart, problem = difference(exact, ours)
        if not problem and apart <= (EXACT if _rounding(want) <= ROUNDING["float32"] else _rounding(want)):
            return ""
        own, result = difference(exact, want)[1], difference(exact, got)[1]
        if not problem and result <= WORSE * own + 1e-7:
            return ""
        return f"{text}; in float64 the two still differ by {apart:.2g}"


def difference(want: Any, got: Any) -> tuple[float, float, str]:
    """(largest absolute difference, the same relative to the largest value, a mismatch that is not a difference)."""
    if want is None or got is None or isinstance(want, (list, dict)):
        return 0.0, 0.0, "" if type(want) is type(got) else "one is empty"
    a, b = np.asarray(want), np.asarray(got)
    if a.shape != b.shape:
        return np.inf, np.inf, f"shape {b.shape} where the original gives {a.shape}"
    if a.dtype.kind in "OUSb" or a.dtype.kind in "iu":
        unequal = int(np.sum(a != b))
        return (float(unequal), unequal / a.size, f"{unequal} of {a.size} values differ") if unequal else (0.0, 0.0, "")
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)) or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return np.inf, np.inf, "infinities or NaN stand in other places"
    if not x[finite].size:
        return 0.0, 0.0, ""
    absolute = float(np.max(np.abs(x[finite] - y[finite])))
    scale = float(np.max(np.abs(x[finite])))
    return absolute, absolute / scale if scale else absolute, ""


def _rounding(want: Any) -> float:
    return ROUNDING.get(getattr(getattr(want, "dtype", None), "name", ""), 0.0)


@dataclass(frozen=True)
class Domain:
    """What an input may hold. ``high``: an index below it. ``values``: what it is compared with."""

    high: int | None = None
    values: tuple[Any, ...] = ()


def domains(graph: ir.Graph) -> dict[str, Domain]:
    """For each input: the range that gathers need, the constants that it is compared with; by following it through the graph."""
    return {v.name or "": _domain(v) for v in graph.inputs}


PASS_THROUGH = (
    "Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Concat", "Slice", "Max", "Min", "Clip", "Flatten",
    "Where", "Tile",
)  # fmt: skip


def _domain(value: ir.Value) -> Domain:
    high: int | None = None
    compared: list[Any] = []
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        v = stack.pop()
        if v in seen:
            continue
        seen.add(v)
        for use in v.uses():
            node = use.node
            if is_op(node, "Gather") and use.idx == 1:
                table = dims(node.inputs[0])
                axis = node.attributes.get_int("axis", 0)
                length = table[axis] if table and axis < len(table) else None
                if isinstance(length, int):
                    high = length if high is None else min(high, length)
            elif is_op(node, "OneHot") and use.idx == 0 and (depth := const(node.inputs[1])) is not None:
                high = min(high or int(depth.flat[0]), int(depth.flat[0]))
            elif is_op(node, "Equal"):
                other = const(node.inputs[1 - use.idx], 64)
                compared += [] if other is None else list(other.reshape(-1))
            elif is_op(node, *PASS_THROUGH):
                stack += node.outputs
    return Domain(high, tuple(dict.fromkeys(compared)))


def feeds(graph: ir.Graph, hints: Mapping[str, int], *, seed: int = 0) -> Iterator[tuple[str, Callable[[int, int], Feed]]]:
    """(label, maker) of inputs to try; a maker takes the sizes of unknown batch and other dimensions."""
    found = domains(graph)
    for style in ("normal", "zeros", "large", "edges"):

        def make(batch: int, other: int, style: str = style) -> Feed:
            rng = np.random.default_rng(seed)
            return {v.name or "": _array(v, found[v.name or ""], style, rng, hints, batch, other) for v in graph.inputs}

        yield style, make


def _is_batch(axis: int, rank: int) -> bool:
    """Is an unknown dimension more likely a batch than a length? The first one is, and, but for images, all before the last."""
    return rank > 1 and (axis == 0 or (rank < 4 and axis < rank - 1))


def _array(v: ir.Value, domain: Domain, style: str, rng: np.random.Generator, hints: Mapping[str, int], batch: int, other: int) -> np.ndarray:
    declared = dims(v) or ()
    shape = tuple(
        d if isinstance(d, int) and d >= 0 else hints.get(str(d), batch if _is_batch(i, len(declared)) else other) for i, d in enumerate(declared)
    )
    dtype = v.dtype.numpy() if v.dtype is not None else np.dtype(np.float32)
    if domain.values and dtype.kind in "iuf":
        pick = {"normal": 0, "zeros": len(domain.values) - 1, "large": 0, "edges": len(domain.values) - 1}[style]
        return np.full(shape, domain.values[pick]).astype(dtype)
    if dtype.kind == "b":
        return np.ones(shape, bool) if style in ("normal", "large") else rng.random(shape) < 0.7
    if dtype.kind in "iu":
        if domain.high is None:
            # A mask, a length, a flag: ones, and for one style a mask that ends early.
            mask = np.ones(shape, dtype)
            if style == "edges" and mask.ndim and mask.shape[-1] > 1:
                mask[..., mask.shape[-1] // 2 + 1 :] = 0
            return mask
        edges = np.where(rng.random(shape) < 0.5, 0, domain.high - 1)
        return (edges if style == "edges" else rng.integers(0, domain.high, shape)).astype(dtype)
    if dtype.kind not in "f" and dtype.name != "bfloat16":
        return np.zeros(shape, dtype)
    if style == "zeros":
        return np.zeros(shape, dtype)
    if style == "large":
        return (20 * rng.standard_normal(shape)).astype(dtype)
    if style == "edges":
        # Constant images show what happens at borders; signs and exact halves show ties and kinks.
        return np.where(rng.random(shape) < 0.5, -0.5, 1.5).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)

