"""Products and convolutions with constant weights, as what they are to a quantiser: rows of inputs times a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.calibrate import Recorded
from rewriter.edit import is_op, operand, required, static, tensor, uses

Array = np.ndarray
ROWS = 4096
"""Rows of input that a convolution's second moments are taken from."""
DEEPEST = 4096
"""Depth up to which second moments are formed."""


@dataclass(frozen=True)
class Product:
    """``y = x · W`` or a convolution. ``weights``: [outputs, depth], float32. ``result``: the value after a Relu that only it feeds."""

    node: ir.Node
    input: str
    output: str
    result: str
    weights: Array
    bias: Array | None
    relu: bool

    @property
    def is_convolution(self) -> bool:
        return self.node.op_type == "Conv"

    @property
    def groups(self) -> int:
        return self.node.attributes.get_int("group", 1) or 1

    def as_stored(self, matrix: Array) -> Array:
        """A matrix of the shape of ``weights`` in the layout that the node takes."""
        shape = tuple(_data(self.node).shape.numpy())
        return matrix.reshape(shape) if self.channel_axis == 0 else np.ascontiguousarray(matrix.T)

    @property
    def channel_axis(self) -> int:
        """Of the outputs, in the stored weight."""
        return 0 if self.is_convolution or self.node.attributes.get_int("transB", 0) == 1 else 1

    @property
    def partners(self) -> Array | None:
        """For each column of ``weights`` the one that lies beside it where integer kernels read them, channels innermost, two by two; None
        where that depends on the kernel, since channels are odd in number and taps follow each other."""
        depth = self.weights.shape[1]
        if not self.is_convolution:
            return np.asarray(np.minimum(np.arange(depth) ^ 1, depth - 1))
        channels = int(_data(self.node).shape.numpy()[1])
        taps = depth // channels
        if channels % 2 and taps > 1:
            return None
        channel, tap = np.divmod(np.arange(depth), taps)
        return np.asarray(np.minimum(channel ^ 1, channels - 1) * taps + tap)

    @property
    def timed(self) -> str:
        """The value up to which the product is timed: runtimes treat a bias that is added to it as part of it."""
        reader = _only_reader(self.node.outputs[0])
        with_bias = (
            self.node.op_type == "MatMul" and reader is not None and is_op(reader, "Add") and any(tensor(v) is not None for v in reader.inputs)
        )
        return (reader.outputs[0].name or "") if with_bias and reader is not None else self.result

    @property
    def covers(self) -> frozenset[str]:
        return frozenset({self.output, self.result})


def products(model: ir.Model) -> Iterator[Product]:
    """Every MatMul, Gemm and Conv of the main graph whose weights are constant and float32, and shared with no other reader."""
    for node in model.graph:
        if not is_op(node, "MatMul", "Conv", "Gemm") or len(node.inputs) < 2 or not _plain(node):
            continue
        data, source = tensor(node.inputs[1]), required(node, 0)
        if data is None or data.dtype != ir.DataType.FLOAT or tensor(source) is not None or not source.name:
            continue
        array = data.numpy()
        if node.op_type != "Conv" and (array.ndim != 2 or source.shape is None or len(source.shape) < 2):
            continue
        bias = operand(node, 2)
        offset = tensor(bias) if bias is not None else None
        if bias is not None and offset is None:
            continue
        by_output = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
        matrix = array.reshape(array.shape[0], -1) if by_output else array.T
        if offset is not None and offset.size != len(matrix):
            continue
        output = node.outputs[0]
        clamp = _only_relu(output)
        result = clamp.outputs[0] if clamp is not None else output
        yield Product(
            node,
            source.name,
            output.name or "",
            result.name or "",
            matrix.astype(np.float32),
            None if offset is None else offset.numpy().reshape(-1),
            clamp is not None,
        )


