"""The command line as the tests call it: in this process, its output caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx_text import parse

from rewriter.__main__ import main

TWO_MAPS = """main (float[n, 3] x) => (float[n, 3] y)
    <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float[3, 3] v = {1, 0, 3, 4, 5, 6, 0, 8, 9}> {
        t = MatMul(x, w)
        u = MatMul(t, v)
        y = Relu(u)
    }"""
"""Two matrices that fold into one."""


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


Command = Callable[..., Done]


def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``run("check", a, b)`` gives the exit status and what was printed."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        said = capsys.readouterr()
        return Done(status, said.out, said.err)

    return run


def assert_refused(done: Done, *parts: str, status: int = 2) -> None:
    """One line on standard error that says all of that, nothing on standard output, that exit status."""
    __tracebackhide__ = True
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith("rewriter: ") and done.err.count("\n") == 1 and done.err.endswith("\n"), done.err
    assert len(done.err) < 600 and "Traceback" not in done.err and "bug" not in done.err, done.err
    for part in parts:
        assert part in done.err, done.err


def write(path: Path, body: str = TWO_MAPS, opset: int = 20) -> Path:
    """The model of that ONNX text, as a file."""
    onnx.save(parse(body, opset), path)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too, and its bytes; folders as they are named, with a slash."""
    return {str(p.relative_to(folder)) + "/" * p.is_dir(): b"" if p.is_dir() else p.read_bytes() for p in sorted(folder.rglob("*"))}
