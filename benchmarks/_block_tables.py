"""Tables and plot of accuracy_blocks.py, from its lines of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from _accuracy import save_plot
from _digits import heading, table

Row = Mapping[str, Any]  # one line of results, see accuracy_blocks.py
STANDARD = ("obd", "")  # criterion and excluded layers of the plot
LAYERS_AT = 0.8  # the sparsity at which the layers' densities are shown


def spread(values: Sequence[float]) -> str:
    """Mean, and the range where there are several."""
    if not values:
        return ""
    found = f"{mean(values):.2f}"
    return found if len(values) == 1 else f"{found} ({min(values):.2f} to {max(values):.2f})"


def variant(row: Row) -> str:
    """What a row of a table is called: the pattern, and what else differs from the standard."""
    method = "" if row["method"] == STANDARD[0] else f", {row['method']}"
    excluded = f", {row['exclude'].replace(' ', ' and ')} left whole" if row["exclude"] else ""
    return row["pattern"] + method + excluded


def accuracies(rows: Sequence[Row]) -> list[str]:
    """Test accuracy of the variants against sparsity; the best mean of a column in bold."""
    sparsities = sorted({row["sparsity"] for row in rows})
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        found.setdefault((variant(row), row["sparsity"]), []).append(row["accuracy"])
    names = list(dict.fromkeys(variant(row) for row in rows))
    best = {s: max(mean(values) for (_, at), values in found.items() if at == s) for s in sparsities}
    lines = []
    for name in names:
        cells = []
        for sparsity in sparsities:
            values = found.get((name, sparsity), [])
            cell = spread(values)
            cells.append(f"**{cell}**" if values and mean(values) == best[sparsity] else cell)
        lines.append([name, *cells])
    return table(["removed", *(f"{s:.0%}" for s in sparsities)], lines)


def densities(rows: Sequence[Row]) -> list[str]:
    """Means over the seeds: what is left of the first layer, of the last, and of those between at most and least."""
    first, *_, last = rows[0]["left"]
    lines = []
    for name in dict.fromkeys(variant(row) for row in rows):
        same = [row["left"] for row in rows if variant(row) == name]
        left = {layer: mean(found[layer] for found in same) for layer in same[0]}
        between = [layer for layer in left if layer not in (first, last)]
        # Layers that only residual streams enter and leave have no channels of their own, hence no masks.
        ends = [f"{left[layer]:.0%}" if layer in left else "no candidate" for layer in (first, last)]
        extremes = [fold(between, key=left.__getitem__) for fold in (max, min)]
        macs = f"{mean(row['macs'] for row in rows if variant(row) == name):.0%}"
        lines.append([name, macs, *ends, *(f"{left[layer]:.0%} ({layer})" for layer in extremes)])
    return table(["left", "MACs", f"first ({first})", f"last ({last})", "most between", "least between"], lines)


def section(title: str, rows: Sequence[Row], dense: Mapping[int, Row]) -> list[str]:
    """All tables of one network."""
    lines = [f"## {title}", ""]
    epochs, values = dense[min(dense)]["epochs"], [found["accuracy"] for found in dense.values()]
    lines += [f"Dense: {spread(values)} % after {epochs} epochs; seeds {', '.join(map(str, sorted(dense)))}.", ""]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        lines += [f"### {stage.capitalize()}", "", *accuracies([row for row in rows if row["stage"] == stage]), ""]
    shown = [row for row in rows if (row["stage"], row["sparsity"]) == ("one-shot", LAYERS_AT)]
    if shown:
        lines += [f"### What {LAYERS_AT:.0%} leaves of the layers", "", *densities(shown), ""]
    return lines


def plot(networks: Mapping[str, tuple[Sequence[Row], Mapping[int, Row]]], path: Path) -> None:
    """One line of panels per network, one panel per stage, one curve per pattern."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = list(dict.fromkeys(row["stage"] for rows, _ in networks.values() for row in rows))
    size = (3.6 * len(stages), 3.2 * len(networks))
    figure, axes = pyplot.subplots(len(networks), len(stages), figsize=size, squeeze=False)
    for line, (title, (rows, dense)) in zip(axes, networks.items(), strict=True):
        for axis, stage in zip(line, stages, strict=True):
            chosen = [row for row in rows if row["stage"] == stage and (row["method"], row["exclude"]) == STANDARD]
            axis.axhline(mean(found["accuracy"] for found in dense.values()), color="grey", linewidth=0.8)
            curves(axis, chosen)
            axis.set(title=f"{title}\n{stage}", xlabel="removed, %", ylabel="test accuracy, %")
            axis.title.set_fontsize(8)
            if chosen:
                axis.legend(fontsize=7)
    figure.tight_layout()
    save_plot(figure, path)
    pyplot.close(figure)


def curves(axis: Any, rows: Sequence[Row]) -> None:
    """Means over the seeds, the range shaded."""
    for pattern in dict.fromkeys(row["pattern"] for row in rows):
        mine = [row for row in rows if row["pattern"] == pattern]
        sparsities = sorted({row["sparsity"] for row in mine})
        values = [[row["accuracy"] for row in mine if row["sparsity"] == s] for s in sparsities]
        x = [100 * s for s in sparsities]
        (drawn,) = axis.plot(x, [mean(v) for v in values], marker=".", linewidth=1.2, label=pattern)
        axis.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=drawn.get_color(), alpha=0.1)


def write_report(
    out: Path, networks: Mapping[str, tuple[Sequence[Row], Mapping[int, Row]]], introduction: Sequence[str]
) -> None:
    """``networks``: for each title the lines of results and, for each seed, what is known of the dense network."""
    lines = heading("What blocks cost in accuracy", "python benchmarks/accuracy_blocks.py")
    lines += ["\n\n".join(introduction), "", f"![curves]({out.name}.png)", ""]
    for title, (rows, dense) in networks.items():
        lines += section(title, rows, dense)
    out.with_suffix(".md").write_text("\n".join(lines))
    plot(networks, out.with_suffix(".png"))
    print("\n".join(lines))
