"""What an approximate rewrite proposes, and what it may look at: one small interface for all of them.

A candidate never joins an exact e-class (equality is transitive, and its error would spread unseen). It names the values that it computes
anew, says how to edit a copy of the exact graph, and is chosen, or not, by one integer program over all candidates (``rewriter.choice``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import onnx_ir as ir

from passes.approximate.substitution import Substitution
from passes.calibrate import Recorded
from passes.drop_dead import drop_dead

T = TypeVar("T")


class Later(Generic[T]):
    """What ``make`` gives, made when it is first asked for: numbers are fitted to calibration data only for what could pay."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []

    def __call__(self) -> T:
        if not self._made:
            self._made.append(self._make())
        return self._made[0]

    @property
    def made(self) -> bool:
        """Has it been asked for?"""
        return bool(self._made)


@dataclass(frozen=True)
class Candidate:
    """One way to compute some values approximately.

    ``rewrite``: the kind, as reports name it (``quantise/int8-per-channel``). ``site``: the value, by its name in the exact graph, that
    the candidate computes in another way; ``covers``: all values whose makers it replaces (of two candidates that cover one value, at most
    one is chosen). ``apply``: edits a copy of the exact graph, in which candidates that cover other values may stand already.
    ``bytes``: how many more bytes of weights (negative: fewer). ``reads``, ``writes``: values that it wants, or leaves, as 8-bit codes.
    ``unit``: the values between which its time is measured, inputs first; empty where the whole graph has to be timed.
    Two candidates of one ``rewrite`` for equal parts take the same time: the name says what the structure depends on. ``timed_as``: the
    rewrite that takes as long, where that is another one.
    ``lost``: ||f - g||² / ||f||² at the site, on what was recorded. ``bound``: what is known of the error without data, in words.
    ``fitted``: products, by their outputs, that may be fitted once more when all that was chosen is in its place (``refit``).
    ``numbers``: equal for candidates of one site that compute the same by other operators: the faster stands for both.
    """

    rewrite: str
    site: str
    covers: frozenset[str]
    apply: Callable[[Substitution], None]
    bytes: int = 0
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    unit: tuple[tuple[str, ...], str] | None = None
    lost: float | Later[float] = float("nan")
    bound: str = ""
    numbers: str = ""
    timed_as: str = ""
    fitted: frozenset[str] = frozenset()

    @property
    def layer_error(self) -> float:
        """``lost`` as a number; NaN where the candidate does not know."""
        return self.lost() if isinstance(self.lost, Later) else self.lost

    @property
    def told_error(self) -> float:
        """The same, or NaN where nobody has asked for it yet."""
        return self.layer_error if not isinstance(self.lost, Later) or self.lost.made else float("nan")


@dataclass(frozen=True)
class Refusal:
    """A place where a rewrite could stand, and why it proposes nothing there."""

    rewrite: str
    site: str
    reason: str


@dataclass(frozen=True)
class Wanted:
    """What a rewrite needs recorded: values by name, and of which of them the second moments of their last axis."""

    values: frozenset[str] = frozenset()
    grams: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Site:
    """What ``propose`` sees. ``recorded``: by the name of the value, what calibration saw. ``saturating``: integer products here add pairs in
    16 bits, which saturate (x86 without VNNI)."""

    model: ir.Model
    recorded: Mapping[str, Recorded]
    saturating: bool = False


class Approximation(Protocol):
    """A kind of approximate rewrite. Pure: neither method changes the model."""

    name: str

    def wants(self, model: ir.Model) -> Wanted:
        """What has to be recorded of the exact graph before ``propose``."""

    def propose(self, site: Site) -> Iterable[Candidate | Refusal]:
        """Candidates for every place in the graph, and refusals with their reasons."""


def substituted(model: ir.Model, candidates: Iterable[Candidate]) -> ir.Model:
    """A copy of the model with these in it, and without what nobody reads any more."""
    copy = model.clone()
    graph = Substitution(copy)
    for candidate in candidates:
        candidate.apply(graph)
    drop_dead(copy)
    copy.graph.sort()
    return copy


def together(wanted: Sequence[Wanted]) -> Wanted:
    """The union."""
    return Wanted(frozenset().union(*(w.values for w in wanted)), frozenset().union(*(w.grams for w in wanted)))
