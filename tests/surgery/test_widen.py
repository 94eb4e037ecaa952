"""More units: the same outputs, a way back to the bit, and training that goes on and uses them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structure_nets import MODELS, Net, X, assert_alike, everything, made, outputs, trained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from resgrow import widen
from resgrow.nn import TriStateReLU
from resgrow.surgery.structure import Edit, Group, remove, structure

# Units that no network of these can have more of: halves of what a shuffle has put in order.
STUCK = ("grouped", "wide.weight")


def check_state(model: nn.Module, optimizer: Optimizer) -> None:
    """Every parameter is held once, and what is known of it has its shape and layout."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in optimizer.state} <= set(held)
    for p, state in optimizer.state.items():
        assert all(v.shape == p.shape for v in state.values() if isinstance(v, Tensor) and v.dim())


def group_of(model: nn.Module, first: str, x: Tensor = X) -> tuple[list[Group], int]:
    groups = structure(model, (x,), "test").groups
    return groups, next(i for i, group in enumerate(groups) if group.places[0].name == first)


def without_last(model: nn.Module, first: str, by: int, x: Tensor = X, optimizers: tuple[Optimizer, ...] = ()) -> None:
    groups, number = group_of(model, first, x)
    gone = torch.zeros(groups[number].size, dtype=torch.bool)
    gone[-by:] = True
    remove(Edit(model, optimizers), groups, {number: gone})


def makers(name: str) -> list[str]:
    return [group.places[0].name for group in structure(made(name), (X,), "test").groups]


CASES = [(name, first) for name in MODELS for first in makers(name) if (name, first) != STUCK]


@pytest.mark.parametrize(("name", "first"), CASES)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 999), by=st.integers(1, 9))
def test_there_and_back(name: str, first: str, seed: int, by: int) -> None:
    model = made(name, seed)
    optimizer = Adam(model.parameters(), lr=1e-3)
    trained(model, optimizer)
    before, expected, held = everything(model, optimizer), outputs(model), list(model.parameters())
    groups, number = group_of(model, first)
    widen(model, first, by, example_inputs=X, optimizer=optimizer)
    assert (outputs(model) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert outputs(model, torch.cat([X, X])).shape[0] == 4
    assert all(p is q for p, q in zip(model.parameters(), held, strict=True))
    check_state(model, optimizer)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
    now = structure(model, (X,), "test").groups
    assert [group.size for group in now] == [g.size + by * (i == number) for i, g in enumerate(groups)]
    without_last(model, first, by, optimizers=(optimizer,))
    assert_alike(everything(model, optimizer), before)
    assert torch.equal(outputs(model), expected)


@pytest.mark.parametrize(("name", "first"), CASES)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 999), by=st.integers(1, 9))
def test_copies_share_what_reads_them(name: str, first: str, seed: int, by: int) -> None:
    model = made(name, seed)
    expected = outputs(model)
    generator = torch.Generator().manual_seed(seed)
    widen(model, first, by, example_inputs=X, init="net2wider", generator=generator)
    assert (outputs(model) - expected).abs().max() <= 1e-12 * expected.abs().max()
    # Copies in all that makes them, and in what reads them
    groups, number = group_of(model, first)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for place in groups[number].places:
        units = tensors[place.name].detach().movedim(place.dim, 0)[place.index].flatten(1)
        assert all(any(torch.equal(new, old) for old in units[:-by]) for new in units[-by:])


def test_copies_of_one_unit_have_a_third_each() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    one, other = copy.deepcopy((model[0].weight.detach(), model[2].weight.detach()))
    widen(model, "0", 2, example_inputs=torch.randn(4, 2).double(), init="net2wider")
    assert torch.equal(model[0].weight, one.expand(3, 2))
    assert torch.equal(model[2].weight, (other / 3).expand(2, 3))


