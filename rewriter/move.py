"""Where a rearrangement of a tensor puts its elements: one form for Reshape, Transpose, Squeeze, Unsqueeze, Flatten and Expand.

A shape is cut into *atoms*, the finest factors that the move keeps together; input and output axes are lists of atoms. So
``[n, t, 12·64] -> [n, 12, t, 64]`` (Reshape, then Transpose) is ``0 1 (2 3) -> 0 2 1 3``, however it was spelled; axes of length 1 are
empty lists. An atom of the output that is in no input axis is a repetition (Expand).

An atom may have the size ``*``: any. A move that keeps the last axis of its input together is, with that axis of any size, the same
before and after a linear map, which changes the length of that axis and nothing else; a transposition fits all sizes (``anywhere``).
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

Dim = int | str
Group = tuple[int, ...]
ANY = "*"


@dataclass(frozen=True)
class Move:
    """``sizes`` of the atoms; ``source`` and ``target``: the atoms of each axis, outermost first, numbered by source, then by target."""

    sizes: tuple[Dim, ...]
    source: tuple[Group, ...]
    target: tuple[Group, ...]

    def __str__(self) -> str:
        return json.dumps([self.sizes, self.source, self.target], separators=(",", ":"))

    @classmethod
    @functools.lru_cache(4096)
    def parse(cls, text: str) -> Move:
        """Raises ValueError for a text that ``str`` did not write."""
        try:
            sizes, source, target = json.loads(text)
            return cls(tuple(sizes), tuple(map(tuple, source)), tuple(map(tuple, target)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{text!r} is not a move") from error

    @property
    def repeated(self) -> tuple[int, ...]:
        """Atoms of the target that are in no source axis."""
        return tuple(a for a in self._flat_target if a not in self._flat_source)

    @property
    def identity(self) -> bool:
        return self.source == self.target

    def anywhere(self) -> Move | None:
        """The same move of tensors of other lengths: of any, for a transposition; of any last axis, where that stays whole."""
        if _permutes(self.source, self.target):
            return Move((ANY,) * len(self.sizes), self.source, self.target)
        if not self.source or len(self.source[-1]) != 1 or self.source[-1][0] not in self._flat_target:
            return None
        last = self.source[-1][0]
        return Move((*self.sizes[:last], ANY, *self.sizes[last + 1 :]), self.source, self.target)

    @functools.cached_property
    def _flat_source(self) -> Group:
        return tuple(a for g in self.source for a in g)

    @functools.cached_property
    def _flat_target(self) -> Group:
        return tuple(a for g in self.target for a in g)

    @property
    def keeps_last(self) -> bool:
        """Is the last axis of the result the last axis of the input, whole?"""
        return bool(self.source and self.target) and self._last is not None and self.target[-1] == (self._last,)

    @property
    def _last(self) -> int | None:
        """The atom that is the whole last axis of the input."""
        return self.source[-1][0] if self.source and len(self.source[-1]) == 1 and self.sizes[self.source[-1][0]] == ANY else None

    @property
    def last_goes_to(self) -> int | None:
        """The axis of the result (from the front) that the whole last axis of the input becomes, or None."""
        return next((k for k, g in enumerate(self.target) if g == (self._last,)), None) if self._last is not None else None

    def blocks(self) -> tuple[int, int] | None:
        """(p, q) where the last axis of the result is ``p`` blocks of the input's last axis, each element ``q`` times apart; not (1, 1)."""
        last = self._last
        if last is None or not self.target or last not in self.target[-1]:
            return None
        place = self.target[-1].index(last)
        parts = [self.sizes[a] for a in (*self.target[-1][:place], *self.target[-1][place + 1 :])]
        if not parts or any(not isinstance(s, int) for s in parts) or any(a in self.repeated for a in self.target[-1]):
            return None
        before = [self.sizes[a] for a in self.target[-1][:place]]
        after = [self.sizes[a] for a in self.target[-1][place + 1 :]]
        return math.prod(int(s) for s in before), math.prod(int(s) for s in after)

    def axes(self) -> list[tuple[int, int, int, int]]:
        """(input axis, output axis, before, after), axes from the end, for every input axis that lies within one output axis.

        ``before`` and ``after``: how many times the axis is repeated outside and inside it there.
        """
        found = []
        for i, group in enumerate(self.source):
            for o, out in enumerate(self.target):
                if not group or not set(group) <= set(out):
                    continue
                start = out.index(group[0])
                if out[start : start + len(group)] != group:
                    continue
                around = [self.sizes[a] for a in (*out[:start], *out[start + len(group) :])]
                if all(isinstance(s, int) for s in around):
                    before = math.prod(int(self.sizes[a]) for a in out[:start])
                    after = math.prod(int(self.sizes[a]) for a in out[start + len(group) :])
                    found.append((i - len(self.source), o - len(self.target), before, after))
        return found

    def unrepeated(self) -> Move | None:
        """Without its repetitions, which broadcasting makes; None where there are none or broadcasting would not make them."""
        new = set(self.repeated)
        if not new or any(new & set(g) and len(g) > 1 for g in self.target):
            return None
        bare = Move(self.sizes, self.source, tuple(() if new & set(g) else g for g in self.target))
        return bare if bare.steps() is not None else None

    @property
    def swap(self) -> bool:
        """Does it exchange the last two axes, neither known to have length 1, and nothing else?"""
        s, t = self.source, self.target
        return len(s) >= 2 and len(s) == len(t) and t[:-2] == s[:-2] and (t[-2], t[-1]) == (s[-1], s[-2]) and len(s[-1]) == len(s[-2]) == 1

    def shape(self, x: Sequence[int]) -> tuple[int, ...] | None:
        """Of the result for an input shape of numbers; None where it does not fit."""
        sizes = self._lengths(x)
        if sizes is None:
            return None
        try:
            return tuple(math.prod(sizes[a] for a in g) for g in self.target)
        except KeyError:
            return None

    def atoms(self, x: Sequence[int]) -> list[int]:
        """Lengths of the source's atoms for an input shape that fits."""
        sizes = self._lengths(x) or {}
        return [sizes[a] for a in self._flat_source]

    def _lengths(self, x: Sequence[int]) -> dict[int, int] | None:
        if len(x) != len(self.source):
            return None
        sizes: dict[int, int] = {a: s for a, s in enumerate(self.sizes) if isinstance(s, int)}
        for length, group in zip(x, self.source, strict=True):
            unknown = [a for a in group if a not in sizes]
            known = math.prod(sizes[a] for a in group if a in sizes)
            if len(unknown) == 1 and known and length % known == 0:
                sizes[unknown[0]] = length // known
            elif unknown or known != length:
                return None
        return sizes

    def steps(self) -> list[tuple[str, tuple[int, ...]]] | None:
        """ONNX operators that do it: ("Reshape", shape with 0 and -1), ("Transpose", perm), ("Expand", shape); None if a size is missing."""
        return _steps(self)


