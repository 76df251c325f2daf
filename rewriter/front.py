"""The Pareto front of an approximate compile, error against latency and bytes: as a table, and as a picture (SVG, no plotting library)."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from rewriter.errors import InvalidInput

HEAD = ("candidates", "predicted error", "measured error", "95 % bound", "ms", "weight bytes")
WIDTH, HEIGHT, MARGIN = 460, 320, 56


def rows(front: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Cells under ``HEAD``, one row a point of ``report.budget["front"]``."""
    return [
        (
            str(p["candidates"]), _cell(p["predicted"]), _cell(p["error"]), _cell(p["upper"]), _cell(p["latency_ms"]), f"{p['weight_bytes']:,}",
        )
        for p in front
    ]  # fmt: skip


def pareto(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that no other point beats or equals in error, latency and bytes at once; by error."""

    def key(p: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(float("inf") if p[k] is None else float(p[k]) for k in ("error", "latency_ms", "weight_bytes"))

    def beaten(p: Mapping[str, Any], place: int) -> bool:
        mine = key(p)
        return any(
            all(a <= b for a, b in zip(key(q), mine, strict=True)) and (key(q) != mine or other < place)
            for other, q in enumerate(points)
            if other != place
        )

    return sorted((p for place, p in enumerate(points) if not beaten(p, place)), key=key)


def correlation(points: Sequence[Mapping[str, Any]]) -> float | None:
    """Pearson's, of predicted against measured errors; None for fewer than three points, or where one of them does not vary."""
    import numpy as np

    pairs = [(p["predicted"], p["error"]) for p in points if p["predicted"] is not None and p["error"] is not None]
    if len(pairs) < 3:
        return None
    predicted, measured = np.array(pairs, np.float64).T
    if not predicted.std() or not measured.std():
        return None
    return float(np.corrcoef(predicted, measured)[0, 1])


def write_plot(front: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Two panels, latency and weight bytes over the measured error, as an SVG file. Raises ``InvalidInput`` where it cannot be written."""
    text = plot(front)
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".rewriter-")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(name, target)
    except OSError as failure:
        raise InvalidInput(f"cannot write the front to '{target}': {failure.strerror or failure}; give another place") from None


def plot(front: Sequence[Mapping[str, Any]]) -> str:
    """The same as SVG text."""
    panels = [_panel(front, key, label, k * WIDTH) for k, (key, label) in enumerate((("latency_ms", "ms"), ("weight_bytes", "weight bytes")))]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *panels, "</svg>", ""])


def _panel(front: Sequence[Mapping[str, Any]], key: str, label: str, left: float) -> str:
    points = [(float(p["error"] or 0.0), float(p[key])) for p in front if p[key] is not None]
    x_most, y_most = (max((p[k] for p in points), default=0.0) or 1.0 for k in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + MARGIN + x / x_most * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - y / y_most * (HEIGHT - 2 * MARGIN)

    (x0, y0), (x1, y1) = place(0, 0), place(x_most, y_most)
    drawn = [f'<path d="M{x0:.0f},{y1:.0f} V{y0:.0f} H{x1:.0f}" fill="none" stroke="black"/>']
    for part in (0.0, 0.5, 1.0):
        x, y = place(part * x_most, part * y_most)
        drawn.append(f'<text x="{x:.0f}" y="{y0 + 16:.0f}" text-anchor="middle">{part * x_most:.2g}</text>')
        drawn.append(f'<text x="{x0 - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{part * y_most:.3g}</text>')
    drawn.append(f'<text x="{(x0 + x1) / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle">error</text>')
    drawn.append(f'<text x="{x0:.0f}" y="{y1 - 14:.0f}">{escape(label)}</text>')
    placed = [place(x, y) for x, y in sorted(points)]
    drawn.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}" fill="none" stroke="steelblue"/>')
    drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="steelblue"/>' for x, y in placed]
    return "\n".join(drawn)


def _cell(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"


def finite(number: float) -> float | None:
    """None where JSON has no number for it."""
    return number if math.isfinite(number) else None
