"""``calibration=``: inputs like those the model will meet, in the forms that people have them, checked before anything rests on them.

Forms: an array (one input; samples along its first axis), a dict of arrays by input name, the path of an ``.npz`` file of them, or any
iterable of inputs: arrays, tuples as the model takes them, dicts. What a metric needs besides (labels) comes as ``targets`` in a dict, or
as one more item after the inputs, as a DataLoader gives it. Inputs that an iterable makes are kept on disk beyond ``IN_MEMORY`` bytes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.edit import dims
from rewriter.errors import BudgetError

Array = np.ndarray
Feed = dict[str, Array]

TARGETS = "targets"
FEWEST = 4
"""Samples below which nothing can be said of an error: two splits of two."""
FEW = 32
"""Samples below which the user is warned."""
MOST = 8192
"""Batches that are read of an iterable; it may be endless."""
MOST_BYTES = 4 << 30
"""And what they take."""
BATCH = 8
"""Samples that are run at once where the model lets the batch open."""
IN_MEMORY = 1 << 30
FITTED = 96
"""Batches at most that weights and scales are fitted to: the rest measures errors, which takes many samples where a metric counts."""
SPLITS = (4, 48)
"""Disjoint parts of what was not used for fitting, at least and at most: the spread over them is the confidence."""
PART = 64
"""Samples of a part, where there are enough for more than the fewest parts. Of few parts little is known of the spread."""


class _Kept:
    """A sequence of dicts of arrays: in memory at first, on disk beyond ``IN_MEMORY`` bytes."""

    def __init__(self) -> None:
        self._items: list[Feed | Path] = []
        self.bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def append(self, item: Feed) -> None:
        self.bytes += sum(a.nbytes for a in item.values())
        if self.bytes <= IN_MEMORY:
            self._items.append(item)
            return
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="rewriter-")
        path = Path(self._folder.name, f"{len(self._items)}.npz")
        np.savez(path, **item)  # type: ignore[arg-type, unused-ignore]
        self._items.append(path)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> Feed:
        item = self._items[place]
        if isinstance(item, Path):
            with np.load(item, allow_pickle=False) as stored:
                return dict(stored)
        return item


@dataclass
class CalibrationSet:
    """Batches, and how they are divided: ``fitting`` is what weights and scales are chosen on, ``splits`` what errors are measured on.

    ``warnings``: what about them does not look like data.
    """

    batches: _Kept
    has_targets: bool
    samples: int
    fitting: list[int] = field(default_factory=list)
    splits: list[list[int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def feed(self, place: int) -> Feed:
        return {name: array for name, array in self.batches[place].items() if name != TARGETS}

    def feeds(self, places: Iterable[int]) -> Iterator[Feed]:
        return (self.feed(p) for p in places)

    def targets(self, places: Iterable[int]) -> list[Array]:
        return [self.batches[p][TARGETS] for p in places]

    def fewer(self, most: int) -> CalibrationSet:
        """The same, with at most that many batches in each split."""
        return CalibrationSet(self.batches, self.has_targets, self.samples, self.fitting, [s[:most] for s in self.splits], self.warnings)

    @property
    def measuring(self) -> list[int]:
        """All batches of all splits."""
        return [p for split in self.splits for p in split]


def read_calibration(given: Any, graph: ir.Graph, progress: Callable[[str], None] = lambda _: None) -> CalibrationSet:
    """Read and check it against the graph's inputs. Raises ``BudgetError``, naming the input, for what cannot represent the data."""
    batches = _Kept()
    check = _Check(graph)
    for place, item in enumerate(islice(_items(given, graph), MOST)):
        batch = check.batch(item, place)
        batches.append(batch)
        if place % 16 == 15:
            progress(f"{place + 1} batches read")
        if batches.bytes > MOST_BYTES:
            break
    found = CalibrationSet(batches, check.with_targets, check.samples, warnings=check.verdict())
    _divide(found)
    return found


