"""A transformer with LoRA on every linear layer, built as a graph: widths tiny, structure real."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

WIDTH, HEADS, RANK = 16, 2, 2
NODES_PER_BLOCK = 62


class _Builder:
    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, scale: float = 0.1) -> str:
        return self.constant((self.random.normal(size=shape) * scale).astype("float32"))

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def linear(self, x: str, inputs: int, outputs: int, bias: bool = True) -> str:
        """x W' + b + s ((x A') B), as the exporter writes a torch layer with LoRA: 7 nodes, and one for the bias."""
        plain = self.op("MatMul", x, self.op("Transpose", self.weight(outputs, inputs), perm=[1, 0]))
        if bias:
            plain = self.op("Add", plain, self.weight(outputs))
        down = self.op("MatMul", x, self.op("Transpose", self.weight(RANK, inputs), perm=[1, 0]))
        up = self.op("MatMul", down, self.weight(RANK, outputs))
        return self.op("Add", plain, self.op("Mul", up, self.constant(np.array(2, "float32"))))

    def heads(self, x: str, perm: list[int]) -> str:
        split = self.constant(np.array([1, -1, HEADS, WIDTH // HEADS], "int64"))
        return self.op("Transpose", self.op("Reshape", x, split), perm=perm)

    def norm(self, x: str) -> str:
        return self.op("LayerNormalization", x, self.constant(np.ones(WIDTH, "float32")), self.weight(WIDTH))

    def block(self, x: str) -> str:
        y = self.norm(x)
        q, k, v = (self.linear(y, WIDTH, WIDTH, bias=False) for _ in range(3))
        scores = self.op("MatMul", self.heads(q, [0, 2, 1, 3]), self.heads(k, [0, 2, 3, 1]))
        scores = self.op("Mul", scores, self.constant(np.array(0.35, "float32")))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), self.heads(v, [0, 2, 1, 3]))
        merged = self.op(
            "Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.constant(np.array([1, -1, WIDTH], "int64"))
        )
        x = self.op("Add", x, self.linear(merged, WIDTH, WIDTH))
        inner = self.op("Gelu", self.linear(self.norm(x), WIDTH, 2 * WIDTH))
        return self.op("Add", x, self.linear(inner, 2 * WIDTH, WIDTH))


def transformer(blocks: int, length: int = 8, seed: int = 0) -> ir.Model:
    """Input ``x`` float32 ``[1, length, 16]``, output of the same shape."""
    build, x = _Builder(seed), "x"
    for _ in range(blocks):
        x = build.block(x)
    x = build.norm(x)
    shape = [1, length, WIDTH]
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", x)]
    graph = onnx.helper.make_graph(build.nodes, "transformer", ports[:1], ports[1:], build.weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(model)
