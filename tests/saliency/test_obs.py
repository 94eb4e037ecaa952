"""Optimal Brain Surgeon against its definition: dense inverses, least squares, measured errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import prune, saliency
from resgrow.saliency import gradient_blocks, input_moments, quadratic
from resgrow.saliency.quadratic import Quadratic, Surgeon


def positive_definite(*shape: int) -> Tensor:
    root = torch.randn(*shape, 3 * shape[-1], dtype=torch.float64)
    return root @ root.transpose(-1, -2) / shape[-1]


def surgeon_by_definition(h: Tensor, w: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the nonzero weights of one block, and ``w`` after ``dw = -H^-1[:, Q] (H^-1[Q, Q])^-1 w_Q``."""
    live = w != 0
    inverse = torch.linalg.inv(h[live][:, live])
    scores, new = torch.zeros_like(w), w.clone()
    scores[live] = w[live] ** 2 / (2 * inverse.diagonal())
    gone = ~keep[live]
    new[live] = w[live] - inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], w[live][gone])
    return scores, new


@pytest.mark.parametrize("batch", [1, 10**9])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_scores_and_joint_update_of_every_block(groups, batch, monkeypatch):
    monkeypatch.setattr(quadratic, "BATCH", batch)
    torch.manual_seed(groups)
    hessian = positive_definite(groups, 2, 4)
    hessian[:, 1, 3], hessian[:, 1, :, 3] = 0, 0  # padding: rows have 7 elements
    weight = torch.randn(6, 7, 1, dtype=torch.float64)
    weight[2, 1], weight[5] = 0, 0
    keep = torch.rand(6, 7, 1) < 0.5
    keep[0], keep[1] = True, False
    model = Quadratic(hessian, 0.1)
    scores, new = model.scores(weight), model.update(weight, keep)
    for row in range(6):
        for block, part in enumerate((slice(0, 4), slice(4, 7))):
            size = len(range(7)[part])
            h = hessian[row // (6 // groups), block, :size, :size] + 0.1 * torch.eye(size, dtype=torch.float64)
            wanted = surgeon_by_definition(h, weight[row, part, 0], keep[row, part, 0])
            torch.testing.assert_close(scores[row, part, 0], wanted[0], rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(new[row, part, 0], wanted[1], rtol=1e-10, atol=1e-12)
    assert not new[~keep].any()
    assert torch.equal(new[0], weight[0])


def test_a_matrix_that_is_not_positive_definite_is_named():
    surgeon = Surgeon({"w": Quadratic(-torch.ones(1, 1, 2, 2), 0.0)})
    with pytest.raises(ValueError, match=r"matrix of 'w' must be positive definite.*damping"):
        surgeon.update("w", torch.ones(1, 2), torch.tensor([[True, False]]))
    weight = torch.ones(2, 2)
    assert torch.equal(surgeon.update("unknown", weight, weight == 0), torch.zeros(2, 2))


def classifier() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).double()
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(n, 1, 3, 3, generator=generator).double(), torch.randint(0, 4, (n,), generator=generator))
        for n in (12, 7)
    ]
    return model, batches


def fisher_matrix(model: nn.Module, batches: list[tuple[Tensor, Tensor]], name: str) -> Tensor:
    gradients = []
    for x, y in batches:
        for n in range(len(x)):
            loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
            gradients.append(torch.autograd.grad(loss, model.get_parameter(name))[0].flatten())
    stacked = torch.stack(gradients)
    return stacked.T @ stacked / len(stacked)


