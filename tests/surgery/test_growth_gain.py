"""What absent units would bring: as measured with them present, and by which layer is too narrow."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from growth_nets import ACTIVE, LINEAR, LOSS, made
from structure_nets import Net, X, assert_alike, everything
from structure_nets import made as structured
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import growth_gain, widen
from resgrow.curvature.growth import moments
from resgrow.curvature.growth.site import rows as seen_rows
from resgrow.surgery.growth_routes import node_of, routes
from resgrow.surgery.growth_sites import GrowthSite, growth_site
from resgrow.surgery.structure import structure, traced
from resgrow.surgery.widen_names import named_group

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def site_of(model: nn.Module, name: str, x: Tensor) -> GrowthSite:
    group = named_group(model, (x,), structure(model, (x,), "test"), name, "test")
    return growth_site(model, traced(model, (x,), "test"), group)


def set_units(model: nn.Module, at: GrowthSite, rows: Tensor, biased: bool, mean: Tensor | None) -> None:
    """Fan-ins of the last units of a layer, with norms behind that only take out their mean."""
    maker = model.get_submodule(at.maker)
    with torch.no_grad():
        weights = rows[:, :-1] if biased else rows
        maker.weight[-len(rows) :] = weights.reshape(len(rows), *maker.weight.shape[1:])
        if maker.bias is not None:
            maker.bias[-len(rows) :] = rows[:, -1] if biased else 0
        for norm in map(model.get_submodule, at.norms):
            norm.running_mean[-len(rows) :] = rows @ mean
            norm.running_var[-len(rows) :] = 1 - norm.eps


def fan_outs(model: nn.Module, at: GrowthSite, count: int, tensors: list[Tensor]) -> list[Tensor]:
    """What readers' weights, or tensors like them, have for the last ``count`` units: ``(count, O, *taps)``."""
    found = []
    for reader, place, tensor in zip(at.site.readers, at.readers, tensors, strict=True):
        whole = named_group(model, (), structure(model, (INPUT[0],), "test"), at.maker, "test")
        (here,) = [each for each in whole.places if each.name == place.name and each.dim == 1]
        columns = tensor.movedim(1, 0)[here.index[-count:]]
        found.append(columns.squeeze(1) if reader.columns == 1 and len(reader.taps) > 1 else columns.movedim(1, 2))
        if reader.columns == 1 and tensor.dim() > 2:
            found[-1] = columns[:, 0]
    return found


INPUT: list[Tensor] = [X]


