"""Long kernels that have decayed are cut (paper 26: the kernel of a state space model is a sum of decaying exponentials).

A convolution ``y[t] = Σ_l k[l] u[t - l]`` without its taps l >= K is off by at most ``‖u‖_∞ Σ_{l >= K} |k[l]|``: known before any data is
seen, but for the size of u. Taps are cut at an end that reaches into padding only as far as there is padding to take away with them, so that the
result keeps its length: with the last M taps of a causal kernel go M places of its left padding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from passes.approximate.candidate import Candidate, Refusal, Site, Wanted
from passes.approximate.products import Product, products
from passes.approximate.substitution import Substitution

LONG = 16
"""Taps from which a kernel is worth cutting."""
PARTS = (0.75, 0.5, 0.25, 0.125)
"""Parts of the taps that are kept."""


class TruncatedKernels:
    """Convolutions over one axis."""

    name = "truncate/kernel"

    def wants(self, model: ir.Model) -> Wanted:
        return Wanted(frozenset(n for p in _long(model) for n in (p.input, p.output)))

    def propose(self, site: Site) -> Iterator[Candidate | Refusal]:
        for product in _long(site.model):
            seen = site.recorded[product.input]
            largest = max(abs(seen.low), abs(seen.high))
            kernel = _kernel(product)
            taps, (before, after) = kernel.shape[-1], _pads(product)
            for part in PARTS:
                cut = taps - max(1, round(part * taps))
                if cut > max(before, after):
                    yield Refusal(
                        self.name, product.output, f"{cut} taps would go and there are {max(before, after)} places of padding to go with them"
                    )
                    continue
                front = before >= after
                whole = float((kernel.astype(np.float64) ** 2).sum()) or 1.0
                gone = kernel[..., :cut] if front else kernel[..., taps - cut :]
                bound = largest * float(np.abs(gone).sum(axis=(1, 2)).max())
                yield Candidate(
                    f"{self.name}-{taps - cut}", product.output, frozenset({product.output}), _Apply(product, cut, front), -gone.size * 4,
                    unit=((product.input,), product.output), lost=float((gone.astype(np.float64) ** 2).sum()) / whole,
                    bound=f"at most {bound:.3g} at any place, for inputs up to {largest:.3g}",
                )  # fmt: skip


def _long(model: ir.Model) -> list[Product]:
    return [p for p in products(model) if p.is_convolution and _kernel(p).ndim == 3 and _kernel(p).shape[-1] >= LONG]


def _kernel(product: Product) -> np.ndarray:
    return product.as_stored(product.weights)


def _pads(product: Product) -> tuple[int, int]:
    """At both ends, if nothing makes them more than a number of places."""
    node = product.node
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or list(node.attributes.get_ints("dilations", ()) or [1]) != [1]:
        return 0, 0
    before, after = node.attributes.get_ints("pads", ()) or (0, 0)
    return int(before), int(after)


class _Apply:
    def __init__(self, product: Product, cut: int, front: bool) -> None:
        self._product, self._cut, self._front = product, cut, front

    def __call__(self, graph: Substitution) -> None:
        node = graph.maker(self._product.output)
        kernel = _kernel(self._product)
        kept = kernel[..., self._cut :] if self._front else kernel[..., : kernel.shape[-1] - self._cut]
        before, after = _pads(self._product)
        pads = (before - self._cut, after) if self._front else (before, after - self._cut)
        node.replace_input_with(1, graph.stored(kept, f"{self._product.output}_kernel"))
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
        if "kernel_shape" in node.attributes:
            node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [kept.shape[-1]])
