"""TENSAT's published equations, 931 of them: does one saturation under our laws, from both sides, make each one?

They are ``taso_rules.txt`` of github.com/uwplse/tensat (MIT licence), and no part of this repository: they are asked where a ``shared``
folder has the file. ``OWN``, in the same language, is always asked, and says at least once what each kind of them says.

The laws apply here wherever they are true (``Program.lifted``), together with ``rules.GENERAL``. An equation is read at fixed shapes:
matrices are 4x4, images and kernels have 4 channels, kernels 3x3 taps or, where ``enlarge`` makes one so, one; a fused Relu is a Relu
after the convolution, ``SAME`` padding is written out, and a pool of means counts its padding, as the equations themselves ask.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rules
from rewriter.egraph import Limits, Program, Saturator
from rewriter.move import transpose
from rewriter.terms import Arrays, table_facts
from rewriter.window import Widening, Window

Shape = tuple[int, ...]
SIZE = 4
DATA, TAPS = 5, 3
BATCH = 20
PATH = "shared/data/tensat/taso_rules.txt"
NUMBER = "input_20"


class Untyped(Exception):
    """The shapes of an equation do not fit."""


def published() -> str:
    """The file's text, from the first folder above this one whose ``shared`` has it; else nothing."""
    return next((path.read_text() for path in (parent / PATH for parent in Path(__file__).parents) if path.exists()), "")


def equations(text: str) -> list[tuple[Any, Any]]:
    """Both sides as nested lists, ``[operator, *arguments]`` or a name. Nothing need stand between two equations."""
    tokens = re.findall(r"\w+|[(),]|==", text)
    at = 0

    def term() -> Any:
        nonlocal at
        head, at = tokens[at], at + 1
        if at == len(tokens) or tokens[at] != "(":
            return head
        arguments = []
        while tokens[at] != ")":
            at += 1
            arguments.append(term())
        at += 1
        return [head, *arguments]

    found = []
    while at < len(tokens):
        left, at = term(), at + 1
        found.append((left, term()))
    return found


def _within(term: Any) -> Iterator[Any]:
    yield term
    if isinstance(term, list):
        for t in term[1:]:
            yield from _within(t)


