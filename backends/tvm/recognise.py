"""Attention, RMSNorm and 8-bit products, which exporters spell with many operators, as one node each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from backends.tvm.graph import Graph, Node

Array = np.ndarray[Any, Any]


def recognise(graph: Graph, convolves_fast: Callable[[Array], bool] = lambda weights: True) -> Graph:
    """``graph`` with `Attention` (query, key, value, mask?) and `RMSNormalization` (x, scale?) nodes.

    `Attention` has the attributes ``scale`` (multiplied with the products), ``guarded`` (rows without any key give 0 and not
    NaN), ``repeat`` (so many heads of queries share one of keys) and ``flipped`` (key is [.., depth, keys], and not as value).
    `MatMul8` and `Conv8` multiply 8-bit numbers less ``zero`` by int8 weights; their sums are int32. `Conv8` has weights for which
    ``convolves_fast``. `MatMulCodes` multiplies floats by weights of 8 or 4 ``bits`` (codes [depth, columns], scales and shifts [1 or 2, blocks,
    columns], a ``block`` of depth each). Other weights that are dequantised become floats.
    """
    product8 = partial(_product8, convolves_fast=convolves_fast)
    for find in (_rms_norm, _attention, product8, _gather8, _product_codes):
        _Search(graph).replace(find)
    _dequantise_constants(graph)
    return graph


def _dequantise_constants(graph: Graph) -> None:
    kept = []
    for node in graph.nodes:
        known = [graph.constants.get(name) for name in node.inputs if name]
        if node.op != "DequantizeLinear" or node.outputs[0] in graph.outputs or any(array is None for array in known):
            kept.append(node)
        else:
            numbers, *parameters = (array for array in known if array is not None)
            graph.constants[node.outputs[0]] = _dequantised(numbers, *(_spread(node, array, numbers.shape) for array in parameters))
    graph.nodes = kept


def _spread(node: Node, parameters: Array, shape: tuple[int, ...]) -> Array:
    """Scales or zero points for all numbers of the blocks that they stand for."""
    if not node.get("block"):
        return parameters
    axis = node.get("axis")
    return np.repeat(parameters, node.get("block"), axis).take(range(shape[axis]), axis)


def _dequantised(numbers: Array, scale: Array, zero: Array | None = None) -> Array:
    """What a DequantizeLinear gives; its parameters are spread along its axis already."""
    centred = numbers.astype(np.float32) - (np.float32(0) if zero is None else zero.astype(np.float32))
    result: Array = (centred * scale.astype(np.float32)).astype(scale.dtype)
    return result


class _Search:
    """Nodes by what they make and read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.maker = graph.makers()
        self.users = graph.users()

    def replace(self, find: Callable[[_Search, Node], Sequence[Node]]) -> None:
        """Put what ``find`` returns for a node in the place of it and of what only it needs."""
        gone: set[int] = set()
        made: dict[int, Sequence[Node]] = {}
        for node in self.graph.nodes:
            found = find(self, node) if id(node) not in gone else ()
            if found:
                made[id(node)] = found
                gone.update(id(inner) for inner in self._needless(node, found))
        kept = [made.get(id(node), (node,)) for node in self.graph.nodes if id(node) not in gone]
        self.graph.nodes = [node for nodes in kept for node in nodes]

    def made(self, name: str, *ops: str) -> Node | None:
        """What makes ``name``, if it is one of ``ops``."""
        node = self.maker.get(name)
        return node if node is not None and node.op in ops else None

    def alone(self, name: str) -> bool:
        """Whether one node reads it, and nothing else."""
        return len(self.users.get(name, ())) == 1 and name not in self.graph.outputs

    def scalar(self, name: str) -> float | None:
        """The number of a constant that is one."""
        array = self.graph.constants.get(name)
        return float(array.item()) if array is not None and array.size == 1 and array.dtype.kind == "f" else None

    def split(self, node: Node) -> tuple[str, float] | None:
        """(x, factor) of a node that multiplies or divides by a number."""
        if node.op == "Mul":
            for x, other in (node.inputs, node.inputs[::-1]):
                factor = self.scalar(other)
                if factor is not None:
                    return x, factor
        if node.op == "Div" and self.scalar(node.inputs[1]):
            return node.inputs[0], 1.0 / (self.scalar(node.inputs[1]) or 1.0)
        return None

    def _needless(self, root: Node, found: Sequence[Node]) -> Iterator[Node]:
        """Nodes that were only needed by ``root``, and are not by ``found``."""
        kept = {name for node in found for name in node.inputs}
        waiting = [name for name in root.inputs if name not in kept]
        dropped = {id(root)}
        while waiting:
            name = waiting.pop()
            node = self.maker.get(name)
            if node is None or id(node) in dropped or name in self.graph.outputs:
                continue
            if all(id(user) in dropped for user in self.users.get(name, ())):
                dropped.add(id(node))
                yield node
                waiting += [n for n in node.inputs if n not in kept]


