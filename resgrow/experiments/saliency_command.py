"""``resgrow saliency``: scores of a stored model, as tables and as a file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import resgrow.data
from resgrow._errors import InputError
from resgrow._files import write_atomic
from resgrow.data import Dataset
from resgrow.experiments.models import as_input, as_network
from resgrow.info import versions
from resgrow.report.rows import count, percent
from resgrow.saliency import LOSS, METHODS, Saliency, saliency
from resgrow.surgery import storage

FILE = "saliency.safetensors"
FORMAT, VERSION = "resgrow-saliency", "1"
LIMIT, BATCH_SIZE = 2048, 128
# What quantiles are shown, from the lowest to the highest score.
QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}


@dataclass(frozen=True)
class SaliencyConfig:
    """What ``resgrow saliency`` is told: ``options`` are those of `resgrow.saliency` that were given."""

    model: Path
    data: str
    out: Path
    method: str = "obd"
    block: tuple[int, int] | str = "none"
    data_dir: str | None = None
    batch_size: int = BATCH_SIZE
    limit: int = LIMIT
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def make_config(
    model: str,
    data: str,
    *,
    out: str | None = None,
    block: str = "none",
    damping: str | None = None,
    options: Mapping[str, Any],
    **rest: Any,
) -> SaliencyConfig:
    """Fills in defaults. Raises InputError for values that cannot work."""
    given = {name: value for name, value in options.items() if value is not None}
    if damping is not None:
        given["damping"] = _damping(damping)
    config = SaliencyConfig(
        Path(model), data, Path(out) if out else Path(model) / FILE, block=_block(block), options=given, **rest
    )
    for name in ("batch_size", "limit"):
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise InputError(f"saliency: --{option} must be at least 1 (got {getattr(config, name)}); leave it out")
    if config.seed < 0:
        raise InputError(f"saliency: --seed must not be negative (got {config.seed}); use 0 or more")
    if config.method not in METHODS:
        raise InputError(f"saliency: --method must be one of {', '.join(METHODS)} (got {config.method!r})")
    return config


def _damping(text: str) -> float | str:
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError:
        raise InputError(f"saliency: --damping must be 'auto' or a number (got {text!r}); try 1") from None


def _block(text: str) -> tuple[int, int] | str:
    if text in ("none", "channel"):
        return text
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"saliency: --block must be none, channel or for example 16x1 (got {text!r}); choose one")
    return int(parts[0]), int(parts[1])


def run(config: SaliencyConfig, console: Console) -> Saliency:
    """Computes, prints and writes the scores.

    Raises:
        InputError: model, data and options do not fit, or the file is there already; before anything is computed where
            that is possible. Nothing is written then.
        OSError: the file cannot be written.
    """
    _check_out(config.out)
    model = _load(config.model)
    data = resgrow.data.load(config.data, config.data_dir)
    _check_model(model, data)
    scores = _score(config, model, data)
    console.print(_layer_table(config, model, scores))
    if config.block != "none":
        console.print(_unit_table(config.block, scores))
    write_atomic(config.out, safetensors.torch.save(_tensors(scores), _metadata(config, scores)))
    console.print(f"written: {config.out}", soft_wrap=True, highlight=False)
    return scores


def _check_out(out: Path) -> None:
    if out.exists():
        raise InputError(
            f"saliency: the file must not be there yet (got {out}); choose another with --out, or remove it"
        )
    if not out.parent.is_dir():
        raise InputError(f"saliency: the file's folder must exist (got {out.parent}); make it, or choose another --out")


def _load(folder: Path) -> nn.Module:
    try:
        return as_network(storage.load(folder))
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_model(model: nn.Module, data: Dataset) -> None:
    """One image goes through."""
    wanted = (1, len(data.classes))
    training = model.training
    try:
        with torch.no_grad():
            shape = tuple(model.eval()(as_input(data.train_x[:1])).shape)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"saliency: the model must take images of shape {data.image_shape} (got the error: {reason}); give the "
            "--data that it was trained on"
        ) from error
    finally:
        model.train(training)
    if shape != wanted:
        raise InputError(
            f"saliency: the model must give one number for each of {wanted[1]} classes (got shape {shape} for one "
            "image); give the --data that it was trained on"
        )


def _score(config: SaliencyConfig, model: nn.Module, data: Dataset) -> Saliency:
    shuffled = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(config.seed))
    chosen = shuffled[: config.limit].split(config.batch_size)
    batches = [(as_input(data.train_x[part]), data.train_y[part]) for part in chosen]
    options = dict(config.options)
    if "generator" in METHODS[config.method].options and _draws(config):
        options["generator"] = torch.Generator().manual_seed(config.seed)
    bar = sys.stderr.isatty()
    try:
        return saliency(model, nn.CrossEntropyLoss(), batches, config.method, progress=bar, **options)
    except (ValueError, TypeError) as error:
        if str(error).startswith(("saliency:", "curvature:")):
            raise InputError(str(error)) from error
        raise


def _draws(config: SaliencyConfig) -> bool:
    """Whether a generator means something: "obs" draws for one of its matrices only."""
    return config.method != "obs" or config.options.get("hessian") == "ggn-mc"


def _tensors(scores: Saliency) -> dict[str, Tensor]:
    return {name: score.contiguous() for name, score in scores.items()}


def _metadata(config: SaliencyConfig, scores: Saliency) -> dict[str, str]:
    """Everything that is not plain text is JSON."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "method": scores.method,
        "unit": scores.unit,
        "options": json.dumps(scores.options),
        "damping": json.dumps(scores.damping),
        "stages": json.dumps([[s.sparsity, s.damping, s.power] for s in scores.stages]),
        "data": json.dumps(
            {"data": config.data, "limit": config.limit, "batch_size": config.batch_size, "seed": config.seed}
        ),
        "versions": json.dumps(versions()),
    }


