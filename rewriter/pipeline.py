"""The whole way: read, normalise, search, fold, verify, build. The only module, with ``__main__``, that sees everything."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import backends
from backends.isolated import Isolated
from backends.program import Program
from passes import normalise
from passes.approximate import ALL as KINDS
from passes.approximate import competing
from passes.approximate.candidate import Approximation
from passes.collapse_stream import NAME as COLLAPSE
from passes.collapse_stream import collapse_stream
from passes.compose import compose
from passes.drop_dead import drop_dead
from passes.drop_dead_channels import NAME as DEAD_CHANNELS
from passes.drop_dead_channels import Shrunk, drop_dead_channels
from passes.drop_impulse import RELIED
from passes.fold_quantisation import NAME as CODES
from passes.fold_quantisation import Folded, fold_quantisation
from passes.fold_weights import fold_weights
from passes.inline_constants import LITERAL
from passes.merge_maps import NAME as MERGE
from passes.merge_maps import merge_maps
from passes.pack_weights import pack_weights
from passes.recognise_layernorm import recognise_layernorm
from passes.recognise_recurrence import NAME as RECURRENCE
from passes.recognise_recurrence import RESTS
from passes.recognise_rmsnorm import recognise_rmsnorm
from passes.saturate import Decline, Search, saturate
from passes.share_weights import share_weights
from rewriter.approximate import Approximated, approximate
from rewriter.budget import Budget
from rewriter.budget import parse as parse_budget
from rewriter.calibration import read_calibration
from rewriter.compiled import Compiled
from rewriter.cost import Prices, Rates
from rewriter.edit import dims, graphs, tensor
from rewriter.egraph import Limits, Saturator, SearchFailed
from rewriter.encode import digest
from rewriter.errors import BudgetError, InvalidInput, InvalidModel, RewriterError, VerificationFailed
from rewriter.graph import Summary, summarise, weight_bytes
from rewriter.infer_onnx import infer
from rewriter.race import Differs, Outcome, Race, build_options, fastest_as_it_is
from rewriter.race import parse as race_engines
from rewriter.read_onnx import read_onnx
from rewriter.remarks import filled_zeros, mixed_samples
from rewriter.report import Report
from rewriter.rule import Rule
from rewriter.structure import Structure
from rewriter.verdicts import Verdicts
from rewriter.verify import SIZES, Case, Feed, Oracle, Verification, feeds
from rewriter.weights import LAW, WeightProgram
from rewriter.write_onnx import ONE_FILE, write_onnx

Step = Callable[[str], None]
"""Called with what begins now; for progress displays."""


@dataclass
class Optimized:
    """The result of ``optimize``. ``report``: what was done, and what was not."""

    ir_model: ir.Model
    report: Report
    inputs: Structure
    outputs: Structure
    weights: WeightProgram | None = None
    facts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    example: list[np.ndarray] | None = None
    oracle: Oracle = field(default_factory=Oracle)
    """The original's outputs, on the example and on made-up inputs."""
    differs: Differs | None = None
    """Of an approximate result: why what an engine computes loses more than the budget allows, or nothing."""
    exact: Optimized | None = None
    """Of an approximate result that is still to be timed: the exact one."""

    @property
    def model(self) -> onnx.ModelProto:
        """The optimised model; above 2 GB (protobuf's limit) use ``save``."""
        return ir.to_proto(self.ir_model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ONNX file, all or nothing; weights go beside it (``NAME.data``) when they do not fit into one message."""
        write_onnx(self.ir_model, path)


@dataclass
class _Source:
    """A model as it was read, and what is known beside the graph."""

    model: ir.Model
    inputs: Structure
    outputs: Structure
    example: list[np.ndarray] | None = None
    expected: list[Any] | None = None
    """What the torch module itself gave for the example."""
    path: str | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Weights that are in the model only as numbers made of them, and the digests of their values."""


def optimize(
    model: Any,
    example_inputs: Any = None,
    *,
    rules: str | Iterable[Rule] = "exact",
    disable: Sequence[str] = (),
    objective: str = "latency",
    constants: Mapping[str, Any] | None = None,
    budget: Any = None,
    calibration: Any = None,
    metric: Any = None,
    limits: Limits | Mapping[str, Any] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    step: Step | None = None,
) -> Optimized:
    """The cheapest graph that computes what ``model`` computes.

    ``model``: torch.nn.Module, ExportedProgram, fx.GraphModule, onnx.ModelProto, onnx_ir.Model, or a path to an ONNX file.
    ``example_inputs``: a tuple as the module takes them, or a dict by input name; optional for ONNX. ``disable``: rules by name, exact
    or approximate ("quantise/int8", or "quantise" for all of them).
    ``objective``: "latency" or "memory". ``constants``: inputs that are fixed; they disappear from the result. ``limits``: fields of
    ``Limits``. ``input_shapes``: freezes symbolic dimensions. Raises ``RewriterError`` for a model or an option that is wrong; never
    because a search failed: then the model comes back as it was, and the report says so.
    """
    _check_objective(objective)
    allowed = _allowed(budget, calibration, metric)
    chosen = _rules(rules, disable)
    bounds = _limits(limits)
    watch = _Watch(step)
    with ExitStack() as stack:
        stack.enter_context(_no_collections())
        saturator = stack.enter_context(Saturator())
        bench = _Bench(stack.enter_context(Isolated()), stack.enter_context(tempfile.TemporaryDirectory(prefix="rewriter-")))
        watch("reading")
        source = _read(model, example_inputs, constants, input_shapes)
        search = _Searcher(chosen, bounds, Prices.for_objective(objective), saturator, bench, watch)
        return replace(_optimised(source, search, allowed), exact=None)


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    backend: str = "auto",
    target: str = "cpu",
    tune: int = 0,
    threads: int | None = None,
    rules: str | Iterable[Rule] = "exact",
    disable: Sequence[str] = (),
    objective: str = "latency",
    constants: Mapping[str, Any] | None = None,
    budget: Any = None,
    calibration: Any = None,
    metric: Any = None,
    limits: Limits | Mapping[str, Any] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    step: Step | None = None,
) -> Compiled:
    """``optimize``, and something that runs.

    ``backend``: "onnxruntime", "tvm", "openvino", "inductor", "torch" or "reference"; a list of them, "onnxruntime,tvm"; or "auto": the
    model and the result are measured in alternating rounds on ONNX Runtime and, where it is installed, OpenVINO, and the fastest is
    kept if its results are right. With ``tune`` above 0, TVM, torch and Inductor compete too: they take seconds to tens of seconds to
    build. ``threads``: of whichever backend runs; all physical cores if None. ``target``: "cpu", or "cuda" ("cuda:sm_86" for GPUs of that
    kind): TVM compiles for a GPU, which need not be here, and nothing is measured. Raises ``RewriterError``.
    """
    _check_objective(objective)
    allowed = _allowed(budget, calibration, metric)
    _check_tune(tune)
    engines = race_engines(_on(target, backend), tune)
    chosen, bounds, watch = _rules(rules, disable), _limits(limits), _Watch(step)
    with ExitStack() as stack:
        stack.enter_context(_no_collections())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rewriter-"))
        saturator, isolated = stack.enter_context(Saturator()), stack.enter_context(Isolated())
        bench = _Bench(isolated, folder)
        small = objective == "memory" or (allowed is not None and allowed.budget.weight_bytes is not None)
        begin = partial(Race, engines, bench.before, bench.after, threads=threads, tune=tune, small=small)
        race = stack.enter_context(begin(os.path.join(folder, "winner")))
        bench.before_is_there = race.load_before
        watch("reading")
        source = _read(model, example_inputs, constants, input_shapes)
        prices = Prices.for_objective(objective, _rates(engines, threads) if target == "cpu" else None)
        result = _optimised(source, _Searcher(chosen, bounds, prices, saturator, bench, watch, threads, engines), allowed)
        watch("measuring")
        outcome = _raced(race, result, bench)
        if outcome.kept and result.exact is not None:
            result = _exact_after_all(result, result.exact, outcome.kept)
            race.close()
            race = stack.enter_context(begin(os.path.join(folder, "exact")))
            outcome = _raced(race, result, bench)
        _settle(outcome, source, result)
        for process in (saturator.stop, isolated.close, race.close):  # whose memory the compiler can use
            process()
        watch("building")
        program = _built(outcome, result, folder, target, threads, tune, watch)
        watch.end()
    return Compiled(
        result.ir_model, program, result.report, inputs=result.inputs, outputs=result.outputs, weights=result.weights,
        facts=result.facts, shared=result.shared, threads=threads,
    )  # fmt: skip


