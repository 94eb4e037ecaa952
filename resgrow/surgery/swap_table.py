"""What `swap` and `unswap` report: one row for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from resgrow._text import table
from resgrow.surgery.speed import Speed


@dataclass(frozen=True)
class SwapRow:
    """One Conv2d or Linear layer.

    Attributes:
        name: its first name in the model.
        kind: type of the layer before the call. weight: shape of its dense weight.
        block, density: the blocks it has or would have, and the share of them that is present; None where none were
            considered.
        speed: the measurement of that block, None where nothing was measured.
        measured: all measurements of the layer, the fastest first.
        swapped: whether the layer is block-sparse now.
        why: what decided that, in a few words.
    """

    name: str
    kind: str
    weight: tuple[int, ...]
    block: tuple[int, int] | None
    density: float | None
    swapped: bool
    why: str
    measured: tuple[Speed, ...] = ()

    @property
    def speed(self) -> Speed | None:
        return self.measured[0] if self.measured else None


class Swap(Mapping[str, SwapRow]):
    """Rows by layer name, in the model's order; printing it shows the table."""

    def __init__(self, rows: Sequence[SwapRow], note: str = "") -> None:
        self._rows = {row.name: row for row in rows}
        self.note = note

    def __getitem__(self, name: str) -> SwapRow:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def swapped(self) -> list[str]:
        """Names of the layers that are block-sparse now."""
        return [name for name, row in self._rows.items() if row.swapped]

    def __repr__(self) -> str:
        return f"Swap({len(self)} layers, {len(self.swapped)} block-sparse)"

    def __str__(self) -> str:
        rows = [*(_cells(row) for row in self._rows.values()), _total(list(self._rows.values()))]
        return "\n".join([table(_HEAD, rows, _LEFT), *filter(None, [self.note])])


_HEAD = ("layer", "block", "density", "input", "dense ms", "sparse ms", "ideal ms", "speed-up", "now")
_LEFT = {"layer", "block", "input", "now"}


def _cells(row: SwapRow) -> tuple[str, ...]:
    block = "" if row.block is None else f"{row.block[0]}x{row.block[1]}"
    density = "" if row.density is None else f"{row.density:.3f}"
    state = f"{'sparse' if row.swapped else 'dense'}: {row.why}"
    if row.speed is None:
        return (row.name, block, density, *[""] * 5, state)
    size = "x".join(map(str, row.speed.shape))
    return (row.name, block, density, size, *_times(row.speed.dense, row.speed.sparse, row.speed.ideal), state)


def _total(rows: Sequence[SwapRow]) -> tuple[str, ...]:
    """Of the measured layers, with the faster form of each that is swapped and the dense one of the others."""
    measured = [(row, row.speed) for row in rows if row.speed is not None]
    count = sum(row.swapped for row in rows)
    state = f"{count} of {len(rows)} sparse"
    if not measured:
        return ("all", *[""] * 7, state)
    dense = sum(speed.dense for _, speed in measured)
    now = sum(speed.sparse if row.swapped else speed.dense for row, speed in measured)
    ideal = sum(speed.ideal for _, speed in measured)
    return ("all measured", "", "", "", *_times(dense, now, ideal), state)


def _times(dense: float, sparse: float, ideal: float) -> tuple[str, ...]:
    return (*(f"{1e3 * seconds:.3f}" for seconds in (dense, sparse, ideal)), f"{dense / sparse:.2f}x")
