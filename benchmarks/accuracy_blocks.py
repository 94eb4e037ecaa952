"""What blocks cost in accuracy: LeNet-5 and ResNet-20 pruned by single weights, by blocks of three sizes, by channels.

    export RESGROW_DATA_DIR=...  # holds the four MNIST files
    python benchmarks/accuracy_blocks.py lenet5 --work DIR --seeds 0 1 2 --stages one-shot tuned iterative
    python benchmarks/accuracy_blocks.py resnet20 --work DIR --cifar FOLDER
    python benchmarks/accuracy_blocks.py --work DIR --out STEM  # the tables and the plot of what DIR holds

One-shot: each sparsity from the dense network, nothing retrained, no statistics of norms taken anew. Tuned: the same,
then a short training with the masks attached. Iterative: the sparsities one after the other on one network, scores
taken anew before each and the same short training after each.

Weights are those of convolutions and linear layers, all ranked together; channels go with all that is coupled to them,
and the sparsity is that of what they cover. Scores see training images only; no setting is chosen by test accuracy.

Dense networks, scores and results (one line of JSON each) are kept in DIR, so that a command that was stopped goes on
where it was, and several may share the work: what DIR has is not done again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _accuracy import Block, accuracy, check, remove
from _block_tables import STANDARD, write_report
from _digits import RESULTS, Batch, batches, today
from _recipes import RECIPES, Recipe, dense, train
from torch import Tensor, nn

import resgrow
from resgrow.data import Dataset
from resgrow.surgery import Masks, count_macs, load_extra

PATTERNS: dict[str, Block] = {
    "weights": (1, 1),
    "4x1": (4, 1),
    "16x1": (16, 1),
    "16x16": (16, 16),
    "channels": "channel",
}
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
STAGES = ("one-shot", "tuned", "iterative")


@dataclass(frozen=True)
class Point:
    """One measurement: what distinguishes its line of results from all others."""

    network: str
    seed: int
    method: str
    exclude: str
    pattern: str
    stage: str
    sparsity: float


class Kept:
    """The folder with everything that was worked out so far."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._results = folder, folder / "results.jsonl"

    def points(self) -> set[Point]:
        return {Point(**{name: row[name] for name in Point.__dataclass_fields__}) for row in self.rows()}

    def rows(self) -> list[dict]:
        """Read anew each time, as other processes add to it."""
        if not self._results.exists():
            return []
        return [json.loads(line) for line in self._results.read_text().splitlines()]

    def networks(self, cifar_name: str) -> dict[str, tuple[list[dict], dict[int, dict]]]:
        """For each title the results, in a fixed order, and what was saved with the dense network of each seed."""
        found = {}
        for name, recipe in RECIPES.items():
            rows = sorted((row for row in self.rows() if row["network"] == name), key=order)
            if rows:
                seeds = sorted({row["seed"] for row in rows})
                title = recipe.title.replace("CIFAR-10", cifar_name)
                found[title] = rows, {seed: load_extra(self.folder / f"{name}-{seed}") for seed in seeds}
        return found

    def add(self, point: Point, model: nn.Module, masks: Masks, data: Dataset) -> None:
        removed = check(model, masks, PATTERNS[point.pattern], point.sparsity)
        layers = {name: round(mask.double().mean().item(), 4) for name, mask in masks.items() if mask.dim() > 1}
        result = {"accuracy": accuracy(model, data.test_x, data.test_y), "removed": removed, "left": layers}
        example = data.test_x[:1]
        macs = count_macs(model, example, masks) / count_macs(model, example)
        result |= {"macs": macs, "tested": len(data.test_y)}
        with self._results.open("a") as file:
            file.write(json.dumps({**vars(point), **result}) + "\n")
        tell(f"{' '.join(map(str, vars(point).values()))}: {result['accuracy']:.2f} %")

    def dense(self, network: str, recipe: Recipe, data: Dataset, seed: int, epochs: int) -> nn.Module:
        folder = self.folder / f"{network}-{seed}"
        if not folder.exists():
            start = time.perf_counter()
            model = dense(recipe, data, seed, epochs, tell)
            found = {"accuracy": accuracy(model, data.test_x, data.test_y), "epochs": epochs}
            resgrow.save(model, folder, {**found, "seconds": time.perf_counter() - start})
            tell(f"{network} {seed} dense: {found['accuracy']:.2f} %")
        return resgrow.load(folder).to(memory_format=torch.channels_last)

    def scores(self, network: str, model: nn.Module, images: list[Batch], seed: int, method: str) -> dict[str, Tensor]:
        """Those of the dense network."""
        path = self.folder / f"{network}-{seed}-{method}.pt"
        if not path.exists():
            torch.save(saliency(model, images, method), path)
        return torch.load(path, weights_only=True)


