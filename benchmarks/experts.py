"""A vision transformer trained with experts in every block, converted by averaging them, beside one without experts (EWA, paper 2)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

import rewriter
from backends.measure import Candidate, compare
from benchmarks.budget import BUDGET, ENGINES, TASKS, accuracy, agreement, with_labels
from benchmarks.table import show
from passes.approximate import ALL

AVERAGING = "average-experts"
HEAD = ("", "multiplications", "weight bytes", "ms", "least", "accuracy", "drop")


@click.command()
@click.option("--budget", default=BUDGET, show_default=True, help="Of the accuracy.")
@click.option("--backend", default=ENGINES, show_default=True)
@click.option("--seconds", default=6.0, show_default=True, help="Of timed calls.")
def main(budget: float, backend: str, seconds: float) -> None:
    """Plain, with experts as trained, and with experts averaged (no other approximation), in one comparison."""
    with tempfile.TemporaryDirectory(prefix="rewriter-") as temporary:
        folder = Path(temporary)
        plain, mixed = (TASKS[name](folder) for name in ("ViT, digits", "ViT with experts, digits"))
        feed = plain.data[0][0]
        calibration = [feed | {"targets": y} for feed, y in mixed.data if y is not None]
        others = [kind.name for kind in ALL if kind.name != AVERAGING]
        compiled = {
            "without experts": (plain, rewriter.compile(plain.model, feed, backend=backend)),
            "with experts": (mixed, rewriter.compile(mixed.model, feed, backend=backend)),
            "experts averaged": (mixed, rewriter.compile(
                mixed.model, feed, backend=backend, budget=budget, metric=agreement, calibration=calibration, disable=others)),
        }  # fmt: skip
        for place, (_, one) in enumerate(compiled.values()):
            one.save(folder / str(place))
        candidates = {name: Candidate(one.backend, saved=folder / str(place)) for place, (name, (_, one)) in enumerate(compiled.items())}
        times = compare(candidates, list(feed.values()), rounds=12, seconds=seconds, timeout=300)
        scores = {name: accuracy(task, one, with_labels(task, one)[1]) for name, (task, one) in compiled.items()}
    rows = []
    for name, (_, one) in compiled.items():
        after, time = one.report.after, times[name]
        drop = f"{scores['with experts'] - scores[name]:+.2%}" if name == "experts averaged" else ""
        numbers = (f"{after.macs:,}", f"{after.weight_bytes:,}", f"{time.median_ms:.3g}", f"{time.min_ms:.3g}", f"{scores[name]:.4f}")
        rows.append([name, *numbers, drop])
    show("ViT on digits, four experts in every block", HEAD, rows)


if __name__ == "__main__":
    main()
