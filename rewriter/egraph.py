"""Saturate a program of terms under rules, in a child process with limits that hold.

egglog has neither a time nor a node limit inside a round, so the hard stop is a process: ``python -m rewriter.egraph`` reads one
JSON request a line, saturates round by round, and answers with the frozen e-graph as plain integers. It is started ahead of time,
so that its imports cost nothing. Terms are text; see ``rewriter.encode`` for how a model becomes one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rewriter import analysis
from rewriter.errors import RewriterError
from rewriter.rule import Rule
from rewriter.store import Answers
from rewriter.terms import FACTS, MINUS_ONE, OPERATORS, TABLES, declarations

CHUNK = 20
"""Lines per parse: one big text is quadratic in egglog (60 s and 13 GB for 5,000 nodes), chunks are linear."""


class SearchFailed(RewriterError):
    """The e-graph could not be saturated: too large, too slow, or egglog refused. The unoptimised graph is the answer."""


@dataclass(frozen=True)
class Limits:
    """What a search may cost. Rounds and nodes stop it gracefully between rounds; seconds and memory end the process."""

    rounds: int = 24
    nodes: int = 200_000
    seconds: float = 60.0
    memory_mb: int = 8192


@dataclass(frozen=True)
class Program:
    """``lines``: egglog commands, each on its own; node i of the model is ``(node i)``.

    ``rows``: the same for what there is much of, by operator or fact: tuples of numbers and names, where a number stands for the node;
    of an operator the first is the node that it makes. An ``op`` of n arguments is ``op/n``. egglog reads rows some hundred times as
    fast as lines.
    """

    lines: Sequence[str]
    rules: Sequence[Rule]
    limits: Limits = field(default_factory=Limits)
    rows: Mapping[str, Sequence[tuple[int | str, ...]]] = field(default_factory=dict)
    declines: bool = True
    """Also look for places where a law's left side stands but its condition fails."""
    lifted: bool = False
    """Laws apply wherever they are true, not only where they can pay: see ``Rule.compile``."""


@dataclass(frozen=True)
class Frozen:
    """A saturated e-graph. Classes are integers.

    ``nodes``: (operator, class, arguments, rule that built it or ""); an argument is a class, a string or a number, by the
    operator's kinds; of ``op`` the arguments are the signature and then classes. ``model``: class of each of the model's nodes.
    ``facts``: rows by fact name. ``near``: rows by rule. ``stop``: "saturated", "rounds", "nodes".
    """

    nodes: list[tuple[str, int, tuple[Any, ...], str]]
    model: dict[int, int]
    facts: dict[str, list[tuple[Any, ...]]]
    near: dict[str, list[tuple[Any, ...]]]
    matches: dict[str, int]
    rounds: int
    seconds: float
    stop: str


class Saturator:
    """The child process. ``start`` early, ``saturate`` when the program is ready; usable again and again.

    A program that was saturated before, by whichever process, is answered by what came of it then: weights are no part of a program,
    but for the facts about them.
    """

    def __init__(self, answers: Answers | None = None) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._answers = answers or Answers()

    def start(self) -> None:
        if self._child is None or self._child.poll() is not None:
            environment = os.environ | {"RAYON_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            self._child = subprocess.Popen(
                [sys.executable, "-m", "rewriter.egraph"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
            )  # fmt: skip

    def saturate(self, program: Program) -> Frozen:
        """The program's e-graph at its fixpoint or limit. Raises ``SearchFailed``; the child is fresh again afterwards."""
        asked = {"preamble": preamble(program), "lines": list(program.lines), "rows": dict(program.rows), "limits": asdict(program.limits)}
        request = json.dumps(asked, default=int)
        question = _versions() + request
        known = self._answers.find(question)
        text = known if known is not None else self._asked(request, program.limits)
        answer = json.loads(text)
        if "error" in answer:
            raise SearchFailed(f"egglog refused the program: {answer['error']}")
        if known is None and answer["stop"] != "seconds":  # another time there may be more of them
            self._answers.keep(question, text)
        nodes = [(o, c, tuple(a), t) for o, c, a, t in answer["nodes"]]
        rows = {kind: {k: [tuple(r) for r in v] for k, v in answer[kind].items()} for kind in ("facts", "near")}
        model = dict(enumerate(answer["model"]))
        return Frozen(nodes, model, rows["facts"], rows["near"], answer["matches"], answer["rounds"], answer["seconds"], answer["stop"])

    def _asked(self, request: str, limits: Limits) -> str:
        """The child's answer, a JSON object."""
        self.start()
        assert self._child is not None and self._child.stdin is not None
        try:
            self._child.stdin.write(request + "\n")
            self._child.stdin.flush()
            text = self._read_line(limits.seconds)
            if not text.endswith("\n"):
                raise ValueError("its answer was cut off")
            return text
        except (BrokenPipeError, ValueError, TimeoutError) as failure:
            self.stop()
            raise SearchFailed(
                f"the search stopped ({failure or 'the process died'}): over {limits.seconds:g} s or {limits.memory_mb} MB; raise limits="
            ) from None

    def _read_line(self, seconds: float) -> str:
        assert self._child is not None and self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], seconds)
        if not ready:
            raise TimeoutError(f"no answer after {seconds:g} s")
        return self._child.stdout.readline()

    def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._child = None

    def __enter__(self) -> Saturator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def preamble(program: Program) -> list[str]:
    """Everything that does not depend on the model: declarations, analyses, rules."""
    rules = [r.compile("laws", lifted=program.lifted) for r in program.rules]
    near = [r.near() for r in program.rules if r.given and r.declines] if program.declines else []
    rulesets = ["(ruleset load)", "(ruleset analysis)", "(ruleset laws)", "(ruleset near)"]
    loaders = [_loader(head) for head in program.rows]
    return [*declarations(), *rulesets, *loaders, *analysis.rules(lengths=program.lifted), *rules, *near]


