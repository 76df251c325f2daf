"""Where the command line's results go: refused before the work if they cannot be written, and written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewriter.errors import InvalidInput


def writable_file(path: str, *, others: tuple[str, ...] = ()) -> None:
    """Raises ``InvalidInput`` if a file cannot be put at ``path``, or if ``path`` is one of ``others``."""
    target = Path(path)
    if target.is_dir():
        raise InvalidInput(f"'{path}' is a folder: give the name of a file")
    if target.exists() and not target.is_file():
        raise InvalidInput(f"'{path}' is a device or a pipe, which a file cannot take the place of: give the name of a file")
    _writable_folder(target)
    for other in others:
        if os.path.realpath(path) == os.path.realpath(other):
            raise InvalidInput(f"'{path}' is named twice: give each file a name of its own")


def writable_artefact(path: str) -> None:
    """Raises ``RewriterError`` if an artefact cannot be put at ``path``."""
    from rewriter.artefact import may_replace

    target = Path(os.path.abspath(path))
    may_replace(target)
    _writable_folder(target)


def _writable_folder(target: Path) -> None:
    folder = target.parent
    if not folder.is_dir():
        raise InvalidInput(f"there is no folder '{folder}' to write '{target.name}' to: make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidInput(f"the folder '{folder}' cannot be written: give another place for '{target.name}'")


@contextmanager
def staged(path: str | None, text: str) -> Iterator[None]:
    """A text file that takes its name when the block ends well; ``None``: nothing is written."""
    if path is None:
        yield
        return
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".rewriter-")
    except OSError as error:
        raise InvalidInput(f"cannot write '{path}': {error.strerror or error}; give another place") from None
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        yield
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except OSError as error:
        raise InvalidInput(f"cannot write '{path}': {error.strerror or error}; give another place") from None
    finally:
        if os.path.exists(name):
            os.unlink(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
