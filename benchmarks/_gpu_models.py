"""gpu_bench.py: whole networks with block-sparse layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from _gpu_clock import agree
from _gpu_report import Bench, Cases, Row
from torch import Tensor, nn

import resgrow
from resgrow.experiments.bench_measure import inference, make_optimizer, training_step

BLOCK, SPARSITY = (32, 32), 0.75


def resnet50(bench: Bench, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, images and classes, channels_last and float32; a ResNet-8 where everything is tiny."""
    torch.manual_seed(0)
    if bench.tiny:
        model: nn.Module = resgrow.nn.resnet(8)
        batch, side, classes = 4, 8, 10
    else:
        from torchvision.models import resnet50

        model, side, classes = resnet50(weights=None), 224, 1000
    model = model.to(bench.device, memory_format=torch.channels_last)
    with bench.device:
        x = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
        return model, x, torch.randint(classes, (batch,))


def models(bench: Bench) -> Cases:
    """ResNet-50 in bfloat16 without three quarters of the blocks of each layer but the first, removed at random."""
    yield "inference", partial(_inference, bench)
    yield "training step", partial(_training, bench)


def _pruned(bench: Bench, batch: int) -> tuple[nn.Module, nn.Module, Tensor]:
    """The dense network with zeros, and the same with block-sparse layers."""
    dense, x, _ = resnet50(bench, batch)
    dense, x = dense.to(torch.bfloat16), x.to(torch.bfloat16)
    scores = resgrow.saliency(dense, method="random")
    masks = resgrow.prune(dense, scores, sparsity=SPARSITY, block=BLOCK, scope="layer", exclude=("conv1",))
    swapped = copy.deepcopy(dense)
    resgrow.swap(swapped, masks.state_dict(), example_inputs=x[:2], block=BLOCK, force=True)
    return dense, swapped, x


def _inference(bench: Bench) -> Iterator[Row]:
    dense, swapped, x = _pruned(bench, batch=128)
    for model in (dense, swapped):
        model.eval()
    forms = {"dense": dense, "swapped": swapped, "fused": resgrow.fuse(swapped)}
    with torch.inference_mode():
        want = dense(x[:8])
        for form in forms.values():
            agree(form(x[:8]), want, 5e-2)
    times = bench.clock.measure({name: [inference(form, x)] for name, form in forms.items()}, rounds=5)
    figures = {f"dense / {name}": times.ratio("dense", name) for name in ("swapped", "fused")}
    yield Row(f"inference, batch {len(x)}", {"dense ms": 1e3 * times.seconds("dense"), **figures})


def _training(bench: Bench) -> Iterator[Row]:
    dense, swapped, x = _pruned(bench, batch=128)
    forms = {"dense": dense, "swapped": swapped}
    steps = {name: [training_step(model, x, make_optimizer(model))] for name, model in forms.items()}
    times = bench.clock.measure(steps, rounds=5, graphs=False)
    ratio = times.ratio("dense", "swapped")
    yield Row(f"training step, batch {len(x)}", {"dense ms": 1e3 * times.seconds("dense"), "dense / swapped": ratio})
