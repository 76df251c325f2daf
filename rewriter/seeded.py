"""Random numbers drawn from a seed are constants: what a module draws after seeding, in its forward, it draws in every call.

While a module is traced, such draws are made for real and become constants of its program. A draw from a generator that
outlives the call (the global one, or one that the module keeps) counts as seeded where the module has seeded it before in the same forward;
one that is not seeded stays a random operator. The generators end in the state in which they were found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode

_MAKERS = {getattr(torch, name) for name in ("rand", "randn", "randint", "randperm", "normal")}
_LIKE: dict[Any, Callable[..., torch.Tensor]] = {torch.rand_like: torch.rand, torch.randn_like: torch.randn, torch.randint_like: torch.randint}
_FILLS = {getattr(torch.Tensor, n) for n in ("uniform_", "normal_", "bernoulli_", "exponential_", "geometric_", "log_normal_", "cauchy_", "random_")}
_NOBODYS_SEED = 0x5EED_0F_0B0D7


class SeededDraws(TorchFunctionMode):
    """Active while ``module`` is traced."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        parts = [value for part in module.modules() for value in vars(part).values()]
        self._lasting = [torch.default_generator, *(v for v in parts if isinstance(v, torch.Generator) and v.device.type == "cpu")]
        self._states: dict[torch.Generator, torch.Tensor] = {}

    def __enter__(self) -> SeededDraws:
        for generator in self._lasting:
            self._remember(generator)
            generator.manual_seed(_NOBODYS_SEED)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for generator, state in self._states.items():
            generator.set_state(state)

    def _remember(self, generator: torch.Generator) -> None:
        self._states.setdefault(generator, generator.get_state())

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS or func in _LIKE or func in _FILLS:
            generator = kwargs.get("generator")
            if generator is not None:
                self._remember(generator)
            if self._seeded(generator) and not _run_time(func, args, kwargs):
                return _drawn(func, args, kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _seeded(generator: torch.Generator | None) -> bool:
        generator = torch.default_generator if generator is None else generator
        return generator.device.type == "cpu" and generator.initial_seed() != _NOBODYS_SEED


def _run_time(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Do the numbers depend on a tensor of the program, or on a size that is not known?"""
    own = args[1:] if func in _FILLS or func in _LIKE else args
    shape = args[0].shape if func in _FILLS or func in _LIKE else ()
    device = kwargs.get("device")
    elsewhere = device is not None and torch.device(device).type != "cpu"
    values = [*own, *kwargs.values(), *shape]
    return elsewhere or any(isinstance(v, (torch.Tensor, torch.SymInt, torch.SymFloat)) for v in values)


def _drawn(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The numbers as a constant of the program that is being traced."""
    kwargs = {name: value for name, value in kwargs.items() if name not in ("requires_grad", "out", "memory_format")}
    if func in _FILLS:
        target = args[0]
        return target.copy_(_real(lambda: func(torch.empty(target.shape, dtype=target.dtype), *args[1:], **kwargs)))
    if func in _LIKE:
        target = args[0]
        kwargs["dtype"] = kwargs.get("dtype") or target.dtype
        return _real(lambda: _LIKE[func](*args[1:], target.shape, **kwargs))
    return _real(lambda: func(*args, **kwargs))


def _real(draw: Callable[[], torch.Tensor]) -> torch.Tensor:
    with unset_fake_temporarily(), disable_proxy_modes_tracing(), torch._C.DisableTorchFunction():
        value = draw()
    assert not isinstance(value, FakeTensor)
    return torch.ops.aten.lift_fresh_copy.default(value)  # type: ignore[no-any-return]
