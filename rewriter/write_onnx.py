"""An ONNX file, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx_ir as ir

from rewriter.errors import RewriterError
from rewriter.graph import weight_bytes

ONE_FILE = 1_800_000_000
"""Bytes of weights that still go into the file itself: protobuf stops at 2 GB."""


def write_onnx(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """``model`` at ``path``; weights beside it as ``NAME.data`` if they are too many. Raises ``RewriterError`` in one line."""
    target = Path(path)
    try:
        if target.is_dir():
            raise RewriterError(f"{target} is a folder: give the name of an ONNX file")
        if target.exists() and not target.is_file():
            raise RewriterError(f"{target} is a device or a pipe, which a file cannot take the place of: give the name of an ONNX file")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".rewriter-") as folder:
            whole = Path(folder, target.name)
            data = f"{target.name}.data" if weight_bytes(model) > ONE_FILE else None
            ir.save(model, whole, external_data=data)
            if data:
                os.replace(Path(folder, data), target.parent / data)
            os.replace(whole, target)
    except OSError as failure:
        raise RewriterError(f"cannot write {target}: {failure.strerror or failure}; give a folder that exists and can be written") from None
