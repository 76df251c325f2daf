"""From functions to machine code, by the few passes that loop nests as ours need.

TVM's default pipeline simplifies and analyses every expression again and again: bound vectors are put in place of their
names, which grows exponentially with the length of a polynomial (softplus: 4 s instead of 0.03), and it fails on bound
vectors of truth values. Nothing of it helps code that is written as it shall run; LLVM does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm  # type: ignore[import-untyped, unused-ignore]
from tvm import tirx  # type: ignore[import-untyped, unused-ignore]

from backends.tvm.kernel import Machine
from backends.tvm.machine import target


def compile_functions(functions: Mapping[Any, Any], machine: Machine) -> Any:
    """A module of machine code; ``functions`` by their GlobalVar, those with a ``global_symbol`` can be called by name."""
    chosen = target(machine)
    lower = tirx.transform
    passes = (
        lower.BindTarget(chosen.with_host(chosen)),
        lower.AnnotateEntryFunc(),
        lower.SplitHostDevice(),
        lower.MakePackedAPI(),
        lower.LowerTVMBuiltin(),
        lower.LowerIntrin(),
    )
    module = tvm.IRModule(dict(functions))
    for each in passes:
        module = each(module)
    return tvm.get_global_func("target.build.llvm")(module, chosen)
