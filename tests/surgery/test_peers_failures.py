"""Cases in which structural surgery elsewhere has failed its users, by the issues that tell of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from structure_nets import Attention, Net, outputs
from torch import Tensor, nn
from torch.nn import functional as F

import resgrow
from resgrow.surgery import compact, count_params, prune
from resgrow.surgery.structure import structure

X = torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def halved(model: nn.Module, x: Tensor = X, **options: Any) -> nn.Module:
    """Half of the channels of every layer go, by magnitude, in place; outputs stay those of the masked model."""
    scores = resgrow.saliency(model, method="magnitude")
    prune(model, scores, sparsity=0.5, block="channel", scope="layer", example_inputs=x)
    expected = outputs(model, x)
    assert compact(model, x, inplace=True, **options) is model
    assert (outputs(model, x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    return model


def widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each layer."""
    return {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


# Torch-Pruning#179, #126: a convolution with one output channel was taken for a depthwise one.


def test_one_output_channel_is_not_depthwise() -> None:
    model = (
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 1, 1),
            nn.Sigmoid(),
            nn.Conv2d(1, 6, 3),
            nn.ReLU(),
            nn.Conv2d(6, 1, 3),
        )
        .double()
        .eval()
    )
    halved(model)
    assert widths(model) == {"0": (4, 3), "2": (1, 4), "4": (3, 1), "6": (1, 3)}


def test_one_channel_that_weighs_many() -> None:
    """A map over positions is broadcast over channels: they do not depend on it, nor it on all of them."""
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.head((net.stem(x) * net.map(net.stem(x)).sigmoid()).relu().mean((2, 3))),
        stem=nn.Conv2d(3, 8, 3),
        map=nn.Conv2d(8, 1, 3, padding=1),
        head=nn.Linear(8, 4),
    ).double()
    halved(model)
    assert widths(model) == {"stem": (4, 3), "map": (1, 4), "head": (4, 4)}


def test_one_input_channel_is_not_depthwise_either() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    halved(model.double().eval(), X[:, :1])
    assert widths(model) == {"0": (4, 1), "2": (4, 1), "4": (2, 4)}
    assert model[2].groups == 4


def test_a_depthwise_convolution_of_one_channel() -> None:
    """With one channel left groups=1 says both; it stays what it is."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, groups=2), nn.ReLU(), nn.Conv2d(2, 3, 1))
    halved(model.double().eval())
    assert widths(model) == {"0": (1, 3), "2": (1, 1), "4": (3, 1)}
    again = copy.deepcopy(model)
    assert compact(again, X, inplace=True)[2].groups == 1
    assert torch.equal(outputs(again, X), outputs(model, X))


# Torch-Pruning#101, #340, #410: heads of attention had to be counted by hand.


class SeparateHeads(nn.Module):
    """As Hugging Face's models have them: three layers, and sizes in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 3, 12
        self.query, self.key, self.value = (nn.Linear(10, 12) for _ in range(3))
        self.out = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.num_attention_heads, self.attention_head_size)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(*x.shape[:1], -1, self.all_head_size))


@pytest.mark.parametrize(
    ("make", "heads"),
    [
        (lambda: Attention(heads=4, head_dim=3, width=10), "num_heads"),
        (SeparateHeads, "num_attention_heads"),
        (lambda: nn.MultiheadAttention(12, 4, batch_first=True), "num_heads"),
    ],
    ids=["one layer", "three layers", "torch's"],
)
def test_heads_are_counted(make: Any, heads: str) -> None:
    torch.manual_seed(0)
    attention = make()
    width = 12 if isinstance(attention, nn.MultiheadAttention) else 10

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        if isinstance(net.attention, nn.MultiheadAttention):
            x = x + net.attention(x, x, x, need_weights=False)[0]
        else:
            x = x + net.attention(x)
        return net.head(net.norm(x).mean(1))

    model = Net(
        forward, embed=nn.Linear(6, width), attention=attention, norm=nn.LayerNorm(width), head=nn.Linear(width, 2)
    ).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    before = count_params(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    halved(model, x, optimizer=optimizer)
    assert getattr(attention, heads) == 2
    assert count_params(model) < before
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(torch.cat([x, x])).square().mean().backward()
        optimizer.step()


class WidthOverHeads(Attention):
    """As in the first vision transformers: the size of a head is the stream's width over their number."""

    def forward(self, x: Tensor) -> Tensor:
        n, count, width = x.shape
        qkv = self.qkv(x).reshape(n, count, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, count, width))


def test_heads_that_code_fixes_stay_and_the_rest_goes() -> None:
    torch.manual_seed(0)
    fixed, free = WidthOverHeads(), Attention()
    model: Any = Net(
        lambda net, x: net.narrow(F.gelu(net.wide(x + net.fixed(x) + net.free(x).tanh()))).mean(1),
        fixed=fixed,
        free=free,
        wide=nn.Linear(12, 16),
        narrow=nn.Linear(16, 3),
    ).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    halved(model, x, optimizer=optimizer)
    assert (fixed.num_heads, fixed.qkv.out_features, free.num_heads, model.wide.out_features) == (4, 36, 2, 8)
    again = copy.deepcopy(model)
    assert count_params(compact(again, x)) == count_params(model)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


