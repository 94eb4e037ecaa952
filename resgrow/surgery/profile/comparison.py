"""Two profiles against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from resgrow._order import merged_order
from resgrow._text import table
from resgrow.surgery.profile.result import Profile, milliseconds, size

_WIDTH: tuple[str, Callable[[Any], str]] = ("width", lambda value: "" if value is None else str(value))
# Title, what is compared, and how it is written.
_FIGURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("params", "live_params", lambda value: f"{value:,}"),
    ("MACs", "live_macs", lambda value: f"{value:,}"),
    ("activations", "activation_bytes", size),
    ("ms", "seconds", milliseconds),
)
_BESIDE = (("saved for backward", "saved_bytes"), ("peak in inference", "peak_bytes"))


@dataclass(frozen=True)
class Comparison:
    """A model before and after, layer by layer, by their names; print it for a table.

    Parameters and MACs are the live ones: all of them where no masks were given. Latencies are as each profile has
    measured them, at its own time: on a busy machine they do not compare (`resgrow count --against` lets the models
    take turns).

    Raises:
        ValueError: the two are of different batch sizes.
    """

    before: Profile
    after: Profile

    def __post_init__(self) -> None:
        if self.before.batch != self.after.batch:
            raise ValueError(
                f"compare: both profiles must be of the same number of samples (got {self.before.batch} and "
                f"{self.after.batch}); profile both models on the same inputs"
            )

    def to_rows(self) -> list[dict[str, Any]]:
        """A dictionary per layer, for CSV: ``name``, ``state`` ("kept", "gone" or "new"), and of each figure
        ``*_before``, ``*_after`` (None where the layer is not) and ``*_ratio`` (after / before)."""
        before = {row["name"]: row for row in self.before.to_rows()}
        after = {row["name"]: row for row in self.after.to_rows()}
        names = merged_order(before, after)
        return [_row(name, before.get(name), after.get(name)) for name in names]

    def totals(self) -> dict[str, Any]:
        """The same for the whole model, with saved and peak bytes."""
        keys = [*(key for _, key, _ in _FIGURES), *(key for _, key in _BESIDE)]
        return _figures(self.before.totals(), self.after.totals(), keys)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "totals": self.totals(),
            "layers": self.to_rows(),
        }

    def __repr__(self) -> str:
        return f"Comparison({self.before!r}, {self.after!r})"

    def __str__(self) -> str:
        timed = self.before.seconds is not None and self.after.seconds is not None
        figures = [figure for figure in _FIGURES if figure[1] != "seconds" or timed]
        head = ["layer", "width"]
        for title, _, _ in figures:
            head += [title, ""]
        totals = {"name": "all", "state": "kept", **self.totals()}
        rows = [_cells(row, figures) for row in (*self.to_rows(), totals)]
        beside = [
            f"{title} {size(totals[f'{key}_before'])} → {size(totals[f'{key}_after'])} {_ratio(totals, key)}"
            for title, key in _BESIDE
            if None not in (totals[f"{key}_before"], totals[f"{key}_after"])
        ]
        lines = [table(head, rows, ("layer",)), ", ".join([f"batch {self.before.batch}", *beside])]
        notes = [*(f"before: {note}" for note in self.before.notes), *(f"after: {note}" for note in self.after.notes)]
        return "\n".join([*lines, *notes])


def _row(name: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, Any]:
    state = "new" if before is None else "gone" if after is None else "kept"
    keys = ["kind", _WIDTH[0], *(key for _, key, _ in _FIGURES)]
    figures = _figures(before or {}, after or {}, keys)
    del figures["kind_ratio"]
    return {"name": name, "state": state, **figures}


def _figures(before: Mapping[str, Any], after: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in keys:
        old, new = before.get(key), after.get(key)
        known = isinstance(old, int | float) and isinstance(new, int | float)
        found[f"{key}_before"], found[f"{key}_after"] = old, new
        found[f"{key}_ratio"] = new / old if known and old else None
    return found


def _cells(row: Mapping[str, Any], figures: list[tuple[str, str, Callable[[Any], str]]]) -> list[str]:
    cells = [row["name"] or "(model)", _change(row, *_WIDTH)]
    for _, key, write in figures:
        cells += [_change(row, key, write), _ratio(row, key)]
    if row["state"] != "kept":
        cells[3] = row["state"]
    return cells


def _change(row: Mapping[str, Any], key: str, write: Callable[[Any], str]) -> str:
    """ "64 → 16"; one number where both are the same, or the layer is only in one."""
    written = [write(row[at]) for at in (f"{key}_before", f"{key}_after") if row.get(at) is not None]
    return " → ".join(dict.fromkeys(written))


def _ratio(row: Mapping[str, Any], key: str) -> str:
    ratio = row[f"{key}_ratio"]
    return "" if ratio is None else f"×{ratio:.3g}"
