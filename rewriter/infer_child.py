"""A child process that runs ONNX's native inference once: a hostile model may crash it, or ask it for all memory.

Run as a script: ``python -I -S infer_child.py EXTENSION strict|lenient`` with the serialised model on standard input. It loads the
native module alone (no package, 20 ms) and answers on standard output with one byte, ``E`` and the strict run's
error text, or ``M`` and the model with shapes. It imports nothing of this project.
"""

from __future__ import annotations

import contextlib
import sys
from importlib.util import module_from_spec, spec_from_file_location

_MOST_BYTES = 4 << 30
_MOST_SECONDS = 10


def main() -> None:
    """Answer one question and end."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # where the system has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (_MOST_SECONDS, _MOST_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    spec = spec_from_file_location("onnx_cpp2py_export", sys.argv[1])
    assert spec is not None and spec.loader is not None
    native = module_from_spec(spec)
    spec.loader.exec_module(native)
    model = sys.stdin.buffer.read()
    infer = native.shape_inference.infer_shapes
    try:
        if sys.argv[2] == "strict":
            infer(model, True, True, False)
    except Exception as error:  # noqa: BLE001  whatever it is, it is the answer
        sys.stdout.buffer.write(b"E" + str(error).encode())
        return
    try:
        # Data propagation is the part that rejects valid models: it only adds what it can.
        model = infer(model, False, False, True)
    except Exception:  # noqa: BLE001
        model = infer(model, False, False, False)
    sys.stdout.buffer.write(b"M" + model)


if __name__ == "__main__":
    main()
