"""Which configuration each kernel gets: what the database knows, else the fastest of the few that look best on paper.

The candidates of all kernels are compiled together and timed one after the other on memory of the right size, here: the
caller runs this in a process of its own, where nothing else uses the cores and a crash is harmless.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from backends.tvm.arena import ALIGNMENT, SLACK
from backends.tvm.database import Database
from backends.tvm.kernel import Config, Kernel
from backends.tvm.lowering import Launch, Lowering, Packed
from backends.tvm.rates import calibrate
from backends.tvm.views import View

Array = np.ndarray[Any, Any]
Progress = Callable[[str], None]
_FEW = 3  # configurations tried without being asked for more
_SMALL = 2e6  # operations: below, the first guess is good enough
_TURN = 4e-3  # seconds of timing for each candidate
_CHUNK = 48  # functions that are compiled together


def choose(low: Lowering, database: Database, *, tune: int = 0, progress: Progress = lambda _: None) -> dict[Kernel, Config]:
    """A configuration for every kernel of ``low``. ``tune``: how many more to try, over all kernels, the heaviest first.

    Every kernel's best is kept when it is found: what is interrupted goes on from there. ``progress`` is told how far it is.
    """
    samples: dict[Kernel, Launch] = {}
    counts: dict[Kernel, int] = {}
    for launch in low.launches:
        samples.setdefault(launch.kernel, launch)
        counts[launch.kernel] = counts.get(launch.kernel, 0) + 1
    trials = _trials(samples, counts, low, tune)
    chosen: dict[Kernel, Config] = {}
    waiting: dict[Kernel, list[Config]] = {}
    for kernel, launch in samples.items():
        configs = kernel.configs(low.machine)[: trials[kernel]]
        known = database.find(kernel, low.machine, len(configs)) if len(configs) > 1 else configs[0]
        if known is not None:
            chosen[kernel] = known
        else:
            waiting[launch.kernel] = configs
    if waiting:
        calibrate(database, low.machine)
    total, done, started = sum(map(len, waiting.values())), 0, time.monotonic()
    for found in _batches(waiting):
        progress(_so_far(done, total, time.monotonic() - started))
        for kernel, times in _timed(found, samples, low):
            done += len(times)
            best = min(times, key=lambda config: times[config])
            chosen[kernel] = best
            database.keep(kernel, low.machine, best, times[best], len(times))
    return chosen


def _so_far(done: int, total: int, seconds: float) -> str:
    """How many configurations were measured, and how long the others will take if they are like these."""
    left = f", about {math.ceil(seconds / done * (total - done))} s left" if done else ""
    return f"{done} of {total} configurations measured{left}"


def runs(launches: Sequence[Launch], chosen: Mapping[Kernel, Config], low: Lowering) -> list[Callable[[], Any]]:
    """Each launch as a function without arguments, on memory of its own."""
    from backends.tvm.single import build

    memory = _Memory(low)
    compiled = build([launch.kernel for launch in launches], low.machine, [chosen[launch.kernel] for launch in launches])
    return [single.on(*memory.operands(launch, chosen[launch.kernel])) for single, launch in zip(compiled, launches, strict=True)]


def _trials(samples: Iterable[Kernel], counts: Mapping[Kernel, int], low: Lowering, tune: int) -> dict[Kernel, int]:
    """How many configurations each kernel may try: few, and ``tune`` more shared by the kernels' share of the work."""
    work = {kernel: kernel.operations * counts[kernel] for kernel in samples}
    whole = sum(work.values()) or 1.0
    return {kernel: 1 if kernel.operations < _SMALL and not tune else _FEW + math.floor(tune * work[kernel] / whole) for kernel in work}


def _batches(waiting: Mapping[Kernel, list[Config]]) -> Iterable[dict[Kernel, list[Config]]]:
    batch: dict[Kernel, list[Config]] = {}
    for kernel, configs in waiting.items():
        batch[kernel] = configs
        if sum(map(len, batch.values())) >= _CHUNK:
            yield batch
            batch = {}
    if batch:
        yield batch


def _timed(waiting: Mapping[Kernel, list[Config]], samples: Mapping[Kernel, Launch], low: Lowering) -> Iterator[tuple[Kernel, dict[Config, float]]]:
    """For each kernel the seconds of its configurations."""
    from backends.tvm.single import build

    pairs = [(kernel, config) for kernel, configs in waiting.items() for config in configs]
    compiled = iter(build([kernel for kernel, _ in pairs], low.machine, [config for _, config in pairs]))
    memory = _Memory(low)
    for kernel, configs in waiting.items():
        runs = [next(compiled).on(*memory.operands(samples[kernel], config)) for config in configs]
        yield kernel, dict(zip(configs, _least(runs), strict=True))


def _least(runs: Sequence[Callable[[], Any]]) -> list[float]:
    """The shortest time of each, in turns."""
    least = [math.inf] * len(runs)
    for _ in range(2):
        for index, run in enumerate(runs):
            run()
            end = time.perf_counter() + _TURN / 2
            while True:
                start = time.perf_counter()
                run()
                stop = time.perf_counter()
                least[index] = min(least[index], stop - start)
                if stop > end:
                    break
    return least


class _Memory:
    """Operands for timing: parts of one array of small random numbers, of the sizes that the launch would see."""

    def __init__(self, low: Lowering) -> None:
        self._low = low
        self._read = self._array(np.random.default_rng(0).random(1 << 18, np.float32))
        self._write = self._array(np.zeros(1 << 18, np.float32))

    def operands(self, launch: Launch, config: Config) -> list[Array]:
        """An array for each parameter but the scratch memory."""
        places: list[Array] = []
        for part in launch.reads:
            if isinstance(part, Packed):
                places.append(self._array(launch.kernel.pack(part.array, config, self._low.machine)))  # type: ignore[attr-defined]
            else:
                places.append(self._part("_read", part))
        return [*places, self._part("_write", launch.write)]

    def _part(self, name: str, view: View) -> Array:
        """Numbers where floats are read, zeros (a valid index) where anything else is."""
        kind = np.dtype(np.int8 if view.dtype == "bool" else view.dtype)
        itemsize = kind.itemsize
        size = (self._low.storages[view.storage].elements * itemsize + SLACK) // 8 * 8
        if view.dtype != "float32" and name == "_read":
            return self._array(np.zeros(-(-size // itemsize), kind))
        array: Array = getattr(self, name)
        if array.nbytes < size:
            array = self._array(np.resize(array, -(-size // 4)))
            setattr(self, name, array)
        return array.view(np.uint8)[:size].view(kind)

    @staticmethod
    def _array(values: Array) -> Array:
        room = np.empty(values.nbytes + ALIGNMENT, np.uint8)
        start = -room.ctypes.data % ALIGNMENT
        place = room[start : start + values.nbytes].view(values.dtype)
        place[...] = values
        return place