def _rms_norm(search: _Search, node: Node) -> Sequence[Node]:
    """x / sqrt(mean(x^2) + e), or x times the reciprocal; then perhaps a scale."""
    graph = search.graph
    if node.op == "Mul":
        for inner, scale in (node.inputs, node.inputs[::-1]):
            array = graph.constants.get(scale)
            core = _unit(search, search.maker.get(inner))
            if core is not None and array is not None and search.alone(inner) and _over_columns(array.shape, graph.shapes[inner]):
                return [Node("RMSNormalization", [core[0], scale], node.outputs, {"epsilon": core[1]})]
    core = _unit(search, node)
    if core is None or any(_scaled(search, user, node.outputs[0]) for user in search.users.get(node.outputs[0], ())):
        return ()
    return [Node("RMSNormalization", [core[0]], node.outputs, {"epsilon": core[1]})]


def _scaled(search: _Search, user: Node, name: str) -> bool:
    """Whether ``user`` will be taken together with the norm ``name``."""
    graph = search.graph
    arrays = [graph.constants[n] for n in user.inputs if n in graph.constants]
    return user.op == "Mul" and search.alone(name) and any(_over_columns(a.shape, graph.shapes[name]) for a in arrays)


def _over_columns(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return math.prod(shape) == whole[-1] and shape[-1:] == whole[-1:]


def _unit(search: _Search, node: Node | None) -> tuple[str, float] | None:
    """(x, epsilon) if ``node`` is x / sqrt(mean(x^2) + epsilon) over the last axis."""
    if node is None or node.op not in ("Mul", "Div"):
        return None
    for x, root in (node.inputs, node.inputs[::-1]) if node.op == "Mul" else [tuple(node.inputs)]:
        if node.op == "Mul":
            inverse = search.made(root, "Reciprocal")
            if inverse is None:
                continue
            root = inverse.inputs[0]
        square_root = search.made(root, "Sqrt")
        shifted = search.made(square_root.inputs[0], "Add") if square_root else None
        if shifted is None:
            continue
        for mean, epsilon in (shifted.inputs, shifted.inputs[::-1]):
            value = search.scalar(epsilon)
            if value is not None and _mean_square(search, mean) == x:
                return x, value
    return None


def _mean_square(search: _Search, name: str) -> str | None:
    """x, if ``name`` is the mean of x^2 over the last axis, which is kept."""
    node = search.made(name, "ReduceMean")
    if node is None:
        return None
    rank = len(search.graph.shapes[node.inputs[0]])
    if node.attributes["axes"] != [rank - 1] or len(search.graph.shapes[name]) != rank:
        return None
    square = search.made(node.inputs[0], "Mul", "Pow")
    if square is None:
        return None
    same = square.inputs[0] == square.inputs[1] if square.op == "Mul" else search.scalar(square.inputs[1]) == 2.0
    return square.inputs[0] if same else None


@dataclass
class _Scores:
    """What goes into a softmax: ``scale`` * query @ key + mask."""

    query: str
    key: str
    mask: str = ""
    scale: float = 1.0


def _attention(search: _Search, node: Node) -> Sequence[Node]:
    """softmax(scale * query @ key + mask) @ value, of at least two heads or batches."""
    graph = search.graph
    if node.op != "MatMul" or node.inputs[0] in graph.constants or node.inputs[1] in graph.constants:
        return ()
    weights, value = node.inputs
    guarded = False
    choice = search.made(weights, "Where")
    if choice is not None and search.scalar(choice.inputs[1]) == 0.0 and _asks_nan(search, choice):
        weights, guarded = choice.inputs[2], True
    softmax = search.made(weights, "Softmax")
    if softmax is None or graph.dtypes[weights] != "float32":
        return ()
    rank = len(graph.shapes[weights])
    if softmax.get("axis", -1) % rank != rank - 1 or not (guarded or search.alone(weights)) or rank not in (3, 4):
        return ()
    scores = _scores(search, softmax.inputs[0])
    if scores is None or any(len(graph.shapes[n]) != rank for n in (scores.query, scores.key, value)):
        return ()
    heads = [graph.shapes[name][:-2] for name in (scores.query, scores.key, value)]
    if len(set(heads)) != 1:
        return ()
    transpose = search.made(scores.key, "Transpose")
    flipped = transpose is None or transpose.attributes["perm"] != [*range(rank - 2), rank - 1, rank - 2]
    key = transpose.inputs[0] if transpose is not None and not flipped else scores.key
    repeat = 1
    if rank == 4 and not flipped:
        (fewer, repeat), (same, times) = _shared(search, key), _shared(search, value)
        key, value, repeat = (fewer, same, repeat) if repeat == times else (key, value, 1)
    inputs = [scores.query, key, value, *([scores.mask] if scores.mask else [])]
    attributes = {"scale": scores.scale, "guarded": guarded, "repeat": repeat, "flipped": flipped}
    return [Node("Attention", inputs, node.outputs, attributes)]


def _asks_nan(search: _Search, choice: Node) -> bool:
    question = search.made(choice.inputs[0], "IsNaN")
    return question is not None and question.inputs[0] == choice.inputs[2]


def _scores(search: _Search, name: str) -> _Scores | None:
    """The product under a softmax, with what is multiplied and added on the way; each only read here."""
    mask, scale = "", 1.0
    while search.alone(name):
        node = search.maker.get(name)
        if node is None:
            return None
        if node.op == "MatMul":
            if any(n in search.graph.constants for n in node.inputs):
                return None
            found = _Scores(node.inputs[0], node.inputs[1], mask, scale)
            return _without_factors(search, found)
        factor = search.split(node)
        if factor is not None:
            name, scale = factor[0], scale * factor[1]
            continue
        if node.op == "Add" and not mask and scale == 1.0:  # a number between mask and softmax would multiply the mask
            products = [n for n in node.inputs if search.made(n, "MatMul", "Mul", "Div") and search.alone(n)]
            if len(products) != 1:
                return None
            (name,) = products
            mask = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
            if search.graph.shapes[name] != search.graph.shapes[node.outputs[0]]:
                return None
            continue
        return None
    return None


def _without_factors(search: _Search, scores: _Scores) -> _Scores:
    """Numbers that the query or the key are multiplied by belong to the scale."""
    for side in ("query", "key"):
        node = search.maker.get(getattr(scores, side))
        factor = search.split(node) if node is not None else None
        if factor is not None and search.alone(getattr(scores, side)):
            setattr(scores, side, factor[0])
            scores.scale *= factor[1]
    return scores


def _shared(search: _Search, name: str) -> tuple[str, int]:
    """The heads behind heads that are repeated one after the other: [b, g, ...] as [b, g * r, ...]."""
    graph = search.graph
    merged = search.made(name, "Reshape")
    spread = search.made(merged.inputs[0], "Expand") if merged is not None else None
    source = search.made(spread.inputs[0], "Reshape") if spread is not None else None
    if merged is None or spread is None or source is None:
        return name, 1
    inner, outer, whole = graph.shapes[source.inputs[0]], graph.shapes[spread.outputs[0]], graph.shapes[name]
    if len(inner) != 4 or len(outer) != 5 or graph.shapes[spread.inputs[0]] != (*inner[:2], 1, *inner[2:]):
        return name, 1
    if outer[:2] != inner[:2] or outer[3:] != inner[2:] or whole != (inner[0], inner[1] * outer[2], *inner[2:]):
        return name, 1
    return source.inputs[0], outer[2]


def _product8(search: _Search, node: Node, convolves_fast: Callable[[Array], bool]) -> Sequence[Node]:
    """A product or convolution of dequantised numbers and constant weights: of the 8-bit numbers, and scaled afterwards."""
    graph = search.graph
    if node.op not in ("MatMul", "Conv") or node.get("group", 1) != 1:
        return ()
    left, right = (search.made(name, "DequantizeLinear") for name in node.inputs)
    if left is None or right is None or graph.dtypes[left.inputs[0]] not in ("uint8", "int8"):
        return ()
    scale, zero = search.scalar(left.inputs[1]), _zero_point(search, left)
    axis = 0 if node.op == "Conv" else len(graph.shapes[node.inputs[1]]) - 1
    weights = _weights8(search, right, axis)
    if scale is None or zero is None or weights is None or (node.op == "MatMul" and axis != 1):
        return ()
    numbers, scales = weights
    if node.op == "Conv" and not convolves_fast(numbers):
        return ()
    shape, out = graph.shapes[node.outputs[0]], node.outputs[0]
    factors = (scales.astype(np.float64) * scale).astype(np.float32)
    factors = factors.reshape((-1, *[1] * (len(shape) - 2)) if node.op == "Conv" else (-1,))
    sums, real = graph.fresh(out, shape, "int32"), graph.fresh(out, shape, "float32")
    inputs = [left.inputs[0], graph.constant(numbers)]
    return [
        Node(f"{node.op}8", inputs, [sums], {**node.attributes, "zero": zero}),
        Node("Cast", [sums], [real], {"to": 1}),
        Node("Mul", [real, graph.constant(factors)], [out]),
    ]


SMALL_CODES = 1 << 14
"""Weights below which it does not matter that floats take four times the memory."""


def _product_codes(search: _Search, node: Node) -> Sequence[Node]:
    """A product of floats and a matrix of weights that stand as codes of at most 8 bits."""
    graph = search.graph
    if node.op != "MatMul" or graph.dtypes[node.inputs[0]] != "float32" or not graph.shapes[node.inputs[0]]:
        return ()
    flipped = search.made(node.inputs[1], "Transpose")
    if flipped is not None and flipped.attributes["perm"] != [1, 0]:
        return ()
    made = search.made(flipped.inputs[0] if flipped is not None else node.inputs[1], "DequantizeLinear")
    known = [] if made is None else [graph.constants.get(name) for name in made.inputs if name]
    if made is None or any(array is None for array in known) or len(graph.shapes[made.inputs[0]]) != 2:
        return ()
    numbers, scales, *zeros = known
    codes = _codes(made, numbers, scales, zeros[0] if zeros else None, flipped is not None)  # type: ignore[arg-type]
    if codes is None:
        return ()
    matrix, factors, block, bits = codes
    return [Node("MatMulCodes", [node.inputs[0], graph.constant(matrix), graph.constant(factors)], node.outputs, {"block": block, "bits": bits})]


def _codes(node: Node, numbers: Array, scales: Array, zeros: Array | None, flipped: bool) -> tuple[Array, Array, int, int] | None:
    """(codes [depth, columns], scales and shifts [1 or 2, blocks, columns], block, bits), if there is a kernel for such weights."""
    bits = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}.get(numbers.dtype.name)
    if bits is None or scales.dtype != np.float32 or numbers.size < SMALL_CODES:
        return None
    block, parameters = node.get("block"), [scales] if zeros is None else [scales, zeros.astype(np.float32)]
    if flipped:
        numbers, parameters = numbers.T, [p.T for p in parameters]
    depth, columns = numbers.shape
    along = block is not None and node.get("axis") == int(flipped)
    if (block is not None and not along and block > 1) or (not along and any(p.ndim > 1 and p.shape[0] > 1 for p in parameters)):
        return None  # a scale for some columns of one step of depth
    block = block if along else depth + depth % 2
    if block < 16 or block % 2:
        return None
    matrix = numbers.astype(np.int16)
    lift = (8 if bits == 4 else 0) if numbers.dtype.name.startswith("int") else (0 if bits == 4 else -128)
    blocks = -(-depth // block)
    scale = np.broadcast_to(parameters[0], (blocks, columns)).astype(np.float64)
    zero = np.broadcast_to(parameters[1] if zeros is not None else 0.0, (blocks, columns)) + lift
    factors = np.stack([scale, -zero * scale] if zero.any() else [scale]).astype(np.float32)
    return (matrix + lift).astype(np.uint8 if bits == 4 else np.int8), factors, block, bits


def _gather8(search: _Search, node: Node) -> Sequence[Node]:
    """Rows of a dequantised table: the rows of 8-bit numbers are gathered, and only they become floats."""
    graph = search.graph
    table = search.made(node.inputs[0], "DequantizeLinear") if node.op == "Gather" else None
    if table is None or table.inputs[0] not in graph.constants or any(graph.shapes[n] for n in table.inputs[1:] if n):
        return ()
    rows = graph.fresh(node.outputs[0], graph.shapes[node.outputs[0]], graph.dtypes[table.inputs[0]])
    return [
        Node("Gather", [table.inputs[0], node.inputs[1]], [rows], node.attributes),
        Node("DequantizeLinear", [rows, *table.inputs[1:]], node.outputs),
    ]


def _zero_point(search: _Search, node: Node) -> int | None:
    """The zero point of a DequantizeLinear, if it is one constant."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return 0
    array = search.graph.constants.get(node.inputs[2])
    return int(array.item()) if array is not None and array.size == 1 else None


def _weights8(search: _Search, node: Node, axis: int) -> tuple[Array, Array] | None:
    """Constant weights as int8 whose zero is 0, and their scales along ``axis``."""
    graph = search.graph
    numbers, scales = graph.constants.get(node.inputs[0]), graph.constants.get(node.inputs[1])
    if numbers is None or scales is None or numbers.dtype.name not in ("uint8", "int8"):
        return None
    if scales.size > 1 and scales.shape[axis] != scales.size:
        return None
    zeros = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros((), numbers.dtype)
    if zeros is None:
        return None
    moved = numbers.astype(np.int32) - zeros.astype(np.int32)
    if moved.min(initial=0) < -128 or moved.max(initial=0) > 127:
        return None
    return moved.astype(np.int8), scales.reshape(-1)
