"""What ``resgrow bench`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from resgrow.experiments.bench_points import FORMS, Point
from resgrow.report.rows import percent


def layer_table(point: Point, train: bool) -> Table:
    """One row per layer, and their sum: what each costs by itself."""
    title = f"layers, {_what(point)}, {'forward and both gradients' if train else 'forward'}"
    table = _table(title, ("layer", "weight", "block"), ("density", "dense ms", "sparse ms", "ideal ms", "speed-up"))
    table.add_column("now")
    for row in point.layers:
        block = "" if row["block"] is None else "x".join(map(str, row["block"]))
        density = "" if row["density"] is None else f"{row['density']:.3f}"
        figures = [""] * 4 if row["dense"] is None else _figures(row["dense"], row["sparse"], row["ideal"])
        state = f"{'sparse' if row['swapped'] else 'dense'}: {row['why']}"
        table.add_row(row["name"], "x".join(map(str, row["weight"])), block, density, *figures, state)
    times = point.layer_seconds
    if times["dense"]:
        table.add_section()
        now = sum(row["swapped"] for row in point.layers)
        figures = _figures(times["dense"], times["sparse"], times["ideal"])
        table.add_row("all measured", "", "", f"{point.density:.3f}", *figures, f"{now} of {len(point.layers)} sparse")
    return table


def total_table(points: Sequence[Point], train: bool) -> Table:
    """End to end: every form's time, and how many times faster than dense it is."""
    forms = list(points[0].seconds)
    ratios = [form for form in forms if form != "dense"]
    what = "training step" if train else "inference"
    columns = [*(f"{form} ms" for form in forms), *(f"{form} x" for form in ratios), "layers x", "their ideal x"]
    table = _table(f"{what}, end to end", ("block", "density"), columns)
    for point in points:
        times = [f"{1e3 * point.seconds[form]:.2f}" if form in point.seconds else "" for form in forms]
        faster = [*(point.speedup.get(form) for form in ratios), point.layers_speedup(), point.layers_speedup("ideal")]
        table.add_row(*_what_cells(point), *times, *("" if ratio is None else f"{ratio:.2f}" for ratio in faster))
    table.caption = "; ".join(f"{form}: {FORMS[form]}" for form in ratios) + "; x: times faster than dense"
    return table


def memory_table(points: Sequence[Point], train: bool) -> Table:
    """Bytes held between calls, and at most during one beside them."""
    held = "parameters, gradients, optimizer" if train else "parameters"
    forms = list(points[0].held)
    columns = [f"{form} {kind}" for kind in ("held", "peak") for form in forms]
    table = _table("memory in MiB", ("block", "density"), columns)
    table.caption = f"held: {held}; peak: what is live beside that during a call, at most"
    for point in points:
        sizes = [kind.get(form) for kind in (point.held, point.peak) for form in forms]
        cells = ["" if size is None else f"{size / 2**20:.1f}" for size in sizes]
        table.add_row(*_what_cells(point), *cells)
    return table


def _figures(dense: float, sparse: float, ideal: float) -> list[str]:
    return [*(f"{1e3 * seconds:.3f}" for seconds in (dense, sparse, ideal)), f"{dense / sparse:.2f}x"]


def _what(point: Point) -> str:
    block, density = _what_cells(point)
    return f"blocks of {'the fastest size' if block == 'auto' else block}, {density} present"


def _what_cells(point: Point) -> tuple[str, str]:
    block = point.block if isinstance(point.block, str) else f"{point.block[0]}x{point.block[1]}"
    return block, percent(point.density, 1)


def _table(title: str, texts: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    for column in texts:
        table.add_column(column, no_wrap=True)
    for column in figures:
        table.add_column(column, justify="right")
    return table
