"""``torch.compile(module, backend="rewriter", options={...})``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter.errors import RewriterError


def compile_fx(module: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """A dynamo backend: the graph compiled for inference, with the weights it has now. ``options``: those of ``rewriter.compile``.

    Weights that dynamo passes as inputs are constants. A graph that cannot be compiled (symbolic integers, training) runs as it is,
    with a warning that says why.
    """
    from rewriter.pipeline import compile

    given = options.pop("options", None) or {}
    fixed = {i: x for i, x in enumerate(example_inputs) if _is_weight(module, i, x)}
    free = [x for i, x in enumerate(example_inputs) if i not in fixed]
    try:
        if not all(isinstance(x, torch.Tensor) for x in free):
            raise RewriterError("an input is not a tensor (a symbolic size?)")
        compiled = compile(_Frozen(module, fixed).eval(), tuple(x.detach() for x in free), **{**options, **given})
    except RewriterError as failure:
        warnings.warn(f"rewriter runs a graph in PyTorch: {failure}", stacklevel=2)
        return module.forward

    def run(*inputs: Any) -> Any:
        return compiled(*(x.detach() for i, x in enumerate(inputs) if i not in fixed))

    return run


def _is_weight(module: torch.fx.GraphModule, place: int, value: Any) -> bool:
    """Did dynamo lift this input out of a module?"""
    if isinstance(value, torch.nn.Parameter):
        return True
    names = [n.target for n in module.graph.nodes if n.op == "placeholder"]
    lifted = place < len(names) and str(names[place]).lower().startswith(("l_self_", "l__self__"))
    return isinstance(value, torch.Tensor) and lifted and ("_buffers_" in str(names[place]) or "_parameters_" in str(names[place]))


class _Frozen(torch.nn.Module):
    """The graph with some of its inputs fixed."""

    def __init__(self, module: torch.fx.GraphModule, fixed: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.inner = module
        self.places = sorted(fixed)
        for i, value in fixed.items():
            self.register_buffer(f"weight_{i}", value.detach())

    def forward(self, *inputs: torch.Tensor) -> Any:
        free = iter(inputs)
        count = len(self.places) + len(inputs)
        return self.inner(*(getattr(self, f"weight_{i}") if i in self.places else next(free) for i in range(count)))
