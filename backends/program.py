"""What a backend makes: a callable from input arrays to output arrays, in graph order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rewriter.errors import InvalidInput

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Port:
    """One graph input or output: ``dtype`` is NumPy's name of it ("float32", "bfloat16", "str"), "" where unknown.

    A dimension is a number, a symbolic name, or None where the model says nothing; ``shape`` is None at unknown rank.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": None if self.shape is None else list(self.shape)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Port:
        shape = data["shape"]
        return Port(data["name"], data["dtype"], None if shape is None else tuple(shape))


class Program(Protocol):
    """A built model. Calling it takes one array per graph input, in order (NumPy, or anything with DLPack on the CPU)."""

    @property
    def inputs(self) -> Sequence[Port]: ...

    @property
    def outputs(self) -> Sequence[Port]: ...

    @property
    def notes(self) -> list[str]:
        """What the user should know about how it was built: regions given away, and why."""

    def __call__(self, *inputs: Any) -> list[Any]: ...

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write what ``restore(directory)`` needs; ``directory/model.onnx`` is reused where the caller has put it there."""


def ports_of(values: Sequence[onnx.ValueInfoProto]) -> tuple[Port, ...]:
    """The ports that a graph's ``input`` or ``output`` field declares."""
    return tuple(_port(value) for value in values)


def model_inputs(graph: onnx.GraphProto) -> tuple[Port, ...]:
    """The inputs a caller must give: those that are not defaulted by an initializer of the same name (ONNX IR < 4)."""
    defaulted = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return ports_of([value for value in graph.input if value.name not in defaulted])


def accepted(ports: Sequence[Port], inputs: Sequence[Any]) -> list[Any]:
    """``inputs`` as NumPy arrays, one for each of ``ports``. Raises InvalidInput where the number, a type or a shape does not fit."""
    from backends.arrays import as_numpy

    if len(inputs) != len(ports):
        raise InvalidInput(f"{len(inputs)} inputs were given; the model takes {len(ports)}: {[port.name for port in ports]}")
    arrays = [as_numpy(value) for value in inputs]
    for port, array in zip(ports, arrays, strict=True):
        if array.dtype.name != port.dtype:
            raise InvalidInput(f"input {port.name!r} is {array.dtype.name}; the model takes {port.dtype}")
        if port.shape is not None and not _fits(array.shape, port.shape):
            raise InvalidInput(f"input {port.name!r} has shape {list(array.shape)}; the model takes {list(port.shape)}")
    return arrays


def _fits(shape: Sequence[int], declared: Sequence[int | str | None]) -> bool:
    """-1 is what some exporters write for a size that is not known."""
    return len(shape) == len(declared) and all(not isinstance(d, int) or d in (-1, n) for n, d in zip(shape, declared, strict=True))


def _port(value: onnx.ValueInfoProto) -> Port:
    from onnx import helper

    if not value.type.HasField("tensor_type"):
        return Port(value.name, "", None)
    tensor = value.type.tensor_type
    known = tensor.elem_type != 0
    dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if known else ""
    dtype = "str" if dtype == "object" else dtype
    if not tensor.HasField("shape"):
        return Port(value.name, dtype, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
    return Port(value.name, dtype, dims)