@pytest.mark.parametrize(("name", "first"), CASES)
def test_all_that_is_new_learns_within_two_steps(name: str, first: str) -> None:
    # In training, norms take out what the bias in front of them adds: it has no gradient, new or not.
    model = made(name)
    # Single units can be dead behind a ReLU.
    widen(model, first, 4, example_inputs=X, generator=torch.Generator().manual_seed(2))
    optimizer = SGD(model.parameters(), lr=1e-3)
    groups, number = group_of(model, first)
    parameters = dict(model.named_parameters())
    new = {
        (place.name, place.dim): parameters[place.name].movedim(place.dim, 0)[place.index[-4:]]
        for place in groups[number].places
        if place.name in parameters
    }
    start = {key: value.detach().clone() for key, value in new.items()}
    seen = dict.fromkeys(new, False)
    for _ in range(2):
        trained(model, optimizer, 1)
        for name_, dim in seen:
            place = next(p for p in groups[number].places if (p.name, p.dim) == (name_, dim))
            grad = parameters[name_].grad
            assert grad is not None
            units = grad.movedim(dim, 0)[place.index[-4:]].flatten(1)
            seen[name_, dim] |= bool(units.any())
    assert all(seen.values()), seen
    for (name_, dim), old in start.items():
        place = next(p for p in groups[number].places if (p.name, p.dim) == (name_, dim))
        assert not torch.equal(parameters[name_].detach().movedim(dim, 0)[place.index[-4:]], old)


def test_every_single_new_weight_learns_where_none_is_dead() -> None:
    model = made("residual")
    model.stem.bias.data.fill_(2.0)
    widen(model, "inner", 3, example_inputs=X)
    optimizer = SGD(model.parameters(), lr=1e-2)
    before = model.inner.weight.detach()[6:].clone()
    trained(model, optimizer, 1)
    assert model.outer.weight.grad[:, 6:].all()
    assert not model.inner.weight.grad[6:].any()  # nothing reads them yet
    trained(model, optimizer, 1)
    assert model.inner.weight.grad[6:].all()
    assert (model.inner.weight.detach()[6:] != before).all()


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "Adam": lambda p: Adam(p, lr=1e-3),
    "AdamW, amsgrad": lambda p: AdamW(p, lr=1e-3, amsgrad=True),
    "fused Adam": lambda p: Adam(p, lr=1e-3, fused=True),
    "foreach Adam": lambda p: Adam(p, lr=1e-3, foreach=True),
    "SGD with momentum": lambda p: SGD(p, lr=1e-3, momentum=0.9),
    "RMSprop": lambda p: RMSprop(p, lr=1e-4, momentum=0.5, centered=True),
    "Adagrad": lambda p: Adagrad(p, lr=1e-3),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("first", ["stem.weight", "inner.weight"])
def test_ten_further_steps(kind: str, first: str) -> None:
    model = made("residual").train().to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[kind](model.parameters())
    trained(model, optimizer, 3)
    known = {id(p): p.shape for p in optimizer.state}
    widen(model, first, 3, example_inputs=X, optimizer=optimizer)
    check_state(model, optimizer)
    assert model.inner.weight.is_contiguous(memory_format=torch.channels_last)
    for p, state in optimizer.state.items():
        for value in state.values():
            if isinstance(value, Tensor) and value.dim():
                assert value.stride() == p.stride()
                assert value.sum() == gathered_sum(value, known[id(p)])  # zero in what is new
    loss = [F.mse_loss(outputs(model), torch.ones(2, 5).double()).item()]
    for _ in range(10):
        optimizer.zero_grad()
        F.mse_loss(model(X), torch.ones(2, 5).double()).backward()
        optimizer.step()
        loss.append(F.mse_loss(outputs(model), torch.ones(2, 5).double()).item())
    assert loss[-1] < loss[0]
    check_state(model, optimizer)


def gathered_sum(value: Tensor, shape: torch.Size) -> Tensor:
    """Over the part that was there before: in these nets new units lie at the end."""
    kept = torch.zeros_like(value)
    kept[tuple(slice(size) for size in shape)] = value[tuple(slice(size) for size in shape)]
    return kept.sum()


def test_state_and_gradients_are_zero_where_new_and_kept_elsewhere() -> None:
    model = made("residual")
    optimizer = Adam(model.parameters())
    trained(model, optimizer)
    moment, grad = optimizer.state[model.stem.weight]["exp_avg_sq"].clone(), model.stem.weight.grad.clone()
    widen(model, "stem", 2, example_inputs=X, optimizer=optimizer)
    for old, new in ((moment, optimizer.state[model.stem.weight]["exp_avg_sq"]), (grad, model.stem.weight.grad)):
        assert torch.equal(new[:8], old)
        assert not new[8:].any()
        assert len(new) == 10


