"""Linear recurrences over time, however they were spelled, become one operator, or a convolution (R12; papers 12, 26, 55, 65).

A recurrence may come as a loop that a trace unrolled, as a ``Scan``, as one masked product (the parallel form), or in chunks: thousands
of nodes that no pattern covers and that an e-graph would have to induct over. So the part of the graph between a value and the tensors
that it takes apart by time is treated as what it is, a function: if it is ``rewriter::LinearRecurrence`` of those tensors, in some
assignment of their roles, it is replaced.

That it is, is decided by identity testing. Both functions are polynomials in the entries of queries, keys and values and in the
exponentials of the gates; two such polynomials that differ agree at a random point with probability zero (Schwartz, Zippel), and they are
compared at several, in float64. A function of one tensor that is linear, causal and the same at every step is a convolution, and
its kernel is its answer to an impulse.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from backends import reference
from rewriter.edit import Editor, const, dims, is_op, static, tensor
from rewriter.functions import DOMAIN, define
from rewriter.opset import OPSET

Array = np.ndarray[Any, Any]

NAME = "recurrence/one-operator"
RESTS = "rewriter.recurrence"
"""Metadata of the model: names of the weights that went into constants here, one a line. Other weights need another search."""
ELEMENTWISE = {"Add", "Sub", "Mul", "Neg", "Exp", "Identity", "Cast"}
INSIDE = ELEMENTWISE | {"MatMul", "Where", "CumSum", "ReduceSum", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Expand", "Concat", "Scan", "Pad",
                        "Div", "Max", "Min", "Gemm"}  # fmt: skip
COMPUTED = {"MatMul", "CumSum", "Scan"}
PARTING = {"Slice", "Gather", "Split"}
"""What takes a tensor apart by time."""
ZEROS = 1 << 20
SMALLEST = 6
"""Nodes: fewer are no loop."""
MOST = 4
"""Tensors that a recurrence is made of."""
POINTS = 3
CLOSE = 1e-7
"""Relative, in float64."""


@dataclass
class Region:
    """The nodes between ``sources`` and ``result``."""

    result: ir.Value
    sources: list[ir.Value]
    nodes: list[ir.Node]


def recognise_recurrence(model: ir.Model) -> int:
    """Recurrences of the main graph become operators, the last ones first; how many there were.

    before (for every t)                              after
        S_t = Exp(g_t) * S_(t-1) + k_t' v_t               o = rewriter::LinearRecurrence(q, k, v, g)
        o_t = q_t S_t
        o = Concat(o_1, o_2, ...)
    """
    if model.opset_imports.get("", 0) != OPSET:
        return 0  # the operator's definition is written in this one
    editor = Editor(model)
    count, work = 0, _Work(20 * len(model.graph) + 10_000)
    for node in reversed(list(model.graph)):
        if node.graph is None or not _may_end(node):
            continue
        ways = ((False, False), (True, False), (False, True))
        regions = (_region(v, work, *way) for v in node.outputs for way in ways if v.uses() or v.is_graph_output())
        count += any(_replaced(r, model, editor) for r in regions if r is not None)
    return count


@dataclass
class _Work:
    """Nodes that may still be looked at: a long chain that is no recurrence must not be walked from each of its steps."""

    left: int


def _may_end(node: ir.Node) -> bool:
    """What a recurrence's last operator can be: a stack of steps, a loop, the product of the masked form, or any of them turned round."""
    if is_op(node, "MatMul"):
        return not _with_weight(node)
    return is_op(node, "Concat", "Scan") or _flips(node)


def _with_weight(node: ir.Node) -> bool:
    """A linear map of the model, where no recurrence goes on. A state that begins with zeros is none."""
    return any(v is not None and (t := tensor(v)) is not None and (t.size > ZEROS or bool(t.numpy().any())) for v in node.inputs)


def _flips(node: ir.Node) -> bool:
    """The whole of one axis, last element first."""
    if not is_op(node, "Slice") or len(node.inputs) != 5:
        return False
    begin, end, _, step = (const(v) for v in node.inputs[1:])
    if any(a is None or a.size != 1 for a in (begin, end, step)):
        return False
    return int(step.item()) == -1 and int(begin.item()) == -1 and int(end.item()) < -(1 << 30)  # type: ignore[union-attr]


