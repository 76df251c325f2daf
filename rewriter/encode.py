"""A normalised ONNX graph as terms: the algebra's vocabulary where an operator has a meaning there, ``op`` elsewhere.

Broadcasting becomes explicit here: a constant operand is a number (``scalar``), a vector along one axis (``scale``, ``bias``) or
neither, and then the operator is opaque. Unknown dimensions get names of their own, and shapes are carried through the algebra, so
that ``x·A + x·B·C`` is seen to be a sum of two tensors of one shape whatever the batch.

Sums are put in order here, once, because associativity inside the e-graph explodes: summands that are affine in the same tensor
stand next to each other.

Where an operator of ONNX does more than one of the algebra (a LayerNormalization is a norm, a scale and a bias; a Split is several
slices), the term is opaque and its form in the algebra is put into the same class: the operator itself is written again unless a law
found something cheaper.

A shape that begins with a name ``*...`` is one of unknown rank whose last dimensions are known: what comes out of a product with a
constant matrix after an operator that nobody knows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from rewriter.edit import dims, is_op, tensor
from rewriter.functions import DOMAIN
from rewriter.move import Move, expand, reshape, transpose
from rewriter.opset import OPSET
from rewriter.terms import FACTS, MINUS_ONE, covering, swap_move, table_facts
from rewriter.window import Window

Shape = tuple[int | str, ...]
Row = tuple[int | str, ...]
FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
ELEMENTWISE = {
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
}  # fmt: skip
"""Unary operators that act on each element by itself: they commute with concatenation whatever they compute."""


@dataclass(frozen=True)
class Emission:
    """How to write an opaque operator again. ``inputs``: a position among the term's arguments, a constant, or None (absent)."""

    op_type: str
    domain: str = ""
    attributes: tuple[ir.Attr, ...] = ()
    inputs: tuple[int | np.ndarray | None, ...] = ()
    outputs: int = 1
    version: int | None = None
    overload: str = ""
    captured: tuple[ir.Value, ...] = ()
    """Values of this graph that the operator's subgraphs read: arguments after the inputs."""


