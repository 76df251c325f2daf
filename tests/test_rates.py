"""What was measured on the machine decides in extraction, and the same measurements decide in the same way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import apply, numbers

pytest.importorskip("tvm")

import rewriter
import rules
from backends.tvm.database import Database
from backends.tvm.kernel import Machine, Operand
from backends.tvm.kernels.contraction import Contraction
from backends.tvm.kernels.depthwise import Depthwise
from backends.tvm.rates import ENOUGH, measured, speed_of
from passes.saturate import saturate
from rewriter.cost import Prices, Rates
from rewriter.egraph import Saturator

NONE = Operand("float32", ())


def product(rows: int, depth: int, columns: int) -> Contraction:
    return Contraction((1,), (1, rows), columns, (1, 1), depth, NONE, NONE)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    here = Machine("some", 8, 16, 2, False)
    monkeypatch.setattr("backends.tvm.machine.known", lambda threads, database: dataclasses.replace(here, threads=threads))
    return here


def test_rates_of_what_was_measured(tmp_path: Path, machine: Machine) -> None:
    database = Database(tmp_path / "kernels.sqlite")
    assert measured(2, database) is None
    for i in range(ENOUGH):
        kernel = product(16, 64, 16 * (i + 1))
        database.keep(kernel, machine, (1, 8, 8), kernel.operations / 50e9, 3)
    rates = measured(2, database)
    assert rates is not None
    assert rates.flop == pytest.approx(1e6 / 50e9)
    assert rates.depthwise_flop is None
    assert rates.byte is None  # nobody calibrated
    assert rates.times[16, 64, 32] == pytest.approx(2 * 16 * 64 * 32 / 50e3)
    assert measured(2, database) == rates
    assert measured(1, database) is None  # of another number of threads


def test_too_few_say_nothing_of_others(tmp_path: Path, machine: Machine) -> None:
    database = Database(tmp_path / "kernels.sqlite")
    database.keep(product(1, 2048, 1000), machine, (1, 1, 8), 1e-3, 3)
    rates = measured(2, database)
    assert rates == Rates(times={(1, 2048, 1000): 1000.0})
    assert Prices.for_objective("latency", rates).flop == Prices().flop
    assert Prices.for_objective("memory", rates) == Prices.for_objective("memory")


def test_kinds() -> None:
    assert speed_of(product(7, 5, 3))[::2] == ("dense", "[7, 5, 3]")
    image = Contraction((1,), (14, 14), 64, (3, 3), 32, NONE, NONE)
    assert speed_of(image)[::2] == ("dense", "[196, 288, 64]")
    assert speed_of(dataclasses.replace(image, batch=(8,)))[::2] == ("dense", "")
    assert speed_of(Depthwise(1, (14, 14), 64, (3, 3), NONE, NONE)) == ("depthwise", 2.0 * 14 * 14 * 64 * 9, "")


def low_rank() -> onnx.ModelProto:
    """A product by way of eight columns: 8 times fewer multiplications than their merged product."""
    nodes = [apply("MatMul", ["x", "a"], ["p"]), apply("MatMul", ["p", "b"], ["y"])]
    weights = {"a": numbers(128, 8), "b": numbers(8, 128)}
    ports = [helper.make_tensor_value_info(n, 1, [4096, 128]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(v, n) for n, v in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def products(prices: Prices) -> int:
    with Saturator() as saturator:
        graph, _ = saturate(ir.from_proto(low_rank()).graph, rules.ALL, saturator, objective=prices)
    runs = {v.name for v in graph.inputs}
    count = 0
    for node in graph:
        if any(v is not None and v.name in runs for v in node.inputs):
            runs.update(v.name for v in node.outputs)
            count += node.op_type == "MatMul"
    return count


def test_a_rewrite_that_is_slower_here_is_not_taken() -> None:
    assert products(Prices.for_objective("latency")) == 2
    slow = Rates(times={(4096, 128, 8): 900.0, (4096, 8, 128): 900.0, (4096, 128, 128): 400.0})
    assert products(Prices.for_objective("latency", slow)) == 1
    fast = Rates(times={(4096, 128, 8): 90.0, (4096, 8, 128): 90.0, (4096, 128, 128): 400.0})
    assert products(Prices.for_objective("latency", fast)) == 2


def test_compiling_asks_the_database_and_optimising_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    slow = Rates(times={(4096, 128, 8): 1e5, (4096, 8, 128): 1e5, (4096, 128, 128): 1e4})

    def known(threads: int | None) -> Rates:
        asked.append(threads)
        return slow

    monkeypatch.setattr("backends.tvm.rates.measured", known)
    plain = rewriter.optimize(low_rank())
    assert [node.op_type for node in plain.model.graph.node] == ["MatMul", "MatMul"]
    assert not asked
    twice = [rewriter.compile(low_rank(), backend="tvm", threads=2).model for _ in range(2)]
    assert asked == [2, 2]
    assert [node.op_type for node in twice[0].graph.node] == ["MatMul"]
    assert twice[0].SerializeToString() == twice[1].SerializeToString()
