"""What came of comparing a result with its original, remembered: the same two files, on the same inputs, need not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rewriter import verify
from rewriter.store import Answers
from rewriter.verify import Verification


class Verdicts:
    """About the original at ``before`` (an ONNX file; large weights beside it). Only results that were right are remembered."""

    def __init__(self, before: str, example: Sequence[Any] | None, expected: Sequence[Any] | None, answers: Answers | None = None) -> None:
        self._answers = answers or Answers()
        found = hashlib.sha256(_versions().encode())
        _add_file(found, before)
        for values in (example, expected):
            for value in values if values is not None else ("none",):
                _add_array(found, np.asarray(value))
        self._before = f"an original {found.hexdigest()}"
        self._pair = ""
        self.any = self._answers.find(self._before) is not None
        """Was the original compared with anything?"""

    def find(self, after: str) -> Verification | None:
        """What came of the comparison with the file ``after``."""
        found = hashlib.sha256(self._before.encode())
        _add_file(found, after)
        self._pair = f"a result {found.hexdigest()}"
        text = self._answers.find(self._pair) if self.any else None
        return Verification(**json.loads(text)) if text is not None else None

    def keep(self, verdict: Verification) -> None:
        """Remember what came of the file that ``find`` was last asked about."""
        self._answers.keep(self._before, "compared")
        self._answers.keep(self._pair, json.dumps(verdict.to_dict()))


@cache
def _versions() -> str:
    """What has a part in a verdict beside the files."""
    assert verify.__file__ is not None
    return f"onnxruntime {version('onnxruntime')} {hashlib.sha256(Path(verify.__file__).read_bytes()).hexdigest()}"


def _add_file(found: Any, path: str) -> None:
    for part in (Path(path), Path(f"{path}.data")):
        if part.exists():
            with part.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())


def _add_array(found: Any, array: np.ndarray[Any, Any]) -> None:
    found.update(f"{array.dtype} {array.shape} ".encode())
    found.update(repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes())