def _region(result: ir.Value, work: _Work, deep: bool, batched: bool = False) -> Region | None:
    """Back from a value through what a recurrence is made of, to the tensors that it parts by time, or to what is no part of one.

    ``deep``: what is parted may have been computed inside (a running sum, of which chunks read the last element). ``batched``: a batch
    that was put together of several is a tensor like others.
    """
    if const(result) is not None or result.producer() is None or result.dtype != ir.DataType.FLOAT:
        return None
    nodes: dict[ir.Node, bool] = {}
    sources: dict[ir.Value, None] = {}
    stack: list[tuple[ir.Value, bool]] = [(result, False)]
    graph = result.producer().graph  # type: ignore[union-attr]
    while stack:
        value, parted = stack.pop()
        node = value.producer()
        if tensor(value) is not None:
            continue
        inside = node is not None and node.graph is graph and node.domain == ""
        known = node is not None and node in nodes and nodes[node] == parted
        whole = batched and is_op(node, "Concat") and value is not result and node.attributes.get_int("axis", 1) == 0  # type: ignore[union-attr]
        if not inside or node is None or whole or not _continues(node, parted, deep):
            sources[value] = None
            continue
        if known:
            continue
        nodes[node] = nodes.get(node, parted) and parted
        work.left -= 1
        if work.left < 0 or len(sources) > MOST:
            return None
        above = not (deep and node.op_type in COMPUTED) and (parted or _parts(node))
        stack += [(v, above) for v in node.inputs if v is not None]
    looping = any(n.op_type in ("Scan", "CumSum") or _parts(n) for n in nodes)
    if not looping or (len(nodes) < SMALLEST and not any(n.op_type == "Scan" for n in nodes)) or not 1 <= len(sources) <= MOST:
        return None
    if any(v in sources for n in nodes for v in n.outputs):
        return None  # a tensor that is read whole and in parts: where it begins is not clear
    place = {n: k for k, n in enumerate(graph)}  # type: ignore[arg-type]
    ordered = sorted(nodes, key=place.__getitem__)
    return Region(result, sorted(sources, key=lambda v: v.name or ""), ordered)


def _parts(node: ir.Node) -> bool:
    """Does it take a tensor apart? An axis of length 1 is only dropped."""
    if node.op_type not in PARTING or _flips(node):
        return False
    axis = node.attributes.get_int("axis", 0)
    shape = dims(node.inputs[0])
    return not (is_op(node, "Gather") and shape is not None and shape[axis] == 1)


def _continues(node: ir.Node, parted: bool, deep: bool) -> bool:
    """Does the region go on above this node? Above what parts by time only functions of each element are looked through."""
    if _flips(node):
        return True
    if parted:
        numbers = [v for v in node.inputs if v is not None and (array := const(v)) is not None and array.size == 1]
        return (is_op(node, *ELEMENTWISE) and len(node.inputs) - len(numbers) == 1) or (deep and is_op(node, *COMPUTED) and not _with_weight(node))
    if is_op(node, "MatMul", "Gemm") and _with_weight(node):
        return False
    if node.op_type in PARTING:
        return all(v is None or tensor(v) is not None for v in node.inputs[1:])
    return is_op(node, *INSIDE)