def _raced(race: Race, result: Optimized, bench: _Bench) -> Outcome:
    if race.measures:
        write_onnx(result.ir_model, bench.after)
    return race.run(result.example, result.differs or result.oracle.differs)


def _exact_after_all(result: Optimized, exact: Optimized, why: str) -> Optimized:
    """The exact result where the approximate one turned out to be no faster than the model; the report tells of both."""
    section = dict(result.report.budget or {})
    section["sites"] = [site | {"chosen": False, "reason": site["reason"] or f"slower when measured: {why}"} for site in section.get("sites", [])]
    section |= {"chosen": 0, "stopped": f"the approximate graph was slower when measured: {why}"}
    section["metric"] = dict(section.get("metric", {})) | {"worsening": None, "upper": None}
    rejected = _slower([r for r in result.report.rewrites if r["equality"] == "approximate"], why)
    report = replace(
        exact.report, budget=section, notes=[*result.report.notes, f"the approximate graph was not kept: {why}"],
        declined=[*result.report.declined, *rejected],
    )  # fmt: skip
    return replace(exact, report=report)


def _rates(engines: Sequence[str], threads: int | None) -> Rates | None:
    """What our kernels' database knows about this machine, where they compete."""
    if "tvm" not in engines:
        return None
    from backends.tvm.rates import measured

    return measured(threads)


