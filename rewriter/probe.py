"""Where a rule's left side stands in a searched model, or most of it, and which of its conditions hold there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewriter.egraph import Limits, Saturator
from rewriter.rule import Condition, Rule, text
from rewriter.searched import Found, Model, name_of
from rewriter.terms import EGG_SORT, FACTS, OPERATORS, TABLES, Term


@dataclass(frozen=True)
class Probe:
    """A pattern to look for: a rule's left side, or what is left of it when parts are left open.

    ``holes``: variable to the part that stood there; ``copies``: variable to the one that it should equal.
    """

    relation: str
    pattern: Term
    holes: Mapping[str, Term]
    copies: Mapping[str, str]

    @property
    def variables(self) -> list[str]:
        return list(dict.fromkeys(_leaves(self.pattern)))

    @property
    def size(self) -> int:
        return _size(self.pattern)

    def sort(self, variable: str, rule: Rule) -> str:
        if variable in self.holes:
            return EGG_SORT["t"]
        return EGG_SORT[rule.kind(self.copies.get(variable, variable))]

    def lines(self, rule: Rule) -> list[str]:
        """egglog commands that record every match after the search."""
        sorts = " ".join(self.sort(v, rule) for v in self.variables)
        row = f"({self.relation} l_ {' '.join(self.variables)})"
        return [f"(relation {self.relation} (T {sorts}))", f"(rule ((= l_ {text(self.pattern)})) ({row}) :ruleset near :name \"{self.relation}\")"]


def probes(rule: Rule) -> list[Probe]:
    """The left side; the same with each variable's occurrences apart; then with parts left open, the largest remainder first."""
    lhs = rule.patterns()[0]
    found: list[tuple[Term, dict[str, Term], dict[str, str]]] = []
    for pattern, holes in _cuts(lhs):
        found.append((pattern, holes, {}))
        apart, copies = _apart(pattern)
        if copies:
            found.append((apart, holes, copies))
    found.sort(key=lambda p: (-_size(p[0]), bool(p[2])))
    return [Probe(f"{rule.near_relation}_{k}", *p) for k, p in enumerate(found)]


def _cuts(lhs: Term, path: str = "") -> list[tuple[Term, dict[str, Term]]]:
    """The pattern with every choice of its inner operators replaced by variables of their own; the root stays."""
    head, *arguments = lhs
    variants: list[tuple[list[Term], dict[str, Term]]] = [([], {})]
    for place, argument in enumerate(arguments):
        options: list[tuple[Term, dict[str, Term]]] = [(argument, {})]
        if isinstance(argument, tuple) and argument[0] in OPERATORS:
            hole = f"hole{path}_{place}"
            options = [*_cuts(argument, f"{path}_{place}"), (hole, {hole: argument})]
        variants = [([*done, part], {**holes, **more}) for done, holes in variants for part, more in options]
    return [((head, *done), holes) for done, holes in variants]


def _apart(pattern: Term) -> tuple[Term, dict[str, str]]:
    """The pattern with a new name for every second occurrence of a variable."""
    seen: Counter[str] = Counter()
    copies: dict[str, str] = {}

    def rename(term: Term) -> Term:
        if isinstance(term, tuple):
            return (term[0], *(rename(t) for t in term[1:]))
        if not isinstance(term, str):
            return term
        seen[term] += 1
        if seen[term] == 1:
            return term
        copy = f"{term}_{seen[term]}_"
        copies[copy] = term
        return copy

    return rename(pattern), copies


def _leaves(term: Term) -> Iterator[str]:
    if isinstance(term, tuple):
        for each in term[1:]:
            yield from _leaves(each)
    elif isinstance(term, str):
        yield term


def _size(term: Term) -> int:
    return 1 + sum(_size(t) for t in term[1:]) if isinstance(term, tuple) else 0


