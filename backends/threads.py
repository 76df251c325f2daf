"""How many threads an engine should use when nobody says."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from rewriter.errors import InvalidInput


def thread_count(wanted: int | None) -> int:
    """``wanted`` itself, or ``visible_cores()`` for None. Raises ``InvalidInput`` for what is no number of threads."""
    if wanted is None:
        return visible_cores()
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise InvalidInput(f"threads={wanted!r} is not a number of threads: give 1 or more, or None for all physical cores")
    return wanted


@cache
def visible_cores() -> int:
    """Physical cores this process may use: its affinity, halved by hyper-threads, bounded by the container's CPU quota."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return max(1, min(len(siblings), _quota()))


def _quota() -> int:
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota.isdigit() or not period.isdigit():  # "max 100000": no limit; or no such file
        return 1 << 16
    return max(1, int(quota) // int(period))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
