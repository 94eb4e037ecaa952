"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """Columns of equal width, two spaces apart; those whose title is in ``left`` begin at the left, others end at the
    right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if title in left else cell.rjust(width)
            for title, cell, width in zip(head, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