def _loader(head: str) -> str:
    """What turns the rows of one operator or fact into terms and facts. A row is read once."""
    name, _, count = head.partition("/")
    if name in OPERATORS or name in ("leaf", "op", MINUS_ONE):
        kinds = {"op": "s" + "t" * int(count or 0), "leaf": "i", MINUS_ONE: ""}.get(name) or (OPERATORS[name].kinds if name in OPERATORS else "")
    elif name in FACTS:
        kinds = FACTS[name].kinds
    else:
        kinds = "s" * len(TABLES[name].inputs) + TABLES[name].outputs
    names = [f"a{k}" for k in range(len(kinds))]
    terms = [f"(node {n})" if kind == "t" else n for n, kind in zip(names, kinds, strict=True)]
    sorts = ["String" if kind == "s" else "i64" for kind in kinds]
    row, built = f"({_rows_of(head)} {' '.join(names)})", f"({' '.join([name, *terms])})"
    if name in FACTS or name in TABLES:
        return f"(relation {_rows_of(head)} ({' '.join(sorts)}))\n(rule ({row}) ({built} (delete {row})) :ruleset load)"
    row = f"({_rows_of(head)} {' '.join(['i', *names])})"
    if name == "op":
        built = f"(op a0 {'(vec-of ' + ' '.join(terms[1:]) + ')' if terms[1:] else '(vec-empty)'})"
    # Sums commute there and back, which would claim the model's own sum as the rule's work.
    own = f'(set (tag_add {" ".join(terms)}) "")' if name == "add" else ""
    relation = f"(relation {_rows_of(head)} ({' '.join(['i64', *sorts])}))"
    return f"{relation}\n(rule ({row}) ((union (node i) {built}) {own} (delete {row})) :ruleset load)"


def _rows_of(head: str) -> str:
    return "rows_" + head.replace("/", "_")


@cache
def _versions() -> str:
    """What decides what comes of a program, beside the program."""
    return f"egglog {version('egglog')} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}\n"


