"""A compiled model: what ``compile`` and ``load`` return. Needs neither torch nor egglog."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from backends import backend
from backends.program import Program
from rewriter.encode import digest
from rewriter.errors import InvalidInput, RewriterError
from rewriter.report import Report
from rewriter.structure import Structure
from rewriter.terms import FACTS
from rewriter.weights import WeightProgram, missing


class Compiled:
    """Call it like the model: arrays or torch tensors in, the model's own output structure out, in the same kind."""

    def __init__(
        self,
        model: ir.Model | Callable[[], ir.Model],
        program: Program,
        report: Report,
        *,
        inputs: Structure,
        outputs: Structure,
        weights: WeightProgram | None = None,
        facts: Mapping[str, Sequence[str]] | None = None,
        shared: Mapping[str, str] | None = None,
        threads: int | None = None,
    ) -> None:
        """``model``: it, or what reads it, since most that are loaded are only run. ``facts``: what rules were told of a weight's values;
        ``shared``: weights that are stored as another of equal content."""
        self._source, self._program, self.report = model, program, report
        self._inputs, self._outputs, self._weights = inputs, outputs, weights
        self._facts, self._shared, self._threads = dict(facts or {}), dict(shared or {}), threads

    @property
    def _model(self) -> ir.Model:
        if not isinstance(self._source, ir.Model):
            self._source = self._source()
        return self._source

    @_model.setter
    def _model(self, model: ir.Model) -> None:
        self._source = model

    @property
    def model(self) -> onnx.ModelProto:
        """The optimised model. Weights are copied into it: above 2 GB use ``save``."""
        return ir.to_proto(self._model)

    @property
    def backend(self) -> str:
        return self.report.backend or "onnxruntime"

    @property
    def program(self) -> Program:
        """What runs: of the torch backend, its ``module`` is a ``torch.fx.GraphModule``."""
        return self._program

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Run the model. One dict by input name is also taken. Raises ``InvalidInput``."""
        first = arguments[0] if len(arguments) == 1 and not named else None
        if isinstance(first, Mapping) and self._by_name(first):
            leaves = self._inputs.flatten((), dict(first))
        else:
            leaves = self._inputs.flatten(arguments, named)
        results = self._program(*leaves)
        torch = sys.modules.get("torch")
        if torch is not None and any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            results = [_as_torch(torch, r) for r in results]
        else:
            results = [np.asarray(r) if hasattr(r, "__dlpack__") else r for r in results]
        return self._outputs.unflatten(results)

    def _by_name(self, given: Mapping[Any, Any]) -> bool:
        names = {name for name, _ in self._inputs.tree["arguments"]}
        return bool(given) and set(given) <= names

    def update(self, state_dict: Mapping[str, Any]) -> None:
        """Fold new weights the way the old ones were folded: no search, no tuning.

        ``state_dict``: name to array or tensor of the shape it had; every weight that the folded ones are made of. Raises
        ``RewriterError`` if a weight is missing or does not fit, or if a rewrite rested on a value (a zero, a one) that changes;
        the model then stays as it was.
        """
        state = {name: _as_array(value) for name, value in state_dict.items()}
        self._check_values(state)
        fresh = self._folded(state)
        model = self._model.clone()
        for name, array in fresh.items():
            value = model.graph.initializers.get(name)
            if value is None:
                raise RewriterError(f"weight {name!r} is stored as codes, which new weights would change: compile again")
            value.const_value = ir.Tensor(array, name=name)
        target = getattr(self._program, "target", "cpu")
        self._program = backend(self.backend).build(ir.to_proto(model), target=target, threads=self._threads)
        self._model = model

    def _folded(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every initialiser that the new weights change."""
        fresh = {name: state[name] for name in self._model.graph.initializers if name in state}
        for name, array in fresh.items():
            old = self._model.graph.initializers[name].const_value
            assert old is not None
            fresh[name] = _fitted(name, array, tuple(old.shape.numpy()), old.dtype.numpy())
        if self._weights is not None:
            if any(n not in state for n in self._weights.inputs):
                raise missing(self._weights, list(state))
            declared = self._weights.declared

            def weight(name: str) -> np.ndarray:
                return _fitted(name, state[name], *declared[name])

            fresh.update(self._weights.evaluate(weight, state))
        if not fresh:
            raise RewriterError(f"none of the {len(state)} weights given is one of this model: names are those of its state_dict or initialisers")
        return fresh

    def _check_values(self, state: Mapping[str, np.ndarray]) -> None:
        for name, facts in self._facts.items():
            for held in facts:
                fact, _, was = held.partition(":")
                if name in state and was and digest(state[name]) != was:
                    raise RewriterError(f"a rewrite relied on what is computed from weight {name!r} being {fact}, and it changes: compile again")
                if name in state and not was and not FACTS[fact].holds(state[name]):  # type: ignore[misc]
                    raise RewriterError(f"weight {name!r} was {fact} throughout, which a rewrite relied on, and the new one is not: compile again")
        for dropped, kept in self._shared.items():
            if dropped in state and not (kept in state and np.array_equal(state[dropped], state[kept])):
                raise RewriterError(f"weights {dropped!r} and {kept!r} were equal and are stored once, and the new ones differ: compile again")

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write an artefact that ``rewriter.load`` reads, all or nothing."""
        from rewriter import artefact

        artefact.save(directory, self)


def _as_torch(torch: Any, result: Any) -> Any:
    return torch.from_dlpack(result) if hasattr(result, "__dlpack__") else result


def _as_array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def _fitted(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if array.shape != shape:
        raise InvalidInput(f"weight {name!r} has shape {array.shape}; the model has {shape}: give weights of the same architecture")
    return np.ascontiguousarray(array.astype(dtype, copy=False))
