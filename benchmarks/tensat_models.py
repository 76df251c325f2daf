"""The seven networks that TENSAT reports (Yang et al., MLSys 2021, table 1), as ONNX graphs with seeded random weights.

Written from the definitions in TENSAT's repository (``src/*.rs``, ``model/*.model``): sizes, strides, where a ReLU stands, no biases.
What a reader would not expect stands there too: BERT's attention has no softmax and its keys are not transposed (length and head
width are both 64), and each layer reads the linear map of the layer before, not its attention. "Same" padding is symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

OPSET = 20


class Graph:
    """A graph under construction. Values are names; ``shape`` knows their sizes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shape: dict[str, tuple[int, ...]] = {}
        self._random = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, np.ndarray] = {}
        self._inputs: list[str] = []

    def input(self, *shape: int) -> str:
        name = f"x{len(self._inputs)}"
        self._inputs.append(name)
        self.shape[name] = shape
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        values = self._random.normal(size=shape) * math.sqrt(1 / fan_in)
        return self.constant(values.astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self._weights)}"
        self._weights[name] = array
        self.shape[name] = array.shape
        return name

    def op(self, kind: str, *inputs: str, shape: Sequence[int], **attributes: Any) -> str:
        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        self.shape[name] = tuple(shape)
        return name

    def function(self, kind: str, *inputs: str) -> str:
        """Of each element."""
        return self.op(kind, *inputs, shape=self.shape[inputs[0]])

    def matmul(self, x: str, y: str) -> str:
        return self.op("MatMul", x, y, shape=(*self.shape[x][:-1], self.shape[y][-1]))

    def linear(self, x: str, outputs: int) -> str:
        inputs = self.shape[x][-1]
        return self.matmul(x, self.weight(inputs, outputs, fan_in=inputs))

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)), shape=shape)

    def transpose(self, x: str, *perm: int) -> str:
        return self.op("Transpose", x, shape=[self.shape[x][p] for p in perm], perm=perm)

    def concat(self, *inputs: str) -> str:
        first = self.shape[inputs[0]]
        channels = sum(self.shape[i][1] for i in inputs)
        return self.op("Concat", *inputs, shape=(first[0], channels, *first[2:]), axis=1)

    def conv(
        self, x: str, outputs: int, kernel: Sequence[int] = (1, 1), *, stride: int = 1, same: bool = True, relu: bool = True, group: int = 1
    ) -> str:
        inputs = self.shape[x][1] // group
        weight = self.weight(outputs, inputs, *kernel, fan_in=inputs * math.prod(kernel))
        window = self._window(kernel, stride, same)
        made = self.op("Conv", x, weight, shape=self._image(x, outputs, window), group=group, **window)
        return self.function("Relu", made) if relu else made

    def pool(self, kind: str, x: str, kernel: int = 3, *, stride: int = 1, same: bool = True) -> str:
        """``kind``: "MaxPool", or "AveragePool" of the pixels inside the image."""
        window = self._window((kernel, kernel), stride, same)
        return self.op(kind, x, shape=self._image(x, self.shape[x][1], window), **window)

    @staticmethod
    def _window(kernel: Sequence[int], stride: int, same: bool) -> dict[str, Any]:
        around = [(k - 1) // 2 if same else 0 for k in kernel]
        return {"kernel_shape": list(kernel), "strides": [stride, stride], "pads": around + around}

    def _image(self, x: str, outputs: int, window: dict[str, Any]) -> tuple[int, ...]:
        cells = zip(self.shape[x][2:], window["kernel_shape"], window["pads"], window["strides"], strict=False)
        return self.shape[x][0], outputs, *((d + 2 * p - k) // s + 1 for d, k, p, s in cells)

    def model(self, *outputs: str) -> ir.Model:
        ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shape[n]) for n in names] for names in (self._inputs, outputs)]
        graph = helper.make_graph(self._nodes, self.name, ports[0], ports[1], [_described(n, a) for n, a in self._weights.items()])
        model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10))
        for name, value in model.graph.initializers.items():  # arrays, which nobody has to unpack
            value.const_value = ir.Tensor(self._weights[name], name=name)
        return model


def _described(name: str, array: np.ndarray) -> onnx.TensorProto:
    """A tensor without its content."""
    return onnx.TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)


