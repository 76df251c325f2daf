"""``rewriter rules [TEXT]``: the rule base, a line each."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.rule import Rule


def matching(text: str, rules: Sequence[Rule]) -> list[Rule]:
    """Rules whose name, theory, statement, equality or citation contains every word of ``text``, in any case."""
    words = text.lower().split()
    return [r for r in rules if all(w in f"{r.theory}/{r.name} {r.statement} {r.equal} {r.cite}".lower() for w in words)]


def rows(rules: Sequence[Rule]) -> list[tuple[str, str, str, str]]:
    """(name, statement, equality, citation)."""
    return [(f"{r.theory}/{r.name}", r.statement, r.equal, r.cite) for r in rules]
