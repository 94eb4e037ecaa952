"""Architecture learning on MNIST: the rows of the paper's table, learnt, retrained from scratch, and against SVD.

    python -m resgrow.experiments.architecture_learning --work DIR [--rows NAME ...] [--seeds N ...] [--epochs N]

Each row says which gates of LeNet-5 (20-50-500-10) are learnt and how much they cost; "dense" trains the network as it
is, "svd-R" replaces its third layer by two of rank R without training on. Every (row, seed) is one line of
``DIR/results.jsonl``; what is there is not done again, so that a command that was stopped goes on where it was and
several may share the work. Test images are used for reporting only.

Source: Srinivas & Babu, "Learning neural network architectures using backpropagation", table 2.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import resgrow.data
from resgrow.data import Dataset
from resgrow.experiments.config import GATE_TRAVEL, FitConfig, make_config
from resgrow.experiments.measure import evaluate
from resgrow.experiments.models import as_network, build_model
from resgrow.experiments.training import Training, make_optimizer, steps_per_epoch, total_steps
from resgrow.penalties import Gates
from resgrow.surgery import compact, factorise, merge_linear, settle_gates, swap_activations
from resgrow.surgery.count import count_params

RESULTS = "results.jsonl"
# Activations of resgrow.nn.lenet5 by name: after the first and second convolution and the third layer.
_ACTIVATIONS = ("2", "5", "8")
_THIRD = "7"


@dataclass(frozen=True)
class Row:
    """What is learnt: for each activation "width", "both" or "neither"; ``gates``: the penalty's coefficient."""

    learn: tuple[str, str, str]
    gates: float


ROWS = {
    "all, small": Row(("width", "width", "both"), 4e-3),
    "all, large": Row(("width", "width", "both"), 2.5e-3),
    "third, small": Row(("neither", "neither", "width"), 4e-3),
    "third, large": Row(("neither", "neither", "width"), 6e-4),
}
SVD_RANKS = (10, 20, 40, 70)


def learn(row: Row, config: FitConfig, data: Dataset) -> dict[str, Any]:
    """Weights and gates together; then the network that was found, trained again from new weights."""
    example = data.train_x[:1]
    words = dict(zip(_ACTIVATIONS, row.learn, strict=True))
    gated = as_network(swap_activations(build_model(config, data), example, learn=words))
    gates = Gates(gated)
    optimizer = make_optimizer(gates.param_groups(2 * GATE_TRAVEL / total_steps(config, data)), config)
    gates.attach(optimizer)
    curve: list[dict[str, Any]] = []
    every = max(1, steps_per_epoch(len(data.train_y), config.batch_size) // 4)

    def after_step(step: int, batch: object) -> None:
        if (step + 1) % every == 0:
            curve.append({"step": step + 1, "widths": gates.widths(), "linear": list(gates.linear())})

    training = Training("sized", gated, optimizer, data, config)
    training.run(
        params=lambda: 0,
        on_step=lambda *_: None,
        on_epoch=lambda _: None,
        penalty=lambda: gates.penalty(row.gates),
        after_step=after_step,
    )
    found = _smaller(gated, example)
    result = {
        **asdict(row),
        "widths": [gates.widths().get(name) for name in _ACTIVATIONS],
        "linear": list(gates.linear()),
        "params": count_params(found),
        "accuracy": evaluate(as_network(found), data.test_x, data.test_y)[1],
        "deviation": _deviation(gated, data),
        "train_loss": training.epochs[-1].loss,
        "curve": curve,
    }
    again = _renewed(found, config.seed + 1000)
    fresh = _train(again, config, data)
    return {**result, "scratch_accuracy": fresh.epochs[-1].test_accuracy}


def dense(config: FitConfig, data: Dataset) -> dict[str, Any]:
    """The network as it is, and its third layer at several ranks."""
    model = build_model(config, data)
    training = _train(model, config, data)
    results: dict[str, Any] = {"params": count_params(model), "accuracy": training.epochs[-1].test_accuracy}
    for rank in SVD_RANKS:
        low = as_network(factorise(model.eval(), {_THIRD: rank}).model)
        accuracy = evaluate(low, data.test_x, data.test_y)[1]
        results[f"svd-{rank}"] = {"params": count_params(low), "accuracy": accuracy}
    return results


def _train(model: nn.Module, config: FitConfig, data: Dataset) -> Training:
    training = Training("dense", model, make_optimizer(model.parameters(), config), data, config)
    training.run(params=lambda: 0, on_step=lambda *_: None, on_epoch=lambda _: None)
    return training


def _renewed(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with new weights."""
    again = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in again.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
    return as_network(again.train())


def _smaller(gated: nn.Module, example: Tensor) -> nn.Module:
    """Closed channels removed, linear layers merged where that saves, and the gates gone."""
    return settle_gates(merge_linear(compact(gated, example), example).model)


@torch.no_grad()
def _deviation(gated: nn.Module, data: Dataset) -> float:
    """Of the smaller network's outputs, made and run in float64, relative to the largest output."""
    x = data.test_x[:256].double()
    exact = copy.deepcopy(gated).double().eval()
    a, b = (model.eval()(x) for model in (exact, _smaller(exact, x[:1])))
    return float((a - b).abs().max() / a.abs().max())


def _known(path: Path) -> set[tuple[str, int, int]]:
    if not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["row"], line["seed"], line["epochs"]) for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rows", nargs="*", default=["dense", *ROWS], choices=["dense", *ROWS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--gates", type=float, help="instead of the row's coefficient")
    parser.add_argument("--data-dir")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    path = arguments.work / RESULTS
    data = resgrow.data.load("mnist", arguments.data_dir, False)
    for seed in arguments.seeds:
        for name in arguments.rows:
            row = ROWS.get(name)
            if row is not None and arguments.gates is not None:
                row = Row(row.learn, arguments.gates)
            label = name if arguments.gates is None else f"{name} at {arguments.gates:g}"
            if (label, seed, arguments.epochs) in _known(path):
                continue
            config = make_config("mnist", "lenet5", budget="params=1", epochs=arguments.epochs, lr=1e-3, seed=seed)
            started = time.perf_counter()
            result = dense(config, data) if row is None else learn(row, config, data)
            line = {"row": label, "seed": seed, "epochs": arguments.epochs, **result}
            line["seconds"] = time.perf_counter() - started
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            shown = {key: value for key, value in line.items() if key != "curve"}
            print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