def bert(layers: int = 8, length: int = 64, width: int = 1024, heads: int = 16) -> ir.Model:
    g = Graph("bert")
    x = g.function("Relu", g.input(length, width))
    outputs = []
    for _ in range(layers):
        q, k, v = (g.transpose(g.reshape(g.linear(x, width), length, heads, width // heads), 1, 0, 2) for _ in range(3))
        mixed = g.matmul(g.matmul(q, k), v)
        outputs.append(g.reshape(g.transpose(mixed, 1, 0, 2), length, width))
        x = g.linear(x, width)
    return g.model(*outputs, x)


def nasrnn(steps: int = 5, width: int = 512) -> ir.Model:
    g = Graph("nasrnn")
    inputs = [g.input(1, width) for _ in range(steps)]
    state = g.weight(1, width, fan_in=1)

    def combined(x: str) -> str:
        return g.function("Add", g.linear(x, width), g.linear(state, width))

    for x in inputs:
        a = [combined(x) for _ in range(8)]
        f = g.function
        upper = f("Mul", f("Tanh", f("Add", f("Relu", a[0]), f("Sigmoid", a[3]))), f("Tanh", f("Mul", f("Sigmoid", a[6]), f("Relu", a[7]))))
        sums, products = f("Add", f("Sigmoid", a[1]), f("Tanh", a[2])), f("Mul", f("Sigmoid", a[4]), f("Tanh", a[5]))
        lower = f("Add", f("Sigmoid", sums), f("Tanh", products))
        state = f("Tanh", f("Mul", f("Tanh", lower), f("Tanh", upper)))
    return g.model(state)


def resnext50() -> ir.Model:
    g = Graph("resnext50")
    x = g.pool("MaxPool", g.conv(g.input(1, 3, 224, 224), 64, (7, 7), stride=2), stride=2)
    for blocks, channels in ((3, 128), (4, 256), (6, 512), (3, 1024)):
        for block in range(blocks):
            stride = 2 if block == 0 and channels > 128 else 1
            inner = g.conv(g.conv(x, channels), channels, (3, 3), stride=stride, group=32)
            inner = g.conv(inner, 2 * channels, relu=False)
            if stride > 1 or g.shape[x][1] != 2 * channels:
                x = g.conv(x, 2 * channels, stride=stride)
            x = g.function("Relu", g.function("Add", x, inner))
    return g.model(x)


def nasnet_a() -> ir.Model:
    g = Graph("nasnet_a")
    x = g.pool("MaxPool", g.conv(g.input(1, 3, 224, 224), 64, (7, 7), stride=2), stride=2)
    channels = 128
    for _ in range(3):
        before = now = x
        for _ in range(5):
            before, now = now, _normal_cell(g, before, now, channels)
        channels *= 2
        x = _reduction_cell(g, before, now, channels)
    return g.model(x)


def _separable(g: Graph, x: str, kernel: int, stride: int = 1) -> str:
    channels = g.shape[x][1]
    deep = g.conv(x, channels, (kernel, kernel), stride=stride, relu=False, group=channels)
    return g.conv(deep, channels, relu=False)


def _fit(g: Graph, now: str, before: str) -> str:
    """The cell before, in the sizes of this one."""
    channels, size = g.shape[now][1:3]
    return g.conv(before, channels) if g.shape[before][2] == size else g.conv(before, channels, (3, 3), stride=2)


def _normal_cell(g: Graph, before: str, now: str, channels: int) -> str:
    now = g.conv(now, channels)
    before = _fit(g, now, before)
    pairs = [
        (_separable(g, now, 3), now),
        (_separable(g, before, 3), _separable(g, now, 3)),
        (g.pool("AveragePool", now), before),
        (g.pool("AveragePool", before), g.pool("AveragePool", before)),
        (_separable(g, before, 3), _separable(g, before, 3)),
    ]
    return g.concat(*(g.function("Add", a, b) for a, b in pairs))


def _reduction_cell(g: Graph, before: str, now: str, channels: int) -> str:
    now = g.conv(now, channels)
    before = _fit(g, now, before)
    sums = [g.function("Add", _separable(g, before, 7, 2), _separable(g, now, 5, 2))]
    sums.append(g.function("Add", g.pool("MaxPool", now, stride=2), _separable(g, before, 7, 2)))
    sums.append(g.function("Add", g.pool("AveragePool", now, stride=2), _separable(g, before, 5, 2)))
    sums.append(g.function("Add", g.pool("MaxPool", now, stride=2), _separable(g, sums[0], 3)))
    sums.append(g.function("Add", g.pool("AveragePool", sums[0]), sums[1]))
    return g.concat(*sums)


def squeezenet() -> ir.Model:
    g = Graph("squeezenet")
    x = g.pool("MaxPool", g.conv(g.input(1, 3, 224, 224), 64, (3, 3), stride=2, same=False), stride=2, same=False)
    for squeezed, channels, halves in ((16, 64, 0), (16, 64, 1), (32, 128, 0), (32, 128, 1), (48, 192, 0), (48, 192, 0), (64, 256, 0), (64, 256, 0)):
        inner = g.conv(x, squeezed)
        x = g.concat(g.conv(inner, channels), g.conv(inner, channels, (3, 3)))
        x = g.pool("MaxPool", x, stride=2, same=False) if halves else x
    x = g.conv(x, 1000)
    return g.model(g.reshape(g.pool("AveragePool", x, 13, stride=13, same=False), 1, 1000))


def inception_v3() -> ir.Model:
    g = Graph("inception_v3")

    def chain(x: str, *layers: tuple[Any, ...]) -> str:
        """(channels, kernel height, kernel width[, stride]); strided layers are not padded."""
        for channels, height, width, *stride in layers:
            x = g.conv(x, channels, (height, width), stride=stride[0] if stride else 1, same=not stride)
        return x

    x = chain(g.input(1, 3, 299, 299), (32, 3, 3, 2), (32, 3, 3, 1), (64, 3, 3))
    x = chain(g.pool("MaxPool", x, stride=2, same=False), (80, 1, 1, 1), (192, 3, 3, 1))
    x = g.pool("MaxPool", x, stride=2, same=False)
    for pooled in (32, 64, 64):
        branches = [chain(x, (64, 1, 1)), chain(x, (48, 1, 1), (64, 5, 5)), chain(x, (64, 1, 1), (96, 3, 3), (96, 3, 3))]
        x = g.concat(*branches, chain(g.pool("AveragePool", x), (pooled, 1, 1)))
    x = g.concat(
        g.pool("AveragePool", x, stride=2, same=False), chain(x, (384, 3, 3, 2)), chain(x, (64, 1, 1), (96, 3, 3), (96, 3, 3, 2))
    )  # fmt: skip
    for c in (128, 160, 160, 192):
        seven = chain(x, (c, 1, 1), (c, 1, 7), (192, 7, 1))
        twice = chain(x, (c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7))
        x = g.concat(chain(x, (192, 1, 1)), seven, twice, chain(g.pool("AveragePool", x), (192, 1, 1)))
    x = g.concat(
        chain(x, (192, 1, 1), (320, 3, 3, 2)), chain(x, (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)),
        g.pool("MaxPool", x, stride=2, same=False),
    )  # fmt: skip
    for _ in range(2):
        wide = chain(x, (384, 1, 1))
        deep = chain(x, (448, 1, 1), (384, 3, 3))
        crosses = [g.concat(chain(y, (384, 1, 3)), chain(y, (384, 3, 1))) for y in (wide, deep)]
        x = g.concat(chain(x, (320, 1, 1)), *crosses, chain(g.pool("MaxPool", x), (192, 1, 1)))
    return g.model(g.pool("AveragePool", x, 8, same=False))


def vgg19() -> ir.Model:
    g = Graph("vgg19")
    x = g.input(1, 3, 224, 224)
    for layers, channels in ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)):
        for _ in range(layers):
            x = g.conv(x, channels, (3, 3))
        x = g.pool("MaxPool", x, 2, stride=2, same=False)
    x = g.reshape(x, 1, 512 * 7 * 7)
    x = g.function("Relu", g.linear(x, 4096))
    x = g.function("Relu", g.linear(x, 4096))
    return g.model(g.linear(x, 1000))


MODELS: dict[str, Callable[[], ir.Model]] = {
    "BERT": bert, "ResNeXt-50": resnext50, "NasNet-A": nasnet_a, "NasRNN": nasrnn,
    "Inception-v3": inception_v3, "SqueezeNet": squeezenet, "VGG-19": vgg19,
}  # fmt: skip
