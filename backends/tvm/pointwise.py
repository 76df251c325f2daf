"""Operators on elements: which of them kernels compute on vectors in registers, and how a chain of them is run.

What is taken is known without importing TVM; ``vector_operators`` has their definitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backends.tvm.kernel import Step

if TYPE_CHECKING:
    from backends.tvm.emit import Emitter, Expr

_FLOATS = frozenset({"float32", "float64"})
_WHOLE = frozenset({"int8", "uint8", "int32", "int64"})
_NUMBERS = _FLOATS | _WHOLE
_ALL = _NUMBERS | {"bool"}


def _each(names: str, dtypes: frozenset[str]) -> dict[str, frozenset[str]]:
    return dict.fromkeys(names.split(), dtypes)


# the types that inputs and results may have; truth values may always be among them
_TAKEN: Mapping[str, frozenset[str]] = {
    **_each("Identity Constant Cast Where Equal Not And Or Xor", _ALL),
    **_each("Add Sub Mul Div Neg Abs Min Max Sum Mean Clip Relu Sign Less Greater LessOrEqual GreaterOrEqual Mod Pow", _NUMBERS),
    **_each("BitwiseAnd BitwiseOr BitwiseXor BitwiseNot", _WHOLE),
    **_each("Sqrt Reciprocal Exp Log Sigmoid Tanh LeakyRelu PRelu Elu Selu Celu HardSigmoid HardSwish Softplus", _FLOATS),
    **_each("Softsign Mish ThresholdedRelu Shrink Floor Ceil Round IsNaN IsInf Erf Gelu", _FLOATS),
    **_each("Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh", _FLOATS),
    **_each("QuantizeLinear DequantizeLinear", _NUMBERS - {"float64", "int64"}),
}
SUPPORTED = frozenset(_TAKEN)


def takes(op: str, dtypes: Iterable[str], attributes: Mapping[str, Any]) -> bool:
    """Whether ``op`` is computed on vectors; ``dtypes`` are its inputs' types and its result's."""
    kinds = set(dtypes)
    if op not in _TAKEN or not kinds - {"bool"} <= _TAKEN[op]:
        return False
    if op == "Mod" and kinds & _FLOATS:
        return bool(attributes.get("fmod", 0))
    if op == "Pow":
        return kinds <= _FLOATS
    return True


def evaluate(emitter: Emitter, steps: Sequence[Step], registers: Sequence[Expr], lanes: int) -> Expr:
    """The last register after ``steps`` have run on vectors of ``lanes`` elements; each result is computed once.

    Truth values are bytes, 0 or 1, in registers as in memory. A missing optional input has the number -1.
    """
    from backends.tvm.vector_operators import OPERATORS, fixed

    values = [emitter.bind(value) for value in registers]
    constants: dict[int, Any] = {}
    for step in steps:
        if step.op == "Constant":
            constants[len(values)] = dict(step.attributes)["value"]
            values.append(fixed(constants[len(values)], step.dtype, lanes))
            continue
        arguments = [values[i] if i >= 0 else None for i in step.arguments]
        known = [constants.get(i) for i in step.arguments]
        values.append(emitter.bind(OPERATORS[step.op](emitter, step, arguments, known)))
    return values[-1]