def test_several_optimizers_groups_and_schedulers() -> None:
    model = made("residual")
    first = SGD([*model.stem.parameters(), *model.head.parameters()], lr=0.1, momentum=0.9)
    rest = [p for p in model.parameters() if not any(p is q for g in first.param_groups for q in g["params"])]
    second = Adam([{"params": rest[:3]}, {"params": rest[3:], "weight_decay": 0.1}], lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(second, 1, 0.5)
    trained(model, first, 1)
    trained(model, second, 1)
    widen(model, "stem", 2, example_inputs=X, optimizer=[first, second])
    for optimizer in (first, second):
        trained(model, optimizer, 2)
        for p, state in optimizer.state.items():
            assert all(v.shape == p.shape for v in state.values() if isinstance(v, Tensor) and v.dim())
    scheduler.step()
    assert [group["lr"] for group in second.param_groups] == [0.005, 0.005]
    assert [len(group["params"]) for group in second.param_groups] == [3, len(rest) - 3]


def test_any_layer_stands_for_its_stream() -> None:
    for name in ("stem", "stem.bias", "outer", "excite.weight"):
        model = made("residual")
        widen(model, name, 1, example_inputs=X)
        sizes = (model.stem.out_channels, model.outer.out_channels, model.inner.in_channels, model.head.in_features)
        assert sizes == (9, 9, 9, 9)
        assert not model.inner.weight[:, 8].any()
        assert not model.head.weight[:, 8].any()
        assert model.outer.weight[8].all()
    model = made("residual")
    widen(model, "norm", 1, example_inputs=X)
    assert model.inner.out_channels == model.norm.num_features == model.outer.in_channels == 7


def test_new_entries_are_those_of_a_new_layer() -> None:
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(3, 4, 3, padding=1),
        "norm": nn.BatchNorm2d(4),
        "gate": TriStateReLU(4),
        "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
        "slope": nn.PReLU(4, init=0.1),
        "read": nn.Conv2d(4, 2, 1),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    model = model.double().eval()
    for p in model.parameters():
        nn.init.uniform_(p, 0.8, 1.2)
    widen(model, "conv", 400, example_inputs=X)
    for weight in (model.conv.weight[4:], model.depthwise.weight[4:]):
        bound = weight[0].numel() ** -0.5
        assert 0.98 * bound < weight.abs().max() <= bound
        assert abs(float(weight.detach().mean())) < 0.05 * bound
    assert 0.98 * 27**-0.5 < model.conv.bias[4:].abs().max() <= 27**-0.5
    assert model.depthwise.groups == model.depthwise.in_channels == 404
    norm = model.norm
    for tensor, value in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        assert (tensor[4:] == value).all()
    assert (model.gate.w[4:] == 0.7).all()
    assert (model.slope.weight[4:] == 0.1).all()
    assert not model.read.weight[:, 4:].any()


def test_attention_of_torch_and_embeddings() -> None:
    torch.manual_seed(0)
    words = torch.randint(0, 9, (2, 5))
    model = Net(
        lambda m, x: m.head(m.attention(*3 * [m.words(x)], need_weights=False)[0]).mean(1),
        words=nn.Embedding(9, 8, padding_idx=0),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, 3),
    ).double()
    expected = outputs(model, words)
    widen(model, "attention", 2, example_inputs=words)
    assert model.attention.num_heads == 4
    assert model.attention.in_proj_weight.shape == (48, 8)
    assert (outputs(model, words) - expected).abs().max() <= 1e-12
    rows = model.attention.in_proj_weight.view(3, 16, 8)[:, 8:]
    assert 0.8 * (6 / 32) ** 0.5 < rows.abs().max() <= (6 / 32) ** 0.5
    assert not model.attention.in_proj_bias.view(3, 16)[:, 8:].any()
    widen(model, "words", 3, example_inputs=words)
    assert model.words.weight.shape == (9, 11)
    assert model.words.embedding_dim == 11
    assert not model.words.weight[0, 8:].any()
    assert model.words.weight[1:, 8:].all()
    assert (outputs(model, words) - expected).abs().max() <= 1e-12


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "channels last of what is flattened": (
        lambda: Net(
            lambda m, x: m.read(m.conv(x).permute(0, 2, 3, 1).flatten(1)),
            conv=nn.Conv2d(3, 2, 1),
            read=nn.Linear(128, 2),
        ),
        "conv",
    ),
    "transposed convolution in groups": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 2, 2, groups=2, bias=False), nn.Tanh(), nn.Conv2d(4, 2, 1))
        ),
        "1",
    ),
    "grouped convolution": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 1))
        ),
        "0",
    ),
    "twice side by side": (
        lambda: Net(
            lambda m, x: m.read(torch.cat([m.conv(x), x, m.conv(x).tanh()], 1)),
            conv=nn.Conv2d(3, 2, 1),
            read=nn.Conv2d(7, 2, 1),
        ),
        "conv",
    ),
    "a parameter of nobody known": (
        lambda: Net(
            lambda m, x: m.read(m.conv(x) * m.scale),
            conv=nn.Conv2d(3, 4, 1),
            scale=nn.Parameter(torch.rand(4, 1, 1)),
            read=nn.Conv2d(4, 2, 1),
        ),
        "scale",
    ),
    "shared layers": (
        lambda: Net(lambda m, x: m.out(m.a(x).tanh() + m.a(m.b(m.a(x)).tanh())), a=(a := nn.Conv2d(3, 5, 1)),
                    same=a, b=nn.Conv2d(5, 3, 1), out=nn.Conv2d(5, 2, 1)),
        "same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("init", ["random", "net2wider"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks(kind: str, init: str) -> None:
    make, name = OTHERS[kind]
    torch.manual_seed(0)
    model = make().double().eval()
    optimizer = Adam(model.parameters(), lr=1e-3)
    trained(model, optimizer)
    before, expected = everything(model, optimizer), outputs(model)
    first = structure(model, (X,), "test").groups[0].places[0].name
    widen(model, name, 2, example_inputs=X, optimizer=optimizer, init=init)
    assert (outputs(model) - expected).abs().max() <= 1e-12 * expected.abs().max()
    check_state(model, optimizer)
    if init == "random":
        without_last(model, first, 2, optimizers=(optimizer,))
        assert_alike(everything(model, optimizer), before)
        widen(model, name, 2, example_inputs=X, optimizer=optimizer, init=init)
    trained(model, optimizer, 2)
    assert not torch.allclose(outputs(model), expected, rtol=1e-6)
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_graph_that_is_still_alive_and_hooks_do_not_hinder() -> None:
    model, called = made("residual"), []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: called.append(p.shape))
    model.stem.weight.register_hook(lambda grad: grad * 0)
    optimizer = SGD(model.parameters(), lr=0.1)
    loss = model(X).sum()
    loss.backward()
    widen(model, "stem", 2, example_inputs=X, optimizer=optimizer)
    called.clear()
    optimizer.zero_grad()
    again = model(X).sum()
    again.backward()
    assert sorted(called) == sorted(p.shape for p in model.parameters())
    assert not model.stem.weight.grad.any()
    assert model.head.weight.grad.shape == (5, 10)
    widen(model, "stem", 2, example_inputs=X, optimizer=optimizer)
    model(X).sum().backward()


def test_random_numbers_come_from_the_generator() -> None:
    models = [made("residual") for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        state = torch.get_rng_state()
        widen(model, "stem", 1, example_inputs=X, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(models[0].stem.weight, models[1].stem.weight)
    assert not torch.equal(models[0].stem.weight, models[2].stem.weight)


def test_half_precision_and_training_flags() -> None:
    model = made("residual").to(torch.bfloat16).train()
    model.norm.eval()
    widen(model, "inner", 2, example_inputs=X.bfloat16())
    assert model.inner.weight.dtype == model.norm.running_var.dtype == torch.bfloat16
    assert [m.training for m in (model, model.inner, model.norm)] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer2.1.conv2"),
        ("shufflenet_v2_x0_5", "stage2.1.branch2.0"),
        ("mobilenet_v3_small", "features.2"),
    ],
)
def test_networks_for_images(name: str, layer: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.get_model(name, num_classes=10).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = outputs(model, x)
    names = [key for key, module in model.named_modules() if key.startswith(layer) and isinstance(module, nn.Conv2d)]
    widen(model, names[0], 3, example_inputs=x)
    assert (outputs(model, x) - expected).abs().max() <= 1e-12 * expected.abs().max()
