"""Where the packages of ``tests/models.txt`` lie: in ``.zoo/`` at the root of the checkout, or installed. They are not imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNPACKED = ROOT / ".zoo"


class Missing(Exception):
    """A package of the zoo is not there. The message says how to get it."""


def package(name: str) -> Path:
    """The folder of a package by its import name; ``Missing`` if there is none."""
    if (UNPACKED / name).is_dir():
        return UNPACKED / name
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Missing(f"package {name} of tests/models.txt is not unpacked: run `make .zoo`")
    return Path(spec.submodule_search_locations[0])


def importable() -> None:
    """Make the unpacked packages importable, after everything that is installed."""
    if str(UNPACKED) not in sys.path:
        sys.path.append(str(UNPACKED))
