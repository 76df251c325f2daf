"""Tables on the terminal, and in Markdown where output is piped."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column is text, the others are numbers."""
    if not sys.stdout.isatty():
        print(f"\n{title}\n")
        for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
            print(f"| {' | '.join(row)} |")
        sys.stdout.flush()
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
