"""Operators on vectors, against NumPy in float64, at all widths, on values that break things."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm_kernels import machines, step

from backends.tvm import pointwise, single
from backends.tvm.emit import Emitter
from backends.tvm.kernel import Machine, Step
from backends.tvm.vector_operators import OPERATORS

Array = np.ndarray[Any, Any]
F32 = np.float32
TINY = 1.5e-38  # results below may be flushed to zero


MACHINES = machines()


@dataclass(frozen=True)
class Steps:
    """y = steps(inputs), element by element, ``lanes`` at a time."""

    count: int
    dtypes: tuple[str, ...]
    steps: tuple[Step, ...]
    lanes: int

    operations = 0.0

    def configs(self, machine: Machine) -> list[tuple[Any, ...]]:
        return [()]

    def scratch(self, config: Any, machine: Machine) -> int:
        return 0

    def write(self, config: Any, machine: Machine) -> Any:
        e = Emitter()
        inputs = [e.pointer(f"x{i}", dtype) for i, dtype in enumerate(self.dtypes)]
        out = e.pointer("y", self.steps[-1].dtype)
        with e.loop(self.count // self.lanes) as i:
            registers = [e.load(x, i * self.lanes, self.lanes) for x in inputs]
            e.store(out, i * self.lanes, pointwise.evaluate(e, self.steps, registers, self.lanes))
        return e.function("steps")


def edges() -> Array:
    """Whole, half, tiny, huge, infinite and undefined numbers, and many ordinary ones."""
    special = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.5, 1e-20, -1e-20, 1e-38, 87.3, 88.7, 88.8, -87.3, -104.0]
    special += [np.inf, -np.inf, np.nan, 1e30, -1e30, 3.4e38, 8388607.5, -8388607.5, 16777216.0, 20.0, 1e-6, -1e-6]
    rng = np.random.default_rng(0)
    ordinary = np.concatenate([rng.standard_normal(514), 20 * rng.standard_normal(240), np.linspace(-110, 110, 240)])
    return np.concatenate([special, ordinary]).astype(F32)


X = edges()
Y = np.random.default_rng(1).permutation(X)


@dataclass(frozen=True)
class Case:
    """One operator: how it is called, what it must give, and how many units in the last place it may be off."""

    op: str
    inputs: tuple[Array, ...]
    expected: Callable[..., Any]
    ulp: float = 1.0
    dtype: str = "float32"
    attributes: dict[str, Any] = field(default_factory=dict)
    absolute: float = 0.0  # where terms cancel

    def steps(self) -> tuple[Step, ...]:
        return (step(self.op, *range(len(self.inputs)), dtype=self.dtype, **self.attributes),)

    def dtypes(self) -> tuple[str, ...]:
        return tuple(str(array.dtype) for array in self.inputs)


def sigmoid(x: Any) -> Any:
    return np.where(x > 0, 1 / (1 + np.exp(-abs(x))), np.exp(-abs(x)) / (1 + np.exp(-abs(x)))) + 0 * np.where(np.isinf(x), 0, x)


def softplus(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))


erf = np.vectorize(math.erf)
erfc = np.vectorize(math.erfc)
WHOLE = np.array([-128, -127, -1, 0, 1, 2, 3, 127, 100, -100, 7, -7, 64, 5, -5, 50], np.int8)
LONG = np.array([-(2**40), -1, 0, 1, 7, -7, 2**40, 9, 3, -3, 10, 11, 12, -13, 14, 15], np.int64)
INT = LONG.astype(np.int32)
DIVISOR = np.array([3, -3, 5, 1, 2, 2, 7, 9, -1, -2, 4, 3, -5, 5, 6, 1], np.int64)
TRUE = np.array([0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 0, 1], bool)
OTHER = np.roll(TRUE, 3)
BYTES = np.arange(0, 256, 16).astype(np.uint8)

CASES = [
    Case("Add", (X, Y), np.add),
    Case("Sub", (X, Y), np.subtract),
    Case("Mul", (X, Y), np.multiply),
    Case("Div", (X, Y), np.divide),
    Case("Div", (LONG, DIVISOR), lambda a, b: np.trunc(a / b), 0, "int64"),
    Case("Add", (WHOLE, WHOLE), np.add, 0, "int8"),
    Case("Mul", (LONG, LONG), np.multiply, 0, "int64"),
    Case("Mod", (LONG, DIVISOR), np.mod, 0, "int64"),
    Case("Mod", (INT, DIVISOR.astype(np.int32)), np.fmod, 0, "int32", {"fmod": 1}),
    Case("Mod", (Y, X), np.fmod, 0, attributes={"fmod": 1}),
    Case("Pow", (X, np.full_like(X, 2.5)), np.power),
    Case("Pow", (abs(X), Y), np.power),
    Case("Neg", (X,), np.negative),
    Case("Neg", (LONG,), np.negative, 0, "int64"),
    Case("Abs", (X,), abs),
    Case("Abs", (INT,), abs, 0, "int32"),
    Case("Sqrt", (X,), np.sqrt),
    Case("Reciprocal", (X,), np.reciprocal),
    Case("Exp", (X,), np.exp, 1.5),
    Case("Log", (X,), np.log, 1.5),
    Case("Sigmoid", (X,), sigmoid, 2.5),
    Case("Tanh", (X,), np.tanh, 3),
    Case("Erf", (X,), erf, 1.5),
    Case("Gelu", (X,), lambda x: x * erfc(-x / np.sqrt(2)) / 2, 4, absolute=3e-7),
    Case("Gelu", (X,), lambda x: x * sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)), 12, attributes={"approximate": "tanh"}, absolute=5e-8),
    Case("Relu", (X,), lambda x: np.maximum(x, 0)),
    Case("Clip", (X,), lambda x: np.clip(x, -1, 6), attributes={"min": -1.0, "max": 6.0}),
    Case("Clip", (X, np.full_like(X, -1), np.full_like(X, 2)), np.clip),
    Case("LeakyRelu", (X,), lambda x: np.where(x < 0, 0.1 * x, x), attributes={"alpha": 0.1}),
    Case("PRelu", (X, Y), lambda x, s: np.where(x < 0, s * x, x)),
    Case("Elu", (X,), lambda x: np.where(x < 0, 1.5 * np.expm1(np.minimum(x, 0)), x), 2, attributes={"alpha": 1.5}),
    Case("Selu", (X,), lambda x: 1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * np.expm1(np.minimum(x, 0)), x), 3),
    Case("Celu", (X,), lambda x: np.where(x < 0, 2 * np.expm1(np.minimum(x, 0) / 2), x), 2, attributes={"alpha": 2.0}),
    Case("HardSigmoid", (X,), lambda x: np.clip(0.2 * x + 0.5, 0, 1), absolute=1e-7),
    Case("HardSwish", (X,), lambda x: x * np.clip(x / 6 + 0.5, 0, 1), 2, absolute=1e-6),
    Case("Softplus", (X,), softplus, 2.5, absolute=2e-38),
    Case("Softsign", (X[~np.isinf(X)],), lambda x: x / (1 + abs(x)), 1.5),
    Case("Mish", (X,), lambda x: x * np.tanh(softplus(x)), 5, absolute=1e-35),
    Case("ThresholdedRelu", (X,), lambda x: np.where(x > 0.5, x, 0), attributes={"alpha": 0.5}),
    Case("Shrink", (X,), lambda x: np.where(x < -1, x + 0.5, np.where(x > 1, x - 0.5, 0)), attributes={"lambd": 1.0, "bias": 0.5}),
    Case("Floor", (X,), np.floor),
    Case("Ceil", (X,), np.ceil),
    Case("Round", (X,), np.rint),
    Case("Sign", (X,), np.sign),
    Case("Min", (X, Y), np.minimum),
    Case("Max", (X, Y), np.maximum),
    Case("Max", (X, Y, np.roll(Y, 5)), lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    Case("Sum", (X, X, X), lambda a, b, c: a + b + c, 1.5),
    Case("Mean", (X[30:], Y[:-30] * F32(0.1)), lambda a, b: (a + b) / 2, 1.5),
    Case("Equal", (X, X), np.equal, 0, "bool"),
    Case("Equal", (TRUE, OTHER), np.equal, 0, "bool"),
    Case("Less", (X, Y), np.less, 0, "bool"),
    Case("Greater", (X, Y), np.greater, 0, "bool"),
    Case("LessOrEqual", (X, X), np.less_equal, 0, "bool"),
    Case("GreaterOrEqual", (LONG, DIVISOR), np.greater_equal, 0, "bool"),
    Case("And", (TRUE, OTHER), np.logical_and, 0, "bool"),
    Case("Or", (TRUE, OTHER), np.logical_or, 0, "bool"),
    Case("Xor", (TRUE, OTHER), np.logical_xor, 0, "bool"),
    Case("Not", (TRUE,), np.logical_not, 0, "bool"),
    Case("BitwiseAnd", (LONG, DIVISOR), np.bitwise_and, 0, "int64"),
    Case("BitwiseNot", (BYTES,), np.bitwise_not, 0, "uint8"),
    Case("Where", (TRUE, X[:16], Y[:16]), np.where, 0),
    Case("Cast", (X[~(abs(X) > 1e9)],), np.trunc, 0, "int32"),
    Case("Cast", (X,), lambda x: x != 0, 0, "bool"),
    Case("Cast", (LONG,), lambda x: x, 0, "float32"),
    Case("Cast", (WHOLE,), lambda x: x, 0, "int64"),
    Case("Cast", (TRUE,), lambda x: x, 0, "float32"),
    Case("Cast", (BYTES,), lambda x: x, 0, "float32"),
    Case("Cast", (np.linspace(0, 255, 16).astype(F32),), np.trunc, 0, "uint8"),
    Case("Sin", (X[abs(X) < 1e6],), np.sin),
    Case("Cos", (X[abs(X) < 1e6],), np.cos),
    Case("Asinh", (X[:16],), np.arcsinh),
    Case("Atan", (X,), np.arctan),
    Case("IsNaN", (X,), np.isnan, 0, "bool"),
    Case("IsInf", (X,), np.isinf, 0, "bool"),
    Case("IsInf", (X,), np.isneginf, 0, "bool", {"detect_positive": 0}),
    Case("Identity", (X,), lambda x: x, 0),
    Case("QuantizeLinear", (X[~np.isnan(X)], np.full_like(X, 0.5)[~np.isnan(X)]), lambda x, s: np.clip(np.rint(x / s), -128, 127), 0, "int8"),
    Case("DequantizeLinear", (BYTES, np.full(16, 0.1, F32), np.full(16, 7, np.uint8)), lambda x, s, z: (x - z) * s),
    Case("Exp", (X.astype(np.float64),), np.exp, 2, "float64"),
    Case("Elu", (X.astype(np.float64),), lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x), 2, "float64"),
]


def cut(case: Case) -> tuple[Array, ...]:
    """As many elements as every vector width divides."""
    count = min(array.size for array in case.inputs) // 16 * 16
    return tuple(array[:count] for array in case.inputs)


def assert_close(actual: Array, expected: Array, ulp: float, absolute: float = 0.0) -> None:
    """Equal within ``ulp`` units in the last place, with the same infinities and NaNs; tiny ones may be zero."""
    with np.errstate(all="ignore"):
        rounded = expected.astype(actual.dtype)
        if actual.dtype.kind != "f":
            np.testing.assert_array_equal(actual, rounded)
            return
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(rounded))
        ordinary = np.isfinite(rounded)
        special = ~ordinary & ~np.isnan(rounded)
        np.testing.assert_array_equal(actual[special], rounded[special])
        wrong = abs(actual[ordinary].astype(np.float64) - expected[ordinary])
        allowed = ulp * np.spacing(abs(rounded[ordinary])).astype(np.float64) + max(absolute, TINY)
        assert np.all(wrong <= allowed), f"off by {np.max(wrong / allowed)} times what is allowed"


def exactly(case: Case, inputs: tuple[Array, ...]) -> Array:
    with np.errstate(all="ignore"):
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a if a.dtype == bool else a.astype(np.int64) for a in inputs]
        return np.asarray(case.expected(*wide))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")
def test_every_operator_gives_what_numpy_gives(machine: Machine) -> None:
    widths = [1, machine.lanes] if machine is MACHINES[0] else [machine.lanes]
    asked = [(case, cut(case), lanes) for case in CASES for lanes in widths]
    kernels = [Steps(inputs[0].size, case.dtypes(), case.steps(), lanes) for case, inputs, lanes in asked]
    for (case, inputs, lanes), run in zip(asked, single.build(kernels, machine), strict=True):
        actual = run(*inputs, np.zeros(inputs[0].size, case.dtype))
        try:
            assert_close(actual, exactly(case, inputs), case.ulp, case.absolute)
        except AssertionError as error:
            raise AssertionError(f"{case.op} {case.dtypes()} -> {case.dtype} at {lanes} lanes: {error}") from None


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, 4.0, -1.0, -2.0, 0.5, -0.5, 1.7])
def test_a_power_with_a_known_exponent(exponent: float) -> None:
    steps = (step("Constant", value=exponent), step("Pow", 0, 1))
    with np.errstate(all="ignore"):
        x = X[: X.size // 16 * 16]
        expected = np.array([np.float64(v) ** np.float64(F32(exponent)) for v in x])  # of arrays, roots differ at -inf
    (run,) = single.build([Steps(x.size, ("float32",), steps, MACHINES[0].lanes)], MACHINES[0])
    assert_close(run(x, x), expected, 2)


def test_a_chain_of_steps_with_truth_values_between() -> None:
    steps = (
        step("Constant", value=0.25),
        step("Less", 0, 2, dtype="bool"),
        step("Not", 3, dtype="bool"),
        step("And", 3, 1, dtype="bool"),
        step("Or", 4, 5, dtype="bool"),
        step("Where", 6, 0, 2),
    )
    x, flag = X[:512], np.arange(512) % 3 == 0
    (run,) = single.build([Steps(512, ("float32", "bool"), steps, MACHINES[0].lanes)], MACHINES[0])
    less = x < 0.25
    np.testing.assert_array_equal(run(x, flag, x), np.where(~less | (less & flag), x, F32(0.25)))


def test_what_is_taken_has_a_definition() -> None:
    assert set(OPERATORS) | {"Constant"} == pointwise.SUPPORTED


def test_types_that_are_not_taken() -> None:
    assert pointwise.takes("Add", ["float32", "float32", "float32"], {})
    assert pointwise.takes("Where", ["bool", "int64", "int64", "int64"], {})
    assert not pointwise.takes("Add", ["float16"], {})
    assert not pointwise.takes("Exp", ["int32"], {})
    assert not pointwise.takes("Mod", ["float32"], {})
    assert not pointwise.takes("Softmax", ["float32"], {})
