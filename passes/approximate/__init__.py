"""Approximate rewrites, one file each: ``ALL`` is what competes under a budget (``rewriter.approximate``)."""

from __future__ import annotations

from passes.approximate.candidate import Approximation
from passes.approximate.int8_products import Int8Products

ALL: tuple[Approximation, ...] = (Int8Products(),)
