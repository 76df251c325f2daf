"""A deployment compiler: the cheapest graph that computes what a trained model computes.

    rewriter.optimize(model, example_inputs)    a model in, a smaller equal ONNX model out, and a report
    rewriter.compile(model, example_inputs)     the same, ready to call
    rewriter.load(directory)                    a compiled model from disk, without torch and without egglog
    rewriter.merge(models, base=base)           one model of several that were trained from the same one
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rewriter.errors import (
    BudgetError,
    InvalidInput,
    InvalidModel,
    RewriterError,
    UnsupportedModel,
    VerificationFailed,
)

if TYPE_CHECKING:
    from rewriter.artefact import load
    from rewriter.compiled import Compiled
    from rewriter.egraph import Limits
    from rewriter.merging import merge
    from rewriter.pipeline import Optimized, compile, optimize
    from rewriter.report import Report
    from rewriter.rule import Rule

__version__ = "0.1.0"
# Loaded on first use: `load` must start fast, and needs none of the search.
_HOME = {
    "Compiled": "compiled", "Limits": "egraph", "Optimized": "pipeline", "Report": "report", "Rule": "rule", "compile": "pipeline",
    "load": "artefact", "merge": "merging", "optimize": "pipeline",
}  # fmt: skip

__all__ = [
    "BudgetError",
    "Compiled",
    "InvalidInput",
    "InvalidModel",
    "Limits",
    "Optimized",
    "Report",
    "RewriterError",
    "Rule",
    "UnsupportedModel",
    "VerificationFailed",
    "compile",
    "load",
    "merge",
    "optimize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewriter' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rewriter.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