@pytest.mark.parametrize("chunk", [60, 200, 2**26])
def test_fisher_form_by_definition(chunk, monkeypatch):
    monkeypatch.setattr(gradient_blocks, "CHUNK", chunk)
    model, batches = classifier()
    scores = saliency(model, nn.CrossEntropyLoss(), batches, "obs", damping=0.3, block_size=5)
    whole = {name: fisher_matrix(model, batches, name) for name, _ in model.named_parameters()}
    mean = torch.cat([whole["0.weight"].diagonal(), whole["3.weight"].diagonal()]).mean()
    pruned = copy.deepcopy(model)
    masks = prune(pruned, scores, sparsity=0.5)
    for name, parts in (("0.weight", [4]), ("3.weight", [4, 4, 4])):
        start = 0
        weight = model.get_parameter(name).detach().flatten()
        keep, new = masks[name].flatten(), pruned.get_parameter(name).detach().flatten()
        for length in parts * model.get_parameter(name).shape[0]:
            part = slice(start, start + length)
            start += length
            h = whole[name][part, part] + 0.3 * mean * torch.eye(length, dtype=torch.float64)
            wanted = surgeon_by_definition(h, weight[part], keep[part])
            torch.testing.assert_close(scores[name].flatten()[part], wanted[0], rtol=1e-9, atol=1e-14)
            torch.testing.assert_close(new[part], wanted[1], rtol=1e-9, atol=1e-12)
    bias = 0.5 * (whole["3.bias"].diagonal() + 0.3 * mean) * model[3].bias.detach() ** 2
    torch.testing.assert_close(scores["3.bias"], bias)
    assert torch.equal(pruned[3].bias, model[3].bias)
    assert (scores.method, scores.damping, scores.unit) == ("obs", 0.3, "rise of the mean loss")


