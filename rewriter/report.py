"""What was done to a model, what it bought, what was left alone and why."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rewriter.graph import Summary
from rewriter.verify import Verification


@dataclass
class Report:
    """Everything that ``to_dict`` gives (the contract), and ``notes``: sentences for a person."""

    before: Summary
    after: Summary
    rewrites: list[dict[str, Any]] = field(default_factory=list)
    declined: list[dict[str, Any]] = field(default_factory=list)
    verification: Verification = field(default_factory=lambda: Verification(None))
    egraph: dict[str, Any] = field(default_factory=dict)
    extraction: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, dict[str, float | None]] | None = None
    """By backend: ``before_ms`` and ``after_ms``, medians; null where one was not measured."""
    notes: list[str] = field(default_factory=list)
    backend: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    budget: dict[str, Any] | None = None
    """Of an approximate compile: the budget, what was measured, every candidate by site, the front (``rewriter.front``)."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; keys as in the public interface."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "rewrites": self.rewrites,
            "declined": self.declined,
            "verification": self.verification.to_dict(),
            "egraph": self.egraph,
            "extraction": self.extraction,
            "latency": self.latency,
            "backend": self.backend,
            "notes": self.notes,
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
            "budget": self.budget,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The inverse of ``to_dict``."""
        return cls(
            Summary(**data["before"]), Summary(**data["after"]), data["rewrites"], data["declined"], Verification(**data["verification"]),
            data["egraph"], data["extraction"], data["latency"], data["notes"], data["backend"], data["seconds"], data.get("budget"),
        )  # fmt: skip

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, before, after): the totals, then every operator whose count changed."""
        b, a = self.before, self.after
        rows = [
            ("nodes", f"{b.nodes:,}", f"{a.nodes:,}"),
            ("multiply-accumulates", f"{b.macs:,}", f"{a.macs:,}"),
            ("weight bytes", f"{b.weight_bytes:,}", f"{a.weight_bytes:,}"),
        ]
        for op in sorted({*b.ops, *a.ops}):
            if b.ops.get(op, 0) != a.ops.get(op, 0):
                rows.append((op, f"{b.ops.get(op, 0):,}", f"{a.ops.get(op, 0):,}"))
        return rows

    def __str__(self) -> str:
        width = max(len(r[0]) for r in self.rows())
        lines = [f"{what:<{width}}  {before:>15} -> {after:>15}" for what, before, after in self.rows()]
        lines += [f"{r['count']:>4} x {r['rule']}" for r in self.rewrites]
        lines += [f"declined {d['rule']} at {d['site']}: {d['reason']}" for d in self.declined]
        v = self.verification
        said = {True: "equal to the original", False: "DIFFERS from the original", None: "not verified"}[v.passed]
        lines.append(f"{said}: max error {v.max_abs_error:.3g} on {v.inputs} inputs" if v.passed is not None else f"{said}: {v.reason}")
        return "\n".join([*lines, *self.notes])