class _Session:
    """One e-graph inside the child."""

    def __init__(self) -> None:
        from egglog.bindings import EGraph

        self.egraph = EGraph()

    def run(self, text: str) -> list[Any]:
        return list(self.egraph.run_program(*self.egraph.parse_program(text)))

    def load(self, lines: Sequence[str]) -> None:
        for i in range(0, len(lines), CHUNK):
            self.run("\n".join(lines[i : i + CHUNK]))

    def read(self, rows: dict[str, list[list[int | str]]]) -> None:
        """Rows reach egglog in files: parsing them as text takes longer than the search."""
        with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
            for head, own in rows.items():
                path = os.path.join(folder, _rows_of(head))
                with open(path, "w", encoding="utf-8", newline="\n") as file:
                    file.writelines("\t".join(map(str, row)) + "\n" for row in own)
                self.run(f"(input {_rows_of(head)} {json.dumps(path)})")
        self.run("(run-schedule (run load))")

    def size(self) -> int:
        """How many e-nodes."""
        names = set(OPERATORS) | {"op", "leaf"}
        text = str(self.run("(print-size)")[0])
        return sum(int(n) for name, n in re.findall(r"\((\S+) (\d+)\)", text) if name in names)

    def saturate(self, limits: dict[str, Any]) -> tuple[int, str, dict[str, int]]:
        matches: dict[str, int] = {}
        started, before = time.monotonic(), self.size()
        for done in range(limits["rounds"]):
            report = self.run("(run-schedule (saturate (run analysis)) (run laws))")[0].report
            for name, n in report.num_matches_per_rule.items():
                matches[name] = matches.get(name, 0) + n
            if not report.updated:
                return done, "saturated", matches
            size = self.size()
            growth = size / max(before, 1)
            # What grows fast grows faster in the next round, and a round cannot be interrupted.
            if size > limits["nodes"] or (growth > 3 and size * growth**2 > limits["nodes"]):
                return done + 1, "nodes", matches
            before = size
            if time.monotonic() - started > limits["seconds"] / 2:
                return done + 1, "seconds", matches
        return limits["rounds"], "rounds", matches

    def freeze(self) -> dict[str, Any]:
        self.run("(run-schedule (saturate (run analysis)) (run near))")
        functions = self.egraph.freeze().functions
        nodes = []
        for name in ["leaf", "op", MINUS_ONE, *OPERATORS]:
            if name in functions:
                nodes += self._nodes(name, functions[name], functions.get(f"tag_{name}"))
        model = {self.egraph.value_to_i64(r.inputs[0]): _id(r.output) for r in functions["node"].rows}
        near = {n[5:]: self._rows(f) for n, f in functions.items() if n.startswith("near_")}
        # Most facts are asked for only where some law's left side was looked at.
        facts = FACTS if any(near.values()) else EXTRACTED
        return {
            "nodes": nodes,
            "model": [model[i] for i in range(len(model))],
            "facts": {n: self._rows(functions[n]) if n in facts else [] for n in FACTS},
            "near": near,
        }

    def _nodes(self, name: str, function: Any, tags: Any) -> list[Any]:
        read = self._reader(function.input_sorts)
        tagged = {} if tags is None else {tuple(map(str, r.inputs)): self.egraph.value_to_string(r.output) for r in tags.rows}
        out = []
        for row in function.rows:
            if row.subsumed:
                continue
            inputs = row.inputs
            arguments = read(inputs)
            if name == "op":
                arguments = [arguments[0], *arguments[1]]
            out.append([name, _id(row.output), arguments, tagged.get(tuple(map(str, inputs)), "")])
        return out

    def _rows(self, function: Any) -> list[list[Any]]:
        read = self._reader(function.input_sorts)
        return sorted(read(r.inputs) for r in function.rows)

    def _reader(self, sorts: Sequence[str]) -> Callable[[Sequence[Any]], list[Any]]:
        """From a row's values to classes, strings and numbers."""
        reads: list[Callable[[Any], Any]] = [self._readers.get(sort, self._classes) for sort in sorts]
        return lambda values: [read(value) for read, value in zip(reads, values, strict=True)]

    @cached_property
    def _readers(self) -> dict[str, Callable[[Any], Any]]:
        return {"T": _id, "i64": self.egraph.value_to_i64, "String": self.egraph.value_to_string}

    def _classes(self, vector: Any) -> list[int]:
        return [_id(v) for v in self.egraph.value_to_vec(vector)]


EXTRACTED = {"const", "zero", "live", "erased"}
"""Facts that every extraction asks for."""


def _id(value: Any) -> int:
    return int(str(value)[6:-1])  # "Value(12)": the binding shows its number nowhere else


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    limits, started = request["limits"], time.monotonic()
    session = _Session()
    for line in request["preamble"]:
        session.run(line)
    session.read(request["rows"])
    session.load(request["lines"])
    rounds, stop, matches = session.saturate(limits)
    frozen = session.freeze()
    return frozen | {"rounds": rounds, "stop": stop, "matches": matches, "seconds": time.monotonic() - started}


def main() -> None:
    """Serve requests until standard input closes."""
    import egglog.bindings  # noqa: F401  (its import time passes before the first request)

    for line in sys.stdin:
        request = json.loads(line)
        limit = request["limits"]["memory_mb"] << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        try:
            answer = _answer(request)
        except BaseException as failure:  # noqa: BLE001  egglog's panics are no Exceptions
            answer = {"error": " ".join(str(failure).split())[:500]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
