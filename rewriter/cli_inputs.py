"""Inputs that a model accepts, made up from what it declares."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from rewriter.edit import dims
from rewriter.errors import InvalidInput, RewriterError
from rewriter.verify import SIZES, Case, Feed, feeds

if TYPE_CHECKING:
    from backends.isolated import Isolated


def accepted(isolated: Isolated, path: str | os.PathLike[str], graph: ir.Graph, hints: Mapping[str, int] | None = None) -> list[Case]:
    """What the ONNX file at ``path`` gives on made-up inputs for ``graph``. ``hints``: sizes of symbolic dimensions.

    Raises ``InvalidInput``, with the runtime's reason, if it accepts none of the sizes that were tried.
    """
    known, refusal = dict(hints or {}), ""
    is_open = any(not isinstance(d, int) and d not in known for v in graph.inputs for d in dims(v) or ())
    makers = list(feeds(graph, known))
    for batch, other in SIZES if is_open else SIZES[:1]:
        cases = []
        for label, make in makers:
            try:
                feed: Feed = make(batch, other)
                cases.append(Case(feed, isolated.run(path, [feed], optimised=False)[0], f"{label} inputs"))
            except RewriterError as failure:
                refusal = str(failure)
        if cases:
            return cases
    raise InvalidInput(f"'{path}' could not be run on made-up inputs ({refusal[:200]}); nothing was compared")


def check_budget(budget: float | None, calibration: str | None, front: str | None) -> None:
    """Raises ``InvalidInput`` for what is of use with a budget alone."""
    for option, value in (("--calibration", calibration), ("--front", front)):
        if value is not None and budget is None:
            raise InvalidInput(f"{option} is for --budget: give the error that is allowed, too, or leave {option} out")


def parse_backend(option: str) -> None:
    """Raises ``InvalidInput`` for what is not "auto", an engine, or a list of engines."""
    from backends import ENGINES
    from rewriter.race import parse

    if "reference" in parse(option):
        raise InvalidInput(f"--backend reference: it is exact and slow, for comparing with; there are 'auto', {', '.join(map(repr, ENGINES))}")


def parse_shapes(options: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``("x:1,3,224,224",)`` -> ``{"x": (1, 3, 224, 224)}``. A name may hold colons itself. Raises ``InvalidInput``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for option in options:
        name, colon, sizes = option.rpartition(":")
        words = [w.strip() for w in sizes.split(",")] if sizes.strip() else []
        if not colon or not name or not all(w.isascii() and w.isdigit() for w in words):
            raise InvalidInput(f"--input-shape {option!r} is not NAME:SIZE,SIZE,...: write it as in x:1,3,224,224")
        if name in shapes:
            raise InvalidInput(f"--input-shape names {name!r} twice: give each input one shape")
        shapes[name] = tuple(map(int, words))
    return shapes
