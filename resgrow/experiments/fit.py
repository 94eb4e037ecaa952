"""The main job: an ordinary baseline and a self-sizing twin, trained alike, measured alike."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import resgrow.data
from resgrow.data import Dataset
from resgrow.experiments.config import FitConfig
from resgrow.experiments.display import Display, make_display, result_table
from resgrow.experiments.interrupts import Interrupted, Interrupts
from resgrow.experiments.measure import evaluate, latency, require_same_outputs
from resgrow.experiments.models import as_network, build_model
from resgrow.experiments.run_folder import CONFIG, HISTORY, REPORT, SUMMARY, RunFolder, read_history
from resgrow.experiments.sizing import Sizing, make_sizing
from resgrow.experiments.summary import NetworkResult, layer_table, move_counts, sizes
from resgrow.experiments.training import Batch, Training, make_optimizer, total_steps
from resgrow.info import device_name, versions
from resgrow.report import render, result_rows
from resgrow.report.rows import duration
from resgrow.surgery import storage
from resgrow.surgery.count import count_params

LATENCY_BATCHES = (1, 64)
CHECKED_IMAGES = 256


@dataclass(frozen=True)
class Twins:
    """The two trainings of a run, from the same initial weights, and what makes the twin smaller."""

    dense: Training
    sized: Training
    sizing: Sizing


def _set_up(config: FitConfig, data: Dataset) -> Twins:
    """Networks, optimizers, sizing. Raises InputError where the budget cannot be met."""
    dense = build_model(config, data)
    sizing = make_sizing(copy.deepcopy(dense), data, config)
    return Twins(
        Training("dense", dense, make_optimizer(dense.parameters(), config), data, config),
        Training("sized", sizing.model, sizing.optimizer, data, config),
        sizing,
    )


def _train_dense(twins: Twins, folder: RunFolder, display: Display) -> None:
    training = twins.dense
    params = count_params(training.model)
    display.begin("dense", total_steps(training.config, training.data), training.config.epochs, params)

    def on_epoch(record: Any) -> None:
        folder.record({"kind": "epoch", **asdict(record)})
        display.epoch(record)

    training.run(params=lambda: params, on_step=display.step, on_epoch=on_epoch)


def _train_sized(twins: Twins, folder: RunFolder, display: Display) -> None:
    training, sizing = twins.sized, twins.sizing
    params = count_params(training.model)
    display.begin("sized", total_steps(training.config, training.data), training.config.epochs, params)

    def on_epoch(record: Any) -> None:
        folder.record({"kind": "epoch", **asdict(record)})
        display.epoch(record)

    def after_step(step: int, batch: Batch) -> None:
        for event in sizing.after_step(step, batch):
            folder.record(dict(event))
            if event.get("event") == "move":
                display.move(event)

    training.run(
        params=sizing.params,
        on_step=display.step,
        on_epoch=on_epoch,
        penalty=sizing.penalty,
        after_step=after_step,
    )


def _shrink(twins: Twins, data: Dataset, folder: RunFolder, held: Interrupts) -> tuple[nn.Module, float]:
    """Stores the twin made smaller, and returns what was read back with its deviation from the trained twin."""
    # On the CPU: a GPU that rounds products to tf32 would add differences larger than those looked for.
    masked = twins.sized.model.eval().cpu()
    small = twins.sizing.small(data.train_x[:1].cpu())
    with held.held():
        storage.save(small, folder.path)
    stored = as_network(storage.load(folder.path))
    difference = require_same_outputs(masked, stored, data.test_x[:CHECKED_IMAGES].cpu())
    return stored.to(data.test_x.device), difference


def _result(model: nn.Module, training: Training, times: Mapping[str, float]) -> dict[str, Any]:
    data = training.data
    loss, accuracy = evaluate(model, data.test_x, data.test_y)
    counts = sizes(model, data.train_x[:1])
    return asdict(
        NetworkResult(
            accuracy=accuracy,
            test_loss=loss,
            latency=dict(times),
            training_seconds=training.seconds,
            **counts,
        )
    )


def _measure(twins: Twins, small: nn.Module, data: Dataset) -> dict[str, Any]:
    """The halves "dense" and "sized" of summary.json."""
    dense = twins.dense.model.eval()
    times: dict[str, dict[str, float]] = {"dense": {}, "sized": {}}
    for batch in LATENCY_BATCHES:
        images = data.test_x[torch.arange(batch) % len(data.test_x)]
        for name, seconds in latency({"dense": dense, "sized": small}, images).items():
            times[name][str(batch)] = seconds
    return {
        "dense": _result(dense, twins.dense, times["dense"]),
        "sized": _result(small, twins.sized, times["sized"]),
    }


def _run(
    config: FitConfig, data: Dataset, twins: Twins, folder: RunFolder, console: Console, interrupts: Interrupts
) -> dict[str, Any]:
    started = time.perf_counter()
    with make_display(console) as display:
        display.say(data.describe())
        _train_dense(twins, folder, display)
        _train_sized(twins, folder, display)
        display.say("compacting and measuring")
        small, difference = _shrink(twins, data, folder, interrupts)
        summary = {
            "data": data.name,
            "model": config.model,
            "unit": config.unit,
            "train_images": len(data.train_y),
            "test_images": len(data.test_y),
            "image_shape": list(data.image_shape),
            "classes": len(data.classes),
            "data_verified": data.verified,
            "method": config.method,
            "budget": config.budget,
            "budget_met": twins.sizing.met,
            "moves": move_counts(twins.sizing.moves),
            **_measure(twins, small, data),
            "layers": layer_table(twins.dense.model, small, data.train_x[:1]),
            "output_difference": difference,
            "threads": torch.get_num_threads(),
            "device": device_name(config.device),
            "seconds": time.perf_counter() - started,
        }
    return summary


def _finish(folder: RunFolder, described: Mapping[str, Any], summary: dict[str, Any], console: Console) -> None:
    folder.write_json(SUMMARY, summary)
    folder.write_text(REPORT, render(described, summary, read_history(folder.path)))
    title = f"{summary['model']} on {summary['data']}"
    console.print(result_table(result_rows(summary), title))
    if summary["budget_met"] is None:
        folder.mark("finished", "finished")
    elif not summary["budget_met"]:
        folder.mark("finished", "finished, but the budget was not met")
        console.print("the budget was not met: give it more --epochs or a larger --budget", style="yellow")
    else:
        folder.mark("finished", "finished; the budget was met")
    console.print(
        f"{duration(summary['seconds'])} in all; report: {folder.path / REPORT}", soft_wrap=True, highlight=False
    )


def fit(config: FitConfig, out: Path, console: Console) -> dict[str, Any]:
    """Runs the whole job and returns summary.json's content; everything else is in the folder ``out``.

    Raises InputError or RunError before any training where data, model, budget or folder do not fit, RunError
    when the loss is no longer finite, Interrupted on SIGINT and SIGTERM. From the moment the folder exists its
    status.json tells which of these happened.
    """
    interrupts = Interrupts()
    with interrupts.caught():
        data = resgrow.data.load(config.data, config.data_dir, config.download).to(config.device)
        twins = _set_up(config, data)
        described = {"fit": config.as_dict(), "versions": versions()}
        folder = RunFolder(out, described, interrupts)
        try:
            summary = _run(config, data, twins, folder, console, interrupts)
            _finish(folder, described, summary, console)
        except Interrupted as signal:
            folder.mark("interrupted", f"stopped by {signal}; {HISTORY} and {CONFIG} tell how far it came")
            raise
        except BaseException as error:
            folder.mark("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            folder.close()
        return summary