# Torch-Pruning#120, #63, #140: training silently stopped, for the optimizer held parameters that were gone.


def test_the_optimizer_that_was_there_trains_what_is_there() -> None:
    torch.manual_seed(0)
    model = resgrow.nn.resnet(8, 0.5, 3, 4).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    x, y = torch.randn(12, 3, 8, 8, dtype=torch.float64), torch.arange(12) % 4

    def train(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model.train()(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step(loss.item())
            losses.append(loss.item())
        return losses

    train(2)
    halved(model.eval(), x, optimizer=optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = train(8)
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in held] == [id(parameter) for parameter in model.parameters()]


# nni#2666, #4540, #5298: masks that contradict each other, and shapes that were inferred wrongly.


def test_masks_of_layers_that_are_coupled_do_not_conflict() -> None:
    """Two branches that are added, with different channels masked in each: what both have masked goes."""
    torch.manual_seed(0)
    model: Any = Net(
        lambda net, x: net.out((net.a(x) + net.b(x)).relu()),
        a=nn.Conv2d(3, 6, 1),
        b=nn.Conv2d(3, 6, 3, padding=1),
        out=nn.Conv2d(6, 2, 1),
    ).double()
    with torch.no_grad():
        for layer, channels in ((model.a, [0, 1, 2]), (model.b, [1, 2, 3])):
            layer.weight[channels] = 0
            layer.bias[channels] = 0
    expected = outputs(model, X)
    compact(model, X, inplace=True)
    assert (model.a.out_channels, model.b.out_channels, model.out.in_channels) == (4, 4, 4)
    torch.testing.assert_close(outputs(model, X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_constant_that_is_added_in_place(inplace: bool) -> None:
    """As ghost modules and residual blocks write it. Of the images, to which one is added, nothing is known."""
    torch.manual_seed(0)

    def forward(net: Any, x: Tensor) -> Tensor:
        stream, branch, image, side = net.stem(x), net.branch(x), x.clone(), net.side(x)
        added = (stream.add_(branch), image.mul_(side)) if inplace else (stream + branch, image * side)
        return net.out(torch.cat(added, 1))

    model: Any = Net(
        forward, stem=nn.Conv2d(3, 6, 1), branch=nn.Conv2d(3, 6, 1), side=nn.Conv2d(3, 3, 1), out=nn.Conv2d(9, 2, 1)
    ).double()
    with torch.no_grad():
        model.branch.weight.zero_()
        model.side.weight.zero_()
        model.stem.weight[:2] = 0
    expected = outputs(model, X)
    compact(model, X, inplace=True)
    assert (model.stem.out_channels, model.out.in_channels) == (4, 7)
    torch.testing.assert_close(outputs(model, X), expected, rtol=1e-12, atol=1e-12)


def test_shapes_from_the_forward_pass() -> None:
    """A view by numbers that the model reads off its tensors, a flatten behind a pool, and a layer without use."""
    torch.manual_seed(0)
    model = Net(
        lambda net, x: net.head(net.mixed(net.stem(x).relu()).flatten(2).mean(2).view(x.shape[0], -1)),
        stem=nn.Conv2d(3, 8, 3),
        mixed=nn.Conv2d(8, 6, 1),
        head=nn.Linear(6, 2),
        unused=nn.Linear(9, 9),
    ).double()
    halved(model)
    assert widths(model) == {"stem": (4, 3), "mixed": (3, 4), "head": (2, 3), "unused": (9, 9)}


# Bare parameters: nothing was removed of them, or only what was registered by hand.


def test_parameters_of_the_model_itself() -> None:
    torch.manual_seed(0)
    model: Any = Net(
        lambda net, x: F.linear((net.stem(x).mean((2, 3)) * net.scale).relu(), net.weight) + net.shift,
        stem=nn.Conv2d(3, 8, 3),
        scale=nn.Parameter(torch.rand(8) + 0.5),
        weight=nn.Parameter(torch.randn(4, 8)),
        shift=nn.Parameter(torch.randn(4)),
    ).double()
    halved(model)
    assert (model.stem.out_channels, model.scale.shape, model.weight.shape) == (4, (4,), (4, 4))


# What a norm averages over: without some of it the outputs would be others than those of the masked model.


def test_a_layer_norm_keeps_what_it_averages_over() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 3)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    assert [group.places[0].name for group in structure(model, (x,), "test").groups] == ["2.weight"]
    halved(model, x)
    assert widths(model) == {"0": (8, 6), "2": (5, 8), "4": (3, 5)}