def reshape(before: Sequence[Dim], after: Sequence[Dim]) -> Move | None:
    """Row-major order kept; one of ``after`` may be -1. None where a factor of one shape straddles two of the other."""
    wanted: list[Dim] = list(after)
    if -1 in wanted:
        free = wanted.index(-1)
        front = _cut(before, wanted[:free])
        back = _cut(tuple(reversed(front[2])), list(reversed(wanted[free + 1 :]))) if front else None
        if front is None or back is None:
            return None
        middle = list(reversed(back[2]))
        sizes = [*front[0], *middle, *reversed(back[0])]
        groups = [*front[1], len(middle), *reversed(back[1])]
    else:
        whole = _cut(before, wanted)
        if whole is None or any(d != 1 for d in whole[2]):
            return None
        sizes, groups = whole[0], whole[1]
    target = _split(sizes, groups)
    source = _grouped(before, sizes)
    return None if source is None else canonical(tuple(sizes), source, target)


def transpose(shape: Sequence[Dim], perm: Sequence[int]) -> Move:
    sizes, source = _atoms(shape)
    return canonical(sizes, source, tuple(source[p] for p in perm))


def expand(shape: Sequence[Dim], target: Sequence[Dim]) -> Move | None:
    """Broadcasting: axes of length 1, and new ones in front, repeated. None where the shapes do not broadcast so."""
    sizes, source = _atoms(shape)
    if len(target) < len(shape):
        return None
    lacking = len(target) - len(shape)
    grown, groups = list(sizes), []
    for k, d in enumerate(target):
        own = shape[k - lacking] if k >= lacking else 1
        if own == d or (d == 1 and k >= lacking):
            groups.append(source[k - lacking] if k >= lacking else ())
        elif own == 1:
            groups.append((len(grown),))
            grown.append(d)
        else:
            return None
    return canonical(tuple(grown), source, tuple(groups))


