"""The result's grouped sums, copies and descriptions; options that mean nothing; criteria without data."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resgrow import saliency
from resgrow.saliency import METHODS
from resgrow.surgery import make_units


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, (3, 2)), nn.ReLU(), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 4, 3, generator=generator), torch.randint(0, 3, (6,), generator=generator)


def test_sums_per_layer_and_channel():
    scores = saliency(network(), method="random")
    layers = scores.per_layer()
    assert list(layers) == ["0", "2", "4"]
    for layer, total in layers.items():
        parts = (scores[f"{layer}.weight"], scores[f"{layer}.bias"])
        assert total == pytest.approx(sum(value for part in parts for value in part.flatten().tolist()))
    channels = scores.per_channel()
    assert set(channels) == {"0.weight", "4.weight"}
    for name, sums in channels.items():
        assert sums.tolist() == pytest.approx([sum(row.flatten().tolist()) for row in scores[name]])
    assert set(saliency(nn.Linear(2, 2), method="magnitude").per_layer()) == {""}


@pytest.mark.parametrize("block", [(1, 1), (2, 2), (16, 1), (3, 7), (1, 4)])
def test_sums_per_block_are_those_of_the_units(block):
    model = network()
    scores = saliency(model, method="random")
    grids = scores.per_block(block)
    units = make_units(model, block)
    for name, grid, summed in zip(units.parameters, grids.values(), units.scores(scores), strict=True):
        torch.testing.assert_close(grid, summed)
        score = scores[name]
        wanted = torch.zeros_like(grid)
        for o in range(score.shape[0]):
            for i in range(score.shape[1]):
                wanted[o // block[0], i // block[1]] += score[o, i]
        torch.testing.assert_close(grid, wanted)


@pytest.mark.parametrize("block", ["channel", (0, 1), (1,), (1, 2, 3), (True, 1), 4])
def test_bad_blocks(block):
    with pytest.raises(ValueError, match="per_block: block must be"):
        saliency(network(), method="magnitude").per_block(block)


@pytest.mark.parametrize("method", METHODS)
def test_every_criterion_scores_every_element_and_survives_copies(method):
    model = network()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    scores = saliency(model, F.cross_entropy, batch(), method)
    assert list(scores) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert (scores[name].shape, scores[name].dtype) == (parameter.shape, torch.float32)
        assert (scores[name].device, scores[name].requires_grad) == (parameter.device, False)
        assert torch.isfinite(scores[name]).all()
        assert parameter.requires_grad
        assert parameter.grad is None
        assert scores[name].data_ptr() != parameter.data_ptr()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert scores.unit
    for copied in (copy.deepcopy(scores), pickle.loads(pickle.dumps(scores))):
        assert type(copied) is type(scores)
        assert (copied.method, copied.unit, copied.damping) == (method, scores.unit, scores.damping)
        assert all(torch.equal(copied[name], scores[name]) for name in scores)
        assert (copied.compensation is None) == (method != "obs")


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_scored_in_float32(method):
    model = network().bfloat16()
    x, y = batch()
    scores = saliency(model, F.cross_entropy, (x.bfloat16(), y), method)
    assert {score.dtype for score in scores.values()} == {torch.float32}


def test_options_are_remembered():
    scores = saliency(network(), F.cross_entropy, batch(), damping=0.5, curvature="fisher")
    assert scores.options == {"damping": 0.5, "curvature": "fisher"}
    generator = torch.Generator()
    assert saliency(network(), method="random", generator=generator).options == {}


def test_random_is_reproducible_and_uniform():
    model = nn.Linear(400, 50)
    first, second = (saliency(model, method="random")["weight"] for _ in range(2))
    other = saliency(model, method="random", generator=torch.Generator().manual_seed(1))["weight"]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    for k in (1, 2, 3):  # moments 1 / (k + 1) of the uniform distribution; a deviation is at most .003
        assert other.pow(k).mean().item() == pytest.approx(1 / (k + 1), abs=0.015)
    assert 0 <= other.min() < other.max() < 1


OPTIONS = {
    "curvature": "ggn",
    "damping": 1.0,
    "power": 0.5,
    "temperature": 2.0,
    "samples": 2,
    "hessian": "fisher",
    "block_size": 4,
    "generator": torch.Generator(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_without_meaning_is_an_error(method, option):
    given = {option: OPTIONS[option]}
    if option in METHODS[method].options:
        given |= {"damping": 1.0} if option == "power" else {}
        given |= {"hessian": "ggn-mc"} if method == "obs" and option != "hessian" else {}
        saliency(network(), F.cross_entropy, batch(), method, **given)
    else:
        with pytest.raises(ValueError, match=f"method '{method}' takes .*got {option}="):
            saliency(network(), F.cross_entropy, batch(), method, **given)


def test_power_needs_a_number_for_damping():
    with pytest.raises(ValueError, match="power goes with a number for damping"):
        saliency(network(), F.cross_entropy, batch(), power=0.5)


@pytest.mark.parametrize(
    ("method", "arguments", "what"),
    [
        ("taylor", {"data": batch()}, "loss_fn"),
        ("fisher", {"loss_fn": F.cross_entropy}, "data"),
        ("wanda", {}, "data"),
        ("apoz", {}, "data"),
        ("obs", {"hessian": "layer"}, "data"),
    ],
)
def test_missing_loss_or_data(method, arguments, what):
    with pytest.raises(ValueError, match=f"method '{method}' needs {what}"):
        saliency(network(), method=method, **arguments)


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match=r"must be real.*complex64 for 'weight'"):
        saliency(nn.Linear(2, 2, dtype=torch.complex64), method="magnitude")


@pytest.mark.parametrize("method", ["taylor", "wanda", "apoz", "obs", "fisher"])
def test_progress_counts_batches(method):
    x, y = batch()
    told = []
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    saliency(network(), F.cross_entropy, batches, method, progress=lambda *at: told.append(at))
    assert told == [(1, 2), (2, 2)]
    told.clear()
    saliency(network(), F.cross_entropy, iter(batches), method, progress=lambda *at: told.append(at))
    assert told == [(1, None), (2, None)]


def test_progress_counts_the_stages_of_automatic_damping():
    told = []
    scores = saliency(network(), F.cross_entropy, batch(), progress=lambda *at: told.append(at))
    assert told == [(stage, len(scores.stages)) for stage in range(1, len(scores.stages) + 1)]
    assert len(scores.stages) == 13


@pytest.mark.parametrize("method", ["taylor", "wanda", "obs"])
def test_loaders_that_shuffle_leave_the_random_state_alone(method):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch()), batch_size=2, shuffle=True)
    model = network()
    state = torch.get_rng_state()
    saliency(model, F.cross_entropy, loader, method)
    assert torch.equal(torch.get_rng_state(), state)
