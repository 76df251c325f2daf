"""Store equal weights once."""

from __future__ import annotations

import hashlib

import onnx_ir as ir


def share_weights(model: ir.Model) -> dict[str, str]:
    """Initialisers of one type, shape and content become one; returns dropped name -> kept name.

    before                          after
        y = MatMul(x, W)                y = MatMul(x, W)
        z = MatMul(y, W_copy)           z = MatMul(y, W)

    In place. Contents are only hashed where type and shape are shared, and compared bit by bit (0.0 and -0.0 differ).
    """
    groups: dict[tuple[str, tuple[int, ...]], list[ir.Value]] = {}
    for value in model.graph.initializers.values():
        data = value.const_value
        if data is not None and data.dtype != ir.DataType.STRING and not value.is_graph_input() and not value.is_graph_output():
            groups.setdefault((data.dtype.name, tuple(data.shape.numpy())), []).append(value)
    dropped: dict[str, str] = {}
    for values in groups.values():
        first: dict[bytes, ir.Value] = {}
        for value in values if len(values) > 1 else ():
            assert value.const_value is not None
            kept = first.setdefault(hashlib.blake2b(value.const_value.tobytes(), digest_size=20).digest(), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                dropped[value.name or ""] = kept.name or ""
                del model.graph.initializers[value.name or ""]
    return dropped