def order(row: dict) -> tuple:
    """Stages, then the standard criterion and no exclusion first, then patterns."""
    standard = row["method"] != STANDARD[0], row["method"], row["exclude"]
    return STAGES.index(row["stage"]), *standard, list(PATTERNS).index(row["pattern"])


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def saliency(model: nn.Module, images: list[Batch], method: str) -> dict[str, Tensor]:
    start = time.perf_counter()
    scores = dict(resgrow.saliency(model, nn.CrossEntropyLoss(), images, method=method))
    tell(f"scores by {method} took {time.perf_counter() - start:.0f} s")
    return scores


@dataclass(frozen=True)
class Experiment:
    """All that is the same for the patterns, sparsities and stages of one dense network."""

    kept: Kept
    network: str
    seed: int
    method: str
    exclude: tuple[str, ...]
    tuning: int
    data: Dataset
    images: list[Batch]
    model: nn.Module

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.network]

    def missing(self, pattern: str, sparsity: float, stage: str) -> Point | None:
        """The point, unless it is there already."""
        excluded = " ".join(self.exclude)
        point = Point(self.network, self.seed, self.method, excluded, pattern, stage, sparsity)
        return None if point in self.kept.points() else point

    def tune(self, model: nn.Module, masks: Masks) -> None:
        """The same images in the same order for every pattern."""
        train(model, self.recipe, self.data, self.tuning, self.recipe.tuning_rate, self.seed + 1000, masks)

    def single(self, pattern: str, sparsity: float, stages: list[str]) -> None:
        """One sparsity from the dense network: one-shot and tuned, as asked for."""
        points = [self.missing(pattern, sparsity, stage) for stage in ("one-shot", "tuned") if stage in stages]
        wanted = [point for point in points if point is not None]
        if not wanted:
            return
        scores = self.kept.scores(self.network, self.model, self.images, self.seed, self.method)
        model = copy.deepcopy(self.model)
        masks = remove(model, scores, sparsity, PATTERNS[pattern], exclude=self.exclude)
        for point in wanted:
            if point.stage == "tuned":
                self.tune(model, masks)
            self.kept.add(point, model, masks, self.data)

    def chain(self, pattern: str, sparsities: list[float]) -> None:
        """All sparsities, in rising order, on one network."""
        points = {sparsity: self.missing(pattern, sparsity, "iterative") for sparsity in sorted(sparsities)}
        if not any(points.values()):
            return
        model, masks = copy.deepcopy(self.model), None
        scores = self.kept.scores(self.network, self.model, self.images, self.seed, self.method)
        for sparsity, point in points.items():
            if masks is not None:
                scores = saliency(model, self.images, self.method)
            masks = remove(model, scores, sparsity, PATTERNS[pattern], masks, exclude=self.exclude)
            self.tune(model, masks)
            if point is not None:
                self.kept.add(point, model, masks, self.data)


def experiments(args: argparse.Namespace) -> Iterator[Experiment]:
    """One per network and seed."""
    for network in args.networks:
        recipe = RECIPES[network]
        data = recipe.load(args.cifar)
        data = replace(data, test_x=data.test_x[: args.test], test_y=data.test_y[: args.test])
        for seed in args.seeds:
            model = args.kept.dense(network, recipe, data, seed, args.epochs or recipe.epochs)
            picked = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(seed))[: args.images]
            images = batches(data.train_x[picked], data.train_y[picked])
            steps = args.tuning or recipe.tuning
            exclude = tuple(args.exclude)
            yield Experiment(args.kept, network, seed, args.method, exclude, steps, data, images, model)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("networks", nargs="*", choices=[*RECIPES, []], help="none: only write the report")
    add("--work", type=Path, required=True, help="folder for networks, scores and results")
    add("--cifar", type=Path, help="folder that holds cifar-10-batches-bin")
    add("--cifar-name", default="CIFAR-10", help="what the report calls it, where it is not the original")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    add("--sparsities", type=float, nargs="+", default=list(SPARSITIES))
    add("--stages", nargs="+", choices=STAGES, default=["one-shot", "tuned"])
    add("--method", default="obd", help="criterion of resgrow.saliency, with its defaults")
    add("--images", type=int, default=2048, help="training images that scores are taken on")
    add("--test", type=int, help="test images, the first so many; default: all")
    add("--exclude", nargs="*", default=[], help="names of layers to leave whole, as for resgrow.prune")
    add("--epochs", type=int, help="of dense training; default: the recipe's")
    add("--tuning", type=int, help="steps of training after pruning; default: the recipe's")
    add("--out", type=Path, default=RESULTS / f"{today()}-cpu-accuracy-blocks", help="the report, without suffix")
    args = parser.parse_args()
    args.kept = Kept(args.work)
    return args


def main() -> None:
    args = arguments()
    for experiment in experiments(args):
        for sparsity in args.sparsities:
            for pattern in args.patterns:
                experiment.single(pattern, sparsity, args.stages)
        if "iterative" in args.stages:
            for pattern in args.patterns:
                experiment.chain(pattern, args.sparsities)
    if not args.networks:
        write_report(args.out, args.kept.networks(args.cifar_name), __doc__.strip().split("\n\n")[2:4])


if __name__ == "__main__":
    main()
