"""Scales and zero points that cancel: codes stay codes (R16).

A QDQ graph says where tensors are 8-bit by QuantizeLinear and DequantizeLinear around every operator. Between two operators on codes,
and around what only moves elements or takes the greatest of some, the pair is the identity on codes: ``Q(DQ(q)) == q`` bit for bit, for
codes of up to 16 bits, because ``(q - z) s / s`` is off ``q - z`` by far less than half. The rest of the quantiser's scales cannot go: what
is left between DequantizeLinear and QuantizeLinear is arithmetic on the numbers. Weights that are turned are turned as codes, once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from rewriter.edit import Editor, is_op, operand, required, tensor

NAME = "quantisation/codes-stay-codes"
MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "MaxPool", "Identity", "Concat", "Split"}
"""Operators whose results are some of their elements; of MaxPool the greatest, and codes are in the order of their numbers."""
NARROW = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16}
POOLED = {ir.DataType.INT8, ir.DataType.UINT8}


@dataclass
class Folded:
    """``count``: operators that went. ``rests``: scales and zero points that were found equal."""

    count: int = 0
    rests: list[str] = field(default_factory=list)


def fold_quantisation(model: ir.Model) -> Folded:
    """Pairs of quantisers that are the identity on codes, and clamps that a quantiser makes again, are taken out.

    before                                          after
        x = DequantizeLinear(q, s, z)                   y = Transpose(q)
        t = Transpose(x)
        y = QuantizeLinear(t, s, z)
    """
    folded, editor = Folded(), Editor(model)
    changed = True
    while changed:
        changed = False
        for node in list(model.graph):
            if node.graph is not None and is_op(node, "Transpose"):
                changed |= _turned(node, editor, folded)
            if node.graph is None or not is_op(node, "QuantizeLinear"):
                continue
            changed |= _without_clamp(node, editor, folded) or _cancelled(node, editor, folded) or _moved(node, editor, folded)
    return folded


@dataclass(frozen=True)
class _Parameters:
    scale: np.ndarray
    zero: np.ndarray | None
    names: tuple[str, ...]

    def agrees(self, other: _Parameters) -> bool:
        """Equal numbers, one for the whole tensor."""
        zeros = [np.zeros(1, np.int64) if p.zero is None else p.zero.astype(np.int64).ravel() for p in (self, other)]
        return self.scale.size == other.scale.size == 1 and self.scale.item() == other.scale.item() and zeros[0].tolist() == zeros[1].tolist()


def _parameters(node: ir.Node) -> _Parameters | None:
    scale, zero = tensor(operand(node, 1)), operand(node, 2)
    point = tensor(zero) if zero is not None else None
    if scale is None or (zero is not None and point is None) or node.attributes.get_int("block_size", 0) != 0:
        return None
    names = tuple(v.name or "" for v in node.inputs[1:] if v is not None)
    return _Parameters(scale.numpy(), None if point is None else point.numpy(), names)


def _code_type(node: ir.Node) -> ir.DataType | None:
    """The type of the codes that a quantiser makes, or that a dequantiser reads."""
    return node.outputs[0].dtype if is_op(node, "QuantizeLinear") else required(node, 0).dtype


def _same_codes(quantise: ir.Node, dequantise: ir.Node) -> _Parameters | None:
    a, b = _parameters(quantise), _parameters(dequantise)
    if a is None or b is None or not a.agrees(b) or _code_type(quantise) != _code_type(dequantise) or _code_type(quantise) not in NARROW:
        return None
    return _Parameters(a.scale, a.zero, (*a.names, *b.names))


def _dequantiser(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if is_op(node, "DequantizeLinear") else None


def _cancelled(node: ir.Node, editor: Editor, folded: Folded) -> bool:
    """Q(DQ(q)) == q"""
    inner = _dequantiser(node.inputs[0])
    same = _same_codes(node, inner) if inner is not None else None
    if inner is None or same is None:
        return False
    return _done(node, required(inner, 0), same, editor, folded)


def _done(node: ir.Node, codes: ir.Value, same: _Parameters, editor: Editor, folded: Folded) -> bool:
    folded.count += 1
    folded.rests += [n for n in same.names if n not in folded.rests]
    editor.replace(node.outputs[0], codes)
    editor.drop(node)
    return True


def _moved(node: ir.Node, editor: Editor, folded: Folded) -> bool:
    """Q(move(DQ(q))) == move(q), for a move that only this quantiser reads."""
    move = required(node, 0).producer()
    if move is None or not is_op(move, *MOVES) or len(move.outputs) != 1 or len(list(move.outputs[0].consumers())) != 1:
        return False
    if move.outputs[0].is_graph_output() or (is_op(move, "MaxPool") and _code_type(node) not in POOLED):
        return False
    data = list(move.inputs) if is_op(move, "Concat") else [move.inputs[0]]
    inner = [_dequantiser(v) for v in data]
    same = [_same_codes(node, d) if d is not None else None for d in inner]
    if any(s is None for s in same) or any(d is None for d in inner):
        return False
    inputs = [required(d, 0) for d in inner if d is not None] + ([] if is_op(move, "Concat") else list(move.inputs[1:]))
    attributes = {a.name: a.value for a in move.attributes.values()}
    codes = editor.emit(node, move.op_type, inputs, attributes, dtype=_code_type(node), shape=move.outputs[0].shape)
    for each in same[1:]:
        folded.rests += [n for n in (each.names if each is not None else ()) if n not in folded.rests]
    assert same[0] is not None
    return _done(node, codes, same[0], editor, folded)


def _turned(node: ir.Node, editor: Editor, folded: Folded) -> bool:
    """Transpose(DQ(w)) == DQ(Transpose(w)) for stored codes w: a scale for each channel lies along another axis then."""
    inner = _dequantiser(node.inputs[0])
    codes = required(inner, 0) if inner is not None else None
    parameters = _parameters(inner) if inner is not None else None
    if inner is None or codes is None or tensor(codes) is None or parameters is None or parameters.scale.ndim > 1:
        return False
    rank = len(tensor(codes).shape)  # type: ignore[union-attr]
    perm = list(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))
    attributes = {a.name: a.value for a in inner.attributes.values()}
    if parameters.scale.ndim == 1:
        attributes["axis"] = perm.index(inner.attributes.get_int("axis", 1) % rank)
    shape = [codes.shape[p] for p in perm] if codes.shape is not None else None
    turned = editor.emit(node, "Transpose", [codes], {"perm": perm}, dtype=codes.dtype, shape=shape)
    numbers = editor.emit(node, "DequantizeLinear", [turned, *inner.inputs[1:]], attributes, dtype=node.outputs[0].dtype, shape=shape)
    folded.count += 1
    editor.replace(node.outputs[0], numbers)
    editor.drop(node)
    return True


def _without_clamp(node: ir.Node, editor: Editor, folded: Folded) -> bool:
    """Q(Relu(x)) == Q(x), where zero is the least code: what is below it becomes it in any case."""
    clamp = required(node, 0).producer()
    parameters, kind = _parameters(node), _code_type(node)
    if clamp is None or not is_op(clamp, "Relu") or parameters is None or kind not in NARROW or bool((parameters.scale <= 0).any()):
        return False
    least = np.iinfo(kind.numpy()).min
    zero = np.zeros(1, np.int64) if parameters.zero is None else parameters.zero.astype(np.int64)
    if bool((zero != least).any()):
        return False
    node.replace_input_with(0, required(clamp, 0))
    editor.drop(clamp)
    folded.count += 1
    folded.rests += [n for n in parameters.names if n not in folded.rests]
    return True