def _built(outcome: Outcome, result: Optimized, folder: str, target: str, threads: int | None, tune: int, watch: _Watch) -> Program:
    module = backends.backend(outcome.engine)
    if outcome.saved is not None and _fixed(result.ir_model.graph):
        program = module.restore(outcome.saved, threads=threads)
        result.report.notes += program.notes
        return program  # type: ignore[no-any-return]
    takes_example = outcome.engine in ("tvm", "inductor") and result.example is not None
    options = build_options(outcome.engine, tune) | ({"example_inputs": result.example} if takes_example else {})
    if outcome.engine == "tvm":
        options["progress"] = watch.detail
    if weight_bytes(result.ir_model) <= ONE_FILE and outcome.engine != "tvm":
        program = module.build(result.model, target=target, threads=threads, **options)
    else:
        path = os.path.join(folder, "built.onnx")  # large, or what copies it from there without a message in memory
        write_onnx(result.ir_model, path)
        program = module.build(path, target=target, threads=threads, **options)
    result.report.notes += getattr(program, "notes", [])
    return program  # type: ignore[no-any-return]


def _fixed(graph: ir.Graph) -> bool:
    """Are the sizes of all inputs known?"""
    return all(isinstance(d, int) and d > 0 for v in graph.inputs for d in dims(v) or ("unknown",))


def _settle(outcome: Outcome, source: _Source, result: Optimized) -> None:
    """Write what was measured into the report; put the model itself in the result's place where it is the faster."""
    report = result.report
    report.latency, report.backend = outcome.latency, outcome.engine
    report.notes += outcome.notes
    if outcome.engine != "onnxruntime" and outcome.latency and len(outcome.latency) > 1 and not _fixed(result.ir_model.graph):
        report.notes.append(f"{outcome.engine} was fastest at the sizes of the example; others were not measured")
    if not outcome.kept:
        return
    report.notes.append(f"the rewritten graph was not kept: {outcome.kept}")
    report.declined += _slower(report.rewrites, outcome.kept)
    report.rewrites, report.after = [], report.before
    report.latency = {e: {**pair, "after_ms": pair["before_ms"]} for e, pair in (outcome.latency or {}).items() if pair["before_ms"]}
    result.ir_model, result.weights, result.shared = source.model, None, {}
    result.facts = {name: (f"fixed:{value}",) for name, value in source.fixed.items()}


def _slower(rewrites: Sequence[Mapping[str, Any]], why: str) -> list[dict[str, Any]]:
    """These rewrites as the report declines them."""
    return [{"rule": r["rule"], "site": "the whole model", "reason": f"slower when measured: {why}"} for r in rewrites]


@dataclass
class _Attempt:
    """One candidate result."""

    model: ir.Model
    search: Search
    weights: WeightProgram | None
    notes: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    """Weights that are stored as codes."""
    kept: bool = False
    """Is it the model itself, untouched?"""


def _kept(source: _Source, stop: str, notes: list[str]) -> _Attempt:
    return _Attempt(source.model.clone(), Search(stop=stop), None, notes, kept=True)


@dataclass(frozen=True)
class _Allowed:
    """What the user allows to be lost, and what it is measured with."""

    budget: Budget
    calibration: Any
    metric: Callable[[Any, Any], float] | None


@dataclass(frozen=True)
class _Searcher:
    """The exact search, as the options want it."""

    laws: _Laws
    limits: Limits
    prices: Prices
    saturator: Saturator
    bench: _Bench
    watch: _Watch
    threads: int | None = None
    engines: Sequence[str] = ("onnxruntime",)
    """What the result may run on."""

    def timed_on(self, model: ir.Model, example: Sequence[np.ndarray] | None) -> str:
        """The engine that approximations of this model are timed on."""
        if len(self.engines) == 1:
            return self.engines[0]
        with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
            path = os.path.join(folder, "exact.onnx")
            write_onnx(model, path)
            return fastest_as_it_is(self.engines, path, example, threads=self.threads)

    def optimise(self, source: _Source, bench: _Bench | None = None) -> Optimized:
        return _optimize(source, self.laws, self.limits, self.prices, self.saturator, bench or self.bench, self.watch)

    def structured(self, source: _Source, exact: Optimized) -> ir.Model:
        """The exact graph before its maps were merged: what belongs to one branch or expert stands apart."""
        if not any(r["rule"] == MERGE for r in exact.report.rewrites):
            return exact.ir_model
        with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
            return replace(self, laws=self.laws.without(MERGE)).optimise(source, self.bench.elsewhere(folder)).ir_model


def _optimised(source: _Source, search: _Searcher, allowed: _Allowed | None) -> Optimized:
    """The exact result; within a budget, the approximate one if there is a better one."""
    if allowed is None:
        return search.optimise(source)
    search.watch("reading calibration inputs")
    data = read_calibration(allowed.calibration, source.model.graph, search.watch.detail)
    exact = search.optimise(source)
    search.watch("approximating")
    again = _Again(source, search, exact)
    for_bytes = search.prices.memory or allowed.budget.weight_bytes is not None
    plans = search.laws.plans(for_bytes=for_bytes)
    found = approximate(
        search.structured(source, exact), plans, data, allowed.metric, allowed.budget, again, memory=search.prices.memory,
        example=exact.example, engine=search.timed_on(exact.ir_model, exact.example), threads=search.threads, progress=search.watch.detail,
    )  # fmt: skip
    search.watch.end()
    return _with_approximations(exact, again.result(found.model), found, source)