def _divide(found: CalibrationSet, seed: int = 0) -> None:
    """Half for fitting, ``FITTED`` at most, the rest in parts (two at least), shuffled: data often lie in order of class."""
    order = np.random.default_rng(seed).permutation(len(found.batches)).tolist()
    fitted = min(len(order) // 2, FITTED)
    found.fitting, rest = order[:fitted], order[fitted:]
    fewest, most = SPLITS
    wanted = found.samples * len(rest) // max(1, len(order)) // PART
    parts = max(2, min(max(fewest, min(most, wanted)), len(rest) // 2))
    found.splits = [part for k in range(parts) if (part := rest[k::parts])]


# Forms


def _items(given: Any, graph: ir.Graph) -> Iterator[Feed]:
    """Batches by input name, ``TARGETS`` among them where there are any."""
    names = [v.name or "" for v in graph.inputs]
    if isinstance(given, (str, os.PathLike)):
        yield from _cut(_load(given), graph)
    elif isinstance(given, Mapping):
        yield from _cut({str(k): _array(v, str(k)) for k, v in given.items()}, graph)
    elif hasattr(given, "__array__") or hasattr(given, "detach"):
        if len(names) != 1:
            raise BudgetError(f"calibration is one array and the model takes {names}: give a dict of arrays by these names")
        yield from _cut({names[0]: _array(given, names[0])}, graph)
    elif isinstance(given, Iterable):
        yield from (_named(item, names, place) for place, item in enumerate(given))
    else:
        raise BudgetError(f"calibration is a {type(given).__name__}: give an array, a dict of arrays, an .npz file, or an iterable of inputs")


def _load(path: str | os.PathLike[str]) -> Feed:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not hasattr(stored, "files"):
                raise BudgetError(f"calibration file {os.fspath(path)!r} is one array: save inputs by name with numpy.savez")
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError) as failure:
        reason = getattr(failure, "strerror", None) or "it is no .npz file of plain arrays"
        raise BudgetError(f"calibration file {os.fspath(path)!r} cannot be read: {reason}") from None


def _cut(arrays: Feed, graph: ir.Graph) -> Iterator[Feed]:
    """Arrays of many samples as batches that the model takes."""
    names = [v.name or "" for v in graph.inputs]
    if len(names) == 1 and names[0] not in arrays and len(arrays.keys() - {TARGETS}) == 1:
        (only,) = arrays.keys() - {TARGETS}
        arrays = {names[0]: arrays[only]} | ({TARGETS: arrays[TARGETS]} if TARGETS in arrays else {})
    _complete(arrays, names, "calibration")
    ranks = {v.name or "": dims(v) for v in graph.inputs}
    stacked = all((r := ranks[n]) is not None and arrays[n].ndim == len(r) + 1 for n in names)
    counts = {n: len(arrays[n]) for n in (*names, *([TARGETS] if TARGETS in arrays else [])) if arrays[n].ndim}
    if stacked:
        _same(counts, 1)
        for k in range(min(counts.values(), default=0)):
            yield {n: a[k : k + 1] if n == TARGETS else a[k] for n, a in arrays.items()}
        return
    size = _batch_size(ranks, arrays)
    _same({n: c for n, c in counts.items() if n == TARGETS or n in _batched(ranks, arrays, size)}, size)
    samples = max((counts[n] for n in _batched(ranks, arrays, size)), default=1)
    for start in range(0, samples - size + 1, size):
        yield {n: a[start : start + size] if n == TARGETS or n in _batched(ranks, arrays, size) else a for n, a in arrays.items()}


Dims = Mapping[str, Sequence[int | str | None] | None]


def _batch_size(ranks: Dims, arrays: Feed) -> int:
    """The model's own batch where it is fixed."""
    fixed = [r[0] for n, r in ranks.items() if r and isinstance(r[0], int) and r[0] > 0 and len(arrays[n]) != r[0]]
    return int(fixed[0]) if fixed else BATCH if any(r and not isinstance(r[0], int) for r in ranks.values()) else 1


def _batched(ranks: Dims, arrays: Feed, size: int) -> set[str]:
    """Inputs whose first axis is the samples: it is open, or longer than the model's."""
    return {n for n, r in ranks.items() if r and arrays[n].ndim and (not isinstance(r[0], int) or len(arrays[n]) != r[0] or r[0] == size)}


def _same(counts: Mapping[str, int], size: int) -> None:
    if len(set(counts.values())) > 1:
        raise BudgetError(f"calibration arrays differ in length: {dict(counts)}; give one entry a sample in each")
    if counts and min(counts.values()) < size:
        raise BudgetError(f"calibration has {min(counts.values())} samples and the model takes {size} at once: give more")


def _named(item: Any, names: Sequence[str], place: int) -> Feed:
    """One item of an iterable."""
    where = f"calibration item {place}"
    if isinstance(item, Mapping):
        batch = {str(k): _array(v, f"{where}, {k}") for k, v in item.items()}
        _complete(batch, names, where)
        return batch
    parts = list(item) if isinstance(item, (tuple, list)) else [item]
    if len(parts) == 2 and isinstance(parts[0], (tuple, list, Mapping)):
        first = parts[0]
        batch = _named(first, names, place)
        return batch | {TARGETS: np.atleast_1d(_array(parts[1], where))}
    if len(parts) not in (len(names), len(names) + 1):
        raise BudgetError(f"{where} has {len(parts)} entries; the model takes {list(names)}, and targets may follow")
    batch = {n: _array(p, f"{where}, {n}") for n, p in zip(names, parts, strict=False)}
    return batch | ({TARGETS: np.atleast_1d(_array(parts[-1], where))} if len(parts) > len(names) else {})


def _complete(batch: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    lacking, unknown = [n for n in names if n not in batch], [n for n in batch if n not in names and n != TARGETS]
    if lacking or unknown:
        more = f" and has {unknown[0]!r}, which it does not take" if unknown else ""
        raise BudgetError(
            f"{where} lacks {lacking}{more}: the model takes {list(names)}" if lacking else f"{where}{more}: the model takes {list(names)}"
        )


def _array(value: Any, where: str) -> Array:
    from backends.arrays import as_numpy

    try:
        array = np.asarray(as_numpy(value))
    except Exception as failure:  # noqa: BLE001 - anything may be in an iterable
        raise BudgetError(f"{where} is a {type(value).__name__}, which is no array: {failure}") from None
    if array.dtype.kind in "OV":
        raise BudgetError(f"{where} is a {type(value).__name__} that numpy holds as objects: give arrays of numbers of one shape")
    return array


# Checks


class _Check:
    """What is known of the inputs so far."""

    def __init__(self, graph: ir.Graph) -> None:
        self._inputs = {v.name or "": v for v in graph.inputs}
        self.samples = 0
        self.with_targets = False
        self._first: Feed = {}
        self._varies: set[str] = set()
        self._textured: set[str] = set()

    def batch(self, item: Feed, place: int) -> Feed:
        """The item in the model's types, if it fits."""
        if place == 0:
            self.with_targets = TARGETS in item
        elif self.with_targets != (TARGETS in item):
            raise BudgetError(f"calibration item {place} {'lacks' if self.with_targets else 'has'} targets, unlike the first: give all or none")
        batch = {name: self._fitted(name, item[name], place) for name in self._inputs} | {k: v for k, v in item.items() if k == TARGETS}
        self.samples += max((len(a) for n, a in batch.items() if n != TARGETS and a.ndim > 1), default=1)
        for name in self._inputs:
            self._look(name, batch[name])
        return batch

    def _fitted(self, name: str, array: Array, place: int) -> Array:
        value = self._inputs[name]
        wanted = value.dtype.numpy() if value.dtype is not None else array.dtype
        if array.dtype != wanted:
            if array.dtype.kind not in "fiub" or wanted.kind not in "fiub" or (array.dtype.kind == "f" and wanted.kind != "f"):
                raise BudgetError(f"calibration input {name!r} is {array.dtype}; the model takes {wanted}")
            array = array.astype(wanted)
        shape = dims(value)
        if shape is not None and (len(shape) != array.ndim or any(isinstance(d, int) and d != n for d, n in zip(shape, array.shape, strict=True))):
            raise BudgetError(f"calibration input {name!r} has shape {array.shape} in batch {place}; the model takes {list(shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            what = "NaN" if np.isnan(array).any() else "an infinity"
            raise BudgetError(f"calibration input {name!r} holds {what} in batch {place}: the data would not be represented; leave such samples out")
        return np.ascontiguousarray(array).reshape(array.shape)

    def _look(self, name: str, array: Array) -> None:
        """Does it vary, within a sample and between samples?"""
        known = self._first.setdefault(name, array)
        rows = array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(1, -1)
        head = known.reshape(len(known), -1)[:1] if known.ndim > 1 else known.reshape(1, -1)
        if rows.shape[1] != head.shape[1] or not np.array_equal(rows, np.broadcast_to(head, rows.shape)):
            self._varies.add(name)
        if array.size and not (array == array.flat[0]).all():
            self._textured.add(name)

    def verdict(self) -> list[str]:
        """Warnings; raises ``BudgetError`` where the inputs represent nothing."""
        if not self.samples:
            raise BudgetError("calibration holds no inputs: give some dozens that are like those the model will meet")
        if self.samples < FEWEST:
            raise BudgetError(f"calibration has {self.samples} sample{'s' * (self.samples > 1)}, too few to measure an error on: give {FEW} or more")
        if not self._varies:
            names = ", ".join(map(repr, self._inputs))
            raise BudgetError(
                f"calibration is constant: all {self.samples} samples of {names} are equal, which represents no data; give different ones"
            )
        self._plain()
        warnings = []
        if self.samples < FEW:
            warnings.append(f"calibration has only {self.samples} samples: errors of rare inputs are not seen; {FEW} or more are better")
        for name, value in self._inputs.items():
            array = self._first[name]
            if name not in self._varies and array.ndim > 1 and value.dtype is not None and value.dtype.is_floating_point():
                warnings.append(f"calibration input {name!r} is the same in every sample: what the model does with other values was not measured")
        return warnings

    def _plain(self) -> None:
        """Large float inputs that hold one number each are made up, even if the number differs."""
        for name, value in self._inputs.items():
            floating = value.dtype is not None and value.dtype.is_floating_point()
            if floating and name in self._varies and name not in self._textured and self._first[name][:1].size > 1:
                raise BudgetError(f"calibration input {name!r} holds one number throughout each batch, which represents no data: give real inputs")
