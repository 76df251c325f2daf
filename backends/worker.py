"""A process that holds one backend: it may crash or hang, and the parent only gets an exception for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from backends.pipe import Message, receive, send
from backends.threads import thread_count
from rewriter.errors import RewriterError

_ROOT = str(Path(__file__).resolve().parent.parent)
_MAIN = "import sys; sys.path.insert(0, {root!r}); from backends.child import main; main({module!r}, {memory})"


class CrashedError(RewriterError):
    """The process died under the request; the message names the signal. The next request starts a new process."""


class TimedOut(CrashedError):
    """The process was ended because it took longer than was allowed."""


class RuntimeRefused(RewriterError):
    """The backend lives, and refused the model or the inputs; the message is its reason."""


class Worker:
    """One child process with one backend. ``start`` returns at once, so that the child's imports take no time here."""

    def __init__(
        self,
        backend: str,
        *,
        threads: int | None = None,
        timeout: float = 300.0,
        memory: int | None = None,
        package: str = "backends",
    ) -> None:
        """``timeout`` bounds each request, in seconds; ``memory`` the child's address space in bytes (None: no bound).

        ``package``: where the module ``backend`` lies; it has ``build`` and ``restore`` as backends have.
        """
        self._backend, self._module = backend, f"{package}.{backend}"
        self._threads = thread_count(threads)
        self.timeout = timeout
        self._memory = memory or 0
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process in the background, if none is running."""
        if self.alive:
            return
        self.close()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        program = _MAIN.format(root=_ROOT, module=self._module, memory=self._memory)
        # -P: a file in the user's directory must not shadow a module
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(self._threads),
        )

    @property
    def alive(self) -> bool:
        """Whether a process is running."""
        return self._process is not None and self._process.poll() is None

    def ask(self, message: Message, values: list[Any] | None = None) -> tuple[Message, list[Any]]:
        """Send one request and wait for its reply. Raises RuntimeRefused, CrashedError or TimedOut."""
        with self._lock:
            self.start()
            process = self._process
            assert process is not None and process.stdin is not None and process.stdout is not None
            expired = threading.Event()
            timer = threading.Timer(self.timeout, _end, (process, expired))
            timer.daemon = True
            timer.start()
            try:
                send(process.stdin, message, values)  # type: ignore[arg-type]
                reply, results = receive(process.stdout)  # type: ignore[arg-type]
            except (EOFError, OSError):
                raise self._obituary(expired.is_set()) from None
            finally:
                timer.cancel()
        if "error" in reply:
            raise RuntimeRefused(f"{self._backend}: {reply['error']}")
        return reply, results

    def call(self, function: str, values: list[Any] | None = None, **arguments: Any) -> tuple[Any, list[Any]]:
        """Call one of the functions that the child's module offers in REMOTE."""
        reply, results = self.ask({"do": "call", "function": function, "arguments": arguments}, values)
        return reply["reply"], results

    def load(
        self, key: str, model: Any = None, *, restore: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Message:
        """Build ``model`` (a path or a ModelProto), or restore a saved program, under ``key``."""
        message: Message = {"do": "load", "key": key, "options": dict(options or {}), "restore": restore}
        if restore is not None:
            return self.ask(message)[0]
        if isinstance(model, (str, os.PathLike)):
            return self.ask({**message, "path": os.path.abspath(model)})[0]
        import numpy as np

        from backends.onnxruntime import LARGE, size, write_with_external_data

        if size(model) < LARGE:
            return self.ask(message, [np.frombuffer(model.SerializeToString(), dtype=np.uint8)])[0]
        with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:  # the child maps the files before they go
            path = Path(folder, "model.onnx")
            write_with_external_data(model, path)
            return self.ask({**message, "path": str(path)})[0]

    def close(self) -> None:
        """End the process, if it runs. A later request starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # the child may have died with our bytes unread
                    stream.close()  # type: ignore[union-attr]
            process.kill()
            process.wait()
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit modules may be gone
            self.close()

    def _obituary(self, expired: bool) -> CrashedError:
        process = self._process
        assert process is not None
        status = process.wait()
        last = self._last_words()
        self.close()
        if expired:
            return TimedOut(f"{self._backend} in its own process: no answer in {self.timeout:g} s; it was ended")
        how = f"died of {_signal_name(-status)}" if status < 0 else f"exited with status {status}"
        return CrashedError(f"{self._backend} in its own process {how}{': ' + last if last else ''}")

    def _last_words(self) -> str:
        assert self._errors is not None
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


def _end(process: subprocess.Popen[bytes], expired: threading.Event) -> None:
    expired.set()
    process.kill()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment(threads: int) -> dict[str, str]:
    count = str(threads)
    return {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TVM_NUM_THREADS": count}
