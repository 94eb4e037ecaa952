"""The method ``lecun`` on whole networks, and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Callable

import brute
import pytest
import torch
from lecun_layers import DOUBLE, draw
from lecun_networks import LABELS, NETWORKS, network
from lecun_reference import recursion
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature


def expected(name: str) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """The network in training mode, its input, and its curvature by definition under cross-entropy."""
    model, x, steps = network(name)
    p = model.eval()(x.clone()).detach().softmax(1)
    parameters = dict(model.named_parameters())
    d, g = p * (1 - p), p - F.one_hot(LABELS, 3)
    found = recursion(steps, {"x": x, **parameters}, d, g)
    return model.train(), x, {key: found[key] / len(x) for key in parameters}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")


def lecun(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return curvature(model, nn.CrossEntropyLoss(), (x, LABELS), "lecun")


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    model, x, wanted = expected(name)
    assert all(value.abs().max() > 0 for value in wanted.values())
    assert_same(lecun(model, x), wanted)


def test_curved_activations_make_negative_entries() -> None:
    model, x, wanted = expected("smooth")
    assert (wanted["conv0.weight"] < 0).any()
    assert_same(lecun(model, x), wanted)


def test_batches_are_averaged_by_their_totals() -> None:
    model, x, _ = network("smooth")
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=DOUBLE))
    whole = curvature(model, loss, (x, LABELS), "lecun")
    assert_same(curvature(model, loss, [(x[:1], LABELS[:1]), (x[1:], LABELS[1:])], "lecun"), whole)


def test_exact_for_a_linear_softmax_model() -> None:
    """A weight reaches one logit only: nothing is left out."""
    model, x = nn.Linear(4, 3, dtype=DOUBLE), draw(3, 4)
    assert_same(lecun(model, x), brute.hessian_diagonal(model, F.cross_entropy, x, LABELS))


@pytest.mark.parametrize("activation", [torch.tanh, F.silu, F.gelu, F.softplus, torch.relu, F.mish])
def test_exact_for_a_chain_of_single_units(activation: Callable[[Tensor], Tensor]) -> None:
    """One element per layer has no off-diagonal, and the second derivatives count in full."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(1, 1, dtype=DOUBLE) for _ in range(4))
            with torch.no_grad():
                for layer in self.layers:
                    layer.weight.fill_(1.3)
                    layer.bias.fill_(0.2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = activation(layer(x))
            return x

    model, x, y = Chain(), draw(6, 1).abs(), draw(6, 1, seed=3)
    wanted = brute.hessian_diagonal(model, F.mse_loss, x, y)
    assert_same(curvature(model, nn.MSELoss(), (x, y), "lecun"), wanted)


def test_frozen_parameters_are_left_out_and_unused_ones_are_zero() -> None:
    model, x, wanted = expected("smooth")
    model.conv0.weight.requires_grad_(False)
    model.unused = nn.Linear(2, 2)
    found = lecun(model, x)
    assert not found.pop("unused.weight").any()
    assert not found.pop("unused.bias").any()
    assert_same(found, {key: value for key, value in wanted.items() if key != "conv0.weight"})


def test_masked_weights_get_the_curvature_of_what_is_left() -> None:
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * mask, self.bias)

    mask = (draw(3, 4, seed=2) > 0).to(DOUBLE)
    model, x = Masked(4, 3, dtype=DOUBLE), draw(3, 4)
    found = lecun(model, x)
    assert_same(found, brute.hessian_diagonal(model, F.cross_entropy, x, LABELS))
    assert not found["weight"][mask == 0].any()


def test_bfloat16_gives_float32() -> None:
    model, x, wanted = expected("residual")
    for key, value in lecun(model.bfloat16(), x.bfloat16()).items():
        assert value.dtype == torch.float32
        scale = wanted[key].abs().max().item()
        torch.testing.assert_close(value.double(), wanted[key], rtol=0.1, atol=0.1 * scale)


@pytest.mark.usefixtures("threads")
def test_threads_do_not_change_the_result() -> None:
    model, x, _ = network("residual")
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(lecun(model, x))
    assert_same(*results)


def test_training_mode_has_no_meaning() -> None:
    model, x, _ = network("residual")
    with pytest.raises(ValueError, match="train has no meaning for 'lecun'"):
        curvature(model, nn.CrossEntropyLoss(), (x, LABELS), "lecun", train=True)


def test_leaves_everything_as_it_was() -> None:
    model, x, _ = network("residual")
    model.conv0.eval()
    F.cross_entropy(model(x), LABELS).backward()
    before, kept = brute.state(model), x.clone()
    lecun(model, x)
    brute.assert_unchanged(model, before)
    assert torch.equal(x, kept)