def compose(first: Move, then: Move) -> Move | None:
    """``then`` after ``first`` as one move that ONNX can write, or None."""
    if len(first.target) != len(then.source):
        return None
    atoms: list[Dim] = []
    of_first: dict[int, list[int]] = {}
    of_then: dict[int, list[int]] = {}
    for a, b in zip(first.target, then.source, strict=True):
        if not _refine(first, list(a), then, list(b), atoms, of_first, of_then):
            return _reshaped(first, then)
    for new in then.repeated:
        of_then[new] = [len(atoms)]
        atoms.append(then.sizes[new])
    source = tuple(tuple(n for a in g for n in of_first[a]) for g in first.source)
    target = tuple(tuple(n for a in g for n in of_then[a]) for g in then.target)
    made = canonical(tuple(atoms), source, target)
    return made if made.identity or made.steps() is not None else None


def _reshaped(first: Move, then: Move) -> Move | None:
    """Two reshapes in a row whose factors straddle: still one reshape."""
    flat = all(m._flat_source == m._flat_target for m in (first, then))
    if not flat or any(not isinstance(s, int) for m in (first, then) for s in m.sizes):
        return None
    before = [math.prod(int(first.sizes[a]) for a in g) for g in first.source]
    after = [math.prod(int(then.sizes[a]) for a in g) for g in then.target]
    return reshape(before, after)


def _refine(
    first: Move, a: list[int], then: Move, b: list[int], atoms: list[Dim], of_first: dict[int, list[int]], of_then: dict[int, list[int]]
) -> bool:
    """Cut one axis of the middle shape into the finest atoms of both moves."""
    sizes_a, sizes_b = [first.sizes[i] for i in a], [then.sizes[i] for i in b]
    i = j = 0
    left: Dim | None = None
    right: Dim | None = None
    while i < len(a) or j < len(b):
        if i == len(a) or j == len(b):
            return False
        left = sizes_a[i] if left is None else left
        right = sizes_b[j] if right is None else right
        last_a, last_b = i == len(a) - 1, j == len(b) - 1
        if left == right or (left == ANY and last_a and last_b) or (right == ANY and last_a and last_b):
            size, done_a, done_b = (right if left == ANY else left), True, True
            if ANY in (left, right) and left != right:
                size = left if right == ANY else right
        elif right == ANY:
            size, done_a, done_b = left, True, False
        elif left == ANY:
            # How much of it is left for later atoms is known where it ends its axis.
            if not last_a:
                return False
            size, done_a, done_b = right, False, True
        elif isinstance(left, int) and isinstance(right, int) and left % right == 0:
            size, done_a, done_b, left = right, False, True, left // right
        elif isinstance(left, int) and isinstance(right, int) and right % left == 0:
            size, done_a, done_b, right = left, True, False, right // left
        else:
            return False
        n = len(atoms)
        atoms.append(size)
        of_first.setdefault(a[i], []).append(n)
        of_then.setdefault(b[j], []).append(n)
        if done_a:
            i, left = i + 1, None
        if done_b:
            j, right = j + 1, None
    return True


