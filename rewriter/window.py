"""The geometry of a convolution, and what can be done with two of them.

A convolution's attributes travel through the e-graph as one string, so that the algebra of windows (padding one kernel to
the size of another, composing two) happens here, in Python, over the finitely many windows of a model: see
``rewriter.terms.TABLES``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

TEXT = re.compile(r"(\d+)>(\d+) k([\dx]*) s([\dx]*) p([\d,]*) d([\dx]*) g(\d+)( \w+)?")


@dataclass(frozen=True)
class Window:
    """Weight ``[outputs, inputs / group, *kernel]``; ``pads`` is all begins, then all ends, as in ONNX."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int
    dtype: str = "float32"
    """Of the weights: laws make kernels of zeros and ones, and those need a type."""

    def __str__(self) -> str:
        kernel, strides, dilations = ("x".join(map(str, v)) for v in (self.kernel, self.strides, self.dilations))
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.inputs}>{self.outputs} k{kernel} s{strides} p{','.join(map(str, self.pads))} d{dilations} g{self.group}{dtype}"

    @classmethod
    def parse(cls, text: str) -> Window:
        found = TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"not a window: {text!r}")
        kernel, strides, dilations = (_ints(found[i], "x") for i in (3, 4, 6))
        dtype = (found[8] or " float32")[1:]
        return cls(int(found[1]), int(found[2]), kernel, strides, _ints(found[5], ","), dilations, int(found[7]), dtype)

    @property
    def rank(self) -> int:
        """How many spatial axes."""
        return len(self.kernel)

    @property
    def channel_axis(self) -> int:
        """The channel axis of the activations, counted from the end."""
        return -1 - self.rank

    @property
    def padded(self) -> bool:
        return any(self.pads)

    @property
    def pointwise(self) -> bool:
        """A matmul over the channels: reads one position, writes one position."""
        return not self.padded and all(k == 1 for k in self.kernel) and all(s == 1 for s in self.strides)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return (self.outputs, self.inputs // self.group, *self.kernel)

    def size(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """The output's spatial size for an input's."""
        n = self.rank
        return tuple(
            (x + self.pads[i] + self.pads[n + i] - self.dilations[i] * (self.kernel[i] - 1) - 1) // self.strides[i] + 1
            for i, x in enumerate(spatial)
        )


@dataclass(frozen=True)
class Widening:
    """Zeros around a kernel (``before`` and ``after``, per spatial axis) and fewer, larger groups."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    old_group: int
    new_group: int

    def __str__(self) -> str:
        before, after = (",".join(map(str, v)) for v in (self.before, self.after))
        return f"+{before}|{after} g{self.old_group}>{self.new_group}"

    @classmethod
    def parse(cls, text: str) -> Widening:
        found = re.fullmatch(r"\+([\d,]*)\|([\d,]*) g(\d+)>(\d+)", text)
        if found is None:
            raise ValueError(f"not a widening: {text!r}")
        return cls(_ints(found[1], ","), _ints(found[2], ","), int(found[3]), int(found[4]))

    @property
    def identity(self) -> bool:
        return not any(self.before) and not any(self.after) and self.old_group == self.new_group


def join(a: Window, b: Window) -> tuple[Window, Widening, Widening] | None:
    """The smallest window that both kernels can be padded to without changing what they compute, and the two paddings.

    A kernel with ``e`` zeros added before it computes the same if the padding before the image grows by ``e * dilation``.
    None when strides, channels or tap positions do not fit.
    """
    if (a.inputs, a.outputs, a.strides, a.rank, a.dtype) != (b.inputs, b.outputs, b.strides, b.rank, b.dtype):
        return None
    dilations = tuple(db if ka == 1 else da for ka, da, db in zip(a.kernel, a.dilations, b.dilations, strict=True))
    n, taps = a.rank, []
    for i, d in enumerate(dilations):
        if (a.kernel[i] > 1 and a.dilations[i] != d) or (b.kernel[i] > 1 and b.dilations[i] != d):
            return None
        # Tap positions relative to the output's own position, in image pixels.
        if (a.pads[i] - b.pads[i]) % d or (_reach(a, i) - a.pads[i] - _reach(b, i) + b.pads[i]) % d:
            return None
        taps.append((max(a.pads[i], b.pads[i]), max(_reach(a, i) - a.pads[i], _reach(b, i) - b.pads[i])))
        # The number of output positions must agree for every image size.
        if a.pads[i] + a.pads[n + i] - _reach(a, i) != b.pads[i] + b.pads[n + i] - _reach(b, i):
            return None
    kernel = tuple((low + high) // d + 1 for (low, high), d in zip(taps, dilations, strict=True))
    begins = tuple(low for low, _ in taps)
    growth = [a.pads[i] + a.pads[n + i] - _reach(a, i) for i in range(n)]
    ends = tuple(growth[i] + dilations[i] * (kernel[i] - 1) - begins[i] for i in range(n))
    if any(e < 0 for e in ends):
        return None
    group = _coarser(a.group, b.group)
    if group is None:
        return None
    c = Window(a.inputs, a.outputs, kernel, a.strides, begins + ends, dilations, group, a.dtype)
    return c, _widening(a, c), _widening(b, c)


def compose(first: Window, then: Window) -> Window | None:
    """The window of ``then`` after ``first`` as one convolution, or None where that is not one (R10).

    Exact if ``then`` is pointwise, or if ``first`` is pointwise (unpadded and bias-free, so that zeros stay zeros).
    """
    if (first.outputs, first.rank, first.dtype) != (then.inputs, then.rank, then.dtype):
        return None
    if then.pointwise:
        shape = first
    elif first.pointwise:
        shape = then
    else:
        return None
    group = 1 if first.group != then.group else first.group
    return replace(shape, inputs=first.inputs, outputs=then.outputs, group=group)


def depthwise_identity(a: Window) -> Window | None:
    """The 1x1 depthwise window that maps ``a``'s input to an output of ``a``'s size, or None if there is none."""
    same_size = all(a.pads[i] + a.pads[a.rank + i] == _reach(a, i) for i in range(a.rank))
    if a.inputs != a.outputs or any(s != 1 for s in a.strides) or not same_size:
        return None
    n = a.rank
    return Window(a.inputs, a.inputs, (1,) * n, (1,) * n, (0,) * (2 * n), (1,) * n, a.inputs, a.dtype)


def _reach(a: Window, i: int) -> int:
    return a.dilations[i] * (a.kernel[i] - 1)


def _coarser(a: int, b: int) -> int | None:
    """The group count both can be written with: groups merge into fewer, larger ones."""
    low, high = sorted((a, b))
    return low if high % low == 0 else None


def _widening(a: Window, c: Window) -> Widening:
    before = tuple((c.pads[i] - a.pads[i]) // c.dilations[i] for i in range(a.rank))
    after = tuple(c.kernel[i] - a.kernel[i] - before[i] for i in range(a.rank))
    return Widening(before, after, a.group, c.group)


def _ints(text: str, separator: str) -> tuple[int, ...]:
    return tuple(int(t) for t in text.split(separator) if t)