def moments(product: Product, recorded: Recorded) -> Array | None:
    """The mean of x xᵀ over the rows that the product multiplies; of a convolution its patches. None where it is too deep or grouped."""
    if product.weights.shape[1] > DEEPEST or product.groups != 1:
        return None
    known = None if product.is_convolution else recorded.moments()
    if known is not None:
        return known
    rows = patches(product, recorded)
    if rows is None or not len(rows):
        return None
    wide = rows.astype(np.float64)
    return np.asarray(wide.T @ wide / len(wide))


def patches(product: Product, recorded: Recorded) -> Array | None:
    """Rows [n, depth] that the product multiplies, at most about ``ROWS`` of them."""
    if not product.is_convolution:
        matrix = recorded.matrix()
        return matrix[:: max(1, len(matrix) // ROWS)]
    each = max(1, ROWS // max(1, len(recorded.samples)))
    found = [rows for sample in recorded.samples if (rows := _read(product, sample, each)) is not None]
    return np.concatenate(found) if found and len(found) == len(recorded.samples) else None


def pairs(product: Product, samples: Sequence[tuple[Array, Array]]) -> tuple[Array, Array] | None:
    """Rows [n, depth] that the product multiplies and what ought to come of them, [n, outputs]; ``samples``: its input and that, of one batch."""
    each = max(1, ROWS // max(1, len(samples)))
    left, right = [], []
    for sample, wanted in samples:
        x = _read(product, sample, each)
        y = _spread(np.moveaxis(wanted, 1, -1) if product.is_convolution else wanted, wanted.ndim - 1, each)
        if x is None or y is None or len(x) != len(y):
            return None
        left.append(x)
        right.append(y)
    return (np.concatenate(left), np.concatenate(right)) if left else None


def _read(product: Product, sample: Array, each: int) -> Array | None:
    """Rows that the product multiplies for at most about ``each`` places of one batch; None where its convolution is grouped or of more than two
    dimensions."""
    if not product.is_convolution:
        return _spread(sample, sample.ndim - 1, each)
    kernel = static(product.node.inputs[1])
    if kernel is None or len(kernel) not in (3, 4) or product.groups != 1:
        return None
    spatial = len(kernel) - 2
    strides = product.node.attributes.get_ints("strides", None) or (1,) * spatial
    dilations = product.node.attributes.get_ints("dilations", None) or (1,) * spatial
    pads = product.node.attributes.get_ints("pads", None) or (0,) * (2 * spatial)
    padded = np.pad(sample, [(0, 0), (0, 0), *((pads[k], pads[k + spatial]) for k in range(spatial))])
    extent = [(kernel[k + 2] - 1) * dilations[k] + 1 for k in range(spatial)]
    if any(padded.shape[k + 2] < extent[k] for k in range(spatial)):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, 2 + spatial)))
    places = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilations)
    return _spread(np.moveaxis(windows[(slice(None), slice(None), *places, *taps)], 1, 1 + spatial), 1 + spatial, each)


def _spread(array: Array, places: int, each: int) -> Array:
    """At most about ``each`` of the places that the first axes are, evenly, as rows of all the rest."""
    count = int(np.prod(array.shape[:places]))
    picks = np.unravel_index(np.arange(0, count, max(1, count // each)), array.shape[:places])
    return np.asarray(array[picks].reshape(len(picks[0]), -1))


def _plain(node: ir.Node) -> bool:
    """Is a Gemm a product and a bias, no more?"""
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return node.op_type != "Gemm" or (node.attributes.get_int("transA", 0) == 0 and factors == [1.0, 1.0])


def _data(node: ir.Node) -> ir.TensorProtocol:
    data = tensor(node.inputs[1])
    assert data is not None
    return data


def _only_relu(value: ir.Value) -> ir.Node | None:
    reader = _only_reader(value)
    return reader if is_op(reader, "Relu") else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    if uses(value) != 1 or value.is_graph_output():
        return None
    (reader,) = (u.node for u in value.uses())
    return reader
