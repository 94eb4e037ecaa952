"""``resgrow bench``: dense against block-sparse, per layer and in total, as tables, plots and JSON."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from resgrow._errors import InputError
from resgrow._files import write_atomic
from resgrow._modes import eval_mode
from resgrow.experiments.bench_points import Block, Point, break_even, measure_point, pruned
from resgrow.experiments.bench_tables import layer_table, memory_table, total_table
from resgrow.experiments.device import require_device
from resgrow.experiments.models import as_network
from resgrow.experiments.named_models import find
from resgrow.experiments.options import require_new_folder, shape_of
from resgrow.info import versions
from resgrow.report.rows import percent
from resgrow.report.speed_plots import layers_png, speedup_png
from resgrow.saliency import saliency
from resgrow.surgery import unswap

BLOCKS, DENSITIES = "16x1", ".5,.25,.1"
METHODS = ("random", "magnitude")
RESULT = "bench.json"


@dataclass(frozen=True)
class BenchConfig:
    """What ``resgrow bench`` is told. ``shape`` is that of an input, without the batch; ``device`` torch's name."""

    model: str
    blocks: tuple[tuple[int, int], ...] | None
    densities: tuple[float, ...] | None
    shape: tuple[int, ...] | None
    out: Path | None
    batch: int = 32
    method: str = "random"
    train: bool = False
    fuse: bool = True
    repeats: int = 10
    remeasure: bool = False
    seed: int = 0
    device: str = "cpu"


def make_config(
    model: str,
    *,
    block: Sequence[str] | None = None,
    density: str | None = None,
    input_shape: str | None = None,
    out: str | None = None,
    **rest: Any,
) -> BenchConfig:
    """Reads the options. Raises InputError for values that cannot work."""
    blocks = None if block is None else tuple(_block(text) for part in block for text in part.split(","))
    densities = None if density is None else tuple(_density(text) for text in density.split(","))
    shape = None if input_shape is None else shape_of("bench", input_shape)
    config = BenchConfig(model, blocks, densities, shape, None if out is None else Path(out), **rest)
    for name in ("batch", "repeats"):
        if getattr(config, name) < 1:
            raise InputError(f"bench: --{name} must be at least 1 (got {getattr(config, name)}); leave it out")
    if config.method not in METHODS:
        raise InputError(f"bench: --method must be one of {', '.join(METHODS)} (got {config.method!r}); choose one")
    require_device("bench", config.device)
    if config.seed < 0:
        raise InputError(f"bench: --seed must not be negative (got {config.seed}); use 0 or more")
    return config


def _block(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"bench: --block must be for example 16x1 or 16x1,16x16 (got {text!r}); choose one")
    return int(parts[0]), int(parts[1])


