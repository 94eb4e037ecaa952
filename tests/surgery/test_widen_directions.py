"""New units in the directions that the loss asks for: which they are, that they change nothing, and that they learn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from growth_nets import ACTIVE, LINEAR, LOSS, made
from structure_nets import X, assert_alike, everything, outputs, trained
from structure_nets import made as structured
from torch import Tensor, nn
from torch.optim import SGD, Adam

from resgrow import growth_gain, widen
from resgrow.surgery.company import company
from resgrow.surgery.forward import Example
from resgrow.surgery.widen import widened

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
INITS = ["tiny", "gradmax"]


def readers_of(model: nn.Module, name: str) -> nn.Module:
    """The next layer with a weight of two dimensions or more."""
    layers = [key for key, module in model.named_modules() if getattr(module, "weight", torch.zeros(1)).dim() > 1]
    return model.get_submodule(layers[layers.index(name) + 1])


def fan_out_gradient(model: nn.Module, name: str, by: int, x: Tensor, y: Tensor) -> Tensor:
    """``(by, weights)``: of the mean loss, for what reads the last units."""
    weight = readers_of(model.eval(), name).weight
    (grad,) = torch.autograd.grad(LOSS(model(x), y), weight)
    per_unit = weight.shape[1] // len(model.get_submodule(name).weight)
    return grad.movedim(1, 0)[-by * per_unit :].reshape(by, -1)


def seen_before(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """The layer's outputs ``(positions, units)``."""
    layer, seen = model.get_submodule(name), []
    handle = layer.register_forward_hook(lambda layer, args, output: seen.append(output.detach()))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return (seen[0] if isinstance(layer, nn.Linear) else seen[0].movedim(1, -1)).flatten(0, -2)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("net", [*(("linear", name) for name in LINEAR), *(("active", name) for name in ACTIVE)])
