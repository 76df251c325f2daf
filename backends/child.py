"""What runs inside a worker process: it loads programs, runs them and times them, as the parent's messages say."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from backends.pipe import Message, receive, send

Programs = dict[str, Any]


def main(name: str, memory: int) -> None:
    """Serve requests for the module ``name`` from standard input until it closes; ``memory`` bounds the address space in bytes
    (0: no bound)."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the replies
    requests = sys.stdin.buffer
    _limit(memory)
    programs: Programs = {}
    module: Any = None
    while True:
        try:
            module = module or importlib.import_module(name)  # before the first request: it takes long
            message, values = receive(requests)
            reply, results = _ACTIONS[message["do"]](module, programs, message, values)
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the parent's to judge
            reply, results = {"error": _one_line(error), "type": type(error).__name__}, []
            if module is None:
                receive(requests)
        send(replies, reply, results)


def _load(module: Any, programs: Programs, message: Message, values: list[Any]) -> tuple[Message, list[Any]]:
    options = dict(message["options"])
    if message.get("restore"):
        program = module.restore(message["restore"], **options)
    elif message.get("path"):
        program = module.build(message["path"], **options)
    else:
        import onnx

        program = module.build(onnx.load_model_from_string(values[0].tobytes()), **options)
    programs[message["key"]] = program
    return {"inputs": [port.name for port in program.inputs], "notes": program.notes}, []


def _run(module: Any, programs: Programs, message: Message, values: list[Any]) -> tuple[Message, list[Any]]:
    return {}, programs[message["key"]](*values)


def _run_each(module: Any, programs: Programs, message: Message, values: list[Any]) -> tuple[Message, list[Any]]:
    """Several calls, for their results: a message for each would cost more than a call of a small program."""
    program = programs[message["key"]]
    return {}, [[np.array(r) if isinstance(r, np.ndarray) else r for r in program(*feed)] for feed in values]


def _time(module: Any, programs: Programs, message: Message, values: list[Any]) -> tuple[Message, list[Any]]:
    """Milliseconds of each of up to ``repeat`` calls, stopping when ``seconds`` have gone by."""
    program = programs[message["key"]]
    end = time.perf_counter() + float(message["seconds"])
    taken: list[float] = []
    for _ in range(int(message["repeat"])):
        start = time.perf_counter()
        program(*values)
        stop = time.perf_counter()
        taken.append((stop - start) * 1e3)
        if stop > end:
            break
    return {"ms": taken}, []


def _call(module: Any, programs: Programs, message: Message, values: list[Any]) -> tuple[Message, list[Any]]:
    """One of the functions that the module offers to its parent: JSON arguments and arrays in, JSON and arrays out."""
    function = module.REMOTE[message["function"]]
    reply, results = function(values, **message["arguments"])
    return {"reply": reply}, results


def _save(module: Any, programs: Programs, message: Message, values: list[Any]) -> tuple[Message, list[Any]]:
    programs[message["key"]].save(message["directory"])
    return {}, []


def _drop(module: Any, programs: Programs, message: Message, values: list[Any]) -> tuple[Message, list[Any]]:
    programs.pop(message["key"], None)
    return {}, []


_ACTIONS: dict[str, Callable[[Any, Programs, Message, list[Any]], tuple[Message, list[Any]]]] = {
    "load": _load, "run": _run, "run each": _run_each, "time": _time, "save": _save, "drop": _drop, "call": _call,
}  # fmt: skip


def _limit(memory: int) -> None:
    if memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or traceback.format_exception_only(error)[-1].strip()
    return text[:2000]
