"""wanda and apoz against direct computations from recorded activations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resgrow.nn
from resgrow import saliency


def data(*sizes: int, shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(n, *shape, generator=generator).double(), torch.zeros(n).long()) for n in sizes]


class Uneven(nn.Module):
    """Grouped, transposed, one-dimensional and token-wise layers; one runs twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.line = nn.Conv1d(4, 3, 2, bias=False)
        self.tokens = nn.Linear(3, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [x]
        self.seen.append(self.grouped(x))
        self.seen.append(self.norm(self.up(self.seen[1])).flatten(2))
        self.seen.append(self.line(self.seen[2]).transpose(1, 2))
        self.seen.append(self.tokens(self.seen[3]))
        return self.tokens(self.seen[4]).mean(1)


def test_wanda_is_weight_times_norm_of_its_input_feature():
    model = Uneven().double()
    batches = data(3, 2, shape=(4, 6, 5))
    scores = saliency(model, data=batches, method="wanda")
    model.eval()
    x, grouped, up, line, tokens = ([] for _ in range(5))
    with torch.no_grad():
        for inputs, _ in batches:
            model(inputs)
            for store, value in zip((x, grouped, up, line, tokens), model.seen, strict=True):
                store.append(value)
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    norm = torch.cat(x).square().sum((0, 2, 3)).sqrt()
    for o in range(6):
        for i in range(2):
            wanted["grouped.weight"][o, i] = model.grouped.weight[o, i].abs() * norm[i + 2 * (o // 3)]
    norm = torch.cat(grouped).square().sum((0, 2, 3)).sqrt()
    for i in range(6):
        wanted["up.weight"][i] = model.up.weight[i].abs() * norm[i]
    norm = torch.cat(up).square().sum((0, 2)).sqrt()
    for i in range(4):
        wanted["line.weight"][:, i] = model.line.weight[:, i].abs() * norm[i]
    both = torch.cat([torch.cat(line), torch.cat(tokens)])
    wanted["tokens.weight"] = model.tokens.weight.abs() * both.square().sum((0, 1)).sqrt()
    wanted["grouped.bias"] = model.grouped.bias.abs() * (5 * 3 * 3) ** 0.5
    wanted["up.bias"] = model.up.bias.abs() * (5 * 4 * 4) ** 0.5
    wanted["tokens.bias"] = model.tokens.bias.abs() * both[..., 0].numel() ** 0.5
    assert scores.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(scores[name], value.detach(), rtol=1e-10, atol=1e-15)


def test_wanda_adds_what_tied_layers_see():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    batches = data(4, shape=(3,))
    scores = saliency(model, data=batches, method="wanda")
    with torch.no_grad():
        inputs = torch.cat([batches[0][0], model[:2](batches[0][0])])
    torch.testing.assert_close(scores["0.weight"], model[0].weight.detach().abs() * inputs.norm(dim=0))
    assert scores.keys() == {"0.weight", "0.bias", "2.bias"}


def test_layers_that_do_not_run_as_modules_are_refused():
    model = nn.TransformerEncoderLayer(4, 2, batch_first=True)
    batches = [(x.float(), y) for x, y in data(2, shape=(3, 4))]
    for options in ({"method": "wanda"}, {"method": "apoz"}, {"method": "obs", "hessian": "layer"}):
        with pytest.raises(ValueError, match="MultiheadAttention 'self_attn'"):
            saliency(model, data=batches, **options)
    refitted = saliency(model, data=batches, method="magnitude", refit=True)
    assert set(refitted.compensation.quadratics) == {"linear1.weight", "linear2.weight"}


class Branches(nn.Module):
    """Convolutions that meet in one activation, one with none of its own, and functional, in place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.b = nn.Conv2d(2, 3, 1)
        self.c = nn.Conv2d(3, 4, 3)
        self.smooth = nn.Linear(36, 5)
        self.hidden = nn.Linear(5, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.norm(self.a(x)) + self.b(x))
        self.met = y.clone()
        z = F.relu(F.max_pool2d(self.c(y), 2, stride=1).flatten(1))
        self.flat = z.clone()
        h = F.leaky_relu(self.smooth(z))
        h = self.hidden(h).clamp_min(0)
        self.last = h.clone()
        return self.head(h)


def share_alive(x: Tensor) -> Tensor:
    """Share of elements that are not zero per entry of dimension 1."""
    return (x != 0).double().movedim(1, 0).flatten(1).mean(1)


def test_apoz_counts_zeros_behind_the_first_activation():
    torch.manual_seed(1)
    model = Branches().double()
    batches = data(6, 3, shape=(2, 6, 6))
    scores = saliency(model, data=batches, method="apoz")
    model.eval()
    met, flat, last = [], [], []
    with torch.no_grad():
        for x, _ in batches:
            model(x)
            for store, value in ((met, model.met), (flat, model.flat), (last, model.last)):
                store.append(value)
    channels = scores.per_channel()
    alive = share_alive(torch.cat(met))
    assert 0.1 < alive.min() < alive.max() < 0.9
    torch.testing.assert_close(channels["a.weight"], alive)
    torch.testing.assert_close(channels["b.weight"], alive)
    torch.testing.assert_close(channels["c.weight"], share_alive(torch.cat(flat).unflatten(1, (4, 9))))
    torch.testing.assert_close(channels["hidden.weight"], share_alive(torch.cat(last)))
    for name in ("smooth.weight", "head.weight"):
        torch.testing.assert_close(channels[name], torch.ones_like(channels[name]))
    for score in scores.values():
        if score.dim() > 1:
            torch.testing.assert_close(
                score, score[:, :1].flatten(1)[:, :1].view(-1, *[1] * (score.dim() - 1)) + 0 * score
            )
        else:
            assert not score.any()


def test_apoz_sees_the_activations_of_our_own_networks():
    model = resgrow.nn.resnet(8, 0.25, in_channels=1)
    for block in (model.layer1[0], model.layer2[0], model.layer3[0]):
        nn.init.ones_(block.bn2.weight)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 1, 12, 12, generator=generator), torch.zeros(8).long())]
    relus = {}
    hooked = copy.deepcopy(model).eval()
    for name, module in hooked.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, args, out, name=name: relus.__setitem__(name, share_alive(out)))
    hooked(batches[0][0])
    channels = saliency(model, data=batches, method="apoz").per_channel()
    pairs = {"conv1": "act1", "layer2.0.conv1": "layer2.0.act1", "layer2.0.conv2": "layer2.0.act2"}
    pairs["layer2.0.downsample.0"] = "layer2.0.act2"
    for layer, relu in pairs.items():
        torch.testing.assert_close(channels[f"{layer}.weight"].double(), relus[relu])
    assert torch.equal(channels["fc.weight"], torch.ones(10))
    gated = nn.Sequential(nn.Linear(3, 4), resgrow.nn.TriStateReLU(4), nn.Linear(4, 1))
    x = torch.randn(50, 3)
    channels = saliency(gated, data=(x, x), method="apoz").per_channel()
    torch.testing.assert_close(channels["0.weight"].double(), share_alive(gated[:2](x)))


def test_apoz_of_transposed_and_grouped_channels():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU()).double()
    batches = data(5, shape=(4, 3, 3))
    score = saliency(model, data=batches, method="apoz")["0.weight"]
    alive = share_alive(model(batches[0][0]))
    for o in range(6):
        mine = score[2 * (o // 3) : 2 * (o // 3) + 2, o % 3]
        assert mine.sum().item() == pytest.approx(alive[o].item())
        assert torch.equal(mine, mine.flatten()[0].expand_as(mine))


@pytest.mark.parametrize("method", ["wanda", "apoz"])
def test_hooks_and_modes_are_restored_on_an_exception(method):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))

    def broken():
        yield torch.randn(2, 3), torch.zeros(2)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        saliency(model, data=broken(), method=method)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        saliency(model, data=(torch.randn(2, 4), torch.zeros(2)), method=method)
    for module in model.modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.overrides._get_current_function_mode() is None


def test_inputs_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    x = torch.full((2, 3), float("nan"))
    with pytest.raises(ValueError, match=r"'0\.weight' are not finite"):
        saliency(model, data=(x, x), method="wanda")
