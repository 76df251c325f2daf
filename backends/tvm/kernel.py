"""What a kernel template is: a frozen description of one computation, from which functions can be written.

A description holds shapes, strides and element types, and nothing about where the data lies, so that equal layers share
one function, and its ``repr`` is its key in the database of measured configurations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Strides = tuple[int, ...]
Config = tuple[Any, ...]  # what a template may choose; () where it has no choice


@dataclass(frozen=True)
class Machine:
    """What a kernel is written for. ``lanes``: float32 numbers in a vector; ``registers``: vector registers."""

    processor: str  # as LLVM names it
    lanes: int
    registers: int
    threads: int
    vnni: bool  # 8-bit dot products with 32-bit sums
    cache: int = 1 << 20  # bytes of second-level cache a core


@dataclass(frozen=True)
class Step:
    """One operator of a chain on elements: ONNX's name, the registers that it reads, its attributes, its result's dtype.

    A chain's registers are numbered: first what the template puts in, then one for each step. ``Constant`` has its number
    as attribute ``value``.
    """

    op: str
    arguments: tuple[int, ...]
    dtype: str
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Operand:
    """A tensor as a template reads or writes it: steps in memory, in elements, along each of the template's axes
    (0: the same for all)."""

    dtype: str
    strides: Strides


@dataclass(frozen=True)
class Chain:
    """What is done to a result while it is in registers: ``operands`` are read beside it, ``steps`` follow.

    Register 0 is the result, 1.. are the operands; the last register is what is stored. No steps: it is stored as it is.
    """

    operands: tuple[Operand, ...] = ()
    steps: tuple[Step, ...] = ()


PLAIN = Chain()  # stores the result as it is


class Kernel(Protocol):
    """A template. Its functions take pointers: the inputs in order, the chain's operands, the output, and last the
    scratch memory (bytes, aligned to 64) if ``scratch`` says that there is any."""

    @property
    def operations(self) -> float:
        """Multiplications and additions of one run."""

    def configs(self, machine: Machine) -> list[Config]:
        """What may be chosen, the best guess first."""

    def scratch(self, config: Config, machine: Machine) -> int:
        """Bytes of scratch memory."""

    def write(self, config: Config, machine: Machine) -> Any:
        """The function (TIR)."""


class WithoutScratch:
    """A template that needs no scratch memory."""

    def scratch(self, config: Config, machine: Machine) -> int:
        """None is needed."""
        return 0


class Fixed(WithoutScratch):
    """A template that has no choice either."""

    def configs(self, machine: Machine) -> list[Config]:
        """There is no choice."""
        return [()]
