"""How many threads an engine should use when nobody says."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


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
