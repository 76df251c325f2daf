"""A compiled model as a directory: written whole or not at all, read without torch and without egglog.

manifest.json       what this is, the backend, inputs, outputs, how arguments nest, the report, and every file's size and checksum
model.onnx          the optimised model; above 1 GB its weights lie beside it in model.safetensors
weights.onnx        the weight program, if weights were folded: how each folded weight is computed from the original ones
...                 what else the backend needs to start without compiling
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.program import Port, Program
from rewriter.errors import InvalidInput, InvalidModel, RewriterError, UnsupportedModel

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from rewriter.compiled import Compiled

VERSION = 1
KIND = "rewriter artefact"
APART = 1 << 30  # bytes of weights above which they are stored beside model.onnx
_MANIFEST = "manifest.json"


@dataclass
class Contents:
    """What an artefact holds."""

    model: ir.Model
    program: Program
    backend: str
    inputs: Mapping[str, Any]  # Structure.to_json() of the arguments, and of the results
    outputs: Mapping[str, Any]
    report: Mapping[str, Any]
    weights: onnx.ModelProto | None = None
    facts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


def save(directory: str | os.PathLike[str], compiled: Compiled) -> None:
    """Write ``compiled`` to ``directory``; an artefact that is there is replaced. Raises RewriterError, and leaves no part."""
    c = compiled  # Compiled has no other way out: what it is made of is this module's business too
    weights = None if c._weights is None else c._weights.proto
    write(
        directory,
        Contents(
            c._model, c._program, c.backend, c._inputs.to_json(), c._outputs.to_json(), c.report.to_dict(), weights, c._facts,
            c._shared,
        ),
    )  # fmt: skip


def load(directory: str | os.PathLike[str], threads: int | None = None) -> Compiled:
    """The compiled model in ``directory``. Raises InvalidModel, in one line, if it is not an artefact or is damaged."""
    from rewriter.compiled import Compiled
    from rewriter.report import Report
    from rewriter.structure import Structure
    from rewriter.weights import WeightProgram

    model, contents = _read(Path(directory), threads)
    return Compiled(
        model,
        contents.program,
        Report.from_dict(dict(contents.report)),
        inputs=Structure.from_json(dict(contents.inputs)),
        outputs=Structure.from_json(dict(contents.outputs)),
        weights=None if contents.weights is None else WeightProgram(contents.weights),
        facts=contents.facts,
        shared=contents.shared,
        threads=threads,
    )


def write(directory: str | os.PathLike[str], contents: Contents) -> None:
    """Write ``contents`` to ``directory``: into a folder beside it first, which then takes its name."""
    target = Path(os.path.abspath(directory))
    may_replace(target)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        folder.chmod(0o777 & ~_umask())
        _fill(folder, contents)
        _rename(folder, target)
    except OSError as error:
        raise RewriterError(
            f"cannot write the artefact {target}: {error.strerror or error}; give a place that exists, can be written and has room"
        ) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def read(directory: str | os.PathLike[str], threads: int | None = None) -> Contents:
    """What ``write`` wrote. A backend that cannot run on this machine is replaced by ONNX Runtime, and a note says so."""
    model, contents = _read(Path(directory), threads)
    return replace(contents, model=model if not callable(model) else model())


def _read(folder: Path, threads: int | None) -> tuple[ir.Model | Callable[[], ir.Model], Contents]:
    """The model, or what reads it, and all else."""
    manifest = _manifest(folder)
    _check_files(folder, manifest["files"])
    try:
        weights = _weights(folder) if (folder / "weights.onnx").exists() else None
        model = _reader(folder / "model.onnx")
        program, report = _program(folder, manifest, threads)
        nothing: Any = None
        return model, Contents(
            nothing, program, manifest["backend"], manifest["structure"]["inputs"], manifest["structure"]["outputs"], report,
            weights, manifest["facts"], manifest["shared"],
        )  # fmt: skip
    except RewriterError:
        raise
    except Exception as error:  # parsers raise what they like at damaged bytes
        raise InvalidModel(
            f"{folder} is damaged ({type(error).__name__}: {error}); compile and save it again"
        ) from error


def ports(directory: str | os.PathLike[str]) -> tuple[list[Port], list[Port]]:
    """The inputs and outputs of the artefact, without loading it."""
    manifest = _manifest(Path(directory))
    return [Port.from_json(p) for p in manifest["inputs"]], [Port.from_json(p) for p in manifest["outputs"]]


def is_artefact(directory: str | os.PathLike[str]) -> bool:
    """Whether ``directory`` holds an artefact (sound or not)."""
    return Path(directory, _MANIFEST).is_file()


def _fill(folder: Path, contents: Contents) -> None:
    _write_model(contents.model, folder / "model.onnx")
    if contents.weights is not None:
        _write_weights(contents.weights, folder / "weights.onnx")
    contents.program.save(folder)
    manifest = {
        "kind": KIND,
        "version": VERSION,
        "backend": contents.backend,
        "inputs": [port.to_json() for port in contents.program.inputs],
        "outputs": [port.to_json() for port in contents.program.outputs],
        "structure": {"inputs": contents.inputs, "outputs": contents.outputs},
        "report": contents.report,
        "facts": {name: list(facts) for name, facts in contents.facts.items()},
        "shared": dict(contents.shared),
        "files": {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "crc32": _checksum(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _write_model(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    total = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    if total > APART:
        ir.save_safetensors(model, path)
    else:
        ir.save(model, path)


def _write_weights(program: onnx.ModelProto, path: Path) -> None:
    from backends.onnxruntime import LARGE, write_with_external_data

    if program.ByteSize() < LARGE:
        path.write_bytes(program.SerializeToString())
    else:
        write_with_external_data(program, path)


def _reader(path: Path) -> ir.Model | Callable[[], ir.Model]:
    """The model, read when it is asked for, from the file as it is now: the folder may have been replaced by then.

    Large weights in a file of their own are mapped, and not read, anyway.
    """
    import onnx_ir as ir

    if (path.parent / "model.safetensors").exists():
        return ir.load(path)
    file = path.open("rb")

    def read() -> ir.Model:
        import onnx

        with file:
            return ir.from_proto(onnx.load_model_from_string(file.read()))

    return read


def _weights(folder: Path) -> onnx.ModelProto:
    import onnx

    return onnx.load(folder / "weights.onnx")


def _program(folder: Path, manifest: Mapping[str, Any], threads: int | None) -> tuple[Program, Mapping[str, Any]]:
    from backends import backend

    name, report = manifest["backend"], manifest["report"]
    try:
        program: Program = backend(name).restore(folder, threads=threads)
        return program, report
    except (InvalidInput, UnsupportedModel) as error:  # not installed here, or built for another processor
        if name == "onnxruntime":
            raise
        note = f"backend {name} cannot run here ({error}); ONNX Runtime runs the model instead"
        fallback: Program = backend("onnxruntime").restore(folder, threads=threads)
        return fallback, {**report, "notes": [*report.get("notes", []), note], "backend": "onnxruntime"}


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InvalidModel(f"{folder}: no such directory; give one that Compiled.save or rewriter compile wrote")
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except FileNotFoundError:
        raise InvalidModel(
            f"{folder} is not an artefact: it has no {_MANIFEST}; give one that rewriter wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{folder / _MANIFEST} cannot be read ({error}); compile and save it again") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise InvalidModel(f"{folder / _MANIFEST} is not that of an artefact; give a directory that rewriter wrote")
    if manifest.get("version") != VERSION:
        found = manifest.get("version")
        raise InvalidModel(
            f"{folder} is an artefact of version {found}; this rewriter reads version {VERSION}: compile the model again"
        )
    lacking = [
        key
        for key in ("backend", "inputs", "outputs", "structure", "report", "facts", "shared", "files")
        if key not in manifest
    ]
    if lacking:
        raise InvalidModel(f"{folder / _MANIFEST} lacks {lacking[0]!r}; compile and save it again")
    return manifest


def _check_files(folder: Path, files: Mapping[str, Mapping[str, int]]) -> None:
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise InvalidModel(f"{folder} is damaged: {name} is missing; compile and save it again")
        if path.stat().st_size != expected["bytes"] or _checksum(path) != expected["crc32"]:
            raise InvalidModel(f"{folder} is damaged: {name} is not what was written; compile and save it again")


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def may_replace(target: Path) -> None:
    """Only an artefact, or nothing, is overwritten: a slip of the path must not delete a user's folder."""
    if target.exists() and not target.is_dir():
        raise RewriterError(f"{target} is a file: give the name of a folder for the artefact")
    if target.is_dir() and any(target.iterdir()) and not is_artefact(target):
        raise RewriterError(
            f"{target} is a folder with other things in it: give a new name, or the folder of an artefact"
        )


def _rename(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        target.rename(old / "old")
        try:
            folder.rename(target)
        except OSError:
            (old / "old").rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
