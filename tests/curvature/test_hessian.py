"""The exact Hessian diagonal against double backward element by element, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature
from resgrow.curvature import hessian as hessian_module
from resgrow.curvature.hessian import _Rows


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm, self.head = (
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.LayerNorm(4),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.head(self.norm(tokens + self.attention(tokens, tokens, tokens)[0]).mean(1))


class Tied(nn.Module):
    """One weight at two places, a module that runs twice, a bare parameter, a residual sum, an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight
        self.scale, self.unused = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        x = x + torch.tanh(self.second(F.silu(self.first(x))))
        return self.head(self.scale * torch.exp(self.first(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.flatten(2).transpose(1, 2))[0][:, -1])


def convnet(activation: nn.Module, norm: nn.Module) -> nn.Module:
    body = [nn.Conv2d(4, 4, 2, groups=2), norm, activation, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*body)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: convnet(nn.Tanh(), nn.Identity()),
    "gelu, group norm": lambda: convnet(nn.GELU(), nn.GroupNorm(2, 4)),
    "silu, batch norm": lambda: convnet(nn.SiLU(), nn.BatchNorm2d(4)),
    "softplus, instance norm": lambda: convnet(nn.Softplus(), nn.InstanceNorm2d(4, affine=True)),
    "relu": lambda: convnet(nn.ReLU(inplace=True), nn.Identity()),
    "attention": Attention,
    "tied": Tied,
    "recurrent": Recurrent,
}
X = torch.randn(7, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 1, 0, 2, 2])
BATCHES = [(X[:4], Y[:4]), (X[4:], Y[4:])]


def network(name: str) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[name]().double()


def by_elements(model: nn.Module, loss_fn: Any, batches: list[Any], weights: list[float]) -> dict[str, Tensor]:
    """Weighted mean over batches of the second derivatives of each batch's own loss, in the modules' own modes."""
    parameters = dict(model.named_parameters())
    found = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    for (x, y), weight in zip(batches, weights, strict=True):
        loss = loss_fn(model(x), y)
        for name, p in parameters.items():
            (first,) = torch.autograd.grad(loss, p, create_graph=True, allow_unused=True)
            if first is None:
                continue
            for k, entry in enumerate(first.flatten()):
                (second,) = torch.autograd.grad(entry, p, retain_graph=True, allow_unused=True)
                if second is not None:
                    found[name].view(-1)[k] += second.flatten()[k] * weight / sum(weights)
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert max(value.abs().max() for value in wanted.values()) > 1e-3, "the comparison would be vacuous"
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_entry_is_the_second_derivative_of_the_mean_loss(name, train):
    model = network(name).train(train)
    wanted = by_elements(copy.deepcopy(model), F.cross_entropy, BATCHES, [4, 3])
    found = curvature(model, F.cross_entropy, iter(BATCHES), "hessian", train=train)
    assert_same(found, wanted)
    if name != "relu":
        assert min(value.min() for value in found.values()) < 0, "true entries are negative, and stay so"


def test_a_batch_counts_by_what_its_loss_is_divided_by():
    model = network("tanh").eval()
    weight = torch.tensor([0.5, 3.0, 1.0], dtype=torch.float64)
    loss_fn = nn.CrossEntropyLoss(weight, ignore_index=2)
    totals = [float(weight[y[y != 2]].sum()) for _, y in BATCHES]
    wanted = by_elements(copy.deepcopy(model), loss_fn, BATCHES, totals)
    assert_same(curvature(model, loss_fn, BATCHES, "hessian"), wanted)
    together = by_elements(copy.deepcopy(model), loss_fn, [(X, Y)], [1.0])
    assert_same(wanted, together)


