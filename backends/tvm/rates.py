"""How fast this machine computes and copies, from what the database has measured: for the cost model of extraction.

Every kernel that was timed leaves its kind, its operations and its time. All dense products and convolutions together give a rate,
depthwise convolutions another; a product or convolution of just the sizes that are asked for gives its own time. Traffic is that of
a copy within the caches, where activations mostly stay. Nothing here loads TVM.
"""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

import numpy as np

from backends.threads import thread_count
from rewriter.cost import Rates

if TYPE_CHECKING:
    from backends.tvm.database import Database
    from backends.tvm.kernel import Kernel, Machine

ENOUGH = 8  # kernels of a kind: fewer say more about themselves than about the machine
_COPIED, _COPIES = 1 << 20, 40  # bytes that a thread copies, and how often
Speed = tuple[str, float, str]
"""Kind, operations, and the sizes of a product (rows, depth, columns) as JSON, "" for what is none."""


def speed_of(kernel: Kernel) -> Speed:
    """What to remember of a kernel beside its time."""
    from backends.tvm.kernels.contraction import Contraction
    from backends.tvm.kernels.depthwise import Depthwise

    if isinstance(kernel, Depthwise):
        return "depthwise", kernel.operations, ""
    if not isinstance(kernel, Contraction) or kernel.left.dtype != "float32":
        return type(kernel).__name__.lower(), kernel.operations, ""
    one = math.prod(kernel.batch) == 1 and kernel.right is None
    sizes = (math.prod(kernel.rows), math.prod(kernel.taps) * kernel.depth, kernel.columns)
    return "dense", kernel.operations, json.dumps(sizes) if one else ""


def calibrate(database: Database, machine: Machine) -> None:
    """Measure how fast memory is copied, in some 20 ms, unless that was done; the caller has the cores to itself."""
    if database.fact(_name(machine)) is not None:
        return
    pairs = [(np.ones(_COPIED // 8), np.empty(_COPIED // 8)) for _ in range(machine.threads)]

    def copied(pair: tuple[np.ndarray, np.ndarray]) -> float:
        least = math.inf
        for _ in range(_COPIES):
            started = time.perf_counter()
            np.copyto(pair[1], pair[0])
            least = min(least, time.perf_counter() - started)
        return least

    with ThreadPoolExecutor(machine.threads) as pool:
        slowest = max(pool.map(copied, pairs))
    database.keep_fact(_name(machine), json.dumps(2.0 * _COPIED * machine.threads / slowest))


def measured(threads: int | None, database: Database | None = None) -> Rates | None:
    """What the database knows about this machine with so many threads, or None where it knows nothing.

    The same database gives the same rates.
    """
    from backends.tvm.database import Database
    from backends.tvm.machine import known

    try:
        database = database or Database()
        machine = known(thread_count(threads), database)
        rows = database.speeds(machine) if machine is not None else []
    except PackageNotFoundError:  # without TVM there is no database
        return None
    if machine is None or not rows:
        return None
    bandwidth = database.fact(_name(machine))
    times: dict[tuple[int, ...], float] = {}
    for _, _, sizes, microseconds in rows:
        if sizes:
            key = tuple(json.loads(sizes))
            times[key] = min(microseconds, times.get(key, math.inf))
    return Rates(_rate(rows, "dense"), _rate(rows, "depthwise"), 1e6 / float(bandwidth) if bandwidth else None, times)


def _rate(rows: list[tuple[str, float, str, float]], kind: str) -> float | None:
    """Microseconds an operation, over all kernels of a kind."""
    found = [(operations, microseconds) for name, operations, _, microseconds in rows if name == kind]
    return math.fsum(t for _, t in found) / math.fsum(n for n, _ in found) if len(found) >= ENOUGH else None


def _name(machine: Machine) -> str:
    return f"bandwidth of {machine.processor} with {machine.threads} threads"