class _Again:
    """The exact search on a graph with approximations in it: their scales fold, channels of zeros go."""

    def __init__(self, source: _Source, search: _Searcher, exact: Optimized) -> None:
        self._source, self._search = source, search
        self._example = source.example if source.example is not None else exact.example
        self._made: list[Optimized] = []

    def __call__(self, model: ir.Model) -> ir.Model:
        source = _Source(model, self._source.inputs, self._source.outputs, self._example)
        with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
            self._made.append(self._search.optimise(source, self._search.bench.elsewhere(folder)))
        self._search.watch("approximating")
        return self._made[-1].ir_model

    def result(self, model: ir.Model | None) -> Optimized | None:
        """What was found when that graph came out of the search; None for one that did not."""
        return next((o for o in self._made if o.ir_model is model), None)


def _with_approximations(exact: Optimized, last: Optimized | None, found: Approximated, source: _Source) -> Optimized:
    """The report tells both searches and what was approximated. New weights need another compile: they were chosen for these."""
    known = exact.report
    report = replace(
        known, budget=found.section, notes=[*known.notes, *found.notes], declined=[*known.declined, *found.declined], rewrites=[*known.rewrites]
    )
    if found.model is None:
        return replace(exact, report=report)
    report.after = summarise(found.model, _hints(source.model.graph, exact.example))
    report.rewrites += (last.report.rewrites if last is not None else []) + found.rewrites
    if last is not None:
        report.verification = last.report.verification
    else:
        report.notes.append("the exact search of the approximated graph was not used: what it made was slower")
    for value, declared in zip(found.model.graph.outputs, source.model.graph.outputs, strict=True):
        value.type, value.shape = declared.type, declared.shape
    facts: dict[str, tuple[str, ...]] = {
        name: (f"fixed:{digest(v.const_value.numpy())}",) for name, v in source.model.graph.initializers.items() if v.const_value is not None
    }
    oracle = last.oracle if last is not None else exact.oracle
    return replace(
        exact, ir_model=found.model, report=report, weights=None, facts=facts, shared={}, oracle=oracle, differs=found.differs, exact=exact
    )


def _optimize(
    source: _Source, laws: _Laws, limits: Limits, prices: Prices, saturator: Saturator, bench: _Bench, watch: _Watch
) -> Optimized:
    hints = _hints(source.model.graph, source.example)
    before = summarise(source.model, hints)
    watch("normalising")
    plain = normalise(source.model.clone(), smallest=prices.memory)
    fixed = plain.metadata_props.pop(RESTS, "").splitlines()
    shared = share_weights(plain)
    infer(plain)
    watch("searching")
    with ThreadPoolExecutor(1) as beside:  # the original runs in its own process meanwhile
        running = beside.submit(_oracle, source, hints, bench)
        attempt = _attempt(plain, laws, limits, prices, saturator, hints)
        watch("verifying")
        oracle, verdicts = running.result()
    attempt, verification = _verified(attempt, plain, source, laws, limits, prices, saturator, bench, oracle, verdicts, hints)
    if _is_worse(summarise(attempt.model, hints), before, prices):
        more = "the rewritten graph had more nodes than the model, and nothing for them: the model was kept as it was"
        attempt = _kept(source, attempt.search.stop, [*attempt.notes, more])
        verification = Verification(True, inputs=0, reason="the model itself")
    if attempt.kept:
        shared = {}
    for value, declared in zip(attempt.model.graph.outputs, source.model.graph.outputs, strict=True):
        value.type, value.shape = declared.type, declared.shape
    watch.end()
    s = attempt.search
    if fixed and not attempt.kept:
        s.rewrites[RECURRENCE] += 1
        s.value_facts |= {name: (*s.value_facts.get(name, ()), "fixed:changed") for name in fixed}
    s.value_facts = _dated(s.value_facts, plain)
    attempt.notes += mixed_samples(plain)
    if attempt.weights is not None and not attempt.kept:
        attempt.notes += filled_zeros(attempt.weights, plain.graph.initializers, attempt.model.graph.initializers)
    report = Report(
        before, summarise(attempt.model, hints), _rewrites(s, laws.rules, verification), [asdict(d) for d in s.declined], verification,
        {"nodes": s.nodes, "classes": s.classes, "rounds": s.rounds, "seconds": round(s.seconds, 3), "stop": s.stop},
        {"method": s.method, "seconds": round(s.extraction_seconds, 3), "gap": s.gap}, None, attempt.notes, None, watch.seconds,
    )  # fmt: skip
    example = source.example
    if example is None and oracle.cases:
        example = [oracle.cases[0].feed[v.name or ""] for v in source.model.graph.inputs]
    originals = {name: v.const_value for name, v in source.model.graph.initializers.items() if name in {*attempt.packed, *plain.meta.get(RELIED, ())}}
    frozen = dict(source.fixed) | {name: digest(data.numpy()) for name, data in originals.items() if data is not None}
    facts = s.value_facts | {name: (f"fixed:{value}",) for name, value in frozen.items()}
    return Optimized(attempt.model, report, source.inputs, source.outputs, attempt.weights, facts, shared, example, oracle)


