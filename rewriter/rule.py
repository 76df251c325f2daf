"""A rule: one statement that the e-graph applies and the tests evaluate."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewriter.terms import COMPARISONS, EGG_SORT, FACTS, MINUS_ONE, OPERATORS, TABLES, Arrays, Patterns, Term

KIND = {"int": "i", "window": "s", "map": "s", "rowmap": "s", "move": "s", "text": "s"}
"""What follows a colon in a rule's variables, when it is not a tensor's shape in letters."""

Condition = tuple[str, tuple[str, ...]]
"""A fact or table name and the variables it speaks of."""


@dataclass(frozen=True)
class Rule:
    """``lhs == rhs`` wherever every condition of ``given`` holds.

    ``when`` conditions are not about truth: they keep the search where it can pay (weights that can be folded ahead of time,
    branches that read one tensor). ``given`` conditions are what makes the law true; each needs a point in ``breaks_at`` where
    it fails and the two sides differ.
    """

    name: str
    theory: str
    statement: str
    variables: Mapping[str, str]
    sides: Callable[..., tuple[Term, Term]]
    when: tuple[Condition, ...]
    given: tuple[Condition, ...]
    cite: str
    equal: str
    breaks_at: Mapping[str, Any] = field(default_factory=dict)
    sample: Callable[[Any], Mapping[str, Any]] | None = None
    weights: bool = False
    """A law for terms made of weights alone. All others look at run-time terms only: weights are folded, whatever their form."""
    declines: str = ""
    """What to tell a user at whose model a ``given`` condition failed."""
    replaces: bool = False
    """The left side is never wanted again, by no law: it would be taken for a sum of two things, round after round."""

    @property
    def derived(self) -> tuple[str, ...]:
        """Variables that a table binds: absent from the left side."""
        seen = set(_variables(self.patterns()[0]))
        return tuple(v for v in self.variables if v not in seen)

    @property
    def free(self) -> tuple[str, ...]:
        return tuple(v for v in self.variables if v not in self.derived)

    def kind(self, variable: str) -> str:
        """t, i or s: see ``Operator``."""
        return KIND.get(self.variables[variable], "t")

    def patterns(self) -> tuple[Term, Term]:
        return self.sides(Patterns(), *self.variables)

    def bind(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Condition]]:
        """All variables, tables having bound the derived ones, and the conditions that fail (of ``when`` those that should have bound)."""
        conditions = (*self.when, *self.given)
        numbers = {a: int(a) for _, arguments in conditions for a in arguments if re.fullmatch(r"-?\d+", a)}
        bound: dict[str, Any] = {**numbers, **values}
        failing: list[Condition] = []
        for condition in conditions:
            required = binds(condition) or condition in self.given
            if required and not (_bind(condition, bound) if binds(condition) else condition_holds(condition, bound)):
                failing.append(condition)
        return bound, failing

    def arrays(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """Both sides evaluated at the free variables' values (and, where a table cannot bind them, the derived ones')."""
        bound, _ = self.bind({n: v for n, v in values.items() if n in self.free})
        bound = {**values, **bound}
        return self.sides(Arrays, *(bound[v] for v in self.variables))

    def holds_at(self, values: Mapping[str, Any]) -> bool:
        """Are all ``given`` conditions true of these arrays?"""
        return not self.bind({n: v for n, v in values.items() if n in self.free})[1]

    def compile(self, ruleset: str, *, lifted: bool = False) -> str:
        """The rule as egglog text. Each node it builds is tagged with the rule's name, for provenance.

        ``lifted``: wherever it is true, not only where it can pay; of ``when`` what binds variables is left.
        """
        lhs, rhs = self.patterns()
        built: list[str] = []
        root = _action(rhs, built, f"{self.theory}/{self.name}")
        when = [c for c in self.when if binds(c)] if lifted else self.when
        site = [] if lifted else self._site
        body = " ".join([f"(= l_ {text(lhs)})", *site, *(_fact(c) for c in (*when, *self.given))])
        # x + 0 == x puts x below itself: without subsuming x + 0, laws about sums would go round that loop for ever.
        subsume = [f"(subsume {text(lhs)})"] if self.replaces or not isinstance(rhs, tuple) else []
        if not isinstance(rhs, tuple):
            subsume.append(f'(erased l_ "{self.theory}/{self.name}")')
        actions = " ".join([*built, f"(union l_ {root})", *subsume])
        return f'(rule ({body}) ({actions}) :ruleset {ruleset} :name "{self.theory}/{self.name}")'

    def near(self) -> str:
        """Egglog text that records, for each place where the left side stands, what its variables are."""
        relation, lhs = self.near_relation, self.patterns()[0]
        sorts = " ".join(EGG_SORT[self.kind(v)] for v in self.free)
        body = " ".join([f"(= l_ {text(lhs)})", *self._site, *(_fact(c) for c in self.when)])
        row = f"({relation} l_ {' '.join(self.free)})"
        return f'(relation {relation} (T {sorts}))\n(rule ({body}) ({row}) :ruleset near :name "near {relation}")'

    @property
    def _site(self) -> list[str]:
        return [] if self.weights else ["(live l_)"]

    @property
    def near_relation(self) -> str:
        return "near_" + re.sub(r"\W", "_", f"{self.theory}_{self.name}")

    def __str__(self) -> str:
        return f"{self.name:34} {self.statement}"


def rule(
    variables: str,
    *,
    cite: str,
    when: str = "",
    given: str = "",
    equal: str = "reals",
    breaks_at: Mapping[str, Any] | None = None,
    sample: Callable[[Any], Mapping[str, Any]] | None = None,
    weights: bool = False,
    declines: str = "",
    replaces: bool = False,
) -> Callable[[Callable[..., tuple[Term, Term]]], Rule]:
    """Record the decorated ``sides(op, x, ...) -> (lhs, rhs)`` as a rule.

    ``variables``: one word each, ``x:nij`` a tensor with one letter an axis (rules may not depend on how many leading axes there
    are), ``a:int``, ``w:window``, ``f:map``, ``e:text`` attributes. ``when`` and ``given``: conditions, ``const(A) zero(c)``.
    """
    kinds = dict(word.split(":") for word in variables.split())

    def record(sides: Callable[..., tuple[Term, Term]]) -> Rule:
        name = sides.__name__.replace("_", "-")
        statement = inspect.getdoc(sides)
        if not statement:
            raise ValueError(f"rule {name!r} has no statement: write it as the docstring")
        names = tuple(inspect.signature(sides).parameters)[1:]
        if names != tuple(kinds):
            raise ValueError(f"rule {name!r} declares {tuple(kinds)} and takes {names}")
        theory = sides.__module__.rsplit(".", 1)[-1]
        when_, given_ = tuple(conditions(when)), tuple(conditions(given))
        line = statement.splitlines()[0]
        return Rule(name, theory, line, kinds, sides, when_, given_, cite, equal, breaks_at or {}, sample, weights, declines, replaces)

    return record


def conditions(written: str) -> Iterator[Condition]:
    """``"const(A) joins(a,b,c,p,q)"`` -> ("const", ("A",)), ("joins", ("a", "b", "c", "p", "q"))."""
    for name, arguments in re.findall(r"(\w+)\(([^)]*)\)", written):
        if name not in FACTS and name not in TABLES and name not in COMPARISONS and name != "same":
            raise ValueError(f"unknown condition {name!r}")
        yield name, tuple(a.strip() for a in arguments.split(","))


def binds(condition: Condition) -> bool:
    """Does it give values to variables that are not in the left side?"""
    name, _ = condition
    return name in TABLES or (name in FACTS and FACTS[name].of is not None)


def _bind(condition: Condition, bound: dict[str, Any]) -> bool:
    """Does a row of the table agree with what is bound? If so, the rest of the row is bound too."""
    name, arguments = condition
    inputs = len(TABLES[name].inputs) if name in TABLES else FACTS[name].inputs
    if any(a not in bound for a in arguments[:inputs]):
        return False
    given = [bound[a] for a in arguments[:inputs]]
    if name in TABLES:
        rows = TABLES[name].rows(*given)
    else:
        of = FACTS[name].of
        row = of(*given) if of is not None else None
        rows = [] if row is None else [row]
    for row in rows:
        places = list(zip(arguments[inputs:], row, strict=True))
        if all(bound.get(a, o) == o for a, o in places):
            bound.update(places)
            return True
    return False


def condition_holds(condition: Condition, values: Mapping[str, Any]) -> bool:
    """Of a fact: its meaning on arrays. Of ``same``: equality. Of two numbers: how they compare."""
    name, arguments = condition
    if name == "same":
        return bool(values[arguments[0]] == values[arguments[1]])
    if name in COMPARISONS:
        return all(a in values for a in arguments) and COMPARISONS[name][1](*(values[a] for a in arguments))
    holds = FACTS[name].holds
    return holds is None or holds(*(values[a] for a in arguments))


def _variables(term: Term) -> Iterator[str]:
    if isinstance(term, tuple):
        for t in term[1:]:
            yield from _variables(t)
    elif isinstance(term, str):
        yield term


def text(term: Term) -> str:
    """A pattern as an s-expression."""
    if isinstance(term, tuple):
        return f"({' '.join(text(t) for t in term)})"
    return str(term)


def _fact(condition: Condition) -> str:
    name, arguments = condition
    written = "=" if name == "same" else COMPARISONS[name][0] if name in COMPARISONS else name
    return f"({written} {' '.join(arguments)})"


def _action(term: Term, built: list[str], name: str) -> str:
    """Emit ``let``s and tags for every node of ``term``; returns the name that holds it."""
    if not isinstance(term, tuple):
        return str(term)
    head, *arguments = term
    inner = [_action(a, built, name) for a in arguments]
    if head not in OPERATORS and head != MINUS_ONE:
        return f"({head} {' '.join(inner)})"
    variable = f"r{len(built)}_"
    built.append(f'(let {variable} ({" ".join([head, *inner])})) (set (tag_{head} {" ".join(inner)}) "{name}")')
    return variable
