"""Which processor kernels are written for: its vectors, its registers, its second-level cache."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.instructions import FLAGS, plain, reported
from backends.tvm.kernel import Machine

if TYPE_CHECKING:
    from backends.tvm.database import Database

_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
# from wide to narrow; each must run all that the kernel of the operating system reports
_FALLBACKS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64")
_WIDE = ("avx2", "avx5", "avxv", "fma", "f16c", "sse4")


def detect(threads: int, processor: str | None = None, database: Database | None = None) -> Machine:
    """The machine at hand, or one with the ``processor`` that LLVM knows by that name.

    What a ``database`` has about the machine at hand is believed: LLVM takes a second to load.
    """
    if database is None or processor is not None:
        return _asked(threads, processor)
    machine = known(threads, database)
    if machine is None:
        machine = _asked(threads, None)
        database.keep_fact(_here(threads), json.dumps(asdict(machine)))
    return machine


def known(threads: int, database: Database) -> Machine | None:
    """The machine at hand, if the database has it."""
    found = database.fact(_here(threads))
    return Machine(**json.loads(found)) if found is not None else None


def _here(threads: int) -> str:
    return json.dumps([_processor(), threads])


def _asked(threads: int, processor: str | None) -> Machine:
    """As ``detect``, from LLVM."""
    import tvm  # type: ignore[import-untyped, unused-ignore]

    known = tvm.target.codegen
    name = processor or _usable(str(known.llvm_get_system_cpu()))
    features = _features(name)
    arm = str(known.llvm_get_system_triple()).startswith(("aarch64", "arm64"))
    if "avx512f" in features and "avx512vl" in features:
        lanes, registers = 16, 32
    elif "avx2" in features and "fma" in features:
        lanes, registers = 8, 16
    else:
        lanes, registers = 4, 32 if arm else 16
    vnni = "avx512vnni" in features or "avxvnni" in features
    return Machine(name, lanes, registers, threads, vnni, _second_level())


def target(machine: Machine) -> Any:
    """TVM's target for code that runs on ``machine``."""
    import tvm

    return tvm.target.Target({"kind": "llvm", "mcpu": machine.processor, "num-cores": machine.threads})


def _usable(name: str) -> str:
    """``name``, or a narrower processor where a hypervisor hides vector extensions that the model of the chip has."""
    there = reported()
    if not there:  # then the name is believed
        return name
    for candidate in (name, *_FALLBACKS):
        needed = {plain(f) for f in _features(candidate) if f.startswith(_WIDE)}
        if needed <= there:
            return candidate
    return name


@cache
def _features(processor: str) -> frozenset[str]:
    import tvm

    chosen = tvm.target.Target({"kind": "llvm", "mcpu": processor})
    return frozenset(str(feature) for feature in tvm.target.codegen.llvm_get_cpu_features(chosen))


def _processor() -> list[str]:
    """What tells processors apart: the lines of one of them, but for its speed, and its second-level cache."""
    try:
        lines = FLAGS.read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    telling = ("vendor", "cpu family", "model", "stepping", "flags", "CPU", "Features")
    return [*(line for line in lines if line.startswith(telling)), str(_second_level())]


def _second_level() -> int:
    try:
        text = _CACHE.read_text().strip()
    except OSError:
        return 1 << 20
    scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    digits = text.rstrip("KM")
    return int(digits) * scale if digits.isdigit() else 1 << 20
