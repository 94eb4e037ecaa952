"""What tests of squared per-sample gradients share: models with curved outputs, comparison by definition."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import brute
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature

TARGET = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0])


class Logits(nn.Module):
    """A model whose output, whatever its shape, becomes three logits in a way that curves."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *x: Tensor) -> Tensor:
        out = self.model(*x)
        flat = torch.tanh(out.reshape(len(out), -1))
        mix = torch.linspace(-1, 1, 3 * flat.shape[1], dtype=flat.dtype).view(-1, 3)
        return flat @ (mix.cos() / flat.shape[1] ** 0.5)


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter and buffer away from zero, parameters of both signs."""
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


def check(model: nn.Module, *x: Tensor, methods: Sequence[str] = ("fisher", "ggn"), unused: Sequence[str] = ()) -> None:
    """Methods give what they are by definition, to a relative error of 1e-10; zero for ``unused`` parameters."""
    inputs = x if len(x) > 1 else x[0]
    y = TARGET[: len(x[0])]
    by_definition = {
        "fisher": lambda: brute.fisher_one_by_one(model, F.cross_entropy, x, y),
        "ggn": lambda: brute.ggn_one_by_one(model, x),
    }
    for method in methods:
        found = curvature(model, nn.CrossEntropyLoss(), [(inputs, y)], method)
        wanted = by_definition[method]()
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            scale = value.abs().max()
            assert (scale > 0) != (name in unused), f"{name}: the comparison would be vacuous"
            assert (found[name] - value).abs().max() <= 1e-10 * scale, f"{method} of {name}"