@pytest.mark.parametrize("net", LINEAR)
def test_the_cross_covariance_is_the_gradient_of_real_new_units(net: str) -> None:
    model, name, x, y = made(LINEAR, net)
    INPUT[0] = x[:2]
    at = site_of(model, name, x[:2])
    (found,) = moments("test", model, LOSS, (x, y), [at.site], project=False)
    size = len(found.second)
    widen(model, name, size, example_inputs=x[:2])
    set_units(model, at, torch.eye(size, dtype=x.dtype), found.biased, found.mean)
    readers = [model.get_parameter(place.name) for place in at.readers]
    grads = torch.autograd.grad(LOSS(model(x), y), readers)
    for cross, grad in zip(found.cross, fan_outs(model, at, size, list(grads)), strict=True):
        assert cross.abs().max() > 1e-4
        assert cross.shape == grad.shape
        assert torch.allclose(cross, -grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("net", ["layers", "sequences", "convolutions", "pooled and flattened"])
def test_the_loss_falls_at_the_predicted_rate(net: str) -> None:
    """A small step of the pair, existing weights taking back what they can do themselves."""
    model, name, x, y = made(LINEAR, net, 400)
    INPUT[0] = x[:2]
    at = site_of(model, name, x[:2])
    best = growth_gain(model, LOSS, (x, y), example_inputs=x[:2], names=[name])[name]
    before = float(LOSS(model(x), y).detach())
    (reader,) = at.site.readers
    h: list[Tensor] = []
    handle = reader.layer.register_forward_pre_hook(lambda layer, args: h.append(args[0].detach()))
    model(x)
    handle.remove()
    rates = []
    for step in (1e-3, -1e-3):
        larger = copy.deepcopy(model)
        widen(larger, name, 1, example_inputs=x[:2])
        biased = at.site.biased
        row = torch.cat([best.fan_in[:1].flatten(1), best.bias[:1, None]], 1)
        set_units(larger, at, row if biased else row[:, :-1], biased, None)
        layer: Any = larger.get_submodule(at.readers[0].name.rpartition(".")[0])
        own = fan_outs(larger, at, 1, [layer.weight.detach()])[0].numel() // len(layer.weight)
        place = torch.zeros_like(layer.weight)
        with torch.no_grad():
            if layer.weight.dim() > 2:
                place[:, -1] = best.fan_out[0][0]
            else:
                place[:, -own:] = best.fan_out[0][0]
            layer.weight += step * place
            take_back(larger, layer, place, h[0], reader, step, x)
        rates.append((float(LOSS(larger(x), y).detach()) - before) / step)
    assert abs(sum(rates) / 2 + float(best.gain[0].sqrt())) < 1e-4 * float(best.gain[0].sqrt())


def take_back(larger: nn.Module, layer: Any, place: Tensor, h: Tensor, reader: Any, step: float, x: Tensor) -> None:
    """Least squares of what the new unit adds on what was read before, off the existing weights."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()))
    larger(x)
    handle.remove()
    if layer.weight.dim() > 2:
        added = layer._conv_forward(seen[0], place, None).movedim(1, -1).flatten(0, -2)
    else:
        added = F.linear(seen[0], place).flatten(0, -2)
    rows = seen_rows(reader.layer, h, reader.shifts).flatten(0, -2)
    fit = (torch.linalg.pinv(rows) @ added).T * step
    old = reader.layer.weight.shape
    if layer.weight.dim() > 2:
        layer.weight[:, : old[1]] -= fit[:, :-1].reshape(old)
    else:
        layer.weight[:, : old[1]] -= fit[:, :-1]
    layer.bias -= fit[:, -1]


def test_max_pooling_counts_as_average_pooling_and_activations_as_identity() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(2, 1, 5, 5)
    graph = traced(model, (x,), "test")
    (route,) = routes(graph, node_of(graph, "0.weight"))
    unit = torch.randn(6, 1, 3, 3)
    result = unit
    for step in route.steps:
        result = step(result)
    assert torch.equal(result, F.avg_pool2d(unit, 3, 2, 1, count_include_pad=False).flatten(1))


@pytest.mark.parametrize("net", ACTIVE)
def test_all_layers_that_can_grow(net: str) -> None:
    model, name, x, y = made(ACTIVE, net, 200)
    model.train()
    before = everything(model)
    found = growth_gain(model, LOSS, (x, y), example_inputs=x[:2])
    assert_alike(everything(model), before)
    assert model.training
    assert name in found
    assert list(found) == {"lenet": ["0", "3", "7"]}.get(net, [name])
    for layer, growth in found.items():
        weight = model.get_submodule(layer).weight
        assert len(growth) >= 1
        assert growth.fan_in.shape[1:] == weight.shape[1:]
        assert (growth.gain.diff() <= 0).all()
        alone = growth_gain(model, LOSS, [(x, y)], example_inputs=x[:2], names=layer)[layer]
        assert torch.allclose(alone.gain, growth.gain)


def test_the_best_few_units() -> None:
    model, _, x, y = made(ACTIVE, "lenet", 200)
    every = growth_gain(model, LOSS, (x, y), example_inputs=x[:2])
    few = growth_gain(model, LOSS, (x, y), example_inputs=x[:2], units=2)
    assert list(few) == list(every)
    for name, found in few.items():
        assert len(found) == min(2, len(every[name]))
        assert torch.allclose(found.gain, every[name].gain[:2])
        assert torch.allclose(found.fan_in, every[name].fan_in[:2])
    with pytest.raises(ValueError, match=r"growth_gain: units must be at least 1 \(got 0\); None is for all"):
        growth_gain(model, LOSS, (x, y), example_inputs=x[:2], units=0)
    with pytest.raises(TypeError, match=r"growth_gain: units must be a whole number or None \(got 2.5\)"):
        growth_gain(model, LOSS, (x, y), example_inputs=x[:2], units=2.5)


def test_large_layers_in_single_precision() -> None:
    """Cholesky's factors and Krylov spaces, of float32 sums over lags, against eigenvalues of sums over patches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(120, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 40, 3, padding=1), nn.Flatten(), nn.Linear(640, 4))
    )
    x = torch.randn(150, 120, 4, 4).relu()
    x[:, 7] = 0
    y = torch.randint(0, 4, (150,))
    found = growth_gain(model, LOSS, (x, y), example_inputs=x[:2], units=3)["0"]
    exact = growth_gain(model.double(), LOSS, (x.double(), y), example_inputs=x[:2].double())["0"]
    assert torch.allclose(found.gain, exact.gain[:3], rtol=5e-3)
    assert not found.fan_in[:, 7].any()


