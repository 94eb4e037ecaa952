"""``resgrow count``: what a model consists of and costs, alone or against another one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from resgrow._errors import InputError
from resgrow._files import write_atomic
from resgrow.experiments.bench_measure import inference, interleaved
from resgrow.experiments.device import require_device
from resgrow.experiments.models import as_network
from resgrow.experiments.named_models import Subject, find
from resgrow.experiments.options import require_new_folder, shape_of
from resgrow.experiments.summary import present
from resgrow.info import versions
from resgrow.report.widths import widths_png
from resgrow.surgery import Comparison, Profile, profile

_ROUNDS = 20
TABLE, RESULT, DRAWING = "profile.csv", "profile.json", "widths.png"


@dataclass(frozen=True)
class CountConfig:
    """What ``resgrow count`` is told. ``shape`` is that of an input, without the batch; ``device`` torch's name."""

    model: str
    against: str | None
    shape: tuple[int, ...] | None
    out: Path | None
    batch: int = 1
    latency: bool = False
    device: str = "cpu"


def make_config(
    model: str, *, against: str | None = None, input_shape: str | None = None, out: str | None = None, **rest: Any
) -> CountConfig:
    """Reads the options. Raises InputError for values that cannot work."""
    shape = None if input_shape is None else shape_of("count", input_shape)
    config = CountConfig(model, against, shape, None if out is None else Path(out), **rest)
    if config.batch < 1:
        raise InputError(f"count: --batch must be at least 1 (got {config.batch}); leave it out")
    require_device("count", config.device)
    return config


def run(config: CountConfig, console: Console) -> Profile:
    """Counts, prints, and writes if there is a folder to write to.

    Raises:
        InputError: a model is not known or does not take the inputs, or the folder is in use; nothing is written.
        OSError: the files cannot be written.
    """
    require_new_folder("count", config.out)
    subject = find("count", config.model)
    other = None if config.against is None else find("count", config.against)
    x = _example(config, [subject, *([other] if other else [])])
    found = _profiled(config, config.model, subject, x)
    compared = None
    if other is not None and config.against is not None:
        before = _profiled(config, config.against, other, x)
        if config.latency:  # each has been timed at its own time, which does not compare on a busy machine
            calls = {"before": inference(other.model, x), "after": inference(subject.model, x)}
            seconds = {name: median(taken) for name, taken in interleaved(calls, _ROUNDS, x.device).items()}
            before, found = replace(before, seconds=seconds["before"]), replace(found, seconds=seconds["after"])
        compared = before.compare(found)
    console.print(_title(config), markup=False, highlight=False, soft_wrap=True)
    console.print(str(compared or found), markup=False, highlight=False, soft_wrap=True)
    if config.out is not None:
        _write(config, config.out, found, compared)
        console.print(f"written: {config.out}", soft_wrap=True, highlight=False)
    return found


def _example(config: CountConfig, subjects: Sequence[Subject]) -> Tensor:
    """A batch of the shape that was told, or is that of the first model that has one."""
    shape = next((shape for shape in (config.shape, *(subject.shape for subject in subjects)) if shape), None)
    if shape is None:
        raise InputError("count: the shape of an input must be known (got no --input); give it, such as 3x224x224")
    x = torch.randn(config.batch, *shape, generator=torch.Generator().manual_seed(0)).to(config.device)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _profiled(config: CountConfig, name: str, subject: Subject, x: Tensor) -> Profile:
    """With zeros left out where the model has some."""
    model = as_network(subject.model).to(config.device)
    masks: Mapping[str, Tensor] | None = None if subject.drawn else present(model)
    if masks is not None and all(bool(mask.all()) for mask in masks.values()):
        masks = None
    try:
        return profile(model, x, masks=masks, latency=config.latency)
    except ValueError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(
            f"count: {name} must take inputs of shape {'x'.join(map(str, x.shape[1:]))} (got the error: {reason}); "
            "give another --input"
        ) from error


def _title(config: CountConfig) -> str:
    names = [Path(name).name for name in (config.against, config.model) if name is not None]
    return " → ".join(names)


def _write(config: CountConfig, out: Path, found: Profile, compared: Comparison | None) -> None:
    rows = found.to_rows() if compared is None else compared.to_rows()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = {
        "model": config.model,
        "against": config.against,
        "memory_format": "channels_last",
        "versions": versions(),
        **(found.as_dict() if compared is None else compared.as_dict()),
    }
    before = None if compared is None else compared.before.widths()
    out.mkdir(exist_ok=True)
    write_atomic(out / TABLE, text.getvalue())
    write_atomic(out / DRAWING, widths_png(found.widths(), before, _title(config)))
    write_atomic(out / RESULT, json.dumps(content, indent=1))