def _attempt(
    plain: ir.Model, laws: _Laws, limits: Limits, prices: Prices, saturator: Saturator, hints: Mapping[str, int]
) -> _Attempt:
    """Search every graph of a normalised model, subgraphs first, and write the result. A failed search leaves the model."""
    reason = ""
    for bounds in (limits, replace(limits, rounds=min(limits.rounds, FEW_ROUNDS))):
        model = plain.clone()
        try:
            search = Search()
            _quantisers_folded(model, search, laws.steps)
            _search_subgraphs(model.graph, laws.rules, bounds, prices, saturator, hints, search)
            new, own = _search(model.graph, laws.rules, bounds, prices, saturator, hints)
            search.add(own)
            notes = [reason] if reason else []
            if search.stop != "saturated":
                notes.append(f"the search was stopped by its limit of {search.stop}: more may be found with a higher one (limits=)")
            return _finished(_with_graph(model, new), search, notes, prices, laws.steps, hints)
        except SearchFailed as failure:
            reason = f"the search did not end and was cut short: {failure}"
        except Exception as failure:  # noqa: BLE001  whatever goes wrong in a search is no reason to fail a compile
            reason = f"the search failed: {type(failure).__name__}: {' '.join(str(failure).split())}"
            break
    notes = [f"{reason}; the model was kept"]
    try:
        return _finished(plain.clone(), Search(stop="failed"), notes, prices)
    except Exception:  # noqa: BLE001  then not even its weights are folded
        return _Attempt(plain.clone(), Search(stop="failed"), None, notes)


def _is_worse(after: Summary, before: Summary, prices: Prices) -> bool:
    """More nodes than before must save something: bytes of weights, or multiply-accumulates."""
    if after.nodes <= before.nodes:
        return False
    return after.weight_bytes >= before.weight_bytes if prices.memory else after.macs >= before.macs


FEW_ROUNDS = 4
"""Rounds of a second try, after a search that ran out of time or memory."""


def _finished(
    model: ir.Model, search: Search, notes: list[str], prices: Prices, steps: Container[str] = (), hints: Mapping[str, int] | None = None
) -> _Attempt:
    smallest = prices.memory
    infer(model)
    compose(model)
    weights = fold_weights(model, smallest=smallest)
    # A norm whose epsilon a law rescaled is one again now that epsilon is a number.
    recognise_layernorm(model)
    recognise_rmsnorm(model)
    drop_dead(model)
    weights = _whole_graph_steps(model, weights, search, steps, prices, hints or {})
    share_weights(model)
    packed = pack_weights(model) if smallest else []
    drop_dead(model)
    for graph in graphs(model):
        for node in graph:
            node.metadata_props.pop(LAW, None)
        graph.sort()
    infer(model)
    return _Attempt(model, search, weights, notes, packed)


WHOLE_GRAPH = (CODES, COLLAPSE, DEAD_CHANNELS, MERGE)
"""Steps that are no laws of an e-graph (each says why), by the names that reports and ``disable`` know them by."""


def _quantisers_folded(model: ir.Model, search: Search, steps: Container[str]) -> None:
    folded = fold_quantisation(model) if CODES in steps else Folded()
    if folded.count:
        search.rewrites[CODES] += folded.count
        search.value_facts |= dict.fromkeys(folded.rests, ("equal:changed",))
        drop_dead(model)
        infer(model)


def _whole_graph_steps(
    model: ir.Model, weights: WeightProgram | None, search: Search, steps: Container[str], prices: Prices, hints: Mapping[str, int]
) -> WeightProgram | None:
    collapsed = collapse_stream(model) if COLLAPSE in steps else 0
    if collapsed:
        search.rewrites[COLLAPSE] += collapsed
        weights = _folded_again(model, weights)
    shrunk = drop_dead_channels(model) if DEAD_CHANNELS in steps else Shrunk()
    if shrunk.count:
        search.rewrites[DEAD_CHANNELS] += shrunk.count
        sources = {s for name in shrunk.rests for s in (weights.sources(name) if weights is not None else [name])}
        for name in sorted(sources):
            search.value_facts[name] = (*search.value_facts.get(name, ()), "zero:changed")
        weights = _folded_again(model, weights)
    merged = merge_maps(model, prices, hints) if MERGE in steps and not prices.memory else 0
    if merged:
        search.rewrites[MERGE] += merged
        weights = _folded_again(model, weights)
    return weights


def _dated(facts: Mapping[str, Sequence[str]], plain: ir.Model) -> dict[str, tuple[str, ...]]:
    """Facts that hold while a weight is what it was, with what it was."""
    weights = plain.graph.initializers

    def one(name: str, fact: str) -> str:
        data = tensor(weights[name]) if fact.endswith(":changed") and name in weights else None
        return fact if data is None else fact.replace(":changed", f":{digest(data.numpy())}")

    return {name: tuple(dict.fromkeys(one(name, f) for f in held)) for name, held in facts.items()}