def _layer_table(config: SaliencyConfig, model: nn.Module, scores: Saliency) -> Table:
    """One row per layer; zero parameters count as absent."""
    rise = "predicted rise" if scores.unit == LOSS else "sum"
    table = _table(f"saliency by {scores.method}: {scores.unit}", "layer", "shape", "live", rise, "share", "mean")
    sums = scores.per_layer()
    total = sum(sums.values())
    whole: list[Tensor] = []
    for layer, amount in sums.items():
        names = [name for name in scores if name.rpartition(".")[0] == layer]
        shape = max((scores[name].shape for name in names), key=math.prod)
        live = torch.cat([scores[name][model.get_parameter(name) != 0].flatten().double() for name in names])
        whole.append(live)
        of_all = sum(scores[name].numel() for name in names)
        table.add_row(layer or "(model)", "x".join(map(str, shape)), *_figures(live, of_all, amount, total))
    everything = torch.cat(whole)
    table.add_section()
    table.add_row("all", "", *_figures(everything, sum(score.numel() for score in scores.values()), total, total))
    return table


def _figures(live: Tensor, elements: int, amount: float, total: float) -> list[str]:
    share = percent(amount / total, 1) if total else ""
    mean = f"{amount / len(live):.2e}" if len(live) else ""
    return [f"{count(len(live))}/{count(elements)}", f"{amount:.3g}", share, mean, *_quantiles(live)]


def _unit_table(block: tuple[int, int] | str, scores: Saliency) -> Table:
    """One row per weight: how its blocks' or channels' sums are distributed."""
    units = "channels" if isinstance(block, str) else f"blocks of {block[0]}x{block[1]}"
    grids = scores.per_channel() if isinstance(block, str) else scores.per_block(block)
    table = _table(f"sums over {units}", "weight", "units", "mean")
    for name, grid in grids.items():
        mean = f"{grid.double().mean():.2e}" if grid.numel() else ""
        table.add_row(name, count(grid.numel()), mean, *_quantiles(grid.flatten().double()))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for column in (*columns, *QUANTILES):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _quantiles(values: Tensor) -> list[str]:
    """Interpolated between sorted values, as by `torch.quantile`, which refuses more than 16 million."""
    if not len(values):
        return [""] * len(QUANTILES)
    ordered = values.sort().values
    places = [share * (len(ordered) - 1) for share in QUANTILES.values()]
    return [f"{torch.lerp(ordered[int(place)], ordered[math.ceil(place)], place % 1):.1e}" for place in places]
