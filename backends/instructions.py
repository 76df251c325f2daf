"""Which instructions this processor has, as the operating system tells, and what its integer ones do to 8-bit products."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

FLAGS = Path("/proc/cpuinfo")


@cache
def saturating() -> bool:
    """Do runtimes add pairs of 8-bit products in 16 bits here? On x86 without VNNI they do (PMADDUBSW): 255 · 127 · 2 is more than those hold,
    and the sum is cut off. Where nothing is known of the processor the answer is yes: codes that are made for it are right everywhere."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    return not {"avx512vnni", "avxvnni"} & reported()


def reported() -> frozenset[str]:
    """The extensions that the operating system lists, or none if it lists none."""
    try:
        lines = FLAGS.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return frozenset(plain(flag) for flag in flags)


def plain(feature: str) -> str:
    """One spelling for LLVM's and the operating system's names: avx512_vnni, avx512vnni; sse4.1, sse4_1."""
    return feature.replace("_", "").replace(".", "")
