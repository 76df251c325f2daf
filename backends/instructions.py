"""What this processor's integer instructions do to 8-bit products."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_FLAGS = Path("/proc/cpuinfo")


@cache
def saturating() -> bool:
    """Do runtimes add pairs of 8-bit products in 16 bits here? On x86 without VNNI they do (PMADDUBSW): 255 · 127 · 2 is more than those hold,
    and the sum is cut off. Where nothing is known of the processor the answer is yes: codes that are made for it are right everywhere."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    return not told_of_fours(_text())


def told_of_fours(text: str) -> bool:
    """Does the operating system's description of every processor list an instruction that adds four products in 32 bits?"""
    lines = [line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")]
    return bool(lines) and all({"avx512_vnni", "avx_vnni"} & set(flags) for flags in lines)


def _text() -> str:
    try:
        return _FLAGS.read_text()
    except OSError:
        return ""
