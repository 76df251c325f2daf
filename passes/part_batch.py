"""A recurrence over a batch that was put together of several is several recurrences (R8; paper 65, as it is trained).

Bidirectional layers run the backward direction as flipped copies beside the others in one batch. Taken apart, the copies need not be made:
a recurrence of flipped tensors is the recurrence from the last step to the first, flipped.
"""

from __future__ import annotations

import onnx_ir as ir

from rewriter.edit import Editor, const, is_op, operand, static
from rewriter.functions import DOMAIN


def part_batch(model: ir.Model) -> int:
    """Recurrences of concatenated batches that are split again, one for each part; how many there were.

    before                                          after
        q2 = Concat(q, Flip(q))  (k, v, g too)          a = LinearRecurrence(q, k, v, g)
        o = LinearRecurrence(q2, k2, v2, g2)            b = LinearRecurrence(q, k, v, h) {reverse=1}
        a, r = Split(o)
        b = Flip(r)
    """
    editor, count = Editor(model), 0
    for node in list(model.graph):
        if node.domain != DOMAIN or node.op_type != "LinearRecurrence":
            continue
        parts, split = _parts(node), _split(node)
        if parts is None or split is None or [(static(p[0]) or (0,))[0] for p in parts] != _lengths(split, parts):
            continue
        for part, old in zip(parts, split.outputs, strict=True):
            _write(node, part, old, editor)
        editor.drop(split)
        count += 1
    return count


def _parts(node: ir.Node) -> list[list[ir.Value]] | None:
    """Queries, keys, values and gates of each part of the batch."""
    makers = [v.producer() if v is not None else None for v in node.inputs]
    if any(m is None or not is_op(m, "Concat") or m.attributes.get_int("axis", 1) != 0 for m in makers):
        return None
    columns = [[v for v in m.inputs if v is not None] for m in makers if m is not None]
    if len({len(c) for c in columns}) != 1:
        return None
    parts = [list(part) for part in zip(*columns, strict=True)]
    sizes = [[static(v) for v in part] for part in parts]
    whole = all(s is not None and len(s) == 3 and s[0] == part[0][0] for part in sizes for s in part if part[0] is not None)
    return parts if whole and all(part[0] is not None for part in sizes) else None


def _split(node: ir.Node) -> ir.Node | None:
    """The Split into batches that alone reads the result."""
    uses = tuple(node.outputs[0].uses())
    reader = uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None
    return reader if is_op(reader, "Split") and reader is not None and reader.attributes.get_int("axis", 0) == 0 else None


def _lengths(split: ir.Node, parts: list[list[ir.Value]]) -> list[int]:
    """Of the pieces; where the Split does not say, they are equal."""
    said = const(operand(split, 1)) if len(split.inputs) > 1 else None
    if said is not None:
        return [int(n) for n in said.ravel()]
    whole = sum((static(p[0]) or (0,))[0] for p in parts)
    return [whole // len(split.outputs)] * len(split.outputs) if whole % len(split.outputs) == 0 and len(split.inputs) < 2 else []


def _write(node: ir.Node, part: list[ir.Value], old: ir.Value, editor: Editor) -> None:
    reverse = node.attributes.get_int("reverse", 0)
    sources = [_flipped(v) for v in part]
    turned = all(s is not None for s in sources)
    inputs = [s for s in sources if s is not None] if turned else part
    attributes = {"reverse": 1 - reverse if turned else reverse}
    new = editor.emit(node, "LinearRecurrence", inputs, attributes, domain=DOMAIN, dtype=old.dtype, shape=old.shape)
    for reader in {u.node for u in old.uses()} if turned else ():
        if _flips_time(reader):
            editor.replace(reader.outputs[0], new)
            editor.drop(reader)
    if old.uses() or old.is_graph_output():
        if turned:
            flip = next(v.producer() for v in part)
            assert flip is not None
            new = editor.emit(node, "Slice", [new, *flip.inputs[1:]], dtype=old.dtype, shape=old.shape)
        editor.replace(old, new)


def _flipped(value: ir.Value) -> ir.Value | None:
    """What the value is, last step first."""
    node = value.producer()
    return node.inputs[0] if node is not None and _flips_time(node) else None


def _flips_time(node: ir.Node) -> bool:
    """The whole of axis 1 of three, last element first."""
    if not is_op(node, "Slice") or len(node.inputs) != 5:
        return False
    begin, end, axis, step = (const(v) for v in node.inputs[1:])
    if any(a is None or a.size != 1 for a in (begin, end, axis, step)):
        return False
    first, last, along, by = (int(a.item()) for a in (begin, end, axis, step) if a is not None)
    return by == -1 and first == -1 and last < -(1 << 30) and along in (1, -2)
