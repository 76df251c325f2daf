"""Messages between processes: JSON and the raw bytes of arrays over a pipe, so that nothing received can run code.

A frame is: 8 bytes length of the header; the header (JSON: the message, and a description of each value); the arrays' bytes.
"""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO

import numpy as np

from backends.arrays import dtype_named

Message = dict[str, Any]


def send(stream: BinaryIO, message: Message, values: list[Any] | None = None) -> None:
    """Write one frame. A value is an array, a list of values (a sequence), a dict (a map), or None (an empty optional)."""
    buffers: list[np.ndarray[Any, Any]] = []
    described = [_describe(value, buffers) for value in values or []]
    header = json.dumps({"message": message, "values": described}).encode()
    stream.write(len(header).to_bytes(8, "little") + header)
    stream.writelines(buffer.reshape(-1).view(np.uint8).data for buffer in buffers)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[Message, list[Any]]:
    """Read one frame; EOFError where the other side has gone."""
    header = json.loads(_exactly(stream, int.from_bytes(_exactly(stream, 8), "little")))
    return header["message"], [_restore(described, stream) for described in header["values"]]


def _describe(value: Any, buffers: list[np.ndarray[Any, Any]]) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return {"list": [_describe(item, buffers) for item in value]}
    if isinstance(value, dict):
        return {"map": [[key, _describe(item, buffers)] for key, item in value.items()]}
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
        return {"texts": texts, "shape": array.shape}
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    buffers.append(np.ascontiguousarray(array))
    return {"dtype": array.dtype.name, "shape": array.shape}


def _restore(described: Any, stream: BinaryIO) -> Any:
    if described is None:
        return None
    if "list" in described:
        return [_restore(item, stream) for item in described["list"]]
    if "map" in described:
        return {key: _restore(item, stream) for key, item in described["map"]}
    if "texts" in described:
        return np.array(described["texts"], dtype=object).reshape(described["shape"])
    dtype = dtype_named(described["dtype"])
    raw = _exactly(stream, math.prod(described["shape"]) * dtype.itemsize)
    return np.frombuffer(raw, dtype=np.uint8).view(dtype).reshape(described["shape"])


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while len(view):
        got = stream.readinto(view)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        view = view[got:]
    return data
