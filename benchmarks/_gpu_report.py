"""What gpu_bench.py finds, section by section, as JSON and as Markdown with the targets first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch
from _gpu_clock import Clock

from resgrow._files import write_atomic

# name: (what is better, bound)
TARGETS = {
    "tristate_relu: bandwidth / copy, from 1e7 values": (">=", 0.85),
    "tristate_relu: eager / ours": (">=", 3.0),
    "select_threshold: bandwidth of one reading / copy, from 1e7 scores": (">=", 0.85),
    "select: time / three copies, from 1e7 scores": ("<=", 1.0),
    "ggn-mc / forward+backward": ("<=", 1.3),
    "block_sparse forward: cuDNN / ours at density .25": (">=", 2.5),
    "block_sparse forward: cuDNN / ours at density .7": (">=", 1.0),
    "block_sparse gradients: their speed-up / the forward's": (">=", 0.6),
}


@dataclass
class Row:
    """One line of a section's table; ``targets`` are the figures that TARGETS ask for, by their names."""

    case: str
    figures: dict[str, float | str] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Section:
    name: str
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    ended: str = "complete"  # or why there are not all rows

    def write(self, folder: Path) -> None:
        write_atomic(folder / f"{self.name}.json", json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Section:
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**found, "rows": [Row(**row) for row in found["rows"]]})


@dataclass(frozen=True)
class Bench:
    """What sections are given. ``tiny``: every line once, on sizes of no interest."""

    device: torch.device
    tiny: bool = False

    @property
    def clock(self) -> Clock:
        return Clock(self.device, self.tiny)

    @property
    def dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float32]


Cases = Iterator[tuple[str, Callable[[], Iterable[Row]]]]


def met(name: str, value: float) -> bool:
    sense, bound = TARGETS[name]
    return value >= bound if sense == ">=" else value <= bound


def targets_table(sections: Iterable[Section]) -> list[str]:
    """One line per target: how many cases meet it, the middle one and the worst."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in (row for section in sections for row in section.rows):
        for name, value in row.targets.items():
            found.setdefault(name, []).append((value, row.case))
    lines = ["| target | | met by | median | worst | in |", "|---|---:|---:|---:|---:|---|"]
    for name, (sense, bound) in TARGETS.items():
        if name not in found:
            lines.append(f"| {name} | {sense} {bound:g} | not measured | | | |")
            continue
        values = sorted(found[name], reverse=sense == "<=")
        count = sum(met(name, value) for value, _ in values)
        middle, (worst, case) = median(value for value, _ in values), values[0]
        met_by = f"{count} of {len(values)}"
        lines.append(f"| {name} | {sense} {bound:g} | {met_by} | {_shown(middle)} | {_shown(worst)} | {case} |")
    return lines


def section_table(section: Section) -> list[str]:
    columns = list(dict.fromkeys(name for row in section.rows for name in row.figures))
    lines = ["", f"## {section.name} ({section.ended}, {section.seconds:.0f} s)", ""]
    lines += [f"| case | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for row in section.rows:
        cells = [_shown(row.figures.get(name, "")) for name in columns]
        if row.error is not None:
            cells = [f"**{row.error}**", *cells[1:]]
        lines.append(f"| {row.case} | {' | '.join(cells)} |")
    return lines


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def markdown(title: str, sections: list[Section]) -> str:
    lines = [f"# {title}", "", *targets_table(sections)]
    for section in sections:
        lines += section_table(section)
    return "\n".join(lines) + "\n"