def _folded_again(model: ir.Model, weights: WeightProgram | None) -> WeightProgram | None:
    drop_dead(model)
    infer(model)
    second = fold_weights(model)
    drop_dead(model)
    kept = model.graph.initializers
    if second is None or weights is None:
        return second or weights
    return weights.then(second, kept)


def _search_subgraphs(
    graph: ir.Graph, rules: Sequence[Rule], limits: Limits, prices: Prices, saturator: Saturator, hints: Mapping[str, int], total: Search
) -> None:
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type != ir.AttributeType.GRAPH:
                continue
            inner = attribute.as_graph()
            _search_subgraphs(inner, rules, limits, prices, saturator, hints, total)
            new, search = _search(inner, rules, limits, prices, saturator, hints)
            total.add(search)
            if new is not inner:
                node.attributes[name] = ir.AttrGraph(name, new)


ALGEBRA = {"MatMul", "Conv", "Add", "Sub", "Mul", "Div"}


def _search(
    graph: ir.Graph, rules: Sequence[Rule], limits: Limits, prices: Prices, saturator: Saturator, hints: Mapping[str, int]
) -> tuple[ir.Graph, Search]:
    if not any(n.op_type in ALGEBRA for n in graph):
        return graph, Search()
    return saturate(graph, rules, saturator, limits=limits, objective=prices, hints=hints)


def _with_graph(model: ir.Model, graph: ir.Graph) -> ir.Model:
    return ir.Model(
        graph, ir_version=model.ir_version, producer_name=model.producer_name, producer_version=model.producer_version,
        domain=model.domain, model_version=model.model_version, doc_string=model.doc_string,
        functions=list(model.functions.values()), metadata_props=dict(model.metadata_props),
    )  # fmt: skip


# Verification


class _Bench:
    """Runs models in the child process, each from a file, so that weights are written once and never piped."""

    def __init__(self, isolated: Isolated, folder: str) -> None:
        self._isolated = isolated
        self.before_is_there: Callable[[], None] = lambda: None
        """Called when the file ``before`` is written."""
        self.before, self.after = (os.path.join(folder, name) for name in ("before.onnx", "after.onnx"))

    def elsewhere(self, folder: str) -> _Bench:
        """The same process, other files."""
        return _Bench(self._isolated, folder)

    def run(self, path: str, feed: Sequence[Feed]) -> list[list[Any]]:
        return self._isolated.run(path, feed, optimised=False)


def _oracle(source: _Source, hints: Mapping[str, int], bench: _Bench) -> tuple[Oracle, Verdicts]:
    """The original's outputs on the example and on made-up inputs of sizes that it accepts, and what was found with them before.

    The original is run here, unless it was compared with something before: then it may not be needed.
    """
    write_onnx(source.model, bench.before)
    bench.before_is_there()
    oracle = Oracle(lambda: _original(source, hints, bench), _reference(source.model))
    verdicts = Verdicts(bench.before, source.example, source.expected)
    if not verdicts.any:
        _ = oracle.cases
    return oracle, verdicts


def _original(source: _Source, hints: Mapping[str, int], bench: _Bench) -> list[Case]:
    path = source.path or bench.before
    graph = source.model.graph
    names = [v.name or "" for v in graph.inputs]
    example = [] if source.example is None else [("the example inputs", dict(zip(names, source.example, strict=True)))]
    makers = list(feeds(graph, hints))
    open_sizes = any(not isinstance(d, int) and d not in hints for v in graph.inputs for d in dims(v) or ())
    cases: list[Case] = []
    for batch, other in SIZES if open_sizes else SIZES[:1]:
        cases = _cases(bench, path, [*example, *((label, make(batch, other)) for label, make in makers)])
        if len(cases) > len(example):
            break
    if source.expected is not None and cases and example:
        cases.append(Case(example[0][1], source.expected, "the module's own outputs"))
    return cases


def _cases(bench: _Bench, path: str, made: Sequence[tuple[str, Feed]]) -> list[Case]:
    """What the model gives on the inputs that it accepts: all at once, or one by one if it refuses some."""
    try:
        outputs = bench.run(path, [feed for _, feed in made])
        return [Case(feed, got, f"{label} inputs" if " " not in label else label) for (label, feed), got in zip(made, outputs, strict=True)]
    except RewriterError:
        if len(made) == 1:
            return []
    return [case for one in made for case in _cases(bench, path, [one])]


def _verified(
    attempt: _Attempt, plain: ir.Model, source: _Source, laws: _Laws, limits: Limits, prices: Prices,
    saturator: Saturator, bench: _Bench, oracle: Oracle, verdicts: Verdicts, hints: Mapping[str, int],
) -> tuple[_Attempt, Verification]:  # fmt: skip
    """The attempt if it is right; else one without the rule that is to blame, and a note; else the model as it was."""
    verification = _judge(attempt.model, oracle, bench, verdicts)
    if verification.passed is not False:
        return attempt, verification
    first = verification.reason
    names = [*WHOLE_GRAPH, *(f"{r.theory}/{r.name}" for r in laws.rules)]
    for name in (n for n in names if n in attempt.search.rewrites):
        without = _attempt(plain, laws.without(name), limits, prices, saturator, hints)
        verification = _judge(without.model, oracle, bench)
        if verification.passed:
            without.search.declined.append(Decline(name, "the whole model", f"verification failed with this rule ({first})"))
            without.notes.append(f"rule {name} gave a wrong result here and was dropped: {first}")
            return without, verification
    kept = _kept(source, "verification failed", [f"the rewritten model differed and was not used: {first}"])
    verification = _judge(kept.model, oracle, bench)
    if verification.passed is False:
        raise VerificationFailed(f"run twice, the model itself does not give the same outputs ({verification.reason}): nothing was written")
    return kept, verification


