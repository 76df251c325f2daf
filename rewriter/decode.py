"""Chosen terms as ONNX nodes: the third reading of the vocabulary.

Weights-only terms become nodes too; ``passes.fold_weights`` evaluates them. A term of the model itself is written with the names
that the model had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.encode import Emission, Encoding, captures, subgraphs
from rewriter.move import Move
from rewriter.terms import MINUS_ONE, OPERATORS
from rewriter.weights import LAW
from rewriter.window import Widening, Window

LAST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Selected:
    """One e-node of the solution. ``arguments`` as in ``egraph.Frozen``; a bias that is zero is None."""

    op: str
    arguments: tuple[Any, ...]
    rule: str


class Writer:
    """Writes ONNX nodes, with fresh names, in order. Constants are initialisers of the new graph."""

    def __init__(self, taken: set[str]) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._taken = taken
        self._next: dict[str, int] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def name(self, hint: str) -> str:
        name, k = hint, self._next.get(hint, 1)
        while name in self._taken:
            name, k = f"{hint}_{k}", k + 1
        self._taken.add(name)
        self._next[hint] = k
        return name

    def constant(self, array: Any, dtype: Any = None) -> ir.Value:
        array = np.asarray(array, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.Tensor(array, name=self.name("constant"))
            value = ir.Value(name=tensor.name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
            value.meta["rewriter.literal"] = True
            self.initializers[value.name or ""] = value
            self._constants[key] = value
        return self._constants[key]

    def integers(self, *values: int) -> ir.Value:
        return self.constant(np.array(values, dtype=np.int64))

    def emit(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        attrs = ir.convenience.convert_attributes(attributes)
        node = ir.Node("", op_type, inputs, attrs, name=self.name(f"rewritten_{op_type}"))
        node.metadata_props[LAW] = "1"
        node.outputs[0].name = self.name(f"{op_type.lower()}_out")
        known = next((i for i in inputs if i is not None), None)
        if known is not None and known.dtype is not None and op_type != "Shape":
            node.outputs[0].type = ir.TensorType(known.dtype)
        self.nodes.append(node)
        return node.outputs[0]

    def again(self, e: Emission, arguments: Sequence[ir.Value], name: str | None) -> Sequence[ir.Value]:
        """An opaque operator on new inputs."""
        inputs = [None if i is None else arguments[i] if isinstance(i, int) else self.constant(i) for i in e.inputs]
        node = ir.Node(
            e.domain, e.op_type, inputs, e.attributes, num_outputs=e.outputs, version=e.version, overload=e.overload,
            name=self.name(name or f"rewritten_{e.op_type}"),
        )  # fmt: skip
        if e.captured:
            places = dict(zip(e.captured, arguments[sum(isinstance(i, int) for i in e.inputs) :], strict=True))
            _recapture(node, places)
        self.nodes.append(node)
        return node.outputs


Emitter = Callable[..., ir.Value]


def _along(w: Writer, v: ir.Value, axis: int) -> ir.Value:
    """A vector shaped to broadcast along an axis counted from the end."""
    return v if axis == -1 else w.emit("Reshape", v, w.integers(-1, *(1,) * (-1 - axis)))


def _scalar(w: Writer, x: ir.Value | None, c: ir.Value | None) -> ir.Value:
    # None is the number -1, which has no type of its own.
    if c is None:
        assert x is not None
        return w.emit("Neg", x)
    return w.emit("Neg", c) if x is None else w.emit("Mul", x, c)


def _linear(w: Writer, x: ir.Value, a: ir.Value, b: ir.Value | None) -> ir.Value:
    product = w.emit("MatMul", x, a)
    return product if b is None else w.emit("Add", product, b)


def _move(w: Writer, x: ir.Value, move: str) -> ir.Value:
    steps = Move.parse(move).steps()
    if steps is None:
        raise ValueError(f"{move} depends on sizes that are not known")
    for op_type, numbers in steps:
        x = w.emit(op_type, x, perm=numbers) if op_type == "Transpose" else w.emit(op_type, x, w.integers(*numbers))
    return x


def _norm(w: Writer, kind: str, x: ir.Value, e: ir.Value, length: int | None) -> ir.Value:
    """Spelled out, unless epsilon is a number that is known now: what laws made of it is known once weights are folded, and the
    passes that recognise norms come after that."""
    if kind == "layer" and e.const_value is not None and length is not None and x.dtype == ir.DataType.FLOAT:
        ones = w.constant(np.ones(length, np.float32))
        return w.emit("LayerNormalization", x, ones, axis=-1, epsilon=float(e.const_value.numpy()))
    last = w.integers(-1)
    if kind == "layer":
        x = w.emit("Sub", x, w.emit("ReduceMean", x, last, keepdims=1))
    mean = w.emit("ReduceMean", w.emit("Mul", x, x), last, keepdims=1)
    return w.emit("Div", x, w.emit("Sqrt", w.emit("Add", mean, e)))


def _block_compose(w: Writer, a: ir.Value, b: ir.Value, p: int, q: int) -> ir.Value:
    # A [i, d], B [p d q, o]: the sizes are taken from them, so that any maps of this kind fit.
    inner = w.emit("Shape", a, start=0, end=1)
    middle = w.emit("Shape", a, start=1, end=2)
    for size in (inner, middle):
        size.type = ir.TensorType(ir.DataType.INT64)
    blocks = w.emit("Reshape", b, w.emit("Concat", w.integers(p), middle, w.integers(q, -1), axis=0))
    mixed = w.emit("MatMul", a, w.emit("Transpose", blocks, perm=[0, 2, 1, 3]))  # [p, q, i, o]
    rows = w.emit("Mul", inner, w.integers(p * q))
    return w.emit("Reshape", w.emit("Transpose", mixed, perm=[0, 2, 1, 3]), w.emit("Concat", rows, w.integers(-1), axis=0))


def _block_sum(w: Writer, v: ir.Value, b: ir.Value, p: int, q: int) -> ir.Value:
    row = w.emit("Unsqueeze", v, w.integers(0))
    return w.emit("ReduceSum", _block_compose(w, row, b, p, q), w.integers(0), keepdims=0)


def _tile(w: Writer, v: ir.Value, p: int, q: int) -> ir.Value:
    column = w.emit("Reshape", v, w.integers(1, -1, 1))
    return w.emit("Reshape", w.emit("Tile", column, w.integers(p, 1, q)), w.integers(-1))


def _max_pool(w: Writer, x: ir.Value, window: str) -> ir.Value:
    g = Window.parse(window)
    return w.emit("MaxPool", x, kernel_shape=g.kernel, strides=g.strides, pads=g.pads, dilations=g.dilations)


def _conv(w: Writer, x: ir.Value, k: ir.Value, b: ir.Value | None, window: str) -> ir.Value:
    g = Window.parse(window)
    inputs = [x, k] if b is None else [x, k, b]
    return w.emit("Conv", *inputs, strides=g.strides, pads=g.pads, dilations=g.dilations, group=g.group, kernel_shape=g.kernel)


def _mean_pool(w: Writer, x: ir.Value, window: str) -> ir.Value:
    g = Window.parse(window)
    more = {"count_include_pad": 1} if g.padded else {}
    if any(d != 1 for d in g.dilations):
        more["dilations"] = g.dilations  # type: ignore[assignment]
    return w.emit("AveragePool", x, kernel_shape=g.kernel, strides=g.strides, pads=g.pads, **more)


def _kernel_scale_inputs(w: Writer, k: ir.Value, s: ir.Value, window: str) -> ir.Value:
    g = Window.parse(window)
    ones = (1,) * g.rank
    if g.group == 1:
        return w.emit("Mul", k, w.emit("Reshape", s, w.integers(1, -1, *ones)))
    grouped = w.emit("Reshape", k, w.integers(g.group, g.outputs // g.group, *g.shape[1:]))
    scaled = w.emit("Mul", grouped, w.emit("Reshape", s, w.integers(g.group, 1, -1, *ones)))
    return w.emit("Reshape", scaled, w.integers(*g.shape))


def _kernel_sum_inputs(w: Writer, k: ir.Value, c: ir.Value, window: str) -> ir.Value:
    g = Window.parse(window)
    response = _kernel_scale_inputs(w, k, c, window)
    return w.emit("ReduceSum", response, w.integers(*range(1, g.rank + 2)), keepdims=0)


def _kernel_widen(w: Writer, k: ir.Value, widening: str) -> ir.Value:
    e = Widening.parse(widening)
    if any(e.before) or any(e.after):
        k = w.emit("Pad", k, w.integers(0, 0, *e.before, 0, 0, *e.after))
    return k if e.old_group == e.new_group else _merge_groups(w, k, e.old_group, e.new_group, len(e.before))


def _merge_groups(w: Writer, k: ir.Value, old: int, new: int, rank: int) -> ir.Value:
    """Block-diagonal kernels: [O, I/old, ...] -> [O, I/new, ...]."""
    merged, dtype = old // new, k.dtype or ir.DataType.FLOAT
    eye = np.eye(merged).reshape(1, merged, 1, merged, 1, *(1,) * rank).astype(dtype.numpy())
    # Shape(k) = (O, I/old, *kernel): the block layout is taken from it, so that any kernel of this kind fits.
    shape = w.emit("Shape", k)
    shape.type = ir.TensorType(ir.DataType.INT64)
    spatial = w.emit("Slice", shape, w.integers(2), w.integers(LAST))
    inputs = w.emit("Slice", shape, w.integers(1), w.integers(2))
    outputs = w.emit("Div", w.emit("Slice", shape, w.integers(0), w.integers(1)), w.integers(old))
    blocks = w.emit("Reshape", k, w.emit("Concat", w.integers(new, merged), outputs, w.integers(1), inputs, spatial, axis=0))
    wide = w.emit("Mul", blocks, w.constant(eye))
    target = w.emit("Concat", w.integers(-1), w.emit("Mul", inputs, w.integers(merged)), spatial, axis=0)
    return w.emit("Reshape", wide, target)


def _kernel_compose(w: Writer, first: ir.Value, then: ir.Value, w1: str, w2: str) -> ir.Value:
    a, b = Window.parse(w1), Window.parse(w2)
    group = 1 if a.group != b.group else a.group
    if a.group != group:
        first = _merge_groups(w, first, a.group, group, a.rank)
    if b.group != group:
        then = _merge_groups(w, then, b.group, group, b.rank)
    middle, outputs, inputs = a.outputs // group, b.outputs // group, a.inputs // group
    taps_a, taps_b = int(np.prod(a.kernel)), int(np.prod(b.kernel))
    if b.pointwise:
        left = w.emit("Reshape", then, w.integers(group, outputs, middle))
        right = w.emit("Reshape", first, w.integers(group, middle, inputs * taps_a))
        return w.emit("Reshape", w.emit("MatMul", left, right), w.integers(b.outputs, inputs, *a.kernel))
    left = w.emit("Transpose", w.emit("Reshape", then, w.integers(group, outputs, middle, taps_b)), perm=[0, 1, 3, 2])
    flat = w.emit("Reshape", left, w.integers(group, outputs * taps_b, middle))
    mixed = w.emit("MatMul", flat, w.emit("Reshape", first, w.integers(group, middle, inputs)))
    split = w.emit("Transpose", w.emit("Reshape", mixed, w.integers(group, outputs, taps_b, inputs)), perm=[0, 1, 3, 2])
    return w.emit("Reshape", split, w.integers(b.outputs, inputs, *b.kernel))


def _kernel_constant(value: Callable[[Window], float]) -> Emitter:
    def emit(w: Writer, window: str) -> ir.Value:
        g = Window.parse(window)
        return w.constant(np.full(g.shape, value(g), dtype=ir.DataType[_TYPES[g.dtype]].numpy()))

    return emit


_TYPES = {"float32": "FLOAT", "float64": "DOUBLE", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}

EMIT: dict[str, Emitter] = {
    "linear": _linear,
    "matmul": lambda w, x, a: w.emit("MatMul", x, a),
    "add": lambda w, x, y: w.emit("Add", x, y),
    "mul": lambda w, x, y: w.emit("Mul", x, y),
    "scale": lambda w, x, s, axis: w.emit("Mul", x, _along(w, s, axis)),
    "bias": lambda w, x, b, axis: w.emit("Add", x, _along(w, b, axis)),
    "scalar": _scalar,
    "shift": lambda w, x, c: w.emit("Add", x, c),
    "product": lambda w, x, y: w.emit("MatMul", x, y),
    "slice": lambda w, x, axis, i, j: w.emit("Slice", x, w.integers(i), w.integers(j), w.integers(axis)),
    "pick": lambda w, e, i: w.emit("Gather", e, i),
    "rows": lambda w, x, g: w.emit("Mul", x, g),
    "divide": lambda w, c, d: w.emit("Div", c, d),
    "middle": lambda w, c: w.emit("Round", w.emit("ReduceMean", c, keepdims=0)),
    "inverse": lambda w, c: w.emit("Reciprocal", c),
    "sign": lambda w, c: w.emit("Sign", c),
    "tile": _tile,
    "padded": lambda w, a, n, m: w.emit("Pad", a, w.integers(n, m), None, w.integers(-1)),
    "transposed": lambda w, a: w.emit("Transpose", a, perm=[1, 0]),
    "block_compose": _block_compose,
    "block_sum": _block_sum,
    "flat_kernel": lambda w, k: w.emit("Transpose", w.emit("Flatten", k, axis=1), perm=[1, 0]),
    "max_pool": _max_pool,
    "cat": lambda w, x, y, axis: w.emit("Concat", x, y, axis=axis),
    "conv": _conv,
    "mean_pool": _mean_pool,
    "kernel_scale_inputs": _kernel_scale_inputs,
    "kernel_sum_inputs": _kernel_sum_inputs,
    "kernel_widen": _kernel_widen,
    "kernel_compose": _kernel_compose,
    "kernel_diagonal": lambda w, s, window: w.emit("Reshape", s, w.integers(*Window.parse(window).shape)),
    "kernel_ones": _kernel_constant(lambda g: 1.0),
    "kernel_mean": _kernel_constant(lambda g: 1.0 / int(np.prod(g.kernel))),
    "eye_like": lambda w, a: w.emit("EyeLike", a),
    "zero_like": lambda w, a: w.emit("Sub", a, a),
    "zero_outputs": lambda w, k: w.emit("ReduceSum", w.emit("Sub", f := w.emit("Flatten", k, axis=1), f), w.integers(1), keepdims=0),
    "zero_row": lambda w, a: w.emit("ReduceSum", w.emit("Sub", a, a), w.integers(0), keepdims=0),
}


def decode(graph: ir.Graph, encoding: Encoding, model: Mapping[int, int], selected: Mapping[int, Selected]) -> ir.Graph:
    """A new graph of the selected terms, with the inputs, outputs and names of ``graph``.

    ``model``: class of each term of the encoding. ``selected``: one e-node per class that the outputs need. The old graph's nodes
    are not used any more; its inputs and the initialisers that are still read move to the new one.
    """
    return _Decoder(graph, encoding, model, selected).graph()


class _Decoder:
    def __init__(self, graph: ir.Graph, encoding: Encoding, model: Mapping[int, int], selected: Mapping[int, Selected]) -> None:
        self.old, self.encoding, self.model, self.selected = graph, encoding, model, selected
        self.lengths = {model[i]: s[-1] for i, s in enumerate(encoding.shapes) if s and isinstance(s[-1], int)}
        reserved = {v.name or "" for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
        self.w = Writer(reserved | {v.name or "" for v in encoding.index} | {n.name or "" for n in graph})
        self.origin: dict[int, ir.Value] = {}
        for i, value in enumerate(encoding.values):
            if value is not None:
                self.origin.setdefault(model[i], value)
        self.made: dict[int, ir.Value | None] = {}
        self.whole: dict[int, Sequence[ir.Value]] = {}
        self.returned: dict[ir.Value, ir.Value] = {}

    def graph(self) -> ir.Graph:
        outputs = [self._output(v, self.model[i]) for v, i in zip(self.old.outputs, self.encoding.roots(self.old), strict=True)]
        old = self.old
        used = {v for n in self.w.nodes for v in n.inputs if v is not None} | set(outputs) | _captured_by(self.w.nodes)
        kept = [v for v in old.initializers.values() if v in used or v.is_graph_input()]
        inputs, imports, doc, meta = list(old.inputs), dict(old.opset_imports), old.doc_string, dict(old.metadata_props)
        for node in list(old):
            old.remove(node)
            for i in range(len(node.inputs)):  # or the weights that only it read would look alive
                node.replace_input_with(i, None)
        old.inputs.clear()
        old.outputs.clear()
        old.initializers.clear()
        return ir.Graph(inputs, outputs, nodes=self.w.nodes, initializers=[*kept, *(v for v in self.w.initializers.values() if v in used)],
                       doc_string=doc, opset_imports=imports, name=old.name, metadata_props=meta)  # fmt: skip

    def _output(self, wanted: ir.Value, cls: int) -> ir.Value:
        """The value of a class under an output's name and type; a second reader of one class, or an input, needs an Identity."""
        value = self.value(cls)
        assert value is not None
        if value is wanted or wanted in self.returned:  # an input or a weight as it is; an output that is listed twice
            return self.returned.get(wanted, value)
        if value.producer() is None or value.meta.get("output"):
            value = self.w.emit("Identity", value)
        value.meta["output"] = True
        value.name, value.type, value.shape = wanted.name, wanted.type, wanted.shape
        self.returned[wanted] = value
        return value

    def value(self, cls: int) -> ir.Value | None:
        """Write everything the class needs (children first, without recursion: models are deep), then itself."""
        stack = [cls]
        while stack:
            c = stack[-1]
            if c in self.made:
                stack.pop()
                continue
            s = self.selected[c]
            missing = [a for a in _classes(s) if a not in self.made]
            if missing:
                stack.extend(reversed(missing))
                continue
            self.made[c] = self._write(c, s)
            stack.pop()
        return self.made[cls]

    def _write(self, cls: int, s: Selected) -> ir.Value | None:
        if s.op == "leaf":
            return self.encoding.leaves[s.arguments[0]]
        if s.op == MINUS_ONE:
            return None
        origin = self.origin.get(cls)
        first = len(self.w.nodes)
        if s.op == "op":
            value = self._opaque(cls, s, origin)
        elif s.op in ("map", "rowmap"):
            inner = self.made[s.arguments[1]]
            assert inner is not None
            value = self.w.again(self.encoding.maps[s.arguments[0]], [inner], self._node_name(origin))[0]
        elif s.op == "move":
            value = self._move(s, origin)
        elif s.op in ("norm", "normed"):
            value = self._norm(s)
        elif s.op in ("add", "mul"):
            value = EMIT[s.op](self.w, *self._broadcast(s))
        else:
            value = EMIT[s.op](self.w, *(self.made[a] if k else a for a, k in _typed(s)))
        fresh = len(self.w.nodes) > first or s.op == "op"
        if origin is not None and fresh and value is not None and value.producer() is not None:
            self._adopt(value, origin)
        return value

    def _move(self, s: Selected, origin: ir.Value | None) -> ir.Value:
        """As the model wrote it, where it did; a move in general otherwise."""
        inner = self.made[s.arguments[1]]
        assert inner is not None
        producer = origin.producer() if origin is not None else None
        text, emission = self.encoding.moves.get(producer, ("", None)) if producer is not None else ("", None)
        if emission is not None and text == s.arguments[0] and not s.rule:
            return self.w.again(emission, [inner], self._node_name(origin))[0]
        return _move(self.w, inner, s.arguments[0])

    def _norm(self, s: Selected) -> ir.Value:
        kind, x, e, *affine = s.arguments
        value, epsilon = self.made[x], self.made[e]
        assert value is not None and epsilon is not None
        chosen = self.selected[e]
        known = self.encoding.emissions[chosen.arguments[0]].inputs[0] if chosen.op == "op" and len(chosen.arguments) == 1 else None
        y = _norm(self.w, kind, value, self.w.constant(known) if isinstance(known, np.ndarray) else epsilon, self.lengths.get(x))
        if affine:
            scale, bias = (self.made[a] for a in affine)
            y = self.w.emit("Add", self.w.emit("Mul", y, scale), bias)
        return y

    def _broadcast(self, s: Selected) -> list[ir.Value]:
        """The operands of a sum or a product: one that is only repeated to the other's shape is left to ONNX to repeat."""
        values = [self.made[a] for a in s.arguments]
        for k, argument in enumerate(s.arguments):
            chosen = self.selected[argument]
            move = Move.parse(chosen.arguments[0]) if chosen.op == "move" else None
            bare = move.unrepeated() if move is not None else None
            inner = self.made[chosen.arguments[1]] if bare is not None else None
            if bare is not None and inner is not None:
                values[k] = _move(self.w, inner, str(bare))
                break
        return [v for v in values if v is not None]

    def _opaque(self, cls: int, s: Selected, origin: ir.Value | None) -> ir.Value | None:
        signature, *inputs = s.arguments
        if signature.startswith("output "):
            return self.whole[inputs[0]][int(signature[7:])]
        arguments = [self.made[a] for a in inputs]
        emission = self.encoding.emissions[signature]
        outputs = self.w.again(emission, arguments, self._node_name(origin))  # type: ignore[arg-type]
        self.whole[cls] = outputs
        if emission.outputs > 1:
            for output in outputs:
                output.name = self.w.name("out")
        elif outputs[0].name is None:
            outputs[0].name = self.w.name(f"{emission.op_type.lower()}_out")
            if arguments and arguments[0] is not None and arguments[0].dtype is not None and emission.op_type in ("Reshape", "Reciprocal"):
                outputs[0].type = ir.TensorType(arguments[0].dtype)
        return outputs[0]

    @staticmethod
    def _node_name(origin: ir.Value | None) -> str | None:
        producer = origin.producer() if origin is not None else None
        return producer.name if producer is not None else None

    def _adopt(self, value: ir.Value, origin: ir.Value) -> None:
        """Give a value the name and type of the model's value that it equals, once."""
        if value.meta.get("adopted"):
            return
        value.meta["adopted"] = True
        value.type, value.shape = origin.type, origin.shape
        if not origin.is_graph_output() and not origin.meta.get("adopted") and origin.name:
            origin.meta["adopted"] = True
            value.name = origin.name
        elif value.name is None:
            value.name = self.w.name("value")


def _classes(s: Selected) -> list[int]:
    return [a for a, is_class in _typed(s) if is_class]


def _typed(s: Selected) -> list[tuple[Any, bool]]:
    """Arguments, each with whether it is a class."""
    if s.op in ("leaf", MINUS_ONE):
        return []
    if s.op == "op":
        return [(s.arguments[0], False), *((a, True) for a in s.arguments[1:])]
    return [(a, k == "t" and a is not None) for a, k in zip(s.arguments, OPERATORS[s.op].kinds, strict=True)]


def _recapture(node: ir.Node, places: Mapping[ir.Value, ir.Value]) -> None:
    """In the node's subgraphs, read the new values where the old ones were captured."""
    for graph in subgraphs(node):
        for inner in graph:
            for i, value in enumerate(inner.inputs):
                if value is not None and value in places:
                    inner.replace_input_with(i, places[value])
            _recapture(inner, places)
        for i, value in enumerate(graph.outputs):
            if value in places:
                graph.outputs[i] = places[value]


def _captured_by(nodes: Sequence[ir.Node]) -> set[ir.Value]:
    return {v for n in nodes for g in subgraphs(n) for v in captures(g)}
