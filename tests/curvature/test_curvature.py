"""The curvature engine against curvature by definition, in float64."""

from __future__ import annotations

import copy

import brute
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature


class Residual(nn.Module):
    """Norms, in-place activation, a residual add, odd padding, dropout: what usually breaks curvature code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect", groups=2)
        self.gn = nn.GroupNorm(2, 4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.conv0(x)))
        x = self.relu(x + self.gn(self.conv1(x)))
        return self.fc(self.drop(x.mean((2, 3))))


def residual() -> nn.Module:
    torch.manual_seed(0)
    model = Residual().double()
    with torch.no_grad():
        model.bn0.running_mean.uniform_(-0.3, 0.3)
        model.bn0.running_var.uniform_(0.5, 2)
        for parameter in (model.bn0.weight, model.bn0.bias, model.gn.weight, model.gn.bias):
            parameter.uniform_(0.2, 1.5)
    return model


def convnet() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(3, 4), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4, 3)).double()


class Tokens(nn.Module):
    """Linear layers and a layer norm over sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.norm(x)))).mean(1)


def tokens() -> nn.Module:
    torch.manual_seed(2)
    return Tokens().double()


IMAGES, LABELS = (
    torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)),
    [0, 1, 2, 1, 0],
)
SEQUENCES = torch.randn(5, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
MODELS = {"residual": (residual, IMAGES), "convnet": (convnet, IMAGES), "tokens": (tokens, SEQUENCES)}


@pytest.fixture(params=MODELS)
def problem(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    make, x = MODELS[request.param]
    return make(), x, torch.tensor(LABELS)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.abs().max() > 0, f"{name}: the comparison would be vacuous"
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def test_ggn_is_the_generalised_gauss_newton_diagonal(problem):
    model, x, y = problem
    assert_same(
        curvature(model, nn.CrossEntropyLoss(), (x, y), "ggn"), brute.ggn_diagonal(model, brute.softmax_factors, x)
    )


def test_ggn_equals_the_hessian_of_a_relu_network_without_curved_norms():
    model, x, y = convnet(), IMAGES, torch.tensor(LABELS)
    assert_same(
        curvature(model, nn.CrossEntropyLoss(), (x, y), "ggn"), brute.hessian_diagonal(model, F.cross_entropy, x, y)
    )


class Skip(nn.Module):
    """A residual add and a concatenation behind batch norms with fixed statistics."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body, self.norm = nn.Sequential(*body), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x + self.norm(self.body(x)))
        return torch.cat([x, -x], 1)


PIECEWISE_LINEAR = {
    "residual, batch norm": lambda: [Skip(nn.Conv2d(4, 4, 3, padding=1)), nn.AdaptiveAvgPool2d(1)],
    "grouped, strided": lambda: [nn.Conv2d(4, 8, 2, 2, groups=2), nn.LeakyReLU(0.2), nn.MaxPool2d(2)],
    "depthwise, dilated": lambda: [nn.Conv2d(4, 8, 2, dilation=2, groups=4), nn.ReLU(), nn.AvgPool2d(2)],
    "transposed": lambda: [nn.ConvTranspose2d(4, 8, 2, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1)],
}


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_ggn_equals_the_hessian_of_networks_piecewise_linear_in_each_layer(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), *PIECEWISE_LINEAR[name](), nn.Flatten(), nn.LazyLinear(3))
    model(IMAGES[:, :, :4, :4].float())
    model, x, y = model.double().eval(), IMAGES[:, :, :4, :4], torch.tensor(LABELS)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    found = curvature(model, nn.CrossEntropyLoss(), (x, y), "ggn")
    assert_same(found, brute.hessian_diagonal(model, F.cross_entropy, x, y), rtol=1e-10)


def test_temperature_is_the_curvature_of_the_softened_loss():
    model, x, y = convnet(), IMAGES, torch.tensor(LABELS)

    def softened(output: Tensor, target: Tensor) -> Tensor:
        return 9 * F.cross_entropy(output / 3, target)

    found = curvature(model, F.cross_entropy, (x, y), "ggn", temperature=3)
    assert_same(found, brute.hessian_diagonal(model, softened, x, y))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_matches_the_hessian_of_each_samples_own_loss(reduction):
    model, x = convnet(), IMAGES
    target = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def per_sample_mean(output: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(output, wanted, reduction=reduction) / (1 if reduction == "mean" else len(output))

    found = curvature(model, nn.MSELoss(reduction=reduction), (x, target), "ggn")
    assert_same(found, brute.hessian_diagonal(model, per_sample_mean, x, target))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fisher_averages_squared_per_sample_gradients(problem, reduction):
    model, x, y = problem
    found = curvature(model, nn.CrossEntropyLoss(reduction=reduction), (x, y), "fisher")
    assert_same(found, brute.fisher_diagonal(model, F.cross_entropy, x, y))


def test_fisher_takes_any_loss_that_says_how_it_reduces():
    model, x = convnet(), IMAGES
    y = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    found = curvature(model, nn.SmoothL1Loss(), (x, y), "fisher")
    assert_same(found, brute.fisher_diagonal(model, F.smooth_l1_loss, x, y))


def test_ggn_mc_converges_to_ggn(problem):
    model, x, y = problem
    exact = curvature(model, nn.CrossEntropyLoss(), (x, y), "ggn")
    estimate = curvature(model, nn.CrossEntropyLoss(), (x, y), "ggn-mc", samples=1500)
    few = curvature(model, nn.CrossEntropyLoss(), (x, y), "ggn-mc", samples=2)

    def error(found: dict[str, Tensor]) -> float:
        return (
            sum((found[k] - exact[k]).norm() ** 2 for k in exact) ** 0.5
            / sum(v.norm() ** 2 for v in exact.values()) ** 0.5
        )

    assert error(estimate) < min(0.02, error(few) / 3)


def test_ggn_mc_is_unbiased():
    """Means of many independent estimates, one vector each, miss the exact value by as much as chance does."""
    model, x, y = tokens(), SEQUENCES[:3], torch.tensor(LABELS[:3])
    exact = torch.cat([v.flatten() for v in curvature(model, F.cross_entropy, (x, y), "ggn").values()])
    generator = torch.Generator().manual_seed(9)
    draws = torch.stack(
        [
            torch.cat([v.flatten() for v in curvature(model, F.cross_entropy, (x, y), generator=generator).values()])
            for _ in range(600)
        ]
    )
    certain = draws.std(0) <= 1e-9 * exact
    torch.testing.assert_close(draws.mean(0)[certain], exact[certain])
    z = ((draws.mean(0) - exact) / (draws.std(0) / len(draws) ** 0.5))[~certain]
    assert len(z) > 0.5 * len(exact)
    assert z.abs().max() < 4.5
    assert 0.4 < z.square().mean() < 2  # elements are correlated: far fewer than their number are independent


def test_ggn_mc_of_mse_converges_to_ggn():
    model, x = convnet(), IMAGES
    target = torch.zeros(5, 3, dtype=torch.float64)
    exact = curvature(model, nn.MSELoss(), (x, target), "ggn")
    estimate = curvature(model, nn.MSELoss(), (x, target), "ggn-mc", samples=2000)
    for name, value in exact.items():
        assert (estimate[name] - value).norm() < 0.1 * value.norm(), name


def test_batches_are_averaged_by_their_samples(problem):
    model, x, y = problem
    whole = curvature(model, F.cross_entropy, (x, y), "ggn")
    parts = curvature(model, F.cross_entropy, [(x[:1], y[:1]), (x[1:], y[1:])], "ggn")
    assert_same(parts, whole)


def test_same_generator_same_result_and_global_state_untouched(problem):
    model, x, y = problem
    before = torch.random.get_rng_state()
    runs = [curvature(model, F.cross_entropy, (x, y), generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    other = curvature(model, F.cross_entropy, (x, y), generator=torch.Generator().manual_seed(8))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], other[name]) for name in other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(fails):
    model, x, y = residual(), IMAGES, torch.tensor(LABELS)
    model.train()
    model.bn0.eval()
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    frozen = model.gn.weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    hooks = [len(m._forward_hooks) for m in model.modules()]
    if fails:
        with pytest.raises(ValueError, match="not finite"):
            curvature(model, F.cross_entropy, [(x, y), (x * float("nan"), y)])
    else:
        assert "gn.weight" not in curvature(model, F.cross_entropy, (x, y))
    assert [m.training for m in (model, model.conv0, model.bn0, model.fc)] == [True, True, False, True]
    assert not frozen.requires_grad
    assert model.conv0.weight.requires_grad
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert model.conv0.weight.grad is None
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_dictionary_and_tuple_inputs_reach_the_model():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fc(a + b)

    model, a, b, y = Two(), torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    by_name = curvature(model, F.cross_entropy, [({"a": a, "b": b}, y)], "ggn")
    by_place = curvature(model, F.cross_entropy, [((a, b), y)], "ggn")
    assert_same(by_name, by_place)


def test_half_precision_under_autocast_comes_close():
    model, x, y = convnet().float(), IMAGES.float(), torch.tensor(LABELS)
    exact = curvature(model, F.cross_entropy, (x, y), "ggn")
    with torch.autocast("cpu", torch.bfloat16):
        found = curvature(model, F.cross_entropy, (x, y), "ggn")
    for name, value in exact.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - value).norm() < 0.05 * value.norm(), name


def test_compiled_models_are_measured_eagerly_and_stay_compiled():
    model, x, y = convnet(), IMAGES, torch.tensor(LABELS)
    wanted = curvature(model, F.cross_entropy, (x, y), "ggn")
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    found = curvature(compiled, F.cross_entropy, (x, y), "ggn")
    assert_same(found, {f"_orig_mod.{name}": value for name, value in wanted.items()})


def test_copies_and_pickles_of_a_measured_model_are_free_of_taps():
    model, x, y = convnet(), IMAGES, torch.tensor(LABELS)
    curvature(model, F.cross_entropy, (x, y))
    twin = copy.deepcopy(model)
    assert_same(curvature(twin, F.cross_entropy, (x, y)), curvature(model, F.cross_entropy, (x, y)))


def test_a_users_hook_on_a_norm_counts_as_part_of_the_network():
    """Twice a layer's output is twice the gradient at its output: four times the square."""
    model, y = residual(), torch.tensor(LABELS)
    model.fc.requires_grad_(False)
    handle = model.bn0.register_forward_hook(lambda module, args, output: 2 * output)
    hooked = curvature(model, nn.CrossEntropyLoss(), (IMAGES, y), method="fisher")
    handle.remove()
    with torch.no_grad():
        model.bn0.weight.mul_(2)
        model.bn0.bias.mul_(2)
    plain = curvature(model, nn.CrossEntropyLoss(), (IMAGES, y), method="fisher")
    for name, value in plain.items():
        torch.testing.assert_close(hooked[name], 4 * value if name.startswith("bn0") else value)


def test_a_norm_without_gain_and_branches_that_lead_nowhere():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)
            self.norm = nn.BatchNorm1d(4, affine=False)

        def forward(self, x):
            self.unused(x)
            return self.used(self.norm(x))

    x, y = torch.randn(5, 4, generator=torch.Generator().manual_seed(5)), torch.tensor(LABELS)
    found = curvature(Net(), nn.CrossEntropyLoss(), (x, y))
    assert list(found) == ["used.weight", "used.bias", "unused.weight", "unused.bias"]
    assert (found["used.weight"] > 0).all()
    assert torch.equal(found["unused.weight"], torch.zeros(3, 4))
