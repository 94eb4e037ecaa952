"""One measurement of ``resgrow bench``: a model with some of its blocks removed, dense against block-sparse."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from resgrow._errors import InputError, RunError
from resgrow._memory import peak_bytes
from resgrow._modes import eval_mode
from resgrow.experiments import bench_measure as timing
from resgrow.experiments.models import as_network
from resgrow.surgery import Swap, fuse, prune, swap

Block = tuple[int, int] | str
# Forms of the model that compete; "fused" and "folded" are for inference only.
FORMS = {
    "dense": "as it is in torch",
    "folded": "dense with norms folded",
    "swapped": "block-sparse layers",
    "fused": "swapped, with norms, additions and activations fused",
}
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Point:
    """What was measured at one block size and density.

    Attributes:
        block, density: the size asked for ("auto": the fastest for each layer), and the share of weights present.
        layers: one row for each Conv2d and Linear layer; seconds are None where it was not measured.
        seconds: median of each form. speedup: median over rounds of the time of "dense" over the form's.
        held, peak: bytes of parameters and buffers (in training of gradients and the optimizer's state too), and of
            what is live beside them at most.
        note: why a form is missing, if one is.
    """

    block: Block
    density: float
    layers: list[dict[str, Any]]
    seconds: dict[str, float]
    speedup: dict[str, float]
    held: dict[str, int]
    peak: dict[str, int]
    note: str = ""
    layer_seconds: dict[str, float] = field(default_factory=dict)

    def layers_speedup(self, which: str = "sparse") -> float | None:
        """Of the measured layers by themselves: dense over all sparse, or over the ideal."""
        times = self.layer_seconds
        return times["dense"] / times[which] if times.get(which) else None


def pruned(model: nn.Module, block: tuple[int, int], density: float, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeroes blocks of ``model`` in place, those with the lowest scores of all layers together; the masks.

    Raises:
        InputError: the model has no weights to remove.
    """
    try:
        masks = prune(model, scores, sparsity=1 - density, block=block)
    except ValueError as error:
        raise InputError(f"bench: {error}") from error
    return masks.state_dict()


def measure_point(
    model: nn.Module,
    x: Tensor,
    masks: Mapping[str, Tensor] | None,
    block: Block,
    *,
    train: bool,
    fused: bool,
    repeats: int,
    remeasure: bool,
) -> Point:
    """Swaps a copy of ``model`` (whose absent blocks are zero) and times both, and their fused forms.

    Raises:
        RunError: the forms do not give the same outputs.
    """
    dense, sparse = copy.deepcopy(model).train(train), copy.deepcopy(model).train(train)
    table = swap(sparse, masks, example_inputs=x, block=block, remeasure=remeasure)
    forms, note = {"dense": dense, "swapped": sparse}, ""
    if fused and not train:
        try:
            forms |= {"folded": as_network(fuse(dense.eval())), "fused": fuse(sparse.eval())}
        except ValueError as error:
            note = str(error)
    for name in forms:
        require_same(dense, forms[name], name, x)
    optimizers = {name: timing.make_optimizer(form) for name, form in forms.items()} if train else {}
    calls = {
        name: timing.training_step(form, x, optimizers[name]) if train else timing.inference(form, x)
        for name, form in forms.items()
    }
    times = timing.interleaved(calls, repeats, x.device)
    ordered = [name for name in FORMS if name in forms]
    return Point(
        block,
        _density(model),
        [_row(row) for row in table.values()],
        {name: median(times[name]) for name in ordered},
        {name: timing.median_ratio(times["dense"], times[name]) for name in ordered},
        {name: timing.held_bytes(forms[name], optimizers.get(name)) for name in ordered},
        {name: peak_bytes(calls[name], x.device) for name in ordered},
        note,
        _sums(table),
    )


def break_even(points: Sequence[Point]) -> tuple[float, bool] | None:
    """The density at which the layers, all of them sparse, take as long as dense ones, and whether it was measured.

    Their time is nearly linear in the density, so it is interpolated between the measured densities around it, or
    extrapolated from the two highest (then it is said to be not measured, and is at most 1). None with fewer than two.
    """
    shares = sorted((p.density, 1 / ratio) for p in points if (ratio := p.layers_speedup()) is not None)
    for (low, before), (high, after) in pairwise(shares):
        if before <= 1 < after:
            return low + (high - low) * (1 - before) / (after - before), True
    if len(shares) < 2 or shares[0][1] > 1:
        return None
    (low, before), (high, after) = shares[-2:]
    if after <= before:
        return 1.0, False
    return min(1.0, high + (high - low) * (1 - after) / (after - before)), False


def _row(row: Any) -> dict[str, Any]:
    speed = row.speed
    return {
        "name": row.name,
        "weight": row.weight,
        "block": row.block,
        "density": row.density,
        "input": None if speed is None else speed.shape,
        "dense": None if speed is None else speed.dense,
        "sparse": None if speed is None else speed.sparse,
        "ideal": None if speed is None else speed.ideal,
        "swapped": row.swapped,
        "why": row.why,
    }


def _sums(table: Swap) -> dict[str, float]:
    speeds = [row.speed for row in table.values() if row.speed is not None]
    return {name: sum(getattr(speed, name) for speed in speeds) for name in ("dense", "sparse", "ideal")}


def _density(model: nn.Module) -> float:
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    total = sum(weight.numel() for weight in weights)
    return sum(int(torch.count_nonzero(weight)) for weight in weights) / total if total else 1.0


def require_same(dense: nn.Module, form: nn.Module, name: str, x: Tensor) -> None:
    """On two inputs, in evaluation mode: enough to show that the same function is timed."""
    with eval_mode(dense), eval_mode(form), torch.inference_mode():
        want, got = dense(x[:2]), form(x[:2])
    difference = ((got - want).abs().max() / want.abs().max()).item() if want.any() else got.abs().max().item()
    if not difference <= TOLERANCE:
        raise RunError(
            f"bench: the {name} model must give the outputs of the dense one (got a relative difference of "
            f"{difference:.1e}, allowed {TOLERANCE:.0e}); please report this"
        )