class Reader:
    """Writes equations as one program. Nodes are shared where their text is the same; leaves are an equation's own."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.windows: set[str] = set()
        self.moves: set[str] = set()
        self._shapes: dict[int, Shape] = {}
        self._nodes: dict[str, int] = {}
        self._leaves: dict[tuple[int, str], int] = {}
        self._small: set[str] = set()
        self._equation = 0
        self._spatial = False

    def program(self) -> Program:
        facts = table_facts(self.windows, self.moves, general=True)
        tables = [f"({name} {' '.join(_quoted(v) for v in row)})" for name, *row in facts]
        lines = [*self.lines, '(idempotent "Relu")', *tables]
        return Program(lines, (*rules.ALL, *rules.GENERAL), Limits(rounds=6, nodes=20_000), declines=False, lifted=True)

    def read(self, equation: int, left: Any, right: Any) -> tuple[int, int]:
        """The two sides' nodes."""
        self._equation = equation
        terms = [t for side in (left, right) for t in _within(side)]
        self._small = {v for t in terms if isinstance(t, list) and t[0] == "enlarge" for v in _within(t[3]) if isinstance(v, str)}
        self._spatial = any(isinstance(t, list) and t[0] in ("conv2d", "enlarge", "poolavg", "poolmax") for t in terms)
        sides = self._term(left, SIZE), self._term(right, SIZE)
        if self._shapes[sides[0]] != self._shapes[sides[1]]:
            raise Untyped("the sides differ in shape")
        return sides

    @property
    def nodes(self) -> list[tuple[str, Shape]]:
        """What each is, and its shape."""
        return [(text, self._shapes[i]) for text, i in self._nodes.items()]

    def _node(self, text: str, shape: Shape) -> int:
        if text not in self._nodes:
            i = self._nodes[text] = len(self._nodes)
            self._shapes[i] = shape
            self.lines.append(f"(union (node {i}) {text})")
            self.lines += [f"(length (node {i}) {a - len(shape)} {n})" for a, n in enumerate(shape)]
        return self._nodes[text]

    def _leaf(self, name: str, shape: Shape, fact: str = "") -> int:
        leaf = self._leaves.setdefault((self._equation, f"{name}{shape}"), len(self._leaves))
        known = f"(leaf {leaf})" in self._nodes
        i = self._node(f"(leaf {leaf})", shape)
        if fact and not known:
            self.lines.append(f"({fact} (node {i}))")
        return i

    def _variable(self, name: str) -> int:
        number = int(name.removeprefix("input_"))
        if name == NUMBER:
            return self._leaf(name, ())
        if not self._spatial:
            return self._leaf(name, (SIZE, SIZE))
        size = DATA if number < 10 else 1 if name in self._small else TAPS
        return self._leaf(name, (SIZE, SIZE, size, size))

    def _term(self, term: Any, channels: int) -> int:
        """``channels``: of the image that a constant kernel in this term is for."""
        if isinstance(term, str) and term.startswith("input_"):
            return self._variable(term)
        head, *arguments = term if isinstance(term, list) else [term]
        return int(getattr(self, f"_{head}")(channels, *arguments))

    def _same(self, op: str, channels: int, x: Any, y: Any) -> int:
        i, j = self._term(x, channels), self._term(y, channels)
        if self._shapes[i] != self._shapes[j]:
            raise Untyped(f"{op} of {self._shapes[i]} and {self._shapes[j]}")
        return self._node(f"({op} (node {i}) (node {j}))", self._shapes[i])

    def _ewadd(self, channels: int, x: Any, y: Any) -> int:
        return self._same("add", channels, x, y)

    def _ewmul(self, channels: int, x: Any, y: Any) -> int:
        return self._same("mul", channels, x, y)

    def _smul(self, channels: int, x: Any, c: Any) -> int:
        i, j = self._term(x, channels), self._term(c, channels)
        if self._shapes[j] != ():
            raise Untyped("a number that is a tensor")
        return self._node(f"(scalar (node {i}) (node {j}))", self._shapes[i])

    def _relu(self, channels: int, x: Any) -> int:
        i = self._term(x, channels)
        return self._node(f'(map "Relu" (node {i}))', self._shapes[i])

    def _matmul(self, channels: int, x: Any, y: Any) -> int:
        i, j = self._term(x, channels), self._term(y, channels)
        (a, b), (c, d) = self._shapes[i], self._shapes[j]
        if b != c:
            raise Untyped(f"product of {a}x{b} and {c}x{d}")
        return self._node(f"(product (node {i}) (node {j}))", (a, d))

    def _transpose(self, channels: int, x: Any) -> int:
        i = self._term(x, channels)
        if len(self._shapes[i]) != 2:
            raise Untyped("transposition of an image")
        move = str(transpose((2, 2), (1, 0)).anywhere())
        self.moves.add(move)
        return self._node(f"(move {_quoted(move)} (node {i}))", self._shapes[i][::-1])

    def _concat(self, channels: int, axis: str, x: Any, y: Any) -> int:
        i, j, a = self._term(x, channels), self._term(y, channels), int(axis)
        p, q = self._shapes[i], self._shapes[j]
        if len(p) != len(q) or any(m != n for k, (m, n) in enumerate(zip(p, q, strict=True)) if k != a):
            raise Untyped(f"concatenation of {p} and {q}")
        return self._node(f"(cat (node {i}) (node {j}) {a - len(p)})", (*p[:a], p[a] + q[a], *p[a + 1 :]))

    def _half(self, channels: int, axis: str, x: Any, second: bool) -> int:
        i, a = self._term(x, channels), int(axis)
        shape = self._shapes[i]
        n = shape[a] // 2
        low, high = (n, shape[a]) if second else (0, n)
        return self._node(f"(slice (node {i}) {a - len(shape)} {low} {high})", (*shape[:a], n, *shape[a + 1 :]))

    def _split_0(self, channels: int, axis: str, x: Any) -> int:
        return self._half(channels, axis, x, False)

    def _split_1(self, channels: int, axis: str, x: Any) -> int:
        return self._half(channels, axis, x, True)

    def _window(self, inputs: int, outputs: int, taps: Shape, group: int) -> str:
        pads = tuple(t // 2 for t in taps)
        whole = Window(inputs, outputs, taps, (1, 1), pads + pads, (1, 1), group)
        # Those of the parts of its kernel, too.
        for i, o in itertools.product(range(SIZE, inputs + 1, SIZE), range(SIZE, outputs + 1, SIZE)):
            self.windows |= {str(replace(whole, inputs=i, outputs=o))} if group == 1 else set()
        self.windows.add(str(whole))
        return str(whole)

    def _conv2d(self, channels: int, sx: str, sy: str, pad: str, act: str, x: Any, k: Any) -> int:
        if (sx, sy, pad) != ("1", "1", "0") or act not in "02":
            raise Untyped("strides or padding")
        i = self._term(x, channels)
        image = self._shapes[i]
        j = self._term(k, image[1])
        kernel = self._shapes[j]
        if image[1] % kernel[1] or kernel[0] % (image[1] // kernel[1]):
            raise Untyped(f"kernel {kernel} on image {image}")
        window = self._window(image[1], kernel[0], kernel[2:], image[1] // kernel[1])
        shape = (image[0], kernel[0], *image[2:])
        made = self._node(f"(conv (node {i}) (node {j}) (zero_outputs (node {j})) {_quoted(window)})", shape)
        return self._node(f'(map "Relu" (node {made}))', shape) if act == "2" else made

    def _pool(self, op: str, channels: int, x: Any) -> int:
        i = self._term(x, channels)
        c = self._shapes[i][1]
        return self._node(f"({op} (node {i}) {_quoted(self._window(c, c, (TAPS, TAPS), c))})", self._shapes[i])

    def _poolavg(self, channels: int, *arguments: Any) -> int:
        return self._pool("mean_pool", channels, arguments[-1])

    def _poolmax(self, channels: int, *arguments: Any) -> int:
        return self._pool("max_pool", channels, arguments[-1])

    def _enlarge(self, channels: int, _x: str, _y: str, k: Any) -> int:
        i = self._term(k, channels)
        shape = self._shapes[i]
        if shape[2:] != (1, 1):
            raise Untyped("a kernel to enlarge that is large")
        for taps in ((1, 1), (TAPS, TAPS)):
            self._window(shape[1], shape[0], taps, 1)
        widening = Widening((1, 1), (1, 1), 1, 1)
        return self._node(f"(kernel_widen (node {i}) {_quoted(str(widening))})", (*shape[:2], TAPS, TAPS))

    def _constant_kernel(self, op: str, taps: Shape, around: Shape, channels: int) -> int:
        window = self._window(channels, channels, taps, channels)
        self._window(channels, channels, (TAPS, TAPS), 1)
        widening = Widening(around, around, channels, 1)
        text = f"(kernel_widen ({op} {_quoted(window)}) {_quoted(str(widening))})"
        return self._node(text, (channels, channels, TAPS, TAPS))

    def _Iconv(self, channels: int, *_: str) -> int:
        return self._constant_kernel("kernel_ones", (1, 1), (1, 1), channels)

    def _Cpool(self, channels: int, *_: str) -> int:
        return self._constant_kernel("kernel_mean", (TAPS, TAPS), (0, 0), channels)

    def _Imatmul(self, _: int) -> int:
        return self._leaf("Imatmul", (SIZE, SIZE), "identity")

    def _Iewmul(self, _: int) -> int:
        return self._leaf("Iewmul", (SIZE, SIZE, DATA, DATA) if self._spatial else (SIZE, SIZE), "one")


def _quoted(value: Any) -> str:
    return '"' + value.replace('"', '\\"') + '"' if isinstance(value, str) else str(value)


def values(reader: Reader) -> list[np.ndarray]:
    """Each node's value where the leaves are drawn at random."""
    draw, found = np.random.default_rng(0), []
    for i, (text, shape) in enumerate(reader.nodes):
        if not text.startswith("(leaf"):
            found.append(np.asarray(_value(re.findall(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+', text), found)).astype(np.float64))
            assert found[i].shape == shape, text
        elif f"(one (node {i}))" in reader.lines:
            found.append(np.ones(shape))
        else:
            found.append(np.eye(*shape) if f"(identity (node {i}))" in reader.lines else draw.standard_normal(shape))
    return found


def _value(tokens: list[str], nodes: list[np.ndarray]) -> Any:
    token = tokens.pop(0)
    if token != "(":
        return json.loads(token)
    head, arguments = tokens.pop(0), []
    while tokens[0] != ")":
        arguments.append(_value(tokens, nodes))
    tokens.pop(0)
    return nodes[arguments[0]] if head == "node" else getattr(Arrays, head)(*arguments)


def _equal(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and np.allclose(x, y)


def _renamed(term: Any, names: dict[str, str]) -> Any:
    return names.get(term, term) if isinstance(term, str) else [term[0], *(_renamed(t, names) for t in term[1:])]


@pytest.fixture(scope="module")
def saturator() -> Iterator[Saturator]:
    with Saturator() as child:
        yield child


OWN = """
matmul(input_1,matmul(input_4,matmul(input_5,input_6)))==matmul(matmul(matmul(input_1,input_4),input_5),input_6)
matmul(ewadd(input_1,input_2),smul(input_4,input_20))==smul(ewadd(matmul(input_2,input_4),matmul(input_1,input_4)),input_20)
matmul(input_1,Imatmul)==matmul(Imatmul,input_1)
ewmul(input_1,Iewmul)==input_1
ewmul(smul(input_1,input_20),ewadd(input_2,input_3))==ewadd(ewmul(input_3,smul(input_1,input_20)),smul(ewmul(input_2,input_1),input_20))
ewadd(input_1,ewadd(input_2,ewadd(input_3,input_4)))==ewadd(ewadd(input_4,input_2),ewadd(input_3,input_1))
ewmul(input_1,ewmul(input_2,ewmul(input_3,input_4)))==ewmul(ewmul(input_4,input_2),ewmul(input_3,input_1))
relu(concat(0,relu(input_1),input_2))==concat(0,relu(input_1),relu(input_2))
smul(concat(1,input_1,ewadd(input_2,input_3)),input_20)==concat(1,smul(input_1,input_20),ewadd(smul(input_3,input_20),smul(input_2,input_20)))
transpose(matmul(transpose(input_1),smul(input_2,input_20)))==matmul(transpose(smul(input_2,input_20)),input_1)
transpose(concat(0,relu(input_1),ewmul(input_2,input_3)))==concat(1,relu(transpose(input_1)),ewmul(transpose(input_3),transpose(input_2)))
transpose(concat(1,input_1,ewadd(input_2,input_3)))==concat(0,transpose(input_1),ewadd(transpose(input_3),transpose(input_2)))
matmul(concat(1,input_1,input_2),concat(0,input_4,input_5))==matmul(concat(1,input_2,input_1),concat(0,input_5,input_4))
split_1(1,matmul(input_1,concat(1,input_4,input_5)))==matmul(input_1,input_5)
split_0(0,matmul(concat(0,input_1,input_2),input_4))==matmul(input_1,input_4)
concat(1,concat(0,input_1,input_2),concat(0,input_3,input_4))==concat(0,concat(1,input_1,input_3),concat(1,input_2,input_4))
ewadd(concat(1,input_1,input_2),concat(1,input_3,input_4))==concat(1,ewadd(input_3,input_1),ewadd(input_2,input_4))
ewmul(concat(0,input_1,input_2),concat(0,input_3,input_4))==concat(0,ewmul(input_3,input_1),ewmul(input_2,input_4))
conv2d(1,1,0,2,smul(input_7,input_20),input_10)==relu(conv2d(1,1,0,0,input_7,smul(input_10,input_20)))
conv2d(1,1,0,0,ewadd(input_7,input_8),ewadd(input_10,input_11))==\
ewadd(conv2d(1,1,0,0,input_8,ewadd(input_11,input_10)),conv2d(1,1,0,0,input_7,ewadd(input_11,input_10)))
conv2d(1,1,0,0,input_7,ewadd(input_10,enlarge(3,3,input_13)))==ewadd(conv2d(1,1,0,0,input_7,input_13),conv2d(1,1,0,0,input_7,input_10))
conv2d(1,1,0,2,input_7,smul(enlarge(3,3,input_13),input_20))==relu(smul(conv2d(1,1,0,0,input_7,input_13),input_20))
conv2d(1,1,0,0,input_7,enlarge(3,3,smul(input_13,input_20)))==conv2d(1,1,0,0,smul(input_7,input_20),enlarge(3,3,input_13))
conv2d(1,1,0,0,input_7,concat(0,input_10,Iconv(3,3)))==concat(1,conv2d(1,1,0,0,input_7,input_10),input_7)
conv2d(1,1,0,0,concat(0,input_7,input_8),Cpool(3,3))==concat(0,poolavg(3,3,1,1,0,input_7),poolavg(3,3,1,1,0,input_8))
conv2d(1,1,0,0,concat(1,input_7,input_8),concat(1,input_10,input_11))==conv2d(1,1,0,0,concat(1,input_8,input_7),concat(1,input_11,input_10))
split_1(0,conv2d(1,1,0,2,concat(0,input_7,input_8),input_10))==relu(conv2d(1,1,0,0,input_8,input_10))
split_0(1,conv2d(1,1,0,0,input_7,concat(0,input_10,input_11)))==conv2d(1,1,0,0,input_7,input_10)
poolavg(3,3,1,1,0,ewadd(input_7,smul(input_8,input_20)))==ewadd(poolavg(3,3,1,1,0,input_7),smul(poolavg(3,3,1,1,0,input_8),input_20))
conv2d(1,1,0,0,input_7,poolavg(3,3,1,1,0,Iconv(3,3)))==poolavg(3,3,1,1,0,input_7)
matmul(smul(input_1,input_20),transpose(input_4))==matmul(input_1,transpose(smul(input_4,input_20)))
matmul(ewadd(input_1,Imatmul),ewadd(input_4,Imatmul))==ewadd(ewadd(matmul(input_1,input_4),input_1),ewadd(Imatmul,input_4))
transpose(ewadd(input_1,transpose(input_2)))==ewadd(input_2,transpose(input_1))
transpose(ewmul(input_1,transpose(input_2)))==ewmul(input_2,transpose(input_1))
conv2d(1,1,0,0,input_7,smul(Iconv(3,3),input_20))==smul(input_7,input_20)
ewmul(input_8,conv2d(1,1,0,0,smul(input_7,input_20),input_10))==smul(ewmul(conv2d(1,1,0,0,input_7,input_10),input_8),input_20)
poolmax(3,3,1,1,0,concat(0,input_7,input_8))==concat(0,poolmax(3,3,1,1,0,input_7),poolmax(3,3,1,1,0,input_8))
""".replace("\\\n", "")
PUBLISHED = equations(published())
NOT_DERIVED: dict[int, str] = {}
"""Of the published ones, by number, counted from 0, with the reason."""
where_published = pytest.mark.skipif(not PUBLISHED, reason=f"no {PATH} in a folder above")


def _saturated(asked: list[tuple[Any, Any]], saturator: Saturator) -> list[bool]:
    """Which of them have one class for both sides; each is one of arrays, and so is what else is in one class."""
    reader = Reader()
    sides = [reader.read(n, left, right) for n, (left, right) in enumerate(asked)]
    classes, arrays = saturator.saturate(reader.program()).model, values(reader)
    assert [n for n, (left, right) in enumerate(sides) if not _equal(arrays[left], arrays[right])] == []
    assert _mistaken(classes, arrays) == []
    return [classes[left] == classes[right] for left, right in sides]


def test_own_equations_are_derived(saturator: Saturator) -> None:
    asked = equations(OWN)
    found = _saturated(asked, saturator)
    assert [e for e, yes in zip(asked, found, strict=True) if not yes] == []


@where_published
def test_all_are_there() -> None:
    assert len(PUBLISHED) == 931


@where_published
@pytest.mark.parametrize("start", range(0, 931, BATCH))
def test_published_equations_are_derived(start: int, saturator: Saturator) -> None:
    """Every one but those that are listed."""
    found = _saturated(PUBLISHED[start : start + BATCH], saturator)
    assert [n for n, yes in enumerate(found, start) if not yes] == [n for n in range(start, start + len(found)) if n in NOT_DERIVED]


def _mistaken(classes: dict[int, int], arrays: list[np.ndarray]) -> list[tuple[int, int]]:
    """Nodes of one class that differ."""
    first: dict[int, int] = {}
    return [(first[c], i) for i, c in classes.items() if not _equal(arrays[first.setdefault(c, i)], arrays[i])]


def test_what_is_false_is_not_derived(saturator: Saturator) -> None:
    """Left sides beside themselves with two variables exchanged: where the arrays differ, so do the classes."""
    refuted, asked = 0, [left for left, _ in equations(OWN) + PUBLISHED[::3]]
    for start in range(0, len(asked), BATCH):
        reader, sides = Reader(), []
        for n, left in enumerate(asked[start : start + BATCH]):
            names = sorted({t for t in _within(left) if isinstance(t, str) and t.startswith("input_") and t != NUMBER})
            for p, q in itertools.combinations(names, 2):
                with contextlib.suppress(Untyped):
                    sides.append(reader.read(n, left, _renamed(left, {p: q, q: p})))
        classes, arrays = saturator.saturate(reader.program()).model, values(reader)
        assert _mistaken(classes, arrays) == []
        refuted += sum(not _equal(arrays[left], arrays[right]) for left, right in sides)
    assert refuted > 20