class _Function:
    """A region that can be called, in float64."""

    def __init__(self, region: Region, shapes: Sequence[Sequence[int]]) -> None:
        inside = {v for n in region.nodes for v in n.outputs}
        read = {v for n in region.nodes for v in (*n.inputs, *_captured(n)) if v is not None and v not in inside}
        weights = [(v.name or "", tensor(v)) for v in sorted(read, key=lambda v: v.name or "") if tensor(v) is not None]
        self.weights = [name for name, _ in weights if name]
        ports = [helper.make_tensor_value_info(v.name or "", onnx.TensorProto.FLOAT, s) for v, s in zip(region.sources, shapes, strict=True)]
        graph = helper.make_graph(
            [ir.serde.serialize_node(n) for n in region.nodes], "region", ports, [onnx.ValueInfoProto(name=region.result.name or "")],
            [_named(name, data) for name, data in weights if data is not None],
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        self._program = reference.ReferenceProgram(proto, float64=True)

    def __call__(self, *arrays: Array) -> Array:
        return np.asarray(self._program(*(a.astype(np.float32) for a in arrays))[0], np.float64)


def _named(name: str, data: ir.TensorProtocol) -> onnx.TensorProto:
    proto = ir.serde.serialize_tensor(data)
    proto.name = name
    return proto


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    for a in node.attributes.values():
        if a.type == ir.AttributeType.GRAPH:
            inner = a.as_graph()
            own = {*inner.inputs, *inner.initializers.values(), *(v for n in inner for v in n.outputs)}
            yield from (v for n in inner for v in n.inputs if v is not None and v not in own)


LENGTH = 6
"""Of a time axis whose length the model leaves open."""


def _replaced(region: Region, model: ir.Model, editor: Editor) -> bool:
    shapes = [dims(v) for v in region.sources]
    if any(s is None or v.dtype != ir.DataType.FLOAT for s, v in zip(shapes, region.sources, strict=True)):
        return False
    names = {d: LENGTH for s in shapes for d in s or () if not isinstance(d, int)}
    numbers = [tuple(d if isinstance(d, int) else names[d] for d in s or ()) for s in shapes]
    try:
        function = _Function(region, numbers)
        rng = np.random.default_rng(0)
        points = [[_drawn(rng, n) for n in numbers] for _ in range(POINTS)]
        results = [function(*p) for p in points]
    except Exception:  # noqa: BLE001  what cannot be evaluated is not recognised
        return False
    if not all(np.isfinite(r).all() for r in results) or not any(r.any() for r in results):
        return False
    done = any(_in_roles(region, roles, points, results, model, editor) for roles in _roles(numbers, results[0].shape))
    done = done or (len(region.sources) == 1 and _as_convolution(region, function, numbers[0], results[0].shape, editor))
    if done:
        known = model.metadata_props.get(RESTS, "").splitlines()
        model.metadata_props[RESTS] = "\n".join(sorted({*known, *function.weights}))
    return done


def _in_roles(
    region: Region, roles: Roles, points: Sequence[Sequence[Array]], results: Sequence[Array], model: ir.Model, editor: Editor
) -> bool:
    found = _agrees(roles, points, results) if _writable(region, roles) else None
    if found is not None:
        _write(region, roles, found, model, editor)
    return found is not None


def _drawn(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Entries of both signs, those of a log gate included: a polynomial does not mind. Exact in float32."""
    return (rng.integers(-64, 64, shape) / 64 - 0.25).astype(np.float64)


@dataclass(frozen=True)
class Roles:
    """Which source is what (None: no gate), where time and the features lie, and in which direction time runs."""

    q: int
    k: int
    v: int
    g: int | None
    time: int
    logarithmic: bool
    reverse: bool


def _roles(shapes: Sequence[Sequence[int]], result: Sequence[int]) -> Iterator[Roles]:
    rank = len(result)
    if rank < 2 or any(len(s) != rank for s in shapes) or len(shapes) not in (2, 3, 4):
        return
    everyone = range(len(shapes))
    for time in range(rank - 1):
        length = result[time]
        if length < 2 or any(s[time] != length for s in shapes):
            continue
        for q, k, v in itertools.product(everyone, repeat=3):
            rest = [i for i in everyone if i not in (q, k, v)]
            if len(rest) > 1 or v in (q, k) and len(shapes) > 2:
                continue
            g = rest[0] if rest else None
            if shapes[q] != shapes[k] or tuple(shapes[v][:-1]) != tuple(shapes[k][:-1]) or tuple(shapes[v]) != tuple(result):
                continue
            if g is not None and (tuple(shapes[g][:-1]) != tuple(shapes[k][:-1]) or shapes[g][-1] not in (1, shapes[k][-1])):
                continue
            for logarithmic in (True, False) if g is not None else (True,):
                for reverse in (False, True):
                    yield Roles(q, k, v, g, time, logarithmic, reverse)


def linear_recurrence(q: Array, k: Array, v: Array, g: Array) -> Array:
    """o_t = q_t S_t, S_t = diag(exp g_t) S_(t-1) + k_t' v_t: q, k, g ``[..., t, i]``, v ``[..., t, j]`` -> ``[..., t, j]``."""
    return _decaying(q, k, v, np.exp(g))


def _decaying(q: Array, k: Array, v: Array, decay: Array) -> Array:
    state = np.zeros((*k.shape[:-2], k.shape[-1], v.shape[-1]))
    out = np.zeros(v.shape)
    for t in range(k.shape[-2]):
        state = decay[..., t, :, None] * state + k[..., t, :, None] * v[..., t, None, :]
        out[..., t, :] = (q[..., t, None, :] @ state)[..., 0, :]
    return out


def _writable(region: Region, roles: Roles) -> bool:
    """Can the reshapes around the operator say every length? One may be left open; of more than three axes, one in front."""
    shapes = [dims(v) or () for v in region.sources]
    ends = [s[a] for s in shapes for a in (roles.time, -1)]
    rank = len(shapes[0])
    told = all(sum(not isinstance(d, int) for d in s) <= 1 for s in shapes)
    return rank == 3 or (told and (rank == 2 or all(isinstance(d, int) for d in ends)))


@dataclass(frozen=True)
class _Constants:
    """``factor`` of the whole; ``decay``: log gate of every channel ``[i]`` where no tensor gates."""

    factor: float
    decay: Array | None


def _agrees(roles: Roles, points: Sequence[Sequence[Array]], results: Sequence[Array]) -> _Constants | None:
    constants: _Constants | None = None
    for arrays, result in zip(points, results, strict=True):
        q, k, v = (_turned(arrays[i], roles) for i in (roles.q, roles.k, roles.v))
        want = _turned(result, roles)
        if constants is None:
            constants = _constants(roles, q, k, v, None if roles.g is None else _turned(arrays[roles.g], roles), want)
            if constants is None:
                return None
        with np.errstate(all="ignore"):
            got = constants.factor * _gated(roles, q, k, v, None if roles.g is None else _turned(arrays[roles.g], roles), constants)
        scale = max(float(np.abs(want).max()), 1e-30)
        if not np.isfinite(got).all() or float(np.abs(got - want).max()) > CLOSE * scale:
            return None
    return constants


def _turned(x: Array, roles: Roles) -> Array:
    """Time last but one, running forward."""
    moved = np.moveaxis(x, roles.time, -2)
    return moved[..., ::-1, :] if roles.reverse else moved


def _gated(roles: Roles, q: Array, k: Array, v: Array, g: Array | None, c: _Constants) -> Array:
    constant = np.zeros(k.shape[-1]) if c.decay is None else c.decay
    gate = np.broadcast_to(constant if g is None else g, k.shape)
    return linear_recurrence(q, k, v, gate) if g is None or roles.logarithmic else _decaying(q, k, v, gate)


def _constants(roles: Roles, q: Array, k: Array, v: Array, g: Array | None, want: Array) -> _Constants | None:
    """What the first step says about the factor, and the second about the decay: the law then holds at the others or not."""
    first = (q[..., 0, :] * k[..., 0, :]).sum(-1, keepdims=True) * v[..., 0, :]
    where = np.abs(first) > 1e-6
    if not where.any():
        return None
    ratios = want[..., 0, :][where] / first[where]
    factor = float(np.median(ratios))
    if factor == 0 or np.abs(ratios - factor).max() > CLOSE * abs(factor):
        return None
    if g is not None:
        return _Constants(factor, None)
    # want_1 / factor = sum_i q_1i (d_i k_0i v_0 + k_1i v_1): linear in d, one equation an entry.
    left = want[..., 1, :] / factor - (q[..., 1, :] * k[..., 1, :]).sum(-1, keepdims=True) * v[..., 1, :]
    rows = (q[..., 1, :] * k[..., 0, :])[..., None, :] * v[..., 0, :, None]
    system, right = rows.reshape(-1, k.shape[-1]), left.reshape(-1)
    if system.shape[0] < system.shape[1] or np.linalg.matrix_rank(system) < system.shape[1]:
        return None
    decay = np.linalg.lstsq(system, right, rcond=None)[0]
    decay = np.where(np.abs(decay - 1) < 1e-9, 1.0, decay)
    return _Constants(factor, np.log(decay)) if (decay > 0).all() else None


def _write(region: Region, roles: Roles, constants: _Constants, model: ir.Model, editor: Editor) -> None:
    """The operator between reshapes to ``[batch, time, features]`` and back."""
    result, last = region.result, region.result.producer()
    assert last is not None
    define(model, "LinearRecurrence")
    rank = len(dims(region.sources[roles.q]) or ())
    forward = [*(a for a in range(rank - 1) if a != roles.time), roles.time, rank - 1]

    def shaped(value: ir.Value) -> ir.Value:
        shape = dims(value) or ()
        if forward != sorted(forward):
            value = editor.emit(last, "Transpose", [value], {"perm": forward}, dtype=value.dtype, shape=[shape[a] for a in forward])
        if rank == 3:
            return value
        target = np.array([-1, _fixed(shape[roles.time]), _fixed(shape[-1])] if rank > 3 else [1, _fixed(shape[0]), _fixed(shape[1])], np.int64)
        return editor.emit(last, "Reshape", [value, editor.constant(target, "shape")], dtype=value.dtype)

    q, k, v = (shaped(region.sources[i]) for i in (roles.q, roles.k, roles.v))
    gate = _gate(region, roles, constants, k, shaped, editor, last)
    y = editor.emit(last, "LinearRecurrence", [q, k, v, gate], {"reverse": int(roles.reverse)}, domain=DOMAIN, dtype=result.dtype)
    if constants.factor != 1.0:
        factor = editor.constant(np.array(constants.factor, np.float32), "factor")
        y = editor.emit(last, "Mul", [y, factor], dtype=result.dtype)
    out = dims(region.sources[roles.v]) or ()
    if rank != 3:
        turned = [out[a] for a in forward]
        y = editor.emit(last, "Reshape", [y, editor.constant(np.array([_fixed(d) for d in turned], np.int64), "shape")], dtype=result.dtype)
    if forward != sorted(forward):
        y = editor.emit(last, "Transpose", [y], {"perm": [forward.index(a) for a in range(rank)]}, dtype=result.dtype)
    y.shape = result.shape
    editor.replace(result, y)
    editor.drop(last)


def _fixed(d: int | str | None) -> int:
    return d if isinstance(d, int) else -1


def _gate(
    region: Region, roles: Roles, constants: _Constants, k: ir.Value, shaped: Any, editor: Editor, last: ir.Node
) -> ir.Value:
    """Log gates ``[batch, time, features]``, or of one length in an axis that is repeated."""
    if roles.g is None:
        decay = constants.decay if constants.decay is not None else np.zeros(1)
        return editor.constant(decay.astype(np.float32).reshape(1, 1, -1), "decay")
    value = region.sources[roles.g]
    if roles.logarithmic:
        return shaped(value)  # type: ignore[no-any-return]
    maker = value.producer()
    if is_op(maker, "Sigmoid") and maker is not None:
        # log sigmoid(x) == -softplus(-x), which does not lose small gates.
        x = maker.inputs[0]
        assert x is not None
        negative = editor.emit(last, "Neg", [x], dtype=value.dtype, shape=dims(value))
        soft = editor.emit(last, "Softplus", [negative], dtype=value.dtype, shape=dims(value))
        return shaped(editor.emit(last, "Neg", [soft], dtype=value.dtype, shape=dims(value)))  # type: ignore[no-any-return]
    return shaped(editor.emit(last, "Log", [value], dtype=value.dtype, shape=dims(value)))  # type: ignore[no-any-return]


def _as_convolution(region: Region, function: _Function, shape: Sequence[int], result: Sequence[int], editor: Editor) -> bool:
    """A causal, linear function of one signal ``[batch, channels, time]`` that is the same at every step."""
    if len(shape) != 3 or tuple(result) != tuple(shape) or static(region.sources[0]) is None:
        return False
    n, channels, length = shape
    impulse = np.zeros(shape)
    impulse[:, :, 0] = 1
    kernel = function(impulse)[0]  # [channels, time]
    rng = np.random.default_rng(1)
    for _ in range(POINTS):
        u = _drawn(rng, shape)
        want = function(u)
        got = np.stack([[np.convolve(u[b, c], kernel[c])[:length] for c in range(channels)] for b in range(n)])
        if float(np.abs(got - want).max()) > CLOSE * max(float(np.abs(want).max()), 1e-30):
            return False
    last = region.result.producer()
    assert last is not None
    taps = editor.constant(np.ascontiguousarray(kernel[:, None, ::-1]).astype(np.float32), "impulse_response")
    attributes = {"group": channels, "kernel_shape": [length], "pads": [length - 1, 0], "strides": [1], "dilations": [1]}
    y = editor.emit(last, "Conv", [region.sources[0], taps], attributes, dtype=region.result.dtype, shape=shape)
    editor.replace(region.result, y)
    editor.drop(last)
    return True