def canonical(sizes: Sequence[Dim], source: Sequence[Sequence[int]], target: Sequence[Sequence[int]]) -> Move:
    """Atoms that stay together everywhere are one; atoms of size 1 are none; numbered by source, then target."""
    axes = [[a for a in g if sizes[a] != 1] for g in source]
    places = [[a for a in g if sizes[a] != 1] for g in target]
    merged = dict(enumerate(sizes))
    changed = True
    while changed:
        changed = False
        for group in axes:
            for a, b in itertools.pairwise(group):
                size_a, size_b = merged[a], merged[b]
                if isinstance(size_a, int) and isinstance(size_b, int) and _always_follows(a, b, places):
                    merged[a] = size_a * size_b
                    for g in (*axes, *places):
                        if b in g:
                            g.remove(b)
                    changed = True
                    break
    order = list(dict.fromkeys(a for g in (*axes, *places) for a in g))
    number = {a: n for n, a in enumerate(order)}
    final = [merged[a] for a in order]
    return Move(tuple(final), tuple(tuple(number[a] for a in g) for g in axes), tuple(tuple(number[a] for a in g) for g in places))


def _permutes(source: Sequence[Sequence[int]], target: Sequence[Sequence[int]]) -> bool:
    return len(source) == len(target) and all(len(g) <= 1 for g in source) and sorted(map(tuple, source)) == sorted(map(tuple, target))


def _always_follows(a: int, b: int, groups: Sequence[Sequence[int]]) -> bool:
    places = [(g, g.index(a)) for g in groups if a in g]
    return len(places) == 1 and places[0][1] + 1 < len(places[0][0]) and places[0][0][places[0][1] + 1] == b


def _atoms(shape: Sequence[Dim]) -> tuple[tuple[Dim, ...], tuple[Group, ...]]:
    sizes: list[Dim] = []
    groups: list[Group] = []
    for d in shape:
        groups.append(() if d == 1 else (len(sizes),))
        sizes += [] if d == 1 else [d]
    return tuple(sizes), tuple(groups)


def _cut(dims: Sequence[Dim], wanted: Sequence[Dim]) -> tuple[list[Dim], list[int], list[Dim]] | None:
    """Atoms of the first dims that make up ``wanted``: (atoms, how many in each wanted axis, dims that are left)."""
    atoms: list[Dim] = []
    counts: list[int] = []
    left = [d for d in dims if d != 1]
    for w in wanted:
        count, rest = 0, w
        while rest != 1:
            if not left:
                return None
            d = left[0]
            if d == rest:
                size: Dim = d
                left.pop(0)
                rest = 1
            elif isinstance(d, int) and isinstance(rest, int) and rest % d == 0:
                size, rest = d, rest // d
                left.pop(0)
            elif isinstance(d, int) and isinstance(rest, int) and d % rest == 0:
                size, left[0], rest = rest, d // rest, 1
            else:
                return None
            atoms.append(size)
            count += 1
        counts.append(count)
    return atoms, counts, left


def _split(sizes: Sequence[Dim], counts: Sequence[int]) -> tuple[Group, ...]:
    groups, at = [], 0
    for count in counts:
        groups.append(tuple(range(at, at + count)))
        at += count
    return tuple(groups) if at == len(sizes) else ()


def _grouped(shape: Sequence[Dim], sizes: Sequence[Dim]) -> tuple[Group, ...] | None:
    """The atoms of each axis of ``shape``, in order."""
    groups: list[Group] = []
    at = 0
    for d in shape:
        group: list[int] = []
        rest = d
        while rest != 1:
            if at == len(sizes):
                return None
            size = sizes[at]
            if size == rest:
                rest = 1
            elif isinstance(size, int) and isinstance(rest, int) and rest % size == 0:
                rest //= size
            else:
                return None
            group.append(at)
            at += 1
        groups.append(tuple(group))
    return tuple(groups) if at == len(sizes) else None