def test_the_stream_of_a_residual_network_is_left_out() -> None:
    model = structured("package's")
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    names = list(growth_gain(model, LOSS, (x, torch.tensor([0, 1, 2, 3])), example_inputs=X))
    assert names == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]


def teacher_and_student(widths: tuple[int, ...], seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A student that has learnt what it can of a wide teacher."""
    torch.manual_seed(seed)
    teacher = perceptron((6, 24, 24, 24, 5))
    student = perceptron((6, *widths, 5))
    x = torch.randn(600, 6)
    with torch.no_grad():
        y = teacher(x) * 3
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.mse_loss(student(x), y).backward()
        optimizer.step()
    return student, x, y


def perceptron(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_the_bottleneck_has_the_largest_gain() -> None:
    named = []
    for seed, narrow in itertools.product(range(3), range(3)):
        student, x, y = teacher_and_student(tuple(2 if each == narrow else 16 for each in range(3)), seed)
        gains = growth_gain(student, nn.MSELoss(), (x, y), example_inputs=x[:2])
        named.append(max(gains, key=lambda name: float(gains[name].gain[:1].sum())) == str(2 * narrow))
    assert sum(named) >= 7, named  # of nine; three by chance


BAD: dict[str, tuple[str, str, str]] = {
    "a stream": ("residual", "stem", r"stem has no gain \(got: 3 layers make the units \(stem, outer, excite"),
    "a depthwise layer": ("grouped", "depthwise", r"the model splits them, as into heads"),
    "heads": (
        "transformer",
        "attention.qkv",
        r"attention.qkv has no gain \(got: attention splits them, as into heads\)",
    ),
    "a product": ("transformer", "wide", r"wide has no gain"),
    "no such layer": ("residual", "iner", r"growth_gain: name must be that of a layer"),
    "the last one": ("residual", "head", r"growth_gain: outputs of head must be units"),
}


@pytest.mark.parametrize("kind", BAD)
def test_names_that_have_no_gain(kind: str) -> None:
    net, name, message = BAD[kind]
    model = structured(net)
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        growth_gain(model, LOSS, (X, torch.tensor([0, 1])), example_inputs=X, names=[name])
    assert_alike(everything(model), before)


FORWARDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "an unknown function": (lambda m, x: m.b(m.a(x).square()), r"no linear form of (pow|square)"),
    "a gate": (lambda m, x: m.b(m.a(x) * x.mean()), r"it with something else"),
    "its own square": (lambda m, x: m.b((h := m.a(x)) * h), r"multiplied by a tensor"),
    "max-pooling with holes": (lambda m, x: m.b(F.max_pool2d(m.a(x), 2, dilation=2)), r"max-pooling with dilation"),
    "a shared layer": (lambda m, x: m.b(m.a(m.c(m.a(x)))), r"must enter one operation"),
    "a layer read twice": (lambda m, x: m.b(m.a(x)) + m.b(m.a(x).tanh()), r"must enter one operation"),
}


@pytest.mark.parametrize("kind", FORWARDS)
def test_what_lies_between_must_have_a_linear_form(kind: str) -> None:
    forward, message = FORWARDS[kind]
    model = Net(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 3, 1), c=nn.Conv2d(4, 3, 1)).double()
    with pytest.raises(ValueError, match=message):
        growth_gain(model, LOSS, (X, torch.zeros(2, 8, 8, dtype=torch.int64)), example_inputs=X, names=["a"])