def regression() -> tuple[nn.Module, Tensor, Tensor]:
    """Least squares at its optimum, with correlated inputs."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, 6, generator=generator).double()
    x = x @ torch.randn(6, 6, generator=generator).double()
    model = nn.Linear(6, 3, bias=False).double()
    y = x @ torch.randn(6, 3, generator=generator).double() + torch.randn(60, 3, generator=generator).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return model, x, y


def test_layer_form_predicts_the_rise_exactly_and_refits_by_least_squares():
    model, x, y = regression()
    scores = saliency(model, data=(x, y), method="obs", hessian="layer", damping=0.0)
    before = (model(x) - y).square().sum().item() / 60
    for k in range(18):
        single = {"weight": torch.ones(3, 6).double()}
        single["weight"].view(-1)[k] = 0
        alone = copy.deepcopy(model)
        alone.weight.data = scores.compensation.update("weight", model.weight.detach(), single["weight"] != 0)
        rise = (alone(x) - y).square().sum().item() / 60 - before
        assert rise == pytest.approx(scores["weight"].view(-1)[k].item(), rel=1e-9)
    masks = prune(model, scores, sparsity=0.5)
    for row, keep in zip(model.weight.detach(), masks["weight"], strict=True):
        target = y[:, next(i for i in range(3) if torch.equal(model.weight[i], row))]
        refit = torch.linalg.lstsq(x[:, keep], target[:, None]).solution[:, 0]
        torch.testing.assert_close(row[keep], refit, rtol=1e-9, atol=1e-12)
        assert not row[~keep].any()


LAYERS = [
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
    nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect", bias=False),
    nn.Conv2d(3, 3, 2, groups=3),
    nn.Conv1d(2, 5, 3, stride=2),
    nn.Conv3d(2, 3, 2),
    nn.Linear(4, 3),
]


@pytest.mark.parametrize("chunk", [1, 2**26])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_layer_form_measures_the_error_of_the_output(layer, chunk, monkeypatch):
    monkeypatch.setattr(input_moments, "CHUNK", chunk)
    layer = copy.deepcopy(layer).double()
    spatial = layer.weight.dim() - 2
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    shape = (11, 7, channels) if spatial == 0 else (11, channels, *[7, 6, 5][:spatial])
    x = torch.randn(shape).double()
    x = x + 0.7 * x.roll(1, -1)
    model = nn.Sequential(layer)
    scores = saliency(model, data=[(x[:6], x[:6]), (x[6:], x[6:])], method="obs", hessian="layer", damping=0.0)
    with torch.no_grad():
        wanted = layer(x)
        for k in torch.randperm(layer.weight.numel())[:4].tolist():
            keep = torch.ones_like(layer.weight, dtype=torch.bool)
            keep.view(-1)[k] = False
            changed = copy.deepcopy(layer)
            changed.weight.copy_(scores.compensation.update("0.weight", layer.weight, keep))
            error = (changed(x) - wanted).square().sum().item() / 11
            assert error == pytest.approx(scores["0.weight"].view(-1)[k].item(), rel=1e-8)
        if layer.bias is not None:
            changed = copy.deepcopy(layer)
            changed.bias[1] = 0
            error = (changed(x) - wanted).square().sum().item() / 11
            assert error == pytest.approx(scores["0.bias"][1].item(), rel=1e-9)
    assert scores.unit == "rise of the squared error of the layer's output, mean over samples"


def test_layer_form_scores_nothing_else():
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.BatchNorm1d(3), nn.Conv1d(3, 2, 1)).double()
    x = torch.randn(9, 2, 5).double()
    scores = saliency(model, data=(x, x), method="obs", hessian="layer")
    assert {name for name, score in scores.items() if score.any()} == {"2.weight", "2.bias"}
    assert set(scores.compensation.quadratics) == {"2.weight"}
    assert scores.damping == 0.01


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 10, generator=generator)
    x = x + 0.8 * x.roll(1, 1)
    y = (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


@pytest.mark.parametrize("hessian", ["fisher", "layer"])
@pytest.mark.parametrize("block", [(1, 1), (2, 2), (4, 1), "channel"])
def test_compensation_lowers_the_loss_of_the_pruned_network(hessian, block):
    model, x, y = trained()
    scores = saliency(model, nn.CrossEntropyLoss(), (x, y), "obs", hessian=hessian)
    losses = []
    for compensate in (True, False):
        pruned = copy.deepcopy(model)
        masks = prune(pruned, scores, sparsity=0.6, block=block, compensate=compensate)
        assert masks.density() < 0.41
        for name, mask in masks.items():
            parameter = pruned.get_parameter(name)
            assert not parameter[~mask].any()
            if not compensate or parameter.dim() == 1:
                assert torch.equal(parameter[mask], model.get_parameter(name)[mask])
        losses.append(F.cross_entropy(pruned(x), y).item())
    assert losses[0] < losses[1]


def test_pruning_again_keeps_what_is_gone():
    model, x, y = trained()
    first = prune(model, saliency(model, nn.CrossEntropyLoss(), (x, y), "obs"), sparsity=0.5)
    second = prune(model, saliency(model, nn.CrossEntropyLoss(), (x, y), "obs"), sparsity=0.75)
    assert second.density() == 0.25
    for name, mask in second.items():
        assert not (mask & ~first[name]).any()


def test_failed_compensation_leaves_the_model_alone():
    model, x, y = trained()
    scores = saliency(model, nn.CrossEntropyLoss(), (x, y), "obs")
    before = copy.deepcopy(model.state_dict())
    # The first layer's correction succeeds, the second's does not.
    scores.compensation.quadratics["2.weight"].hessian.fill_(1e30)
    with pytest.raises(ValueError, match=r"matrix of '2\.weight' must be positive definite"):
        prune(model, scores, sparsity=0.5)
    scores.compensation.update = lambda name, weight, keep: weight * float("inf" if name == "2.weight" else 1)
    with pytest.raises(ValueError, match=r"prune: corrected weights must be finite.*2\.weight"):
        prune(model, scores, sparsity=0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    prune(model, scores, sparsity=0.5, compensate=False)


def test_model_and_randomness_are_left_as_they_were():
    model, x, y = trained()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for hessian in ("fisher", "layer"):
        saliency(model, nn.CrossEntropyLoss(), (x, y), "obs", hessian=hessian)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hessian": "exact"}, "hessian must be one of fisher, ggn-mc, layer"),
        ({"damping": "auto"}, "damping must be a number for 'obs'"),
        ({"block_size": 0}, "block_size must be a whole number >= 1"),
        ({"block_size": 2.0}, "block_size must be a whole number >= 1"),
        ({"hessian": "layer", "block_size": 8}, "'obs' with hessian='layer' takes damping .got block_size"),
        ({"hessian": "fisher", "samples": 2}, "hessian='fisher' takes damping, block_size .got samples"),
        ({"loss_fn": None}, "method 'obs' needs loss_fn"),
        ({"damping": 0.0}, "matrix of '0.weight' must be positive definite"),
    ],
)
def test_bad_options(options, message):
    model, x, y = trained()
    arguments = {"loss_fn": nn.CrossEntropyLoss(), "data": (x[:3], y[:3]), "method": "obs"} | options
    with pytest.raises(ValueError, match=message):
        saliency(model, **arguments)


def test_refit_brings_the_layer_correction_to_any_criterion():
    model, x, y = trained()
    plain = saliency(model, method="magnitude")
    refitted = saliency(model, data=[(x, y)], method="magnitude", refit=True)
    layer = saliency(model, data=(x, y), method="obs", hessian="layer")
    assert all(torch.equal(plain[name], refitted[name]) for name in plain)
    losses = []
    for scores in (plain, refitted):
        pruned = copy.deepcopy(model)
        masks = prune(pruned, scores, sparsity=0.6)
        losses.append(F.cross_entropy(pruned(x), y).item())
        for name, mask in masks.items():
            weight = model.get_parameter(name).detach()
            wanted = weight * mask if scores is plain else layer.compensation.update(name, weight, mask)
            torch.testing.assert_close(pruned.get_parameter(name).detach(), wanted)
    assert losses[1] < losses[0]
    with pytest.raises(ValueError, match=r"refit reads data a second time .got a list_iterator"):
        saliency(model, F.cross_entropy, iter([(x, y)]), refit=True)
    with pytest.raises(ValueError, match="method 'magnitude' needs data"):
        saliency(model, method="magnitude", refit=True)


def test_gauss_newton_blocks_are_unbiased_and_take_their_options():
    model, batches = classifier()
    x, y = batches[0]
    model.eval()
    weight = model[3].weight
    inside = model[:3](x).detach()
    q = (inside @ weight.T + model[3].bias).softmax(1).detach()
    output = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    # Row 0's first block: sum over samples of x x^T times the output's Hessian at (0, 0).
    wanted = torch.einsum("n,ni,nj->ij", output[:, 0, 0], inside, inside) / len(x)
    generator = torch.Generator().manual_seed(0)
    drawn = saliency(
        model, F.cross_entropy, (x, y), "obs", hessian="ggn-mc", samples=300, block_size=12, generator=generator
    )
    found = drawn.compensation.quadratics["3.weight"].hessian[0, 0]
    assert (found - wanted).norm() < 0.1 * wanted.norm()
    again = saliency(model, F.cross_entropy, (x, y), "obs", hessian="ggn-mc")
    twice = saliency(model, F.cross_entropy, (x, y), "obs", hessian="ggn-mc")
    hot = saliency(model, F.cross_entropy, (x, y), "obs", hessian="ggn-mc", temperature=3.0)
    assert torch.equal(again["3.weight"], twice["3.weight"])
    assert not torch.equal(again["3.weight"], hot["3.weight"])


def test_layers_that_do_not_run_score_nothing_and_stay():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Half()
    x = torch.randn(9, 3)
    scores = saliency(model, data=(x, x), method="obs", hessian="layer")
    assert not scores["unused.weight"].any()
    assert not scores["unused.bias"].any()
    before = model.unused.weight.detach().clone()
    masks = prune(model, scores, sparsity=0.25)
    assert torch.equal(model.unused.weight, before * masks["unused.weight"])
