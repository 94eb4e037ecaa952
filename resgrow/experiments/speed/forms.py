"""The forms of a network with part of its weights gone, and their times against each other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import resgrow
from resgrow.experiments import bench_measure as timing
from resgrow.experiments.bench_points import require_same
from resgrow.experiments.models import as_network
from resgrow.surgery import compact, fuse, prune, swap
from resgrow.surgery.count import count_macs, count_params

BLOCK = (16, 1)
DENSE, FOLDED, SWAPPED, FUSED, COMPACTED = "dense", "folded", "swapped", "fused", "compacted"
TRAINING, INFERENCE = "training", "inference"


@dataclass(frozen=True)
class Case:
    """A network and inputs of ``(batch, *shape)``.

    ``ends``: how many ends of a weight get narrower when channels go. Of a residual block only the inner channels do,
    so that most of its weights have one such end.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    ends: int


CASES = {
    "lenet5": Case(resgrow.nn.lenet5, (1, 28, 28), 64, 2),
    "resnet20": Case(lambda: resgrow.nn.resnet(20), (3, 32, 32), 32, 1),
    "wide-resnet20": Case(lambda: resgrow.nn.resnet(20, 4), (3, 32, 32), 32, 1),
}


def built(case: Case, seed: int) -> tuple[nn.Module, Tensor]:
    """A new network and inputs, both channels_last: what is fastest on a CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = as_network(case.make()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(case.batch, *case.shape)
    return model, x.contiguous(memory_format=torch.channels_last)


def forms(
    model: nn.Module, x: Tensor, density: float, width: float, mode: str, seed: int
) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """Copies of ``model`` to compete, and the share of the multiply-accumulates that is left in each.

    * ``dense``: torch's own layers. ``folded``, for inference: with norms folded into them.
    * ``swapped``: random blocks of `BLOCK` gone, and skipped by block-sparse layers where these are measured faster.
      ``fused``, for inference: with norms, additions and activations fused, too.
    * ``compacted``: random channels gone, the same share of every layer, and the layers smaller.

    ``density``: the share of the weights that is left of blocks; ``width``: the share of the channels that is.

    Raises:
        RunError: a form does not give the outputs that it should.
    """
    train = mode == TRAINING
    whole = count_macs(model, x[:2])
    masked = copy.deepcopy(model)
    masks = prune(masked, _drawn(model, seed), sparsity=1 - density, block=BLOCK).state_dict()
    found: dict[str, nn.Module] = {DENSE: masked.train(train), SWAPPED: copy.deepcopy(masked).train(train)}
    swap(found[SWAPPED], masks, example_inputs=x, block=BLOCK)
    if not train:
        found |= {FOLDED: as_network(fuse(masked.eval())), FUSED: fuse(found[SWAPPED].eval())}
    for name, form in found.items():
        require_same(masked, form, name, x)
    found[COMPACTED] = _smaller(model, x, width, seed).train(train)
    kept = count_macs(masked, x[:2], masks) / whole
    left = dict.fromkeys(found, kept) | {DENSE: 1.0, FOLDED: 1.0}
    return found, {name: left[name] for name in found} | {COMPACTED: count_macs(found[COMPACTED], x[:2]) / whole}


def _smaller(model: nn.Module, x: Tensor, width: float, seed: int) -> nn.Module:
    thinned = copy.deepcopy(model)
    prune(
        thinned,
        _drawn(model, seed),
        sparsity=1 - width,
        block="channel",
        scope="layer",
        example_inputs=x[:2],
    )
    return compact(thinned, x[:2])


def _drawn(model: nn.Module, seed: int) -> Mapping[str, Tensor]:
    return resgrow.saliency(model, method="random", generator=torch.Generator().manual_seed(seed))


def measured(case: Case, density: float, mode: str, seed: int, rounds: int) -> dict[str, Any]:
    """Milliseconds, medians over rounds of the ratios to the dense form's, MACs left, and MiB held, each by form."""
    model, x = built(case, seed)
    found, left = forms(model, x, density, density ** (1 / case.ends), mode, seed)
    optimizers = {name: timing.make_optimizer(form) for name, form in found.items()} if mode == TRAINING else {}
    calls = {
        name: timing.training_step(form, x, optimizers[name]) if optimizers else timing.inference(form, x)
        for name, form in found.items()
    }
    times = timing.interleaved(calls, rounds, x.device)
    held = {name: timing.held_bytes(form, optimizers.get(name)) for name, form in found.items()}
    return {
        "milliseconds": {name: 1e3 * median(each) for name, each in times.items()},
        "faster": {name: timing.median_ratio(times[DENSE], each) for name, each in times.items()},
        "macs": left,
        "mib": {name: size / 2**20 for name, size in held.items()},
        "params": {name: count_params(form) for name, form in found.items()},
        "samples": prod((rounds + 1, case.batch, len(found))),
    }