@dataclass
class Encoding:
    """Terms of one graph. Term i is ``(node i)``, number i in ``rows``, and stands for ``values[i]`` (None: made by the encoder)."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    """What is stated, as ``egraph.Program`` takes it: of an operator (``op/2``: with two arguments) the term that it makes and its
    arguments, of a fact its arguments."""
    lines: list[str] = field(default_factory=list)
    """What is stated beside that: forms that are no values of the model."""
    values: list[ir.Value | None] = field(default_factory=list)
    shapes: list[Shape | None] = field(default_factory=list)
    dtypes: list[ir.DataType | None] = field(default_factory=list)
    leaves: dict[int, ir.Value] = field(default_factory=dict)
    emissions: dict[str, Emission] = field(default_factory=dict)
    maps: dict[str, Emission] = field(default_factory=dict)
    """Of ``map`` and ``rowmap``, by the function's name."""
    moves: dict[ir.Node, tuple[str, Emission]] = field(default_factory=dict)
    """How the model itself wrote each of its moves."""
    index: dict[ir.Value, int] = field(default_factory=dict)
    value_facts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Initialiser name to the facts read off its values: a law may rest on them, so other weights need another search.

    ``fact:digest`` is a fact about something computed from it, true while it is what it was.
    """
    nodes: int = 0

    def roots(self, graph: ir.Graph) -> list[int]:
        return [self.index[v] for v in graph.outputs]


def encode(graph: ir.Graph) -> Encoding:
    """The graph as terms. Nodes must be in topological order; values that its subgraphs capture keep their identity."""
    encoder = _Encoder(graph)
    for node in graph:
        encoder.node(node)
    for value in graph.outputs:
        encoder.of(value)
    encoder.finish()
    return encoder.out


class _Encoder:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.out = Encoding()
        self.terms: list[tuple[str, tuple[Any, ...]]] = []
        self.constant: list[bool] = []
        self.packed: list[bool] = []
        self.known: dict[int, np.ndarray] = {}
        """What small constants are, where it is known before weights are folded."""
        self.sources: dict[int, frozenset[str]] = {}
        self.windows: set[str] = set()
        self.moves: set[str] = set()
        self.pieces = False
        """Does the model slice or concatenate?"""
        self.minus_one: int | None = None

    # Terms

    def add(self, head: str, arguments: Sequence[Any], value: ir.Value | None, shape: Shape | None, dtype: ir.DataType | None, const: bool) -> int:
        """A new term; tensors among the arguments are indices wrapped in ``T``."""
        i, out = len(self.terms), self.out
        self.terms.append((head, tuple(arguments)))
        self.constant.append(const)
        out.values.append(value)
        out.shapes.append(shape)
        out.dtypes.append(dtype)
        made = f"op/{len(arguments) - 1}" if head == "op" else head
        out.rows.setdefault(made, []).append((i, *(a.i if isinstance(a, T) else a for a in arguments)))
        self.fact("const" if const else "live", i)
        self.packed.append(const and (_unpacks(head, arguments) or any(isinstance(a, T) and self.packed[a.i] for a in arguments)))
        if const and not self.packed[i]:
            self.fact("dense", i)
        if shape and isinstance(shape[-1], int):
            self.fact("last", i, shape[-1])
        if value is not None:
            out.index[value] = i
        return i

    def fact(self, name: str, *arguments: int | str) -> None:
        """``arguments``: numbers of terms, lengths, names."""
        self.out.rows.setdefault(name, []).append(arguments)

    def also(self, i: int, head: str, *arguments: Any) -> None:
        """Term ``i`` is equal to this form of it. Arguments may be forms themselves, as text in parentheses."""
        self.pieces |= head in ("slice", "cat")
        self.out.lines.append(f"(union (node {i}) {self._text(head, arguments)})")

    @staticmethod
    def _text(head: str, arguments: Sequence[Any]) -> str:
        if head == "op":
            inner = f"(vec-of {' '.join(map(str, arguments[1:]))})" if len(arguments) > 1 else "(vec-empty)"
            return f"(op {_quote(arguments[0])} {inner})"
        written = [str(a) if isinstance(a, (T, Form)) else _quote(a) if isinstance(a, str) else str(a) for a in arguments]
        return f"({' '.join([head, *written])})"

    def of(self, value: ir.Value) -> int:
        """The term of a value: a leaf if no node of this graph made it."""
        found = self.out.index.get(value)
        if found is not None:
            return found
        weight = tensor(value)
        if weight is not None:
            return self._weight(value, weight)
        return self._leaf(value, False)

    def _leaf(self, value: ir.Value, const: bool) -> int:
        leaf = len(self.out.leaves)
        self.out.leaves[leaf] = value
        return self.add("leaf", [leaf], value, self._shape(value), value.dtype, const)

    def _weight(self, value: ir.Value, weight: ir.TensorProtocol) -> int:
        i = self._leaf(value, True)
        facts = _value_facts(weight)
        for fact in facts:
            self.fact(fact, i)
        if facts:
            self.out.value_facts[value.name or ""] = facts
        if weight.size <= VECTOR:
            self.known[i], self.sources[i] = weight.numpy(), frozenset([value.name or ""])
        return i

    def _evaluate(self, node: ir.Node, inputs: list[int], i: int) -> None:
        """A vector or number that the model computes from small weights: its value, and what laws may ask about it."""
        value = node.outputs[0]
        shape = self.shape(i)
        size = VECTOR + 1 if shape is None else math.prod(d for d in shape if isinstance(d, int))
        if any(k not in self.known for k in inputs) or len(node.outputs) > 1 or size > VECTOR:
            return
        try:
            array = evaluate(node, [self.known[k] for k in inputs])
        except Exception:  # noqa: BLE001  what cannot be computed here says nothing
            return
        self.known[i] = array
        self.sources[i] = frozenset().union(*(self.sources[k] for k in inputs))
        facts = _value_facts(ir.Tensor(array)) if value.dtype in FLOATS else ()
        for fact in facts:
            self.fact(fact, i)
        if facts:
            for name in self.sources[i]:
                self.out.value_facts[name] = (*self.out.value_facts.get(name, ()), *(f"{fact}:{digest(self.known_weight(name))}" for fact in facts))

    def known_weight(self, name: str) -> np.ndarray:
        weight = tensor(self.graph.initializers[name]) if name in self.graph.initializers else None
        return np.zeros(0) if weight is None else weight.numpy()

    def _shape(self, value: ir.Value) -> Shape | None:
        found = dims(value)
        if found is None:
            return None
        return tuple(d if isinstance(d, int) or d else f"?{value.name}.{axis}" for axis, d in enumerate(found))

    def shape(self, i: int) -> Shape | None:
        return self.out.shapes[i]

    def negated(self) -> T:
        if self.minus_one is None:
            self.minus_one = self.add(MINUS_ONE, [], None, (), None, True)
        return T(self.minus_one)

    # Nodes

    def node(self, node: ir.Node) -> None:
        self.out.nodes += 1
        if is_op(node, "Identity") and node.outputs[0].dtype == node.inputs[0].dtype:  # type: ignore[union-attr]
            self.out.index[node.outputs[0]] = self.of(node.inputs[0])  # type: ignore[arg-type]
            return
        inputs = [self.of(v) for v in node.inputs if v is not None]
        handler = getattr(self, f"on_{node.op_type.lower()}", None) if node.domain == "" else None
        if is_op(node, *ELEMENTWISE) and len(inputs) == 1:
            handler = self._elementwise
        elif is_op(node, "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand"):
            handler = self._move
        algebraic = not all(self.constant[i] for i in inputs) and self._float(node)
        if handler and algebraic and handler(node, inputs):
            return
        self._opaque(node, inputs)
        form = getattr(self, f"also_{node.op_type.lower()}", None) if node.domain in ("", DOMAIN) else None
        if form and not all(self.constant[i] for i in inputs) and node.outputs[0].dtype in FLOATS:
            form(node, inputs)

    def _float(self, node: ir.Node) -> bool:
        # The operators of the algebra have one type throughout: a weight tells it where the inference does not.
        types = [v.dtype for v in (*node.outputs, *node.inputs) if v is not None and v.dtype is not None]
        return len(node.outputs) == 1 and bool(types) and types[0] in FLOATS

    def _opaque(self, node: ir.Node, inputs: list[int]) -> None:
        captured = tuple(dict.fromkeys(v for g in subgraphs(node) for v in captures(g)))
        arguments = inputs + [self.of(v) for v in captured]
        places = iter(range(len(inputs)))
        emission = Emission(
            node.op_type, node.domain, tuple(node.attributes.values()),
            tuple(None if v is None else next(places) for v in node.inputs), len(node.outputs), node.version, node.overload, captured,
        )  # fmt: skip
        own = bool(captured) or any(True for _ in subgraphs(node)) or (node.domain == "" and node.op_type in RANDOM)
        signature = _signature(emission, f" #{self.out.nodes}" if own else "")
        self.out.emissions[signature] = emission
        foldable = node.domain in ("", "ai.onnx", "rewriter") and not own and bool(arguments or node.op_type == "Constant")
        const = foldable and all(self.constant[i] for i in arguments)
        first = node.outputs[0]
        if len(node.outputs) == 1:
            i = self.add("op", [signature, *map(T, arguments)], first, self._result_shape(node, inputs), first.dtype, const)
            if const and node.domain == "":
                self._evaluate(node, inputs, i)
            return
        whole = self.add("op", [signature, *map(T, arguments)], None, None, None, const)
        for k, value in enumerate(node.outputs):
            self.add("op", [f"output {k}", T(whole)], value, self._shape(value), value.dtype, const)

    def _result_shape(self, node: ir.Node, inputs: list[int]) -> Shape | None:
        """Inferred; where the inference knows less than the algebra (element-wise operators keep shapes), the algebra's."""
        found = self._shape(node.outputs[0])
        if inputs and is_op(node, *ELEMENTWISE, "Softmax", "LayerNormalization", "Cast", "LogSoftmax"):
            return self.shape(inputs[0]) or found
        return found

    def constant_op(
        self, op_type: str, inputs: list[int | np.ndarray], shape: Shape | None, *, dtype: ir.DataType | None = None, **attributes: Any
    ) -> T:
        """A weights-only operator that the encoder needs, ``inputs`` being terms and arrays."""
        terms = [i for i in inputs if isinstance(i, int)]
        places = iter(range(len(terms)))
        attrs = tuple(ir.convenience.convert_attributes(attributes))
        emission = Emission(op_type, "", attrs, tuple(next(places) if isinstance(i, int) else i for i in inputs))
        signature = _signature(emission)
        self.out.emissions[signature] = emission
        dtype = dtype or self.out.dtypes[terms[0]]
        return T(self.add("op", [signature, *map(T, terms)], None, shape, dtype, True))

    def _spread(self, c: int, x: int) -> tuple[str, int, T] | None:
        """How a constant lies along x: ("number", 0, c[]), ("vector", axis, c[n]), or None where it is neither.

        A vector that broadcasting would repeat must find its length in x: an unknown length may be 1, and then x is what repeats.
        """
        small, large = self.shape(c), self.shape(x)
        if large is not None and large and str(large[0]).startswith("*"):
            large = large[1:]
        if small is None or large is None or len(small) > len(large) or not all(isinstance(d, int) for d in small):
            return None
        sizes = [d for d in small if isinstance(d, int)]
        wide = [axis - len(sizes) for axis, d in enumerate(sizes) if d != 1]
        if not wide:
            return "number", 0, T(c) if not sizes else self.constant_op("Reshape", [c, np.zeros(0, np.int64)], ())
        if len(wide) > 1 or large[wide[0]] != small[wide[0]]:
            return None
        n = sizes[wide[0]]
        vector = T(c) if len(sizes) == 1 else self.constant_op("Reshape", [c, np.array([n])], (n,))
        return "vector", wide[0], vector

    def _pair(self, inputs: list[int]) -> tuple[int, int] | None:
        """(run-time operand, constant operand), or None."""
        a, b = inputs
        if self.constant[a] == self.constant[b]:
            return None
        return (b, a) if self.constant[a] else (a, b)

    def _put(self, head: str, arguments: Sequence[Any], node: ir.Node, shape: Shape | None) -> bool:
        self.add(head, arguments, node.outputs[0], shape, node.outputs[0].dtype, False)
        return True

    def on_matmul(self, node: ir.Node, inputs: list[int]) -> bool:
        x, a = inputs
        left, right = self.shape(x), self.shape(a)
        if left is None and self.constant[a] and not self.constant[x]:
            left = (f"*{x}", "?")
        if left is None or right is None or len(left) < 2 or len(right) < 2:
            return False
        if not self.constant[a] or len(right) != 2:
            done = self._put("product", [T(x), T(a)], node, self._shape(node.outputs[0]))
            if self.constant[x] and len(left) == 2:
                self._swaps(a, right)
            return done
        none = self.add("zero_row", [T(a)], None, right[1:], self.out.dtypes[a], True)
        return self._put("linear", [T(x), T(a), T(none)], node, (*left[:-1], right[1]))

    def _swaps(self, x: int, right: Shape) -> None:
        """A constant matrix on the left is a linear map of the columns: the move that makes them rows, and rows columns again."""
        swap = swap_move(right).anywhere()
        if not str(right[0]).startswith("*") and swap is not None and 1 not in right[-2:]:
            self.fact("swaps", x, self.moved(swap))

    def moved(self, move: Move) -> str:
        """The name of a move, which tables will know."""
        self.moves.add(str(move))
        return str(move)

    def on_add(self, node: ir.Node, inputs: list[int]) -> bool:
        pair = self._pair(inputs)
        if pair:
            spread = self._spread(pair[1], pair[0])
            if spread is None:
                return False
            self._plus(node, pair[0], spread)
        elif self.shape(inputs[0]) is None or self.shape(inputs[0]) != self.shape(inputs[1]):
            return False
        else:
            self._put("add", list(map(T, inputs)), node, self.shape(inputs[0]))
        self._regroup(node)
        return True

    def _plus(self, node: ir.Node, x: int, spread: tuple[str, int, T]) -> None:
        kind, axis, c = spread
        head, inner = self.terms[x]
        value = self.out.values[x]
        if head == "linear" and axis == -1 and kind == "vector" and self.terms[inner[2].i][0] == "zero_row" and value is not None and _once(value):
            # A product and its bias are one linear map from the start: nothing was rewritten.
            self._put("linear", [*inner[:2], c], node, self.shape(x))
            return
        arguments: list[Any] = [T(x), c] if kind == "number" else [T(x), c, axis]
        self._put("shift" if kind == "number" else "bias", arguments, node, self.shape(x))

    def on_sub(self, node: ir.Node, inputs: list[int]) -> bool:
        x, y = inputs
        if self.constant[x]:
            return False
        if self.constant[y]:
            spread = self._spread(y, x)
            if spread is None:
                return False
            opposite = self.add("scalar", [spread[2], self.negated()], None, self.shape(spread[2].i), self.out.dtypes[y], True)
            self._plus(node, x, (spread[0], spread[1], T(opposite)))
        elif self.shape(x) is None or self.shape(x) != self.shape(y):
            return False
        else:
            opposite = self.add("scalar", [T(y), self.negated()], None, self.shape(y), self.out.dtypes[y], False)
            self._put("add", [T(x), T(opposite)], node, self.shape(x))
        self._regroup(node)
        return True

    def on_mul(self, node: ir.Node, inputs: list[int]) -> bool:
        pair = self._pair(inputs)
        if pair:
            return self._times(node, pair[0], self._spread(pair[1], pair[0]))
        if self.shape(inputs[0]) is None or self.shape(inputs[0]) != self.shape(inputs[1]):
            return False
        return self._put("mul", list(map(T, inputs)), node, self.shape(inputs[0]))

    def on_div(self, node: ir.Node, inputs: list[int]) -> bool:
        x, c = inputs
        if self.constant[x] or not self.constant[c]:
            return False
        spread = self._spread(c, x)
        if spread is None:
            return False
        inverse = self.add("inverse", [spread[2]], None, self.shape(spread[2].i), self.out.dtypes[c], True)
        return self._times(node, x, (spread[0], spread[1], T(inverse)))

    def _times(self, node: ir.Node, x: int, spread: tuple[str, int, T] | None) -> bool:
        if spread is None:
            return False
        kind, axis, c = spread
        arguments: list[Any] = [T(x), c] if kind == "number" else [T(x), c, axis]
        return self._put("scalar" if kind == "number" else "scale", arguments, node, self.shape(x))

    def on_sum(self, node: ir.Node, inputs: list[int]) -> bool:
        shape = self.shape(inputs[0])
        if len(inputs) < 2 or shape is None or any(self.shape(i) != shape for i in inputs) or any(self.constant[i] for i in inputs):
            return False
        total = inputs[0]
        for i in inputs[1:-1]:
            total = self.add("add", [T(total), T(i)], None, shape, node.outputs[0].dtype, False)
        return self._put("add", [T(total), T(inputs[-1])], node, shape)

    def on_neg(self, node: ir.Node, inputs: list[int]) -> bool:
        return self._put("scalar", [T(inputs[0]), self.negated()], node, self.shape(inputs[0]))

    def _move(self, node: ir.Node, inputs: list[int]) -> bool:
        shape = self.shape(inputs[0])
        operand = tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
        if shape is None or len(inputs) > 2 or (len(inputs) == 2 and operand is None) or (shape and str(shape[0]).startswith("*")):
            return False
        move, after = _move_of(node, shape, None if operand is None else operand.numpy(), self._shape(node.outputs[0]))
        if move is None:
            return False
        literals: tuple[int | np.ndarray, ...] = (0,) if operand is None else (0, operand.numpy())
        self.out.moves[node] = str(move), Emission(node.op_type, "", tuple(node.attributes.values()), literals, version=node.version)
        return self._put("move", [self.moved(move), T(inputs[0])], node, after)

    def _elementwise(self, node: ir.Node, inputs: list[int]) -> bool:
        return self._put("map", [self._function(node), T(inputs[0])], node, self.shape(inputs[0]) or self._shape(node.outputs[0]))

    def _function(self, node: ir.Node) -> str:
        emission = Emission(node.op_type, "", tuple(node.attributes.values()), (0,), version=node.version)
        name = _signature(emission)
        self.out.maps[name] = emission
        return name

    def on_softmax(self, node: ir.Node, inputs: list[int]) -> bool:
        shape = self.shape(inputs[0])
        axis = node.attributes.get_int("axis", -1)
        if shape is None or axis not in (-1, len(shape) - 1):
            return False
        return self._put("rowmap", [self._function(node), T(inputs[0])], node, shape)

    def on_conv(self, node: ir.Node, inputs: list[int]) -> bool:
        if not all(self.constant[i] for i in inputs[1:]):
            return False
        window = _window(node, self.shape(inputs[0]), self.shape(inputs[1]))
        if window is None:
            return False
        self.windows.add(str(window))
        image = self.shape(inputs[0])
        assert image is not None
        shape = _image_shape(window, image) or self._shape(node.outputs[0])
        if len(inputs) == 2:
            inputs.append(self.add("zero_outputs", [T(inputs[1])], None, (window.outputs,), self.out.dtypes[inputs[1]], True))
        covered = covering(image, str(window))
        if covered is not None:
            self.fact("covers", inputs[0], str(window), *(self.moved(Move.parse(m)) for m in covered))
        return self._put("conv", [*map(T, inputs), str(window)], node, shape)

    def on_averagepool(self, node: ir.Node, inputs: list[int]) -> bool:
        window = _pool_window(node, self.shape(inputs[0]))
        if window is None:
            return False
        self.windows.add(str(window))
        image = self.shape(inputs[0])
        assert image is not None
        return self._put("mean_pool", [T(inputs[0]), str(window)], node, _image_shape(window, image) or self._shape(node.outputs[0]))

    # Operators that are several of the algebra's: forms beside the opaque term

    def also_layernormalization(self, node: ir.Node, inputs: list[int]) -> None:
        shape = self.shape(inputs[0])
        if shape and node.attributes.get_int("axis", -1) in (-1, len(shape) - 1) and len(node.outputs) == 1:
            self._norm("layer", node, inputs, shape)

    def also_rmsnorm(self, node: ir.Node, inputs: list[int]) -> None:
        shape = self.shape(inputs[0])
        if shape:
            self._norm("rms", node, inputs, shape)

    def _norm(self, kind: str, node: ir.Node, inputs: list[int], shape: Shape) -> None:
        """A norm, its scale and its bias."""
        if not isinstance(shape[-1], int) or not all(self.constant[i] and self.shape(i) == shape[-1:] for i in inputs[1:]):
            return
        epsilon = np.array(node.attributes.get_float("epsilon", 1e-5), np.float32)
        e = self.constant_op("Identity", [epsilon], (), dtype=ir.DataType.FLOAT)
        made = self.out.index[node.outputs[0]]
        scaled = [Form(self._text("norm", [kind, T(inputs[0]), e])), T(inputs[1]), -1]
        if len(inputs) == 3:
            self.also(made, "bias", Form(self._text("scale", scaled)), T(inputs[2]), -1)
        else:
            self.also(made, "scale", *scaled)

    def also_gather(self, node: ir.Node, inputs: list[int]) -> None:
        """Rows of a constant table."""
        table, index = inputs
        if self.constant[table] and not self.constant[index] and node.attributes.get_int("axis", 0) == 0 and len(self.shape(table) or ()) >= 2:
            self.also(self.out.index[node.outputs[0]], "pick", T(table), T(index))

    def also_slice(self, node: ir.Node, inputs: list[int]) -> None:
        cut = _slice_of(node, self.shape(inputs[0]), [tensor(v) if v is not None else None for v in node.inputs[1:]])
        if cut is not None:
            self.also(self.out.index[node.outputs[0]], "slice", T(inputs[0]), *cut)

    def also_split(self, node: ir.Node, inputs: list[int]) -> None:
        shape = self.shape(inputs[0])
        pieces = [self.shape(self.out.index[v]) for v in node.outputs]
        axis = node.attributes.get_int("axis", 0)
        if shape is None or any(p is None or not isinstance(p[axis], int) for p in pieces):
            return
        at, axis = 0, axis if axis < 0 else axis - len(shape)
        for value, piece in zip(node.outputs, pieces, strict=True):
            assert piece is not None
            length = int(piece[axis])
            self.also(self.out.index[value], "slice", T(inputs[0]), axis, at, at + length)
            at += length

    def also_concat(self, node: ir.Node, inputs: list[int]) -> None:
        shape = self.shape(inputs[0])
        if shape is None or len(inputs) < 2:
            return
        axis = node.attributes.get_int("axis", 0)
        axis = axis if axis < 0 else axis - len(shape)
        form: T | Form = T(inputs[0])
        for i in inputs[1:-1]:
            form = Form(self._text("cat", [form, T(i), axis]))
        self.also(self.out.index[node.outputs[0]], "cat", form, T(inputs[-1]), axis)

    def also_maxpool(self, node: ir.Node, inputs: list[int]) -> None:
        window = _max_window(node, self.shape(inputs[0]))
        if window is not None and len(node.outputs) == 1:
            self.windows.add(str(window))
            self.also(self.out.index[node.outputs[0]], "max_pool", T(inputs[0]), str(window))

    def also_dequantizelinear(self, node: ir.Node, inputs: list[int]) -> None:
        """A quantiser of its own for every channel, and back: one for the tensor, between scales and biases (62)."""
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        if maker is None or not is_op(maker, "QuantizeLinear") or len(node.inputs) != 3 or len(maker.inputs) != 3:
            return
        x, s, z = (self.of(v) for v in maker.inputs if v is not None)
        shape, scales, zeros = self.shape(x), self.known.get(s), self.known.get(z)
        if shape is None or scales is None or zeros is None or scales.ndim != 1 or self.constant[x]:
            return
        axes = [n.attributes.get_int("axis", 1) for n in (maker, node)]
        if any(a not in (-1, len(shape) - 1) for a in axes) or inputs[1] != s or inputs[2] != z or shape[-1] != scales.size:
            return
        middle = np.round(zeros.astype(np.float64).mean()).astype(zeros.dtype)
        apart = (zeros.astype(np.int64) - int(middle)).astype(scales.dtype)
        numbers = (np.ones((), scales.dtype), middle, apart)
        one, mid, off = (self.constant_op("Identity", [a], a.shape, dtype=ir.DataType.from_numpy(a.dtype)) for a in numbers)
        inverse = Form(self._text("inverse", [T(s)]))
        inner = Form(self._text("bias", [Form(self._text("scale", [T(x), inverse, -1])), off, -1]))
        for op_type in ("QuantizeLinear", "DequantizeLinear"):
            emission = Emission(op_type, "", (), (0, 1, 2))
            signature = _signature(emission)
            self.out.emissions[signature] = emission
            inner = Form(f"(op {_quote(signature)} (vec-of {inner} {one} {mid}))")
        back = Form(self._text("bias", [inner, Form(self._text("scalar", [off, self.negated()])), -1]))
        self.also(self.out.index[node.outputs[0]], "scale", back, T(s), -1)
        for name in (maker.inputs[1], maker.inputs[2]):
            assert name is not None
            self.out.value_facts[name.name or ""] = ("integer:" + digest(self.known_weight(name.name or "")),)

    def also_add(self, node: ir.Node, inputs: list[int]) -> None:
        self._broadcast("add", node, inputs)

    def also_mul(self, node: ir.Node, inputs: list[int]) -> None:
        self._broadcast("mul", node, inputs)
        for x, g in (inputs, inputs[::-1]):
            if not self.constant[g] and self._numbers_for_rows(x, g):
                self.also(self.out.index[node.outputs[0]], "rows", T(x), T(g))
                return

    def also_div(self, node: ir.Node, inputs: list[int]) -> None:
        x, g = inputs
        if self.constant[g] or self.constant[x]:
            return
        emission = Emission("Reciprocal", "", (), (0,))
        name = _signature(emission)
        self.out.maps[name] = emission
        inverse = Form(self._text("map", [name, T(g)]))
        if self._numbers_for_rows(x, g):
            self.also(self.out.index[node.outputs[0]], "rows", T(x), inverse)

    def _numbers_for_rows(self, x: int, g: int) -> bool:
        """Is g a number for each vector along the last axis of x?"""
        large, small = self.shape(x), self.shape(g)
        return bool(large) and bool(small) and small[:-1] == large[:-1] and small[-1] == 1 and large[-1] != 1  # type: ignore[index]

    def _broadcast(self, head: str, node: ir.Node, inputs: list[int]) -> None:
        """One operand repeated to the shape of the other; or a constant of the result's own shape."""
        out = self._shape(node.outputs[0])
        if out is None or any(self.shape(i) is None for i in inputs):
            return
        if all(self.shape(i) == out for i in inputs):
            self.also(self.out.index[node.outputs[0]], head, *map(T, inputs))
            return
        x, y = inputs if self.shape(inputs[0]) == out else inputs[::-1]
        repeated = expand(self.shape(y) or (), out)
        if self.shape(x) == out and repeated is not None and not self.constant[y]:
            self.also(self.out.index[node.outputs[0]], head, T(x), Form(self._text("move", [self.moved(repeated), T(y)])))

    # Sums

    def _regroup(self, node: ir.Node) -> None:
        """Union a sum with its summands grouped by what they read: see the module docstring."""
        output = node.outputs[0]
        if self._inner(output):
            return
        summands: list[int] = []
        biases: list[tuple[T, int]] = []
        self._summands(self.out.index[output], summands, biases, True)
        groups: dict[int, list[int]] = {}
        for i in summands:
            groups.setdefault(self._source(i), []).append(i)
        if len(summands) < 3 or len(groups) == len(summands):
            return
        parts = [self._sum([f"(node {i})" for i in group]) for group in groups.values()]
        for vector, axis in biases:
            parts[0] = f"(bias {parts[0]} {vector} {axis})"
        self.out.lines.append(f"(union (node {self.out.index[output]}) {self._sum(parts)})")

    @staticmethod
    def _sum(parts: list[str]) -> str:
        total = parts[0]
        for part in parts[1:]:
            total = f"(add {total} {part})"
        return total

    def _inner(self, value: ir.Value) -> bool:
        """Is the value read by one sum alone, and so a part of it?"""
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return False
        return is_op(uses[0].node, "Add", "Sub") and (uses[0].idx == 0 or is_op(uses[0].node, "Add"))

    def _summands(self, i: int, summands: list[int], biases: list[tuple[T, int]], top: bool) -> None:
        head, arguments = self.terms[i]
        value = self.out.values[i]
        open_ = top or (value is not None and self._inner(value))
        if open_ and head == "add":
            for a in arguments:
                self._summands(a.i, summands, biases, False)
        elif open_ and head == "bias" and self.terms[arguments[0].i][0] == "add" and (top or self._inner_term(arguments[0].i)):
            biases.append((arguments[1], arguments[2]))
            self._summands(arguments[0].i, summands, biases, False)
        else:
            summands.append(i)

    def _inner_term(self, i: int) -> bool:
        value = self.out.values[i]
        return value is not None and self._inner(value)

    def _source(self, i: int) -> int:
        """What a summand is affine in: through products, convolutions, scales and biases by constants."""
        while self.terms[i][0] in ("linear", "conv", "scale", "scalar", "bias", "shift", "mean_pool") and not self.constant[i]:
            i = self.terms[i][1][0].i
        return i

    def finish(self) -> None:
        self.fact("centres", "layer")
        if not self.pieces:
            # Lengths matter where tensors are taken apart or put together.
            self.out.rows.pop("last", None)
        for function in self.out.maps:
            for fact in ("monotone", "homogeneous", "rounds"):
                if FACTS[fact].holds(function):  # type: ignore[misc]
                    self.fact(fact, function)
        for name, *values in table_facts(self.windows, self.moves):
            self.fact(name, *values)


