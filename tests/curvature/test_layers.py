"""Every function that has a rule, and every way a parameter can be used, against one sample at a time in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import brute
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature

SAMPLES = 4
TARGET = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0])


class Head(nn.Module):
    """A layer whose output, whatever its shape, becomes three logits in a way that curves."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *x: Tensor) -> Tensor:
        out = self.layer(*x)
        flat = torch.tanh(out.reshape(len(out), -1))
        mix = torch.linspace(-1, 1, 3 * flat.shape[1], dtype=flat.dtype, device=flat.device).view(-1, 3)
        return flat @ (mix.cos() / flat.shape[1] ** 0.5)


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    model = model.double().eval()
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            if t.is_floating_point():
                t.copy_(torch.empty(t.shape, dtype=t.dtype).uniform_(0.3, 1.3, generator=generator))
        for p in model.parameters():
            p.mul_(torch.randint(0, 2, p.shape, generator=generator) * 2 - 1)
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))


@contextmanager
def fast() -> Iterator[None]:
    """Nothing inside goes one sample at a time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="curvature: no rule")
        yield


def check(model: nn.Module, *x: Tensor, rtol: float = 1e-10) -> None:
    """``fisher`` and ``ggn`` are what they are by definition."""
    inputs = x if len(x) > 1 else x[0]
    y = TARGET[: len(x[0])]
    wanted = {
        "fisher": brute.fisher_one_by_one(model, F.cross_entropy, x, y),
        "ggn": brute.ggn_one_by_one(model, x),
    }
    for method, values in wanted.items():
        found = curvature(model, nn.CrossEntropyLoss(), [(inputs, y)], method)
        assert found.keys() == values.keys()
        for name, value in values.items():
            scale = value.abs().max()
            assert scale > 0, f"{name}: the comparison would be vacuous"
            assert (found[name] - value).abs().max() <= rtol * scale, f"{method} of {name}"


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "linear on positions": (lambda: nn.Linear(5, 3), (2, 3, 5)),
    "linear without bias": (lambda: nn.Linear(5, 3, bias=False), (7, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1), (3, 9)),
    "conv1d depthwise": (lambda: nn.Conv1d(6, 6, 4, padding="same", groups=6), (6, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 7, 6)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 5)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 5, 6)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)), (2, 6, 6)),
    "conv2d valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 4, 4)),
    "conv2d reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 2), stride=(1, 2, 1), padding=1), (2, 3, 5, 4)),
    "conv3d grouped": (lambda: nn.Conv3d(4, 4, 2, groups=2, padding="same", dilation=2), (4, 3, 3, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 4)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, output_padding=1), (4, 3, 4)),
    "transposed 2d dilated": (
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=1, padding=2, dilation=3, output_padding=2),
        (2, 4, 3),
    ),
    "transposed 2d dilated, unpadded": (lambda: nn.ConvTranspose2d(2, 3, 2, dilation=2, output_padding=1), (2, 4, 3)),
    "transposed depthwise": (lambda: nn.ConvTranspose2d(3, 3, 3, stride=3, padding=1, groups=3), (3, 3, 3)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 4, 2, stride=2, padding=1, groups=2), (2, 3, 3, 2)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(5), (5,)),
    "batch norm 1d on sequences": (lambda: nn.BatchNorm1d(5), (5, 3)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3), (3, 2, 5)),
    "batch norm 3d": (lambda: nn.BatchNorm3d(3), (3, 2, 2, 3)),
    "layer norm": (lambda: nn.LayerNorm(5), (3, 5)),
    "layer norm over more": (lambda: nn.LayerNorm((3, 5), bias=False), (2, 3, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 5)),
    "instance norm": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 5, 2)),
    "instance norm, tracking": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 5)),
    "rms norm": (lambda: nn.RMSNorm(5), (3, 5)),
    "prelu": (lambda: nn.PReLU(), (3, 5)),
    "prelu per channel": (lambda: nn.PReLU(3), (3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    make, shape = LAYERS[name]
    with fast():
        check(randomised(Head(make())), noise(SAMPLES, *shape))


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_any_number_of_samples(samples):
    layers = [nn.Conv1d(2, 3, 2), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)]
    with fast():
        check(randomised(Head(nn.Sequential(*layers))), noise(samples, 2, 5))
