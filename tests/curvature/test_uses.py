"""Every way in which a model may use its parameters, against one sample at a time in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from measured import TARGET, Logits, check, fast, noise, randomised
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from resgrow import curvature
from resgrow.curvature import uses

SAMPLES = 4


class Twice(nn.Module):
    """Layers that run more than once, on tensors of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
        self.conv = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.fc(x)).tanh()
        x = self.conv(self.conv(x).tanh()) + x
        return self.norm(self.fc(torch.cat([x, x], 1)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            state = torch.tanh(self.cell(torch.cat([step, state], 1)))
        return state


class Tied(nn.Module):
    """A table that is the output layer's weight as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.head.weight = self.table.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(index)))


class Bare(nn.Module):
    """Parameters that no layer owns, broadcast in every way."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"gain": (6,), "shift": (1, 5, 6), "scale": (), "rows": (5, 1), "token": (1, 1, 6), "slope": (6,)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: Tensor) -> Tensor:
        x = (x * self.gain + self.shift) / (1 + self.scale**2) - self.rows
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = torch.where(x > 0, x, self.slope * x)
        x += self.gain
        return 2 / (1 + (self.slope - x) ** 2)


class Own(nn.Module):
    """Products with its own parameters, without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(4, 3))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x, self.weight) @ self.other)
        return torch.tanh(torch.addmm(self.bias, x[:, 0], self.weight.t() @ self.other)) + hidden.sum(1)


class Standardised(nn.Conv2d):
    """Weights with mean zero and variance one per channel, computed by the batch norm of the weights."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


class ChannelNorm(nn.LayerNorm):
    """A subclass that does something else than its parent: the norm over channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Positions(nn.Module):
    """Positions looked up without samples, added to tokens of samples."""

    def __init__(self, ahead: bool) -> None:
        super().__init__()
        self.tokens, self.places, self.fc = nn.Embedding(6, 4), nn.Embedding(7, 4), nn.Linear(4, 3)
        self.ahead = ahead

    def forward(self, index: Tensor) -> Tensor:
        places = torch.arange(index.shape[1])
        return self.fc(self.tokens(index) + self.places(places[None] if self.ahead else places))


class Windows(nn.Module):
    """Folds samples and windows together, windows of a sample next to each other or not, with a bias for each place."""

    def __init__(self, neighbours: bool) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.fc, self.norm, self.conv = nn.Linear(3, 3), nn.LayerNorm(3), nn.Conv1d(2, 2, 3, padding=1)
        self.table = nn.Parameter(torch.zeros(5))
        self.register_buffer("index", torch.tensor([[0, 1, 2], [4, 2, 0]]))

    def forward(self, x: Tensor) -> Tensor:  # (N, windows, 2, 3)
        shape = x.shape
        x = x.flatten(0, 1) if self.neighbours else x.transpose(0, 1).flatten(0, 1)
        x = self.norm(self.fc(x)) + self.table[self.index.view(-1)].view(2, 3)
        x = self.conv(x.tanh()).tanh()
        return x.view(shape) if self.neighbours else x.view(shape[1], shape[0], 2, 3).transpose(0, 1)


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 5)
        self.place = nn.Parameter(torch.zeros(8, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.encoder(x + self.place[: len(x)]).transpose(0, 1)


def unflattened() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(0, 1), nn.Linear(4, 2), nn.Unflatten(0, (-1, 4)))


INDEX = torch.tensor([[0, 1, 4, 1], [3, 1, 1, 1], [2, 0, 2, 4], [4, 4, 3, 0]])
FAST = {
    "used twice": (Twice, noise(SAMPLES, 2, 3)),
    "unrolled": (Recurrent, noise(SAMPLES, 6, 3)),
    "tied": (Tied, INDEX[:, :3]),
    "bare": (Bare, noise(SAMPLES, 5, 6)),
    "as many samples as rows": (Bare, noise(5, 5, 6)),
    "own products": (Own, noise(SAMPLES, 5, 6)),
    "standardised": (lambda: Standardised(2, 3, 2), noise(SAMPLES, 2, 4, 4)),
    "weight norm": (lambda: weight_norm(nn.Conv1d(2, 3, 2)), noise(SAMPLES, 2, 4)),
    "spectral norm": (lambda: spectral_norm(nn.Linear(3, 4)), noise(SAMPLES, 3)),
    "norm of another dimension": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), ChannelNorm(3)), noise(SAMPLES, 2, 3, 3)),
    "positions": (lambda: Positions(False), INDEX[:, :3]),
    "as many positions as samples": (lambda: Positions(False), INDEX),
    "positions ahead": (lambda: Positions(True), INDEX),
    "windows": (lambda: Windows(True), noise(SAMPLES, 3, 2, 3)),
    "windows apart": (lambda: Windows(False), noise(SAMPLES, 3, 2, 3)),
    "windows of two samples": (lambda: Windows(False), noise(2, 3, 2, 3)),
    "windows of one sample": (lambda: Windows(True), noise(1, 3, 2, 3)),
    "sequence first": (SequenceFirst, noise(SAMPLES, 5, 4)),
    "sequence as long as the batch": (SequenceFirst, noise(SAMPLES, 4, 4)),
    "sequence twice as long": (SequenceFirst, noise(SAMPLES, 8, 4)),
    "folded": (unflattened, noise(SAMPLES, 4, 3)),
}


@pytest.mark.parametrize("name", FAST)
def test_understood_uses(name):
    make, x = FAST[name]
    with fast():
        check(randomised(Logits(make())), x)


class Cut(nn.Module):
    """Positions in no order that a layout describes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.arange(len(x) * 2).view(-1, 2).flip(1).t().flip(1).flatten()
        return self.fc(x.flatten(0, 1)[order])[order.argsort()].view(len(x), -1)


class Last(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Product(torch.autograd.Function):
    """A function that no torch function announces."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grads[0] @ weight.T, x.T @ grads[0]


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.weight = nn.Linear(3, 3), nn.Parameter(torch.zeros(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(self.fc(x), 2 * self.weight)


class Beside(nn.Module):
    """A parameter hidden from the module's own bookkeeping, and one that is used in a way without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.hidden = [self.fc.bias]
        self.core = nn.Parameter(torch.zeros(3, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,ijk,nj->nk", x, self.core, torch.tanh(self.fc(x) + self.hidden[0]))


SLOW = {
    "lstm": (lambda: Last(nn.LSTM(3, 2, batch_first=True)), noise(SAMPLES, 5, 3), "weight_hh_l0' .lstm"),
    "order unknown": (Cut, noise(SAMPLES, 2, 3), "fc.weight' .linear"),
    "bilinear": (Beside, noise(SAMPLES, 3), "core' .einsum"),
    "custom function": (Custom, noise(SAMPLES, 3), "'model.weight' .a function out of sight"),
    "out of sight": (Beside, noise(SAMPLES, 3), "bias' .a function out of sight"),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_has_no_rule_goes_one_by_one(name):
    make, x, told = SLOW[name]
    with pytest.warns(UserWarning, match=told) as record:
        check(randomised(Logits(make())), x, methods=["fisher"])
    assert len([w for w in record if "no rule" in str(w.message)]) == 1


def test_batches_of_several_sizes_are_added():
    model, x, y = randomised(Logits(Windows(False))), noise(7, 3, 2, 3), TARGET[:7]
    parts = [(x[:4], y[:4]), (x[4:5], y[4:5]), (x[5:], y[5:])]
    with fast():
        whole = curvature(model, nn.CrossEntropyLoss(), (x, y), "ggn")
        added = curvature(model, nn.CrossEntropyLoss(), parts, "ggn")
    for name, value in added.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-10, atol=1e-14)


def test_memory_for_per_sample_gradients_is_bounded(monkeypatch):
    monkeypatch.setattr(uses, "CHUNK_BYTES", 1)
    check(randomised(Logits(Twice())), noise(SAMPLES, 2, 3))


def test_unused_parameters_have_none():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.off, self.dead = nn.Linear(3, 3), nn.Linear(3, 3), nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.off(x)
            with torch.no_grad():
                x = x * self.dead
            return self.used(x)

    with fast():
        check(randomised(Unused()), noise(SAMPLES, 3), unused=("off.weight", "off.bias", "dead"))


def test_frozen_parameters_are_left_out():
    model = randomised(Logits(SequenceFirst()))
    with fast():
        whole = curvature(model, F.cross_entropy, (noise(SAMPLES, 5, 4), TARGET[:SAMPLES]), "fisher")
        for name, p in model.named_parameters():
            p.requires_grad_("bias" in name)
        part = curvature(model, F.cross_entropy, (noise(SAMPLES, 5, 4), TARGET[:SAMPLES]), "fisher")
    assert part.keys() == {name for name in whole if "bias" in name}
    for name, value in part.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-10, atol=1e-16)