class Match:
    """A probe's pattern at one place."""

    def __init__(self, found: Found, rule: Rule, probe: Probe, row: Sequence[Any]) -> None:
        self._found, self._rule, self._probe = found, rule, probe
        self.root, self._values = row[0], dict(zip(probe.variables, row[1:], strict=True))
        self._names, self._facts = found.names, found.facts

    @property
    def looked_at(self) -> bool:
        """Laws of run-time terms do not look at weights, which are folded whatever their form, nor laws of weights at the rest."""
        return (self.root,) in self._facts["const" if self._rule.weights else "live"]

    @property
    def missing(self) -> list[Condition]:
        """Conditions that fail here, of those whose variables stand in the pattern."""
        conditions = [c for c in (*self._rule.when, *self._rule.given) if self._speaks_of_values(c)]
        absent = [c for c in conditions if c[0] in FACTS and tuple(self._values[a] for a in c[1]) not in self._facts[c[0]]]
        tables = tuple(c for c in self._rule.when if c[0] in TABLES)
        others = replace(self._rule, when=tables, given=tuple(c for c in conditions if c[0] not in FACTS))
        return [*absent, *others.bind(self._values)[1]]

    def _speaks_of_values(self, condition: Condition) -> bool:
        name, arguments = condition
        if name in TABLES:
            # A table may read what an earlier table bound; without the first window there is nothing to say.
            return not self._probe.holes
        return all(a in self._values for a in arguments)

    @property
    def order(self) -> tuple[bool, int]:
        """The place in the model; those that have no name come last."""
        return self.site == NAMELESS, self._found.order.get(self.root, 1 << 30)

    @property
    def site(self) -> str:
        """A value of the model: the pattern's own, or one that it is made of."""
        classes = [self.root, *(v for v in self._values.values() if isinstance(v, int))]
        return next((name_of(self._names[c]) for c in classes if c in self._names), NAMELESS)

    def reasons(self) -> list[str]:
        """Why the rule does not apply here, in words."""
        said = [f"{hole} is {self._described(hole)} and not {written(part)}" for hole, part in self._probe.holes.items()]
        for copy, variable in self._probe.copies.items():
            if self._values[copy] != self._values[variable]:
                said.append(f"{variable} is {self._described(variable)} in one place and {self._described(copy)} in another")
        return [renamed(s, self._probe) for s in [*said, *(self._reason(c) for c in self.missing)]]

    def _reason(self, condition: Condition) -> str:
        name, arguments = condition
        shown = [f"{a} ({self._described(a)})" for a in arguments if a in self._values]
        phrase = FAILED.get(name)
        if phrase is None or len(shown) < phrase.count("{}"):
            return f"{name}({', '.join(arguments)}) does not hold for {', '.join(shown)}"
        return phrase.format(*shown)

    def _described(self, variable: str) -> str:
        held = self._values[variable]
        if not isinstance(held, int) or self._probe.sort(variable, self._rule) != EGG_SORT["t"]:
            return str(held)
        value = self._names.get(held)
        if value is None:
            return "a term that rules made"
        if value.is_graph_input():
            return f"the input {value.name!r}"
        node = value.producer()
        return f"the weight {value.name!r}" if node is None else f"{value.name!r}, made by {node.op_type}"


NAMELESS = "?"
"""The site of a term that rules made and no value of the model equals."""
FAILED = {
    "const": "{} is not made of weights alone",
    "live": "{} is made of weights alone",
    "zero": "{} is not zero throughout",
    "one": "{} is not one throughout",
    "reads": "{} is no affine map of {}",
    "multiple": "{} is no constant multiple of {}",
    "other": "{} is made by nothing but linear maps, which take the constant in themselves",
    "siblings": "{} and {} are not functions of affine maps of one tensor",
    "same": "{} and {} are not the same function",
    "unpadded": "the window {} is padded",
}
"""How each condition's failure reads; other tables are named as they are written."""


def written(term: Term) -> str:
    if not isinstance(term, tuple):
        return str(term)
    return f"{term[0]}({', '.join(map(written, term[1:]))})" if len(term) > 1 else term[0]


def renamed(said: str, probe: Probe) -> str:
    """Parts left open are called ?, ??, ... for a reader, and copies of a variable get a prime."""
    marks = {hole: "?" * (k + 1) for k, hole in enumerate(probe.holes)}
    marks |= {copy: variable + "'" for copy, variable in probe.copies.items()}
    return re.sub(r"\w+", lambda word: marks.get(word[0], word[0]), said)


def matches(found: Iterable[Found], rule: Rule, probe: Probe) -> Iterator[Match]:
    for one in found:
        for row in one.frozen.near.get(probe.relation.removeprefix("near_"), ()):
            match = Match(one, rule, probe, row)
            if match.looked_at:
                yield match


def erases(rule: Rule) -> bool:
    """Its right side is one of its variables: it builds nothing that could carry its name."""
    return not isinstance(rule.patterns()[1], tuple)


def standing(terms: Model, rule: Rule, saturator: Saturator, limits: Limits) -> list[str]:
    """Where in the model as it came the left side stands with all conditions."""
    probe = probes(rule)[0]
    places = []
    for found in terms.search((), saturator, limits, probe.lines(rule)):
        places += [m.site for m in matches([found], rule, probe) if not m.missing]
    return places