UNPACKING = ("Cast{", "DequantizeLinear{", "ConstantOfShape{", "Expand{", "Tile{", "Gather{")


def _unpacks(head: str, arguments: Sequence[Any]) -> bool:
    """Does this operator on weights make large tensors of small ones?"""
    return head == "op" and str(arguments[0]).startswith(UNPACKING)


@dataclass(frozen=True)
class Form:
    """A term that is no value of the model, written out."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class T:
    """A term among a term's arguments."""

    i: int

    def __str__(self) -> str:
        return f"(node {self.i})"


def _once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _quote(text: str) -> str:
    return json.dumps(text)


def _signature(emission: Emission, suffix: str = "") -> str:
    """What makes two operators the same operator: two nodes with equal signature and inputs compute equal values."""
    name = f"{emission.domain}::{emission.op_type}" if emission.domain else emission.op_type
    attributes = ",".join(f"{a.name}={_attribute(a)}" for a in sorted(emission.attributes, key=lambda a: a.name))
    if all(isinstance(i, int) for i in emission.inputs):
        inputs = ""
    else:
        inputs = "(" + ",".join("_" if i is None else "x" if isinstance(i, int) else digest(i) for i in emission.inputs) + ")"
    outputs = f":{emission.outputs}" if emission.outputs > 1 else ""
    written = f"{name}{{{attributes}}}{inputs or len(emission.inputs)}{outputs}{emission.overload}{suffix}"
    return " ".join(written.split())  # on one line and without tabs: it is a cell of a table of rows