def test_losses_that_couple_samples_have_a_hessian_too():
    class Centred(nn.Module):
        reduction = "mean"

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return (output - output.mean(0)).pow(2).mean() + 0 * target.sum()

    model = network("gelu, group norm").eval()
    assert_same(curvature(model, Centred(), (X, Y), "hessian"), by_elements(model, Centred(), [(X, Y)], [1.0]))


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature(temperature):
    def softened(output: Tensor, target: Tensor) -> Tensor:
        return temperature**2 * F.cross_entropy(output / temperature, target)

    model = network("tanh").eval()
    found = curvature(model, F.cross_entropy, (X, Y), "hessian", temperature=temperature)
    assert_same(found, by_elements(model, softened, [(X, Y)], [1.0]))


def test_dropout_draws_one_mask_per_batch_from_the_generator():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3)).double()

    def run(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return curvature(model, F.cross_entropy, BATCHES, "hessian", train=True, generator=generator)

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = run(0), run(0), run(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    # One mask: where a unit is dropped for all samples of neither batch, rows still differ from eval mode's.
    assert not torch.equal(first["1.weight"], curvature(model, F.cross_entropy, BATCHES, "hessian")["1.weight"])


def test_running_statistics_stay_as_they_are():
    model = network("silu, batch norm").train()
    state = copy.deepcopy(model.state_dict())
    curvature(model, F.cross_entropy, BATCHES, "hessian", train=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("budget", [1, 3000])
def test_short_chunks_give_the_same(monkeypatch, budget):
    model = network("gelu, group norm").eval()
    whole = curvature(model, F.cross_entropy, (X, Y), "hessian")
    lengths = []
    original = _Rows._diagonal

    def counted(self: _Rows, gradient: Tensor, parameter: Tensor, entries: Tensor) -> Tensor:
        lengths.append(len(entries))
        return original(self, gradient, parameter, entries)

    monkeypatch.setattr(hessian_module, "BUDGET", budget)
    monkeypatch.setattr(_Rows, "_diagonal", counted)
    assert_same(curvature(model, F.cross_entropy, (X, Y), "hessian"), whole)
    assert max(lengths) <= max(1, budget // 300)
    assert sum(lengths) == sum(p.numel() for p in model.parameters())


class _Cube(torch.autograd.Function):
    """A derivative that cannot be batched."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _CubeGrad.apply(grads[0], ctx.saved_tensors[0])


class _CubeGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return grad * 3 * x**2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        if torch._C._functorch.is_batchedtensor(grads[0]):
            raise RuntimeError("cannot be batched")
        grad, x = ctx.saved_tensors
        return grads[0] * 3 * x**2, grads[0] * grad * 6 * x


def test_derivatives_that_cannot_be_batched_go_one_by_one():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(_Cube.apply(self.fc(x.mean((2, 3)))))

    torch.manual_seed(2)
    model = Net().double()
    found = curvature(model, F.cross_entropy, (X, Y), "hessian")
    assert_same(found, by_elements(model, F.cross_entropy, [(X, Y)], [1.0]))


def test_single_precision_and_frozen_parameters():
    model = network("gelu, group norm").eval()
    exact = curvature(model, F.cross_entropy, (X, Y), "hessian")
    model = model.float()
    model[0].weight.requires_grad_(False)
    found = curvature(model, F.cross_entropy, (X.float(), Y), "hessian")
    assert found.keys() == exact.keys() - {"0.weight"}
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name].float(), rtol=1e-4, atol=1e-6)


def test_channels_last_weights():
    model = network("gelu, group norm").eval()
    wanted = curvature(model, F.cross_entropy, (X, Y), "hessian")
    model = model.to(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert_same(curvature(model, F.cross_entropy, (X, Y), "hessian"), wanted)


@pytest.mark.parametrize("method", ["hessian", "hutchinson"])
def test_a_loss_without_curvature_and_nothing_that_counts(method):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    found = curvature(model, nn.L1Loss(), (X, X.flatten(1)[:, :3] - 9), method)
    assert all(not value.any() for value in found.values())
    with pytest.raises(ValueError, match=r"no target counts.*ignore_index"):
        curvature(model, F.cross_entropy, (X, torch.full((7,), -100)), method)
