"""The result table, dense against sized: the same rows for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Latencies this close are not told apart by a median of some hundred repetitions.
NOISE = 0.02


@dataclass(frozen=True)
class Row:
    """One line: ``change`` compares sized with dense, ``better`` says whether the change is welcome."""

    label: str
    dense: str
    sized: str
    change: str
    better: bool | None = None


def count(value: float) -> str:
    """78042 -> "78,042"; from a million on "1.23 M"."""
    if value >= 1e9:
        return f"{value / 1e9:.2f} G"
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Microseconds to minutes, whichever reads best."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def _ratio_row(label: str, dense: float, sized: float, render: Any) -> Row:
    share = sized / dense if dense else 1.0
    return Row(label, render(dense), render(sized), f"× {share:.3g}", share < 1)


def _speed_row(label: str, dense: float, sized: float) -> Row:
    speedup = dense / sized
    if abs(speedup - 1) < NOISE:
        return Row(label, duration(dense), duration(sized), "equal")
    word = "faster" if speedup >= 1 else "slower"
    factor = speedup if speedup >= 1 else 1 / speedup
    return Row(label, duration(dense), duration(sized), f"{factor:.2f}× {word}", speedup >= 1)


def result_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The rows of the table, from summary.json's content."""
    dense, sized = summary["dense"], summary["sized"]
    gain = 100 * (sized["accuracy"] - dense["accuracy"])
    change, better = f"{gain:+.2f} points", gain >= 0
    rows = [
        Row("Test accuracy", percent(dense["accuracy"]), percent(sized["accuracy"]), change, better),
        Row(
            "Test error",
            percent(1 - dense["accuracy"]),
            percent(1 - sized["accuracy"]),
            f"{-gain:+.2f} points",
            better,
        ),
        _ratio_row("Parameters", dense["params"], sized["params"], count),
        _ratio_row("Multiply-accumulates per image", dense["macs"], sized["macs"], count),
    ]
    if sized["stored_params"] != sized["params"]:
        rows += [
            _ratio_row("Parameters stored, zeros included", dense["stored_params"], sized["stored_params"], count),
            _ratio_row("Multiply-accumulates, zeros included", dense["computed_macs"], sized["computed_macs"], count),
        ]
    for batch, seconds in dense["latency"].items():
        rows.append(_speed_row(f"Latency, batch {batch}", seconds, sized["latency"][batch]))
    times = dense["training_seconds"], sized["training_seconds"]
    rows.append(_ratio_row("Training time", *times, duration))
    return rows