def _attribute(a: ir.Attr) -> str:
    if a.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        tensors = a.value if isinstance(a.value, (list, tuple)) else [a.value]
        return ";".join(digest(t.numpy()) for t in tensors)
    if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "graph"
    return repr(a.value)


def digest(array: Any) -> str:
    """Short text that differs where arrays do."""
    data = np.ascontiguousarray(array)
    if data.dtype.kind in "iu" and data.size <= 8:
        return str(data.tolist()).replace(" ", "")
    return f"{data.dtype}{list(data.shape)}{hashlib.blake2b(data.tobytes(), digest_size=12).hexdigest()}"


VECTOR = 1 << 16
"""Elements up to which the signs of a weight are looked at: laws ask for those of scales, which are vectors."""


def evaluate(node: ir.Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """One operator of the standard on arrays, by the reference evaluator."""
    proto = ir.serde.serialize_node(node)
    feed = dict(zip((v.name or "" for v in node.inputs if v is not None), inputs, strict=True))
    ports = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feed.items()]
    graph = helper.make_graph([proto], "one", ports, [onnx.ValueInfoProto(name=proto.output[0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.version or OPSET)])
    return np.asarray(ReferenceEvaluator(model).run(None, feed)[0])  # type: ignore[index]


def _value_facts(weight: ir.TensorProtocol) -> tuple[str, ...]:
    """What holds of every element: zero or one; and of vectors and numbers their signs. Infinities and NaN are nothing."""
    if weight.dtype not in FLOATS or weight.size == 0:
        return ()
    array = weight.numpy()
    first = array.flat[0]
    if first in (0, 1) and bool(np.all(array == first)):
        return ("zero", "integer") if first == 0 else ("one", "positive", "nonzero", "integer")
    if array.size > VECTOR or len(array.shape) > 1 or not bool(np.all(np.isfinite(array.astype(np.float64)))):
        return ()
    signs = ("positive", "nonzero") if bool(np.all(array > 0)) else ("nonzero",) if bool(np.all(array != 0)) else ()
    return (*signs, "integer") if FACTS["integer"].holds(array) else signs  # type: ignore[misc]


def subgraphs(node: ir.Node) -> Iterable[ir.Graph]:
    for a in node.attributes.values():
        if a.type == ir.AttributeType.GRAPH:
            yield a.as_graph()
        elif a.type == ir.AttributeType.GRAPHS:
            yield from a.as_graphs()


def captures(graph: ir.Graph) -> list[ir.Value]:
    """Values from outside that a subgraph, or one inside it, reads; in order of reading."""
    own: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        own.update(node.outputs)
    found: list[ir.Value] = []
    for node in graph:
        inner = [v for g in subgraphs(node) for v in captures(g)]
        found += [v for v in (*node.inputs, *inner) if v is not None and v not in own]
    found += [v for v in graph.outputs if v not in own]
    return list(dict.fromkeys(found))


def _window(node: ir.Node, image: Shape | None, kernel: Shape | None) -> Window | None:
    """The geometry of a Conv, or None where it is not fully known."""
    if image is None or kernel is None or not all(isinstance(d, int) for d in kernel) or len(kernel) < 3:
        return None
    sizes = tuple(int(d) for d in kernel)
    group = node.attributes.get_int("group", 1)
    geometry = _geometry(node, sizes[2:], image)
    if geometry is None:
        return None
    dtype = node.outputs[0].dtype
    return Window(sizes[1] * group, sizes[0], sizes[2:], *geometry, group, dtype.numpy().name if dtype else "float32")


def _pool_window(node: ir.Node, image: Shape | None) -> Window | None:
    """An AveragePool as a depthwise window, where it is a linear map: padding counts, or there is none."""
    if image is None or len(image) < 3 or not isinstance(image[1], int) or node.attributes.get_int("ceil_mode", 0) == 1:
        return None
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    geometry = _geometry(node, kernel, image)
    if geometry is None or (any(geometry[1]) and not node.attributes.get_int("count_include_pad", 0)):
        return None
    dtype = node.outputs[0].dtype
    return Window(image[1], image[1], kernel, *geometry, image[1], dtype.numpy().name if dtype else "float32")


def _max_window(node: ir.Node, image: Shape | None) -> Window | None:
    if image is None or len(image) < 3 or not isinstance(image[1], int) or node.attributes.get_int("ceil_mode", 0) == 1:
        return None
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    geometry = _geometry(node, kernel, image)
    if geometry is None:
        return None
    dtype = node.outputs[0].dtype
    return Window(image[1], image[1], kernel, *geometry, image[1], dtype.numpy().name if dtype else "float32")


def _move_of(node: ir.Node, shape: Shape, operand: Any, out: Shape | None) -> tuple[Move | None, Shape | None]:
    """The move of a node that rearranges, and its result's shape."""
    n = len(shape)
    if node.op_type == "Transpose":
        perm = tuple(node.attributes.get_ints("perm", tuple(reversed(range(n)))))
        return transpose(shape, perm), tuple(shape[p] for p in perm)
    if node.op_type == "Expand":
        return (None, out) if out is None else (expand(shape, out), out)
    wanted: Shape
    if node.op_type == "Reshape":
        if node.attributes.get_int("allowzero", 0) and 0 in operand:
            return None, out
        if any(d == 0 and k >= n for k, d in enumerate(operand)):
            return None, out
        wanted = tuple(shape[k] if d == 0 else int(d) for k, d in enumerate(operand))
    elif out is not None:
        wanted = out
    elif node.op_type == "Squeeze" and operand is not None:
        gone = {int(a) % n for a in operand}
        wanted = tuple(d for k, d in enumerate(shape) if k not in gone)
    else:
        return None, out
    move = reshape(shape, wanted)
    return move, out if out is not None or -1 in wanted else wanted


def _slice_of(node: ir.Node, shape: Shape | None, operands: Sequence[ir.TensorProtocol | None]) -> tuple[int, int, int] | None:
    """(axis from the end, begin, end) of a Slice of one axis by steps of 1."""
    if shape is None or len(operands) < 2 or any(t is None for t in operands):
        return None
    begins, ends, *rest = (t.numpy().ravel().tolist() for t in operands if t is not None)
    axes = rest[0] if rest else [0]
    if len(begins) != 1 or len(axes) != 1 or (len(rest) > 1 and rest[1] != [1]):
        return None
    axis = axes[0] if axes[0] < 0 else axes[0] - len(shape)
    length = shape[axis]
    if not isinstance(length, int):
        return None
    begin, end, _ = slice(begins[0], ends[0]).indices(length)
    return (axis, begin, end) if begin < end else None


def _geometry(node: ir.Node, kernel: tuple[int, ...], image: Shape) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """(strides, pads, dilations), ``auto_pad`` resolved."""
    n = len(kernel)
    if len(image) != n + 2:
        return None
    strides = tuple(node.attributes.get_ints("strides", (1,) * n))
    dilations = tuple(node.attributes.get_ints("dilations", (1,) * n))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return strides, tuple(node.attributes.get_ints("pads", (0,) * (2 * n))), dilations
    if auto == "VALID":
        return strides, (0,) * (2 * n), dilations
    begins, ends = [], []
    for i, d in enumerate(image[2:]):
        if not isinstance(d, int):
            return None
        total = max(0, (-(-d // strides[i]) - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - d)
        small, large = total // 2, total - total // 2
        begins.append(large if auto == "SAME_LOWER" else small)
        ends.append(small if auto == "SAME_LOWER" else large)
    return strides, (*begins, *ends), dilations


def _image_shape(window: Window, image: Shape) -> Shape | None:
    """Of the result; spatial sizes that are only names stay names, the same for the same name and window."""
    numbers = [d if isinstance(d, int) else None for d in image[2:]]
    sized: list[int | str] = []
    for i, (d, name) in enumerate(zip(numbers, image[2:], strict=True)):
        pads = (window.pads[i], window.pads[window.rank + i])
        one = Window(1, 1, window.kernel[i : i + 1], window.strides[i : i + 1], pads, window.dilations[i : i + 1], 1)
        if d is not None:
            sized.append(one.size((d,))[0])
        else:
            stay = one.strides == (1,) and sum(one.pads) == one.dilations[0] * (one.kernel[0] - 1)
            sized.append(name if stay else f"({name}:{sum(one.pads) - one.dilations[0] * (one.kernel[0] - 1)}/{one.strides[0]})")
    return (image[0], window.outputs, *sized)
