"""Does saliency predict what deleting costs? Predicted against measured rise of the loss on a residual network.

    python benchmarks/saliency_rank.py [--seeds 3] [--per-group 200] [--quick] [--out FILE]

resnet(8) of a quarter of the width on 512 of scikit-learn's digits, each seed in three states:

* ``ordinary``: Adam, batch norm in train mode, cross-entropy. What a user has. Its gradient in eval mode is not zero.
* ``saturated``: the same, then trained on with frozen statistics (L-BFGS, all 512 images) until the loss is nearly
  zero. Cross-entropy has no minimum on images that can be told apart, and softmax saturates.
* ``minimum``: the same with label smoothing of 0.1, whose loss has a minimum. What Optimal Brain Damage assumes.

Single weights, blocks of 4x1 and 8x1 and channels with all that is coupled to them are deleted one at a time. Measured
is the difference of the mean loss that the state was trained on, over the same 512 images, in eval mode and float64.
Predicted is the sum of ``1/2 h w^2`` over the unit, undamped, or of the criterion's own score. ``ggn`` is the
diagonal of the Hessian on such a network, which is verified by double backward on a sample of elements.

A channel is one change, which its producer, its norm and its consumers each could make alone: a sum over them counts
it again and again and leaves out what they do together. So it is also predicted by its *gate*, a factor of 1 behind its
norm that deleting the channel sets to 0: ``1/2 h`` of that factor is the second-order rise without either error.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median

import torch
from _agreement import loglog_slope, slope, spearman
from _digits import RESULTS, batches, digits, evaluate, heading, network, table, today, train
from torch import Tensor, nn
from torch.func import functional_call

import resgrow
from resgrow.curvature.engine import METHODS
from resgrow.saliency import obd
from resgrow.surgery import make_units
from resgrow.surgery.units import Units

IMAGES, WIDTH, EPOCHS, SMOOTHING = 512, 0.25, 40, 0.1
STATES = {"ordinary": (0.0, 0), "saturated": (0.0, 400), "minimum": (SMOOTHING, 400)}  # smoothing, L-BFGS steps
UNITS = {"weights": (1, 1), "blocks 4x1": (4, 1), "blocks 8x1": (8, 1), "channels": "channel"}
# name: options of resgrow.curvature
CURVATURES: dict[str, dict] = {
    "ggn": {"method": "ggn"},
    "ggn-mc, 8 samples": {"method": "ggn-mc", "samples": 8},
    "ggn-mc, 1 sample": {"method": "ggn-mc", "samples": 1},
    "lecun": {"method": "lecun"},
    "fisher": {"method": "fisher"},
}
TARGETS = {"ggn": 0.97, "ggn-mc, 8 samples": 0.9, "lecun": 0.8}
FIRST_ORDER = "ggn and gradient"

Scores = dict[str, dict[str, Tensor]]
# criterion, unit -> (predicted, measured), one figure per deletion
Pairs = dict[tuple[str, str], tuple[Tensor, Tensor]]


class Trained:
    """One network in one state, in float64, with the loss and images it was trained on."""

    def __init__(self, seed: int, state: str) -> None:
        data = digits()
        data = dataclasses.replace(data, train_x=data.train_x[:IMAGES], train_y=data.train_y[:IMAGES])
        model = train(network(WIDTH, seed), data, EPOCHS, seed)
        smoothing, steps = STATES[state]
        self.loss_fn = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.x, self.y = data.train_x.double(), data.train_y
        self.model = model.double()
        if steps:
            self._converge(steps)
        self.dense = self.loss({})
        self.gradient = self._gradient()
        self.test_accuracy = evaluate(model, data.test_x.double(), data.test_y)[1]

    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """Mean loss in eval mode, with ``weights`` in place of the model's own."""
        with torch.no_grad():
            return self.loss_fn(functional_call(self.model, dict(weights), (self.x,)), self.y).item()

    def _gradient(self) -> dict[str, Tensor]:
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        grads = torch.autograd.grad(self.loss_fn(self.model(self.x), self.y), parameters)
        return dict(zip(names, grads, strict=True))

    def _converge(self, steps: int) -> None:
        optimizer = torch.optim.LBFGS(
            self.model.parameters(),
            max_iter=steps,
            history_size=30,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-9,
            tolerance_change=1e-14,
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss_fn(self.model(self.x), self.y)
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()


def predictions(net: Trained) -> Scores:
    """Every criterion's score per parameter element; methods that this version lacks are left out with a note."""
    data = batches(net.x, net.y)
    scores: Scores = {}
    for name, options in CURVATURES.items():
        if options["method"] not in METHODS:
            print(f"  {name}: not in this version", flush=True)
            continue
        h = resgrow.curvature(net.model, net.loss_fn, data, **options)
        if name == "ggn":
            verify(net, h)
        scores[name] = obd(net.model, h, damping=0)
    weights = {name: p.detach() for name, p in net.model.named_parameters()}
    scores[FIRST_ORDER] = {name: s - net.gradient[name] * weights[name] for name, s in scores["ggn"].items()}
    scores["magnitude"] = dict(resgrow.saliency(net.model, method="magnitude"))
    return scores


def verify(net: Trained, h: Mapping[str, Tensor], count: int = 4) -> None:
    """ggn is the Hessian's diagonal on this network: the same elements by double backward, in float64."""
    names, parameters = zip(*net.model.named_parameters(), strict=True)
    grads = torch.autograd.grad(net.loss_fn(net.model(net.x), net.y), parameters, create_graph=True)
    # Saturated probabilities differ from 1 by about the loss, and are known to a rounding of 1.
    relative = 1e-7 + 10 * torch.finfo(torch.float64).eps / net.dense
    for name, parameter, grad in zip(names, parameters, grads, strict=True):
        for index in torch.randperm(grad.numel(), generator=torch.Generator().manual_seed(0))[:count].tolist():
            (row,) = torch.autograd.grad(grad.flatten()[index], parameter, retain_graph=True)
            want, got = row.flatten()[index].item(), h[name].flatten()[index].item()
            # Double backward sums terms that cancel: its rounding is that of the largest of them.
            slack = relative * abs(want) + 1e-9 * h[name].max().item()
            assert abs(got - want) <= slack, f"ggn of {name}[{index}] is {got}, double backward gives {want}"


def delete_singly(net: Trained, units: Units, per_group: int, seed: int) -> tuple[list[tuple[int, int]], Tensor]:
    """(group, index) of a random sample of units of each group, and the measured rise of the loss for each."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rises = [], []
    for group, live in enumerate(units.live()):
        for index in torch.randperm(live.numel(), generator=generator)[:per_group].tolist():
            keep = [torch.ones_like(other) for other in units.live()]
            keep[group].view(-1)[index] = False
            masks = units.to_masks(keep)
            gone = {name: mask for name, mask in masks.items() if not mask.all()}
            rises.append(net.loss({n: net.model.get_parameter(n).detach() * mask for n, mask in gone.items()}))
            chosen.append((group, index))
    return chosen, torch.tensor(rises, dtype=torch.float64) - net.dense


def compare(net: Trained, per_group: int, seed: int) -> Pairs:
    scores = predictions(net)
    pairs: Pairs = {}
    for kind, block in UNITS.items():
        units = make_units(net.model, block)
        chosen, measured = delete_singly(net, units, per_group, seed)
        for name, score in scores.items():
            summed = units.scores(score)
            predicted = torch.stack([summed[group].flatten()[index] for group, index in chosen]).double()
            pairs[name, kind] = predicted, measured
        if kind == "channels":
            for name, gates in gate_predictions(net, units.groups).items():
                predicted = torch.stack([gates[group][index] for group, index in chosen]).double()
                pairs[f"{name}, gate", kind] = predicted, measured
    assert net.loss({}) == net.dense, "deleting changed the network"
    return pairs


def gate_predictions(net: Trained, producers: Sequence[str]) -> dict[str, list[Tensor]]:
    """``1/2 h`` of a factor of 1 behind the norm of each producer's channels, by each curvature."""
    model = copy.deepcopy(net.model)
    norms = [producer.replace("conv", "bn") for producer in producers]
    for norm in map(model.get_submodule, norms):
        norm.gate = nn.Parameter(norm.weight.new_ones(norm.num_features))
        norm.register_forward_hook(lambda module, args, output: output * module.gate[:, None, None])
    found = {}
    for name, options in CURVATURES.items():
        h = resgrow.curvature(model, net.loss_fn, batches(net.x, net.y), **options)
        found[name] = [h[f"{norm}.gate"] / 2 for norm in norms]
    return found


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def rank_table(found: list[Pairs]) -> list[str]:
    def cell(name: str, kind: str) -> str:
        return spread([spearman(*pairs[name, kind]) for pairs in found]) if (name, kind) in found[0] else "-"

    names = dict.fromkeys(name for name, _ in found[0])
    rows = [[name, *(cell(name, kind) for kind in UNITS)] for name in names]
    return table(["Spearman", *UNITS], rows)


def calibration_table(found: list[Pairs]) -> list[str]:
    statistics: dict[str, Callable[[Tensor, Tensor], float]] = {"slope": slope, "log-log slope": loglog_slope}
    names = [name for name in dict.fromkeys(name for name, _ in found[0]) if name != "magnitude"]
    rows = []
    for name in names:
        cells = [
            f"{median(f(*pairs[name, kind]) for pairs in found):.3g}" if (name, kind) in found[0] else "-"
            for kind in UNITS
            for f in statistics.values()
        ]
        rows.append([name, *cells])
    return table(["measured on predicted", *(f"{kind}: {name}" for kind in UNITS for name in statistics)], rows)


def verdicts(found: list[Pairs]) -> list[str]:
    """Each target with what was reached on single weights, missed ones included."""
    lines = []
    for name, least in TARGETS.items():
        if (name, "weights") not in found[0]:
            continue
        worst = {kind: min(spearman(*pairs[name, kind]) for pairs in found) for kind in UNITS}
        missed = [f"{kind} {value:.3f}" for kind, value in worst.items() if value < least]
        lines.append(
            f"* {name}, target {least}: " + (f"missed by {', '.join(missed)}" if missed else "met by all units")
        )
    return [*lines, "  (worst seed)"]


def describe(nets: list[tuple[float, float, float, float]]) -> str:
    loss, gradient, ratio, accuracy = (median(column) for column in zip(*nets, strict=True))
    return (
        f"Median over seeds: loss {loss:.3g}, largest gradient element {gradient:.2g}, test accuracy {accuracy:.1f} %. "
        f"Over all weights, the median of |g w| is {ratio:.2g} times that of 1/2 h w^2."
    )


def facts(net: Trained) -> tuple[float, float, float, float]:
    weights = [name for name, p in net.model.named_parameters() if p.dim() >= 2]
    h = resgrow.curvature(net.model, net.loss_fn, batches(net.x, net.y), method="ggn")
    second = obd(net.model, h, damping=0)
    parameters = dict(net.model.named_parameters())
    first = torch.cat([(net.gradient[n] * parameters[n].detach()).abs().flatten() for n in weights])
    ratio = first.median() / torch.cat([second[n].flatten() for n in weights]).median()
    largest = max(g.abs().max().item() for g in net.gradient.values())
    return net.dense, largest, ratio.item(), net.test_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-group", type=int, default=200, help="units deleted of each layer (default 200)")
    parser.add_argument("--quick", action="store_true", help="one seed, 40 units of each layer")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{today()}-cpu-saliency-rank.md")
    args = parser.parse_args()
    seeds, per_group = (1, 40) if args.quick else (args.seeds, args.per_group)
    lines = heading(
        "Predicted against measured loss of deletions", f"python benchmarks/saliency_rank.py, {seeds} seeds"
    )
    lines += [
        "\n\n".join(__doc__.strip().split("\n\n")[2:]),
        "",
        f"Up to {per_group} units of each layer. Spearman: mean over seeds, with the range; slopes: median over seeds.",
        "",
    ]
    for state in STATES:
        found, nets = [], []
        for seed in range(seeds):
            net = Trained(seed, state)
            nets.append(facts(net))
            found.append(compare(copy.deepcopy(net), per_group, seed))
            print(
                f"{state}, seed {seed}: loss {net.dense:.3g}, ggn on weights "
                f"{spearman(*found[-1]['ggn', 'weights']):.3f}",
                flush=True,
            )
        lines += [f"## {state}", "", describe(nets), "", *rank_table(found), "", *calibration_table(found), ""]
        lines += [*verdicts(found), ""]
    args.out.write_text("\n".join(lines))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
