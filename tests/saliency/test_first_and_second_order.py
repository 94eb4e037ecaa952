"""taylor and fisher against single gradients in float64; obd with curvature that is partly negative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import saliency
from resgrow.curvature.damping import mean_curvature
from resgrow.saliency import obd


def problem() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network with dropout and norm (eval mode matters) and batches of uneven sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 4)
    ).double()
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    batches = [(torch.randn(n, 2, 5, 5).double(), torch.randint(0, 4, (n,))) for n in (5, 2)]
    return model, batches


def sample_gradients(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    training = model.training
    model.eval()
    found = []
    for x, y in batches:
        for n in range(len(x)):
            loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            found.append(dict(zip(dict(model.named_parameters()), gradients, strict=True)))
    model.train(training)
    return found


def test_taylor_is_the_size_of_gradient_times_weight():
    model, batches = problem()
    scores = saliency(model, nn.CrossEntropyLoss(), batches, "taylor")
    gradients = sample_gradients(model, batches)
    for name, parameter in model.named_parameters():
        mean = torch.stack([g[name] for g in gradients]).mean(0)
        torch.testing.assert_close(scores[name], (mean * parameter).abs().detach(), rtol=1e-10, atol=1e-15)
    assert (scores.method, scores.damping, scores.compensation) == ("taylor", None, None)


def test_taylor_sums_over_batches_before_it_takes_the_size():
    model, batches = problem()
    whole = [tuple(torch.cat(part) for part in zip(*batches, strict=True))]
    first = saliency(model, nn.CrossEntropyLoss(), batches, "taylor")
    second = saliency(model, nn.CrossEntropyLoss(), whole, "taylor")
    summed = saliency(model, nn.CrossEntropyLoss(reduction="sum"), batches, "taylor")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(first[name], summed[name], rtol=1e-10, atol=1e-15)


def test_fisher_is_half_the_mean_squared_gradient_times_weight_squared():
    model, batches = problem()
    scores = saliency(model, nn.CrossEntropyLoss(), batches, "fisher")
    gradients = sample_gradients(model, batches)
    for name, parameter in model.named_parameters():
        mean = torch.stack([g[name] for g in gradients]).square().mean(0)
        torch.testing.assert_close(scores[name], (0.5 * mean * parameter**2).detach(), rtol=1e-10, atol=1e-15)
    assert scores.unit == "rise of the mean loss"


@pytest.mark.parametrize("method", ["taylor", "fisher"])
def test_gradients_modes_and_frozen_parameters_are_left_alone(method):
    model, batches = problem()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    model[5].bias.grad = torch.ones(4).double()
    state = torch.get_rng_state()
    scores = saliency(model, nn.CrossEntropyLoss(), batches, method)
    assert "0.bias" not in scores
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[5].bias.grad, torch.ones(4).double())
    assert model[5].weight.grad is None
    assert [module.training for module in model] == [True, True, True, False, True, True]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["0.bias"]


def test_taylor_refuses_a_loss_that_is_not_finite():
    model, batches = problem()
    batches[1][0][0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        saliency(model, nn.CrossEntropyLoss(), batches, "taylor")
    assert model.training
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="does not depend on any trainable"):
        saliency(model, nn.CrossEntropyLoss(), batches[:1], "taylor")


def test_negative_curvature_counts_as_none():
    model = nn.Linear(2, 1, bias=False)
    h = {"weight": torch.tensor([[-3.0, 1.0]])}
    assert mean_curvature(h) == 0.5
    scores = obd(model, h, 2.0)["weight"]
    torch.testing.assert_close(scores, 0.5 * torch.tensor([[1.0, 2.0]]) * model.weight.detach() ** 2)
