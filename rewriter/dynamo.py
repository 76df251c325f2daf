"""``torch.compile(module, backend="rewriter", options={...})``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter.errors import RewriterError


def compile_fx(module: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """A dynamo backend: the graph compiled for inference. ``options``: those of ``rewriter.compile``.

    Weights that dynamo passes as inputs are constants; when they change they are folded again. Gradients are those of the graph,
    which is run in PyTorch for them. A graph that cannot be compiled (symbolic integers, training) runs as it is, with a warning that
    says why.
    """
    given = {**options, **(options.pop("options", None) or {})}
    given.pop("options", None)
    fixed = [i for i, x in enumerate(example_inputs) if _is_weight(module, i, x)]
    try:
        _check(module, [x for i, x in enumerate(example_inputs) if i not in fixed])
        return _Inference(module, fixed, example_inputs, given)
    except RewriterError as failure:
        warnings.warn(f"rewriter runs a graph in PyTorch: {failure}", stacklevel=2)
        return module.forward


class _Inference:
    """The graph, compiled with the weights that it was last called with."""

    def __init__(self, module: torch.fx.GraphModule, fixed: Sequence[int], inputs: Sequence[Any], options: dict[str, Any]) -> None:
        self.module, self._fixed, self._options = module, list(fixed), options
        self._compile(inputs)

    def __call__(self, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return _Recomputed.apply(self, *inputs)  # type: ignore[no-untyped-call]
        return self.run(inputs)

    def run(self, inputs: Sequence[Any]) -> Any:
        """The results, without gradients."""
        if self._stamps(inputs) != self._seen:
            self._fold_again(inputs)
        return self._compiled(*self._free(inputs))

    def _compile(self, inputs: Sequence[Any]) -> None:
        from rewriter.pipeline import compile

        self._frozen = _Frozen(self.module, {i: inputs[i] for i in self._fixed}).eval()
        self._compiled = compile(self._frozen, tuple(self._free(inputs)), **self._options)
        self._seen = self._stamps(inputs)

    def _fold_again(self, inputs: Sequence[Any]) -> None:
        for i in self._fixed:
            setattr(self._frozen, f"weight_{i}", inputs[i].detach())
        try:
            self._compiled.update(self._frozen.state_dict())
            self._seen = self._stamps(inputs)
        except RewriterError:  # a rewrite rested on a value that changed
            self._compile(inputs)

    def _free(self, inputs: Sequence[Any]) -> list[Any]:
        return [x.detach() for i, x in enumerate(inputs) if i not in self._fixed]

    def _stamps(self, inputs: Sequence[Any]) -> list[tuple[int, int]]:
        """What changes when a weight does: where it lies, and how often it was written to."""
        return [(inputs[i].data_ptr(), -1 if inputs[i].is_inference() else inputs[i]._version) for i in self._fixed]


class _Recomputed(torch.autograd.Function):
    """The compiled graph forward; backward, the graph in PyTorch once more, for its gradients."""

    @staticmethod
    def forward(ctx: Any, inference: _Inference, *inputs: Any) -> Any:
        ctx.module = inference.module
        ctx.save_for_backward(*inputs)
        return tuple(inference.run(inputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_(needed) for x, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)]
            pairs = zip(ctx.module.forward(*inputs), gradients, strict=True)
            outputs = [(y, g) for y, g in pairs if isinstance(y, torch.Tensor) and y.requires_grad]
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad([y for y, _ in outputs], wanted, [g for _, g in outputs], allow_unused=True))
        return None, *(next(found) if x.requires_grad else None for x in inputs)


def _check(module: torch.fx.GraphModule, free: Sequence[Any]) -> None:
    """Raises ``RewriterError`` for a graph that is not a function of tensors."""
    if not all(isinstance(x, torch.Tensor) for x in free):
        raise RewriterError("an input is not a tensor (a symbolic size?)")
    for node in module.graph.nodes:
        if node.op == "call_function" and _trains(node):
            raise RewriterError(f"{node.name} is in training mode: call eval() on the module")


def _trains(node: torch.fx.Node) -> bool:
    """Is it a dropout, a batch norm or the like, called to train?"""
    try:
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a built-in function without a signature
        return False
    return arguments.get("training") is True


def _is_weight(module: torch.fx.GraphModule, place: int, value: Any) -> bool:
    """Did dynamo lift this input out of a module? A wrong yes costs time, not truth: it is folded again whenever it changes."""
    if isinstance(value, torch.nn.Parameter):
        return True
    names = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]
    lifted = place < len(names) and ("_buffers_" in names[place] or "_parameters_" in names[place])
    return isinstance(value, torch.Tensor) and lifted


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