@functools.lru_cache(4096)
def _steps(m: Move) -> list[tuple[str, tuple[int, ...]]] | None:
    if m.identity:
        return []
    if m.repeated:
        return _steps_of_expansion(m)
    perm = _axis_permutation(m.source, m.target)
    if perm is not None:
        return [("Transpose", perm)]
    if m._flat_source == m._flat_target:
        shape = _target_shape(m, m.source, m.target)
        return None if shape is None else [("Reshape", shape)]
    # Whole axes first, if no input axis is cut; atoms first otherwise.
    order = [next((k for k, g in enumerate(m.source) if g and g[0] == a), None) for a in m._flat_target]
    whole = [k for k in dict.fromkeys(order) if k is not None]
    if all(g == () or g in (m.source[k] for k in whole) for g in m.source) and [a for k in whole for a in m.source[k]] == list(m._flat_target):
        perm = (*whole, *(k for k, g in enumerate(m.source) if not g))
        turned = tuple(m.source[k] for k in perm)
        steps: list[tuple[str, tuple[int, ...]]] = [("Transpose", perm)]
        if turned != m.target:
            shape = _target_shape(m, turned, m.target)
            if shape is None:
                return None
            steps.append(("Reshape", shape))
        return steps
    atoms = tuple((a,) for a in m._flat_source)
    turned = tuple((a,) for a in m._flat_target)
    if len(m.target) == len(turned) + sum(not g for g in m.target) and all(len(g) <= 1 for g in m.target) and all(m.target):
        turned = m.target
    first, last = _target_shape(m, m.source, atoms), _target_shape(m, turned, m.target)
    if first is None or last is None:
        return None
    perm = tuple(atoms.index(g) for g in turned)
    return [("Reshape", first), ("Transpose", perm), *([("Reshape", last)] if turned != m.target else [])]


def _steps_of_expansion(m: Move) -> list[tuple[str, tuple[int, ...]]] | None:
    """Everything but the repetitions, with axes of length 1 in their places; then Expand; then the axes that they join."""
    new = set(m.repeated)
    atoms: list[Group] = []
    for g in m.target:
        atoms += [(a,) for a in g] or [()]
    bare = tuple(() if g and g[0] in new else g for g in atoms)
    kept = canonical_like(m, bare)
    before = _steps(kept)
    if before is None or any(not isinstance(m.sizes[a], int) for a in new):
        return None
    sizes = tuple(int(m.sizes[g[0]]) if g and g[0] in new else 1 for g in atoms)
    steps = [*before, ("Expand", sizes)]
    if tuple(atoms) != m.target and not all(g == () or len(g) == 1 for g in m.target):
        shape = _target_shape(m, tuple(atoms), m.target)
        if shape is None:
            return None
        steps.append(("Reshape", shape))
    return steps


def canonical_like(m: Move, target: Sequence[Group]) -> Move:
    """The move from ``m``'s input to other axes, all atoms kept apart as they are in ``m``."""
    return Move(m.sizes, m.source, tuple(target))


def _axis_permutation(source: Sequence[Group], target: Sequence[Group]) -> tuple[int, ...] | None:
    if len(source) != len(target):
        return None
    free = list(range(len(source)))
    perm = []
    for g in target:
        place = next((k for k in free if source[k] == g), None)
        if place is None:
            return None
        free.remove(place)
        perm.append(place)
    return tuple(perm)


def _target_shape(m: Move, source: Sequence[Group], target: Sequence[Group]) -> tuple[int, ...] | None:
    """A Reshape's shape operand: numbers, 0 for an axis that stays at its place, one -1."""
    shape: list[int | None] = []
    for k, g in enumerate(target):
        sizes = [m.sizes[a] for a in g]
        if all(isinstance(s, int) for s in sizes):
            shape.append(math.prod(int(s) for s in sizes))
        else:
            shape.append(0 if k < len(source) and source[k] == g else None)
    if shape.count(None) > 1:
        return None
    return tuple(-1 if d is None else d for d in shape)
