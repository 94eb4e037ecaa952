"""ResNet-18 at 224x224 with 80 % of its blocks removed, against the dense network: inference and training steps.

    pytest benchmarks/bench_models.py -s --benchmark-columns=median,rounds --benchmark-json=out.json

Blocks are removed at random over all layers together. Everything is float32 and channels_last, with the same torch and
threads. Contestants of one case are verified against each other, then interleaved (processor time with one thread):

* ``dense``: torch's layers, eager.
* ``folded``: the same with batch norms folded by ``torch.fx.experimental.optimization.fuse``. For inference only.
* ``swapped``: block-sparse layers where ``resgrow.swap`` measures them faster.
* ``fused``: ``resgrow.fuse`` of that: norms, additions and activations inside. For inference only.

Targets, over ``dense``: inference 3 at batch 32 and 2.5 at batch 1 (``fused``), training step 2 (``swapped``). A step
is forward, backward from cross-entropy, and SGD with momentum; ``layers`` is the sum over the layers alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from _curvature_problems import ResNet18
from _timing import median_ratio, report
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as folded
from torch.nn import functional as F

import resgrow
from resgrow.experiments.bench_measure import interleaved

BLOCKS = ((16, 1), (16, 16))
SPARSITY = 0.8


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n} thread{'s' * (n > 1)}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def resnet18() -> nn.Module:
    """torchvision's where it can be imported, else the same layers with ten classes."""
    try:
        from torchvision.models import resnet18
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        model: nn.Module = ResNet18()
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = True
        return model
    return resnet18(weights=None)


def pruned(block: tuple[int, int], batch: int, train: bool) -> tuple[nn.Module, nn.Module, Tensor, resgrow.Swap]:
    """The dense network with zeros, the swapped one, a batch, and what was swapped."""
    torch.manual_seed(0)
    dense = resnet18().to(memory_format=torch.channels_last).train(train)
    x = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    masks = resgrow.prune(dense, resgrow.saliency(dense, method="random"), sparsity=SPARSITY, block=block)
    sparse = copy.deepcopy(dense)
    table = resgrow.swap(sparse, masks.state_dict(), example_inputs=x, block=block)
    return dense, sparse, x, table


def layers_ratio(table: resgrow.Swap) -> float:
    """Dense over swapped, of the layers alone."""
    speeds = [(row, row.speed) for row in table.values() if row.speed is not None]
    swapped = sum(speed.sparse if row.swapped else speed.dense for row, speed in speeds)
    return sum(speed.dense for _, speed in speeds) / swapped


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("batch", [32, 1])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_inference(benchmark: Any, block: tuple[int, int], batch: int, threads: int) -> None:
    dense, swapped, x, table = pruned(block, batch, train=False)
    forms = {"dense": dense, "folded": folded(dense), "swapped": swapped, "fused": resgrow.fuse(swapped)}
    with torch.inference_mode():
        want = dense(x)
        for form in forms.values():
            close(form(x), want)
        calls: dict[str, Callable[[], object]] = {name: (lambda f=form: f(x)) for name, form in forms.items()}
        times = interleaved(calls, 7 if batch > 1 else 31, x.device)
        ratios = {name: median_ratio(times["dense"], times[name]) for name in ("folded", "swapped", "fused")}
        report(
            benchmark,
            what="inference",
            batch=batch,
            threads=threads,
            density=1 - SPARSITY,
            **ratios,
            fused_over_folded=median_ratio(times["folded"], times["fused"]),
            layers=layers_ratio(table),
        )
        benchmark.group = f"ResNet-18 inference, batch {batch}, {threads} threads"
        benchmark.pedantic(calls["fused"], rounds=3)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_training_step(benchmark: Any, block: tuple[int, int], threads: int) -> None:
    dense, swapped, x, table = pruned(block, 32, train=True)
    y = torch.randint(dense.fc.out_features, (len(x),))
    want = [F.cross_entropy(model(x[:4]), y[:4]) for model in (dense, swapped)]
    close(want[1], want[0])

    def step(model: nn.Module) -> Callable[[], object]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def call() -> object:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            return optimizer.step()

        return call

    calls = {"dense": step(dense), "swapped": step(swapped)}
    times = interleaved(calls, 5, x.device)
    report(
        benchmark,
        what="training step",
        batch=32,
        threads=threads,
        density=1 - SPARSITY,
        swapped=median_ratio(times["dense"], times["swapped"]),
        layers=layers_ratio(table),
    )
    benchmark.group = f"ResNet-18 training step, batch 32, {threads} threads"
    benchmark.pedantic(calls["swapped"], rounds=2)