def _judge(model: ir.Model, oracle: Oracle, bench: _Bench, verdicts: Verdicts | None = None) -> Verification:
    write_onnx(model, bench.after)
    known = verdicts.find(bench.after) if verdicts is not None else None
    if known is not None:
        return known
    try:
        found = oracle.judge(lambda feed: bench.run(bench.after, feed), _reference(model))
        if verdicts is not None and found.passed:
            verdicts.keep(found)
        return found
    except RewriterError as failure:
        return Verification(False, np.inf, np.inf, len(oracle.cases), f"the rewritten model does not run: {failure}")


def _reference(model: ir.Model) -> Callable[[Feed], list[Any]]:
    """The model in float64, built when first asked."""
    built: list[Any] = []

    def run(feed: Feed) -> list[Any]:
        from backends import reference

        if not built:
            built.append(reference.build(ir.to_proto(model), float64=True))
        return list(built[0](*(feed[p.name] for p in built[0].inputs)))

    return run


# Reading and options


def _read(model: Any, example_inputs: Any, constants: Mapping[str, Any] | None, input_shapes: Mapping[str, Sequence[int]] | None) -> _Source:
    if isinstance(model, (str, os.PathLike, onnx.ModelProto, ir.Model)):
        read = read_onnx(model, input_shapes=input_shapes, constants=constants)
        names = [v.name or "" for v in read.graph.inputs]
        inputs, outputs = Structure.of_inputs(names), Structure.of_outputs(len(read.graph.outputs))
        example = None
        if example_inputs is not None:
            arguments, named = ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (_tuple(example_inputs), {})
            example = _checked(read.graph, [_numpy(a) for a in inputs.flatten(arguments, named)])
        path = os.fspath(model) if isinstance(model, (str, os.PathLike)) and not constants and not input_shapes else None
        return _Source(read, inputs, outputs, example, path=path)
    if type(model).__module__.split(".")[0] != "torch" and not _is_module(model):
        raise InvalidModel(
            f"cannot read a {type(model).__name__}: give a torch module or exported program, an ONNX model, or a path to an ONNX file"
        )
    return _read_torch(model, example_inputs, constants)


def _read_torch(model: Any, example_inputs: Any, constants: Mapping[str, Any] | None) -> _Source:
    import torch

    from rewriter.read_torch import read_torch

    if example_inputs is None and not isinstance(model, torch.export.ExportedProgram):
        raise InvalidInput("a torch module needs example_inputs, a tuple as it takes them: its graph is traced with them")
    program = read_torch(model, example_inputs, constants=constants)
    for name in program.literals:
        program.model.graph.initializers[name].meta[LITERAL] = True
    if program.call is None or program.example is None:
        return _Source(program.model, program.inputs, program.outputs, fixed=program.fixed)
    args, kwargs = program.call
    expected = None
    exported = isinstance(model, torch.export.ExportedProgram)
    run = model.module() if exported else model
    if callable(run) and not (exported and constants):  # an exported program's example has its own values in the constants' places
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            expected = [_numpy(v) for v in _leaves(run(*args, **kwargs))]
        if len(expected) != program.outputs.leaves:
            expected = None
    return _Source(program.model, program.inputs, program.outputs, [_numpy(a) for a in program.example], expected, fixed=program.fixed)


def _is_module(model: Any) -> bool:
    return any(c.__module__.startswith("torch.nn.modules") or c.__module__.startswith("torch.fx") for c in type(model).__mro__)