def _density(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise InputError(f"bench: --density must be numbers in (0, 1], such as .5,.25,.1 (got {text!r}); 1 keeps all")
    return value


def run(config: BenchConfig, console: Console) -> list[Point]:
    """Measures, prints, and writes if there is a folder to write to.

    Raises:
        InputError: the model is not known or does not fit the options, or the folder is in use; nothing is written.
        RunError: the forms of the model do not give the same outputs.
        OSError: the files cannot be written.
    """
    require_new_folder("bench", config.out)
    model, x = _prepare(config)
    points: list[Point] = []
    for block, density in _combinations(config, model):
        subject, masks = model, None
        if density is not None and not isinstance(block, str):
            subject = copy.deepcopy(model)
            masks = pruned(subject, block, density, _scores(config, subject))
        point = measure_point(
            subject,
            x,
            masks,
            block,
            train=config.train,
            fused=config.fuse,
            repeats=config.repeats,
            remeasure=config.remeasure,
        )
        points.append(point)
        console.print(layer_table(point, config.train))
        if point.note:
            console.print(f"not fused: {point.note}", highlight=False)
    console.print(total_table(points, config.train), memory_table(points, config.train), sep="\n")
    for line in _break_even_lines(points):
        console.print(line, highlight=False)
    if config.out is not None:
        _write(config, config.out, points)
        console.print(f"written: {config.out}", soft_wrap=True, highlight=False)
    return points


def _prepare(config: BenchConfig) -> tuple[nn.Module, Tensor]:
    """The model, dense and channels_last, and a batch that goes through it."""
    torch.manual_seed(config.seed)
    subject = find("bench", config.model)
    shape = config.shape or subject.shape
    if shape is None:
        raise InputError("bench: the shape of an input must be known (got no --input); give it, such as 3x224x224")
    model = subject.model
    unswap(model)
    as_network(model).to(config.device)
    x = torch.randn(config.batch, *shape).to(config.device)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    try:
        with eval_mode(model), torch.no_grad():
            y = model(x[:1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"bench: the model must take inputs of shape {'x'.join(map(str, shape))} (got the error: {reason}); give "
            "another --input"
        ) from error
    if not isinstance(y, Tensor):
        raise InputError(f"bench: the model must return one tensor (got {type(y).__name__}); wrap it in one that does")
    return model, x


def _combinations(config: BenchConfig, model: nn.Module) -> list[tuple[Block, float | None]]:
    """Block sizes and densities; a model that is sparse already is measured as it is (density None)."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if not layers:
        raise InputError("bench: the model must have Conv2d or Linear layers (got none); choose another")
    if any(not bool((m.weight != 0).all()) for m in layers):
        if config.densities is not None:
            raise InputError("bench: --density is for dense models (got one with zeros); leave it out")
        return [(block, None) for block in config.blocks or ("auto",)]
    blocks = config.blocks or (_block(BLOCKS),)
    densities = config.densities or tuple(_density(text) for text in DENSITIES.split(","))
    return [(block, density) for block in blocks for density in sorted(densities, reverse=True)]


def _scores(config: BenchConfig, model: nn.Module) -> Mapping[str, Tensor]:
    if config.method == "random":
        return saliency(model, method="random", generator=torch.Generator().manual_seed(config.seed))
    return saliency(model, method=config.method)


def _by_block(points: Sequence[Point]) -> dict[Block, list[Point]]:
    groups: dict[Block, list[Point]] = {}
    for point in points:
        groups.setdefault(point.block, []).append(point)
    return groups


def name_of(block: Block) -> str:
    return block if isinstance(block, str) else f"{block[0]}x{block[1]}"


def _break_even_lines(points: Sequence[Point]) -> list[str]:
    lines = []
    for block, group in _by_block(points).items():
        found = break_even(group)
        if found is not None:
            density, measured = found
            how = "interpolated" if measured else "extrapolated"
            lines.append(f"break-even of layers in blocks of {name_of(block)}: density {percent(density, 0)} ({how})")
    return lines


def _write(config: BenchConfig, out: Path, points: Sequence[Point]) -> None:
    groups = {name_of(block): group for block, group in _by_block(points).items()}
    ends = {name: break_even(group) for name, group in groups.items()}
    told = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    content = {
        "config": told,
        "threads": torch.get_num_threads(),
        "memory_format": "channels_last",
        "versions": versions(),
        "break_even": {name: None if end is None else end[0] for name, end in ends.items()},
        "points": [asdict(point) for point in points],
    }
    out.mkdir(exist_ok=True)
    write_atomic(out / "speedup.png", speedup_png(groups, ends, _title(config)))
    write_atomic(out / "layers.png", layers_png(points[-1].layers, _title(config)))
    write_atomic(out / RESULT, json.dumps(content, indent=1))


def _title(config: BenchConfig) -> str:
    what = "training step" if config.train else "inference"
    threads = torch.get_num_threads()
    return f"{Path(config.model).name}, {what}, batch {config.batch}, {threads} thread{'s' * (threads > 1)}"
