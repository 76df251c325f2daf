"""Writing loops: statements are appended in the order in which they run, and become one function of TVM's TIR.

Kernels are written as loop nests and not as schedules of a default nest: a register tile, its ragged tails and what
follows it in registers are then read where they stand, and building one costs milliseconds. Memory is flat: every
operand is a pointer with an element type, and indices are counted in elements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tvm  # type: ignore[import-untyped, unused-ignore]
from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

Expr = Any  # an expression of TIR, or a Python number where a constant will do
_LOAD = type(tirx.BufferLoad(tirx.decl_buffer((1,), "int32"), [0]))  # the class has no public name
_WHOLE = 2**31 - 1  # elements of an operand, for the compiler: it is never asked to check bounds


class Emitter:
    """One function under construction. ``pointer`` declares its parameters, in order."""

    def __init__(self) -> None:
        self._blocks: list[list[Any]] = [[]]
        self._parameters: list[Any] = []
        self._count = 0

    def pointer(self, name: str, dtype: str) -> Any:
        """A parameter: the address of the first element of an operand."""
        variable = tirx.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(stored(dtype))))
        self._parameters.append(variable)
        return self.buffer(variable, dtype, name)

    def buffer(self, address: Any, dtype: str, name: str) -> Any:
        """Elements of ``dtype`` at ``address``, of which the type does not matter."""
        buffer = tirx.decl_buffer((_WHOLE,), stored(dtype), name=name, data=address)
        self._add(tirx.DeclBuffer(buffer, data=address))
        return buffer

    def local(self, count: int, dtype: str, name: str = "local") -> Any:
        """``count`` elements on the stack, which become registers where every index is a constant."""
        buffer = tirx.decl_buffer((count,), stored(dtype), name=self._fresh(name), scope="local", data_alignment=64)
        self._add(tirx.AllocBuffer(buffer, annotations={"disable_lower_builtin": tirx.IntImm("bool", 1)}))  # else TVM takes it from the heap
        return buffer

    def load(self, buffer: Any, index: Expr, lanes: int = 1, stride: int = 1) -> Expr:
        """``lanes`` elements from ``index`` on, ``stride`` apart; with stride 0 one element, repeated."""
        if lanes == 1:
            return tirx.BufferLoad(buffer, [_whole(index)])
        if stride == 0:
            return tirx.Broadcast(tirx.BufferLoad(buffer, [_whole(index)]), lanes)
        return tirx.BufferLoad(buffer, [tirx.Ramp(_whole(index), stride, lanes)])

    def store(self, buffer: Any, index: Expr, value: Expr, stride: int = 1) -> None:
        """Write ``value``, a scalar or a vector, from ``index`` on, ``stride`` elements apart."""
        lanes = lanes_of(value)
        place = _whole(index) if lanes == 1 else tirx.Ramp(_whole(index), stride, lanes)
        self._add(tirx.BufferStore(buffer, value, [place]))

    def bind(self, value: Expr, name: str = "v") -> Expr:
        """``value`` computed here, once."""
        if isinstance(value, (int, float, tirx.IntImm, tirx.FloatImm, tirx.Var)):
            return value
        variable = tirx.Var(self._fresh(name), value.ty)
        self._add(tirx.Bind(variable, self._opaque(value)))
        return variable

    def _opaque(self, value: Expr) -> Expr:
        """``value`` by way of the stack, which LLVM takes out again, unless it is a number or an element in memory.

        TVM's analysis puts what a name is bound to in its place, names in it included: exponential in a polynomial.
        """
        kind, lanes = str(value.ty.dtype), lanes_of(value)
        element = kind.partition("x")[0]
        if isinstance(value, _LOAD) or element == "bool" or (lanes == 1 and not element.startswith("float")):
            return value
        kept = self.local(lanes, element, "kept")
        self.store(kept, 0, value)
        return self.load(kept, 0, lanes)

    @contextlib.contextmanager
    def loop(self, count: Expr, name: str = "i", start: Expr = 0, parallel: bool = False) -> Iterator[Any]:
        """A loop of ``count`` turns; a loop of one turn is none."""
        if isinstance(count, int) and count == 1 and not parallel:
            yield start
            return
        variable = tirx.Var(self._fresh(name), "int32")
        self._blocks.append([])
        yield variable
        kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
        body = _sequence(self._blocks.pop())
        self._add(tirx.For(variable, _whole(start), _whole(count), kind, body))

    @contextlib.contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Statements that run only if ``condition`` holds."""
        self._blocks.append([])
        yield
        self._add(tirx.IfThenElse(condition, _sequence(self._blocks.pop()), None))

    def choose(self, condition: Expr, then: Any, otherwise: Any) -> None:
        """Run what ``then()`` writes if ``condition`` holds, else what ``otherwise()`` writes."""
        bodies = []
        for write in (then, otherwise):
            self._blocks.append([])
            write()
            bodies.append(_sequence(self._blocks.pop()))
        self._add(tirx.IfThenElse(condition, *bodies))

    def call(self, function: Any, arguments: Sequence[Expr]) -> None:
        """Call another function of the module, which an Emitter made."""
        self._add(tirx.Evaluate(tvm.ir.Call(function, list(arguments), ret_ty=tvm.ir.PrimType("int32"))))

    def function(self, name: str) -> Any:
        """What was written, as a function of the pointers, private to its module, that returns 0."""
        (body,) = self._blocks
        body.append(tirx.Return(tirx.IntImm("int32", 0)))
        made = tirx.PrimFunc(self._parameters, _sequence(body), tvm.ir.PrimType("int32"))
        return made.with_attr("tirx.noalias", True)

    def _add(self, statement: Any) -> None:
        self._blocks[-1].append(statement)

    def _fresh(self, name: str) -> str:
        self._count += 1
        return f"{name}{self._count}"


def stored(dtype: str) -> str:
    """The type that memory holds for an array's ``dtype``: truth values are bytes."""
    return "int8" if dtype == "bool" else dtype


def lanes_of(value: Expr) -> int:
    """How many elements an expression has."""
    return 1 if isinstance(value, (int, float)) else int(value.ty.dtype.lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """A scalar repeated ``lanes`` times."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def _sequence(statements: list[Any]) -> Any:
    if not statements:
        return tirx.Evaluate(tirx.IntImm("int32", 0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def _whole(index: Expr) -> Expr:
    return tirx.IntImm("int32", index) if isinstance(index, int) else index
