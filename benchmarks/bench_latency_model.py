"""Milliseconds that a smaller model is predicted to take, against those that it takes once it has been made.

    OMP_NUM_THREADS=1 python benchmarks/bench_latency_model.py [--models lenet5 ...] [--batch 1 32] [--trials 4]

Of each model random channels go: half of every group, or (every second trial) a share of each that is drawn from 0 to
3/4. ``predicted`` is what units of the full model say (``total(masks, "latency_ms")``). ``measured`` is the compacted
model's share of the full one's time, measured in turns, times the full one's time of the prediction: a shared machine
is slower at one time than at another. ``constant``: error of a prediction that keeps all time outside of layers as it
is, instead of in proportion to activations. Forward passes in evaluation mode, medians, on the CPU with one thread of
processor time.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from resgrow._stopwatch import medians, steady_heap, stopwatch
from resgrow.nn import lenet5, resnet
from resgrow.surgery import compact, make_units
from resgrow.surgery.units import Units

PATIENCE = 3.0  # seconds


def resnet18() -> nn.Module:
    from torchvision import models

    return models.resnet18(num_classes=10)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "lenet5": (lenet5, (1, 28, 28)),
    "resnet20": (partial(resnet, 20), (3, 32, 32)),
    "resnet20 x .5": (partial(resnet, 20, 0.5), (3, 32, 32)),
    "resnet18": (resnet18, (3, 112, 112)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet5", "resnet20 x .5", "resnet20"], choices=list(MODELS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| model | batch | full ms | channels left | predicted | measured | error | constant |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    summary = []
    for name in args.models:
        for batch in args.batch:
            summary.append(compared(name, batch, args.trials, args.channels_last))
    print("\n| model | batch | median error | with a constant | seconds to predict | of them the first |")
    print("|---|---:|---:|---:|---:|---:|")
    print("\n".join(summary))


def compared(name: str, batch: int, trials: int, channels_last: bool) -> str:
    torch.manual_seed(0)
    make, image = MODELS[name]
    model, x = prepared(make()), torch.randn(batch, *image)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    units = make_units(model, "channel", example_inputs=x)
    start = time.perf_counter()
    full = units.total(None, "latency_ms")
    first = time.perf_counter() - start
    spent, errors, constants = first, [], []
    for masks in some_masks(units, trials):
        start = time.perf_counter()
        predicted = units.total(masks, "latency_ms")
        spent += time.perf_counter() - start
        small = compact(masked(model, masks), x)
        ratio = faster(model, small, x)
        measured = full * ratio
        errors.append(predicted / measured - 1)
        constants.append(with_constant(units, masks) / measured - 1)
        left = sum(int(there.sum()) for there in units.live(masks)) / sum(t.numel() for t in units.live())
        figures = f"{full:.3f} | {100 * left:.0f} % | {predicted:.3f} | {measured:.3f}"
        print(
            f"| {name} | {batch} | {figures} | {100 * errors[-1]:+.0f} % | {100 * constants[-1]:+.0f} % |", flush=True
        )
    off = f"{100 * median(map(abs, errors)):.0f} % | {100 * median(map(abs, constants)):.0f} %"
    return f"| {name} | {batch} | {off} | {spent:.0f} | {first:.0f} |"


def prepared(model: nn.Module) -> nn.Module:
    """No gain is zero, so that compact takes out what masks say and no blocks."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def some_masks(units: Units, trials: int) -> Iterator[dict[str, Tensor]]:
    for seed in range(trials):
        generator = torch.Generator().manual_seed(seed)
        keep = []
        for there in units.live():
            share = 0.5 if seed % 2 == 0 else float(torch.empty(1).uniform_(0.25, 1, generator=generator))
            order = torch.randperm(there.numel(), generator=generator)
            kept = torch.zeros(there.numel(), dtype=torch.bool)
            kept[order[: max(1, round(share * there.numel()))]] = True
            keep.append(kept)
        yield units.to_masks(keep)


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


def faster(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    """Time of the smaller model over that of the full one."""
    with torch.no_grad(), steady_heap(x.device):
        before, after = medians([partial(model, x), partial(small, x)], stopwatch(x.device), PATIENCE)
    return after / before


def with_constant(units: Units, masks: dict[str, Tensor]) -> float:
    """What the same prediction would be, were everything but layers to take the time that it takes now."""
    predicted = units.total(masks, "latency_ms")
    latency = units._needed_latency()
    for layer in units._by_width._layers:  # type: ignore[attr-defined]
        kept = torch.cat([*units.live(masks), torch.ones(1, dtype=torch.bool)])
        share = layer.widths(kept)[1] / layer.full[1]
        predicted += latency._measured.layers[layer.name].around * (1 - share)
    return predicted


if __name__ == "__main__":
    main()