def test_the_function_stays_and_everything_new_learns(net: tuple[str, str], init: str) -> None:
    model, name, x, y = made(LINEAR if net[0] == "linear" else ACTIVE, net[1], 48)
    optimizer = Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    expected, held, by = outputs(model, x), list(model.parameters()), 3
    old = len(model.get_submodule(name).weight)
    widen(model, name, by, example_inputs=x[:2], optimizer=optimizer, init=init, loss_fn=LOSS, data=(x, y))
    assert (outputs(model, x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert all(p is q for p, q in zip(model.parameters(), held, strict=True))
    maker = model.get_submodule(name)
    assert len(maker.weight) == old + by
    for p, state in optimizer.state.items():
        assert all(v.shape == p.shape for v in state.values() if isinstance(v, Tensor) and v.dim())
    assert not optimizer.state[maker.weight]["exp_avg"][old:].any()
    before, optimizer = maker.weight.detach().clone(), SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    assert (maker.weight != before).flatten(1).any(1)[old:].all()


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("net", ACTIVE)
def test_units_have_mean_square_one_before_their_activation(net: str, init: str) -> None:
    model, name, x, y = made(ACTIVE, net)
    by = 3
    widen(model, name, by, example_inputs=x[:2], init=init, loss_fn=LOSS, data=(x, y))
    z = seen_before(model, name, x)[:, -by:]
    norm = next((each for each in model.modules() if isinstance(each, nn.BatchNorm2d)), None)
    if norm is None:
        assert torch.allclose(z.square().mean(0), torch.ones(by, dtype=z.dtype))
        if init == "tiny":
            assert z.mean(0).abs().max() < 1e-4  # existing readers can do constants themselves
    else:
        assert torch.allclose(z.var(0, correction=0), torch.ones(by, dtype=z.dtype))
        assert torch.allclose(norm.running_mean[-by:], z.mean(0))
        assert (norm.running_var[-by:] == 1).all()
        assert (norm.weight[-by:] == 1).all()
        assert not norm.bias[-by:].any()


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("net", ACTIVE)
def test_the_gradient_is_larger_than_that_of_random_units(net: str, init: str) -> None:
    """In a network that has done what it can with the units that it has, on data that have something to learn."""
    model, name, x, _ = made(ACTIVE, net, 400)
    y = labels(x)
    optimizer = Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    chosen = copy.deepcopy(model)
    widen(chosen, name, 2, example_inputs=x[:2], init=init, loss_fn=LOSS, data=(x, y))
    norm = fan_out_gradient(chosen, name, 2, x, y).norm()
    for seed in range(5):
        other = copy.deepcopy(model)
        widen(other, name, 2, example_inputs=x[:2], generator=torch.Generator().manual_seed(seed))
        normalise(other, name, x)
        assert fan_out_gradient(other, name, 2, x, y).norm() < norm


def labels(x: Tensor) -> Tensor:
    """Of four classes, by a perceptron with eight units."""
    generator = torch.Generator().manual_seed(7)
    first = torch.randn(x[0].numel(), 8, generator=generator, dtype=x.dtype)
    scores = (x.flatten(1) @ first).relu() @ torch.randn(8, 4, generator=generator, dtype=x.dtype)
    return (scores - scores.mean(0)).argmax(1)


@torch.no_grad()
def normalise(model: nn.Module, name: str, x: Tensor) -> None:
    """The last two units have mean square one, so that only directions are compared."""
    layer, z = model.get_submodule(name), seen_before(model, name, x)[:, -2:]
    norm = next((each for each in model.modules() if isinstance(each, nn.BatchNorm2d)), None)
    if norm is not None:
        norm.running_mean[-2:], norm.running_var[-2:] = z.mean(0), z.var(0)
        return
    size = z.square().mean(0).sqrt()
    layer.weight[-2:] /= size.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias[-2:] /= size


def test_gradmax_has_the_largest_gradient_of_all_in_a_linear_network() -> None:
    model, name, x, y = made(LINEAR, "no biases")
    widen(model, name, 1, example_inputs=x[:2], init="gradmax", loss_fn=LOSS, data=(x, y))
    row = model.get_submodule(name).weight[-1].detach()
    norm = fan_out_gradient(model, name, 1, x, y).norm() / row.norm()
    for seed in range(50):
        direction = torch.randn(row.shape, generator=torch.Generator().manual_seed(seed), dtype=row.dtype)
        with torch.no_grad():
            model.get_submodule(name).weight[-1] = direction / direction.norm()
        assert fan_out_gradient(model, name, 1, x, y).norm() < norm
    best = growth_gain(model, LOSS, (x, y), example_inputs=x[:2])
    assert list(best) == [name]


def test_of_both_signs_those_with_the_larger_gradient() -> None:
    model, name, x, y = made(ACTIVE, "perceptron", 200)
    best = growth_gain(model, LOSS, (x, y), example_inputs=x[:2])[name]
    widen(model, name, 2, example_inputs=x[:2], init="tiny", loss_fn=LOSS, data=(x, y))
    layer = model.get_submodule(name)
    taken = fan_out_gradient(model, name, 2, x, y).norm(dim=1)
    assert taken[0] >= taken[1] > 0
    directions = torch.cat([best.fan_in, best.bias[:, None]], 1)[:2]
    # All four candidates, one after the other, in the place of the first unit
    norms = []
    for row in (*directions, *-directions):
        with torch.no_grad():
            layer.weight[-2], layer.bias[-2] = row[:-1], row[-1]
        norms.append(float(fan_out_gradient(model, name, 2, x, y)[0].norm()))
    assert torch.allclose(torch.tensor(sorted(norms)[:1:-1]), taken.float(), rtol=1e-4)


@pytest.mark.parametrize(("activation", "both"), [(nn.ReLU, True), (nn.Tanh, False), (nn.Identity, False)])
def test_both_signs_of_a_unit_only_where_they_differ(activation: Callable[[], nn.Module], both: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 2), activation(), nn.Linear(2, 1)).double()
    x = torch.randn(200, 5, dtype=torch.float64)
    y = (x[:, :1] * x[:, 1:2]).tanh() + x[:, 2:3]
    widen(model, "0", 3, example_inputs=x, init="tiny", loss_fn=nn.MSELoss(), data=(x, y))
    rows = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach()[2:]
    # One output: a single direction.
    assert torch.equal(rows[0], -rows[1]) == both
    cosines = rows[-1] @ rows[0] / (rows[-1].norm() * rows[0].norm())
    assert abs(float(cosines)) < 1e-12
    z = seen_before(model, "0", x)[:, 2:]
    assert torch.allclose(z.square().mean(0), torch.ones(3, dtype=z.dtype))


def test_more_units_than_there_are_directions_at_all() -> None:
    model, name, x, y = made(ACTIVE, "perceptron")
    for seed in (0, 0, 1):
        state = torch.get_rng_state()
        each = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        widen(each, name, 30, example_inputs=x, init="tiny", generator=generator, loss_fn=LOSS, data=(x, y))
        assert torch.equal(torch.get_rng_state(), state)
        weight = each.get_submodule(name).weight.detach()
        assert len(weight) == 33
        if seed == 0:
            first = weight
    assert torch.equal(first[:3], weight[:3])
    assert not torch.equal(first[-1], weight[-1])


def test_where_the_loss_has_no_gradient_all_are_random() -> None:
    model, name, x, _ = made(ACTIVE, "perceptron")
    y = outputs(model, x)
    widen(model, name, 2, example_inputs=x, init="tiny", loss_fn=nn.MSELoss(), data=(x, y))
    assert model.get_submodule(name).weight[-2:].all()
    assert (outputs(model, x) - y).abs().max() <= 1e-12


@pytest.mark.parametrize("init", INITS)
def test_loaders_iterators_and_single_precision(init: str) -> None:
    model, name, x, y = made(ACTIVE, "lenet")
    model, x = model.float().train(), x.float()
    batches = list(zip(x.split(9), y.split(9), strict=True))
    rows = []
    for data in ((x, y), batches, iter(batches)):
        each = copy.deepcopy(model)
        widen(each, name, 1, example_inputs=x[:2], init=init, loss_fn=LOSS, data=data)
        assert each.training
        assert each.get_submodule(name).weight.dtype == torch.float32
        rows.append(each.get_submodule(name).weight[-1].detach().flatten())
    for row in rows[1:]:
        assert torch.cosine_similarity(row, rows[0], dim=0) > 0.99


class Counted:
    """Batches that know how often they were read."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.batch, self.passes = (x, y), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        yield self.batch


@pytest.mark.parametrize("net", ACTIVE)
def test_what_is_known_is_not_found_again(net: str) -> None:
    model, name, x, y = made(ACTIVE, net, 100)
    example, known = Example.of(x[:2], "test"), growth_gain(model, LOSS, (x, y), example_inputs=x[:2], units=2)[name]
    rows, passes = [], []
    for given in (None, known):
        each, data = copy.deepcopy(model), Counted(x, y)
        along = company("test", each, None, None, None)
        generator = torch.Generator().manual_seed(0)
        options = {"init": "tiny", "loss_fn": LOSS, "data": data, "generator": generator, "known": given}
        widened(each, name, min(2, len(known)), example, along, **options)
        rows.append(torch.cat([p.detach().flatten() for p in each.parameters()]))
        passes.append(data.passes)
    assert torch.allclose(*rows, rtol=1e-9)
    assert passes == [3, 1]


def test_frozen_weights_and_inner_names() -> None:
    model, name, x, y = made(ACTIVE, "normed")
    for p in model.parameters():
        p.requires_grad_(False)
    expected = outputs(model, x)
    widen(model, "1", 2, example_inputs=x, init="tiny", loss_fn=LOSS, data=(x, y))  # the norm stands for the layer
    assert len(model.get_submodule(name).weight) == 5
    assert not any(p.requires_grad for p in model.parameters())
    assert (outputs(model, x) - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_a_layer_that_is_the_whole_front_of_a_resnet_block() -> None:
    model = structured("package's")
    x, y = torch.randn(16, 3, 8, 8, dtype=torch.float64), torch.randint(0, 4, (16,))
    expected = outputs(model, x)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    widen(model, "layer1.0.conv1", 8, example_inputs=x, optimizer=optimizer, init="tiny", loss_fn=LOSS, data=(x, y))
    assert (outputs(model, x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    block = model.layer1[0]
    assert block.conv1.out_channels == block.bn1.num_features == block.conv2.in_channels == 16
    trained(model, optimizer, 2, x)


BAD: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "no loss": ("residual", {"loss_fn": None}, ValueError, r"init='tiny' needs loss_fn \(got None\)"),
    "no data": ("residual", {"data": None}, ValueError, r"init='tiny' needs data \(got None\)"),
    "empty data": ("residual", {"data": []}, ValueError, r"widen: data yielded no batches"),
    "not pairs": ("residual", {"data": [1]}, TypeError, r"widen: data must yield"),
    "not finite": (
        "residual",
        {"data": (X * math.nan, torch.tensor([0, 1]))},
        ValueError,
        r"widen: the loss must be finite",
    ),
    "other init": ("residual", {"init": "random"}, ValueError, r"init='random' does not look at a loss"),
    "no reduction": ("residual", {"loss_fn": lambda a, b: a.sum()}, ValueError, r"must say how it reduces"),
    "a stream": ("residual", {"name": "stem"}, ValueError, r"3 layers make the units.*use init='random' or 'net2wid"),
    "depthwise": ("grouped", {"name": "depthwise"}, ValueError, r"the model splits them, as into heads"),
    "grouped": ("grouped", {"name": "grouped"}, ValueError, r"use init='random' or 'net2wider'"),
    "heads": (
        "transformer",
        {"name": "attention.qkv"},
        ValueError,
        r"attention splits them, as into heads\); use init='random'",
    ),
    "joined": ("concatenated", {"name": "deep"}, ValueError, r"conv_transpose2d|ConvTranspose2d"),
    "other sizes": (
        "gated",
        {"name": "0", "data": (torch.zeros(2, 3, 9, 8, dtype=torch.float64), torch.tensor([0, 1]))},
        RuntimeError,
        r"shapes cannot be multiplied",
    ),
}


class Failing:
    """Data whose third pass fails, while the units are there on trial."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.passes = x, y, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        yield self.x, self.y
        if self.passes == 3:
            raise OSError("the disk is gone")


@pytest.mark.parametrize("kind", [*BAD, "data that fail"])
def test_bad_input_leaves_everything_as_it_was(kind: str) -> None:
    failing = Failing(X, torch.tensor([0, 1]))
    late = ("residual", {"data": failing}, OSError, "the disk is gone")
    net, arguments, error, message = BAD.get(kind, late)
    model = structured(net)
    optimizer = Adam(model.parameters(), lr=1e-3)
    trained(model, optimizer)
    before = everything(model, optimizer)
    good = {"loss_fn": LOSS, "data": (X, torch.tensor([0, 1])), "init": "tiny", "name": "squeeze", "by": 2}
    with pytest.raises(error, match=message):
        widen(model, **{**good, "example_inputs": X, "optimizer": optimizer, **arguments})
    assert_alike(everything(model, optimizer), before)
    assert all(not each._forward_hooks and not each._forward_pre_hooks for each in model.modules())
    assert failing.passes in (0, 3)