def _leaves(result: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree

    return [v for v in _pytree.tree_leaves(result) if isinstance(v, torch.Tensor)]


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _numpy(value: Any) -> np.ndarray:
    from backends.arrays import as_numpy

    return as_numpy(value)


def _checked(graph: ir.Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Example inputs that fit the graph's declared shapes and types, or ``InvalidInput``."""
    for value, array in zip(graph.inputs, arrays, strict=True):
        shape = dims(value)
        if shape is not None and (len(shape) != array.ndim or any(isinstance(d, int) and d != n for d, n in zip(shape, array.shape, strict=True))):
            raise InvalidInput(f"example input {value.name!r} has shape {array.shape}; the model declares {list(shape)}")
        if value.dtype is not None and value.dtype.numpy() != array.dtype:
            raise InvalidInput(f"example input {value.name!r} is {array.dtype}; the model declares {value.dtype.name}")
    return arrays


def _hints(graph: ir.Graph, example: list[np.ndarray] | None) -> dict[str, int]:
    hints: dict[str, int] = {}
    for value, array in zip(graph.inputs, example or (), strict=False):
        for d, n in zip(dims(value) or (), array.shape, strict=False):
            if isinstance(d, str) and d:
                hints.setdefault(d, int(n))
    return hints


@dataclass(frozen=True)
class _Laws:
    """What may be used: laws of the e-graph, and steps on whole graphs by name."""

    rules: Sequence[Rule]
    steps: frozenset[str] = frozenset(WHOLE_GRAPH)
    off: frozenset[str] = frozenset()
    """Names that the user disabled."""

    def without(self, name: str) -> _Laws:
        return replace(self, rules=[r for r in self.rules if f"{r.theory}/{r.name}" != name], steps=self.steps - {name})

    def plans(self, *, for_bytes: bool) -> Sequence[Sequence[Sequence[Approximation]]]:
        """Of approximate rewrites."""
        return [[[kind for kind in stage if not _names_of(kind.name) & self.off] for stage in plan] for plan in competing(for_bytes=for_bytes)]


def _rules(rules: str | Iterable[Rule], disable: Sequence[str]) -> _Laws:
    import rules as rule_base

    if isinstance(rules, str):
        if rules not in ("exact", "none"):
            raise InvalidInput(f"no rule set {rules!r}; there are 'exact' and 'none', or give Rule objects")
        base, steps = (list(rule_base.ALL), set(WHOLE_GRAPH)) if rules == "exact" else ([], set())
    else:
        base, steps = list(rules), set()
    off = {disable} if isinstance(disable, str) else set(disable)
    names = [*(f"{r.theory}/{r.name}" for r in (*rule_base.ALL, *base)), *WHOLE_GRAPH, *(kind.name for kind in KINDS)]
    known = {part for name in names for part in _names_of(name)}
    for name in sorted(off):
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, sorted(known), 1)
            raise InvalidInput(f"no rule {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; `rewriter rules` lists them"))
    kept = [r for r in base if not _names_of(f"{r.theory}/{r.name}") & off]
    return _Laws(kept, frozenset(s for s in steps if not _names_of(s) & off), frozenset(off))


def _names_of(full: str) -> set[str]:
    """What a law answers to: theory/name, name, theory."""
    return {full, *full.split("/")}


def _limits(limits: Limits | Mapping[str, Any] | None) -> Limits:
    if limits is None or isinstance(limits, Limits):
        return limits or Limits()
    known = {f.name for f in fields(Limits)}
    for name in limits:
        if name not in known:
            raise InvalidInput(f"no limit {name!r}; there are {', '.join(sorted(known))}")
    return Limits(**limits)


def _check_objective(objective: str) -> None:
    if objective not in ("latency", "memory"):
        raise InvalidInput(f"no objective {objective!r}; there are 'latency' and 'memory'")


def _allowed(budget: Any, calibration: Any, metric: Any) -> _Allowed | None:
    """None where nothing may be lost. Raises ``BudgetError``."""
    if metric is not None and not callable(metric):
        raise BudgetError(f"metric is a {type(metric).__name__}: give a function of (outputs, targets or reference outputs) that returns a number")
    bounds = parse_budget(budget)
    if bounds is None:
        return None
    if calibration is None:
        raise BudgetError("budget= needs calibration=: give some dozens of inputs like those the model will meet, to measure errors on")
    return _Allowed(bounds, calibration, metric)


def _on(target: str, backend: str) -> str:
    """The backend that makes code for ``target``: for a GPU there is one, and nothing to compare it with here."""
    if target == "cpu":
        return backend
    if target.partition(":")[0] != "cuda":
        raise InvalidInput(f"no target {target!r}; there are 'cpu', 'cuda', and 'cuda:sm_86' for GPUs of that kind")
    if backend not in ("auto", "tvm"):
        raise InvalidInput(f"backend {backend!r} has no target {target!r}; 'tvm' has")
    return "tvm"


def _check_tune(tune: int) -> None:
    if not isinstance(tune, int) or tune < 0:
        raise InvalidInput(f"tune={tune!r} is not a number of trials: give 0 or more")


def _rewrites(search: Search, rules: Sequence[Rule], verification: Verification) -> list[dict[str, Any]]:
    equality = {f"{r.theory}/{r.name}": r.equal for r in rules}
    counts: Counter[str] = search.rewrites
    ordered = sorted(counts.items(), key=lambda x: (-x[1], x[0]))
    return [{"rule": n, "count": c, "equality": equality.get(n, "reals"), "error": 0.0} for n, c in ordered]


@contextmanager
def _no_collections() -> Iterator[None]:
    """Graphs are many small objects that live on: the collector would walk them again and again (a quarter of the time) for nothing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Watch:
    """Seconds by step, and the caller's progress display."""

    def __init__(self, step: Step | None) -> None:
        self.seconds: dict[str, float] = {}
        self._step, self._name, self._since = step, "", time.monotonic()

    def __call__(self, name: str) -> None:
        self.end()
        self._name, self._since = name, time.monotonic()
        if self._step:
            self._step(name)

    def detail(self, text: str) -> None:
        """How far the present step is."""
        if self._step:
            self._step(f"{self._name}: {text}")

    def end(self) -> None:
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.monotonic() - self._since
            self._name = ""


