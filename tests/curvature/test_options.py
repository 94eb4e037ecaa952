"""What holds for every method: options, damping, progress, and a model that is left as it was found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature
from resgrow.curvature import Curvature
from resgrow.curvature.damping import STRONGEST, mean_curvature
from resgrow.curvature.engine import METHODS
from resgrow.curvature.evaluate import mean_loss

X = torch.randn(8, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])
BATCHES = [(X[:5], Y[:5]), (X[5:], Y[5:])]
CALLS: dict[str, dict[str, Any]] = {method: {"method": method} for method in METHODS} | {
    "hessian train": {"method": "hessian", "train": True},
    "hutchinson train": {"method": "hutchinson", "train": True},
    "hutchinson control": {"method": "hutchinson", "control_variate": True},
    "auto": {"method": "ggn", "damping": "auto"},
}


@pytest.fixture(params=CALLS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CALLS[request.param]


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(12, 3)]
    return nn.Sequential(*layers).double()


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "state": copy.deepcopy(dict(model.state_dict())),
        "training": [m.training for m in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "tensor hooks": [bool(p._backward_hooks) for p in model.parameters()],
        "random": torch.random.get_rng_state(),
        "gradients on": torch.is_grad_enabled(),
    }


def assert_equal(found: Any, wanted: Any, place: str) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_equal(found[key], value, f"{place}.{key}")
    elif isinstance(wanted, list) and any(isinstance(item, Tensor) for item in wanted):
        for k, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_equal(one, other, f"{place}[{k}]")
    elif isinstance(wanted, Tensor):
        assert torch.equal(found, wanted), place
    else:
        assert found == wanted, place


class Stop(Exception):
    pass


def failing_loader() -> Iterator[tuple[Tensor, Tensor]]:
    yield BATCHES[0]
    raise Stop


def stop(done: int, total: int | None) -> None:
    raise Stop


@pytest.mark.parametrize("end", ["well", "bad batch", "bad loader", "bad progress"])
def test_the_model_is_left_as_it_was_found(options, end):
    model = network().train()
    model[1].eval()
    model[5].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[2].register_forward_hook(lambda module, args, output: None)
    torch.rand(3)
    before = snapshot(model)
    with torch.no_grad():
        if end == "well":
            found = curvature(model, F.cross_entropy, BATCHES, **options)
            assert "5.bias" not in found
        elif end == "bad batch":
            with pytest.raises(ValueError, match="not finite"):
                curvature(model, F.cross_entropy, [BATCHES[0], (X * float("nan"), Y)], **options)
        elif end == "bad loader":
            with pytest.raises(Stop):
                curvature(model, F.cross_entropy, failing_loader(), **options)
        else:
            with pytest.raises(Stop):
                curvature(model, F.cross_entropy, BATCHES, progress=stop, **options)
    assert_equal(snapshot(model), before, "model")


def test_results_are_plain_tensors_that_share_nothing(options):
    model = network()
    before = copy.deepcopy(model.state_dict())
    found = curvature(model, F.cross_entropy, BATCHES, **options)
    assert isinstance(found, Curvature)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert found[name].shape == parameter.shape
        assert found[name].dtype == torch.float64
        assert not found[name].requires_grad
        found[name].fill_(7)
    assert_equal(dict(model.state_dict()), dict(before), "model")


def test_the_same_generator_gives_the_same(options):
    model = network().train()
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + len(runs))
        generator = torch.Generator().manual_seed(seed)
        runs.append(curvature(model, F.cross_entropy, BATCHES, generator=generator, **options))
    default = curvature(model, F.cross_entropy, BATCHES, **options)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert all(torch.equal(runs[0][name], default[name]) for name in runs[0])
    random = options["method"] in ("ggn-mc", "hutchinson") or options.get("train") or options.get("damping") == "auto"
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0]) == bool(random)


def test_shuffling_follows_the_generator_and_leaves_the_global_state():
    model = network()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=3, shuffle=True)
    before = torch.random.get_rng_state()
    first, second = (curvature(model, F.cross_entropy, loader, "ggn-mc") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_a_number_adds_that_multiple_of_the_mean_over_all_weights(method):
    model = network()
    plain = curvature(model, F.cross_entropy, BATCHES, method)
    damped = curvature(model, F.cross_entropy, BATCHES, method, damping=0.5)
    weights = torch.cat([plain["0.weight"].flatten(), plain["5.weight"].flatten()])
    mean = float(weights.clamp_min(0).mean())
    assert plain.mean == damped.mean == pytest.approx(mean)
    assert (plain.damping, damped.damping) == (0.0, 0.5)
    for name, value in plain.items():
        torch.testing.assert_close(damped[name], value + 0.5 * mean)


class Quadratic(nn.Module):
    """Its loss is quadratic in its weights, with curvature off the diagonal."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(20, 10, dtype=torch.float64, generator=generator))
        self.bias = nn.Parameter(torch.ones(10, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def quadratic_data(correlated: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.linalg.qr(torch.randn(40, 20, dtype=torch.float64, generator=generator))[0]
    return x + (0.2 if correlated else 0.0), torch.randn(40, 10, dtype=torch.float64, generator=generator)


def test_auto_adds_nothing_where_the_diagonal_predicts_exactly():
    found = curvature(Quadratic(), F.mse_loss, quadratic_data(False), "hessian", damping="auto")
    assert found.damping == pytest.approx(0, abs=1e-9)


def test_auto_is_the_least_squares_fit_to_measured_deletions():
    model, data = Quadratic(), quadratic_data(True)
    with torch.no_grad():
        model.weight.abs_()
    h = curvature(model, F.mse_loss, data, "hessian")
    found = curvature(model, F.mse_loss, data, "hessian", damping="auto", generator=torch.Generator().manual_seed(1))
    again = curvature(model, F.mse_loss, data, "hessian", damping="auto", generator=torch.Generator().manual_seed(2))
    assert 0 < found.damping < STRONGEST
    torch.testing.assert_close(found["weight"], h["weight"] + found.damping * h.mean)
    # Correlated inputs and weights of one sign: deletions cost more than the sum of their parts, about twice here.
    assert found.damping == pytest.approx(again.damping, rel=0.6)
    rises, predicted = [], []
    (gradient,) = torch.autograd.grad(F.mse_loss(model(data[0]), data[1]), model.weight)
    weight = model.weight.detach()
    before = mean_loss("op", model, F.mse_loss, [data])
    generator = torch.Generator().manual_seed(5)
    for _ in range(40):
        gone = weight * (torch.rand(weight.shape, generator=generator) < 0.03)
        rises.append(mean_loss("op", model, F.mse_loss, [data], {"weight": weight - gone}) - before)
        predicted.append(float((0.5 * found["weight"] * gone**2 - gradient * gone).sum()))
    assert sum(predicted) == pytest.approx(sum(rises), rel=0.3)


def test_auto_reads_data_that_can_be_read_once():
    listed = curvature(network(), F.cross_entropy, BATCHES, "ggn", damping="auto")
    streamed = curvature(network(), F.cross_entropy, iter(BATCHES), "ggn", damping="auto")
    assert listed.damping == streamed.damping > 0
    assert all(torch.equal(listed[name], streamed[name]) for name in listed)


def test_damping_without_curvature_adds_nothing():
    found = curvature(Quadratic(), nn.L1Loss(), quadratic_data(True), "hessian", damping="auto")
    assert found.damping == 0
    assert mean_curvature(found) == 0


@pytest.mark.parametrize("method", METHODS)
def test_progress_is_told_of_every_batch(method):
    model, calls = network(), []
    elements = sum(p.numel() for p in model.parameters()) if method == "hessian" else 1
    curvature(model, F.cross_entropy, BATCHES, method, progress=lambda *call: calls.append(call))
    assert calls[-1] == (2 * elements, 2 * elements)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    calls.clear()
    curvature(model, F.cross_entropy, iter(BATCHES), method, progress=lambda *call: calls.append(call))
    assert calls[-1] == (2 * elements, None)
    calls.clear()
    curvature(model, F.cross_entropy, (X, Y), method, progress=lambda *call: calls.append(call))
    assert calls[-1] == (elements, elements)


def test_the_bar_is_on_stderr_and_only_where_asked_for(capsys):
    quiet = curvature(network(), F.cross_entropy, BATCHES)
    assert capsys.readouterr() == ("", "")
    shown = curvature(network(), F.cross_entropy, BATCHES, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(torch.equal(quiet[name], shown[name]) for name in quiet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ggn", "samples": 2}, "samples has no meaning for 'ggn'.*ggn-mc, hutchinson"),
        ({"method": "fisher", "samples": 2}, "samples has no meaning for 'fisher'"),
        ({"method": "hessian", "samples": 2}, "samples has no meaning for 'hessian'"),
        ({"samples": 0}, "samples must be at least 1 .got 0"),
        ({"samples": 1.5}, "samples must be at least 1 .got 1.5"),
        ({"method": "fisher", "temperature": 2.0}, "temperature has no meaning for 'fisher'"),
        ({"method": "ggn", "train": True}, "train has no meaning for 'ggn'.*hessian, hutchinson"),
        ({"method": "ggn-mc", "control_variate": True}, "control_variate has no meaning for 'ggn-mc'"),
        ({"method": "hutchinson", "control_variate": True, "train": True}, "needs eval mode"),
        ({"damping": -1.0}, "damping must be 'auto' or a number >= 0 .got -1.0"),
        ({"damping": "best"}, "damping must be 'auto'.*'best'"),
        ({"damping": True}, "damping must be 'auto'.*True"),
        ({"damping": float("nan")}, "damping must be 'auto'.*nan"),
        ({"method": "exact"}, "method must be one of ggn, ggn-mc, fisher, hessian, hutchinson"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        curvature(network(), F.cross_entropy, BATCHES, **options)


def test_progress_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"progress must be True, False or a function .got 'yes'"):
        curvature(network(), F.cross_entropy, BATCHES, progress="yes")
