"""More blocks and layers: the same outputs, a way back to the bit, and training that goes on and uses them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from structure_nets import Net, assert_alike, everything
from surgery_nets import randomised
from test_widen import OPTIMIZERS, check_state
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from resgrow import Masks, compact, deepen, load, save, widen
from resgrow.nn import KeyedModuleList, Residual, TriStateReLU, lenet5, resnet
from resgrow.surgery import channel_groups

X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SEQUENCES = torch.randn(3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class PreActivation(nn.Module):
    """Two branches at once, scaled, and a third behind them."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 4, 1)
        self.back, self.mix = nn.Conv2d(4, width, 1, bias=False), nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).relu()
        x = x + 0.5 * self.a(y) + self.back(F.silu(self.b(y)))
        return x.add(F.dropout(self.scale * self.mix(x).tanh(), 0.0))


def preactivation() -> nn.Module:
    stem, head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
    return nn.Sequential(stem, nn.Sequential(PreActivation(), PreActivation()), head)


class Strided(nn.Module):
    """Does not ask whether it has a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 1))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


def strided() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Strided()), nn.Conv2d(6, 2, 1))


def one_to_one() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), Residual(nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 5))))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def after_norm() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True), 2)


# The model, its inputs, what deepen is told, the new module, and what of it is zero.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any], str, set[str]]] = {
    "stage": (lambda: resnet(14, 0.5), X, {"name": "layer2"}, "layer2.2", {"bn2.weight", "bn2.bias"}),
    "block": (lambda: resnet(14, 0.5), X, {"name": "layer3.0"}, "layer3.0_1", {"bn2.weight", "bn2.bias"}),
    "only block": (lambda: resnet(8, 0.5), X, {"name": "layer2"}, "layer2.1", {"bn2.weight", "bn2.bias"}),
    "only block, shortcut called": (strided, X, {"name": "1"}, "1.1", {"branch.1.weight", "branch.1.bias"}),
    "last block": (lambda: resnet(14, 0.5), X, {"name": "layer1.1"}, "layer1.2", {"bn2.weight", "bn2.bias"}),
    "branches": (preactivation, X, {"name": "1"}, "1.2", {"a.weight", "a.bias", "back.weight", "scale"}),
    "the model": (one_to_one, VECTORS, {"name": ""}, "2", {"branch.2.weight", "branch.2.bias"}),
    "transformer": (
        encoder,
        SEQUENCES,
        {"name": "layers"},
        "layers.2",
        {"self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias"},
    ),
    "transformer, between": (
        encoder,
        SEQUENCES,
        {"name": "layers.0"},
        "layers.0_1",
        {"self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias"},
    ),
    "norms behind": (
        after_norm,
        SEQUENCES,
        {"name": "layers", "init": "residual"},
        "layers.2",
        {"branch.norm2.weight", "branch.norm2.bias"},
    ),
}


def plain(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*copy.deepcopy(layers))


def with_act(act: nn.Module) -> Callable[[], nn.Module]:
    return plain(nn.Linear(5, 6), act, nn.Linear(6, 2))


# For both inits: the model, its inputs, and the layer.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "linear": (with_act(nn.ReLU()), VECTORS, "0"),
    "relu6": (with_act(nn.ReLU6()), VECTORS, "0"),
    "hardtanh": (with_act(nn.Hardtanh()), VECTORS, "0"),
    "identity": (with_act(nn.Identity()), VECTORS, "0"),
    "gated": (with_act(TriStateReLU(6)), VECTORS, "0"),
    "in place": (with_act(nn.ReLU(inplace=True)), VECTORS, "0"),
    "without bias": (plain(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 2)), VECTORS, "0"),
    "dropout": (plain(nn.Linear(5, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2)), VECTORS, "0"),
    "positions": (plain(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), SEQUENCES, "0"),
    "1d": (plain(nn.Conv1d(7, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)), SEQUENCES, "0"),
    "3d": (plain(nn.Conv3d(3, 4, (1, 3, 2)), nn.ReLU(), nn.Conv3d(4, 1, 1)), X[:, :, None], "0"),
    "strides, dilation, even": (plain(nn.Conv2d(3, 4, (2, 3), 2, dilation=2), nn.ReLU(), nn.Conv2d(4, 2, 1)), X, "0"),
    "depthwise, circular": (
        plain(nn.Conv2d(3, 6, 3, padding=1, groups=3, padding_mode="circular"), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        X,
        "0",
    ),
    "norm": (plain(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)), X, "0"),
    "norm of vectors": (plain(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)), VECTORS, "0"),
    "pool before": (plain(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 2, 1)), X, "0"),
    "nested": (lambda: nn.Sequential(with_act(nn.ReLU())(), nn.ReLU()), VECTORS, "0.0"),
    "up": (plain(nn.ConvTranspose2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)), X, "0"),
}
ANY: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    type(act).__name__: (with_act(act), VECTORS, "0")
    for act in (nn.Tanh(), nn.GELU(), nn.Sigmoid(), nn.SiLU(), nn.PReLU(6), nn.LeakyReLU(), nn.Softplus())
} | {
    "nothing behind": (with_act(nn.ReLU()), VECTORS, "2"),
    "layer norm": (plain(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2)), VECTORS, "0"),
    "group norm": (plain(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 2, 1)), X, "0"),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomised(make()).double().eval()


def run(model: nn.Module, x: Tensor, training: bool = False) -> Tensor:
    """Leaves running statistics as they are."""
    with torch.no_grad():
        return (copy.deepcopy(model).train() if training else model)(x)


def step(model: nn.Module, x: Tensor, optimizer: Optimizer) -> None:
    model.train()
    optimizer.zero_grad()
    out = model(x)
    (out * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
    optimizer.step()
    model.eval()


def check_learning(model: nn.Module, path: str, x: Tensor) -> None:
    """Every new parameter has a gradient within two steps, and moves."""
    new = dict(model.get_submodule(path).named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in new.items()}
    optimizer, seen = SGD(model.parameters(), lr=1e-2), dict.fromkeys(new, False)
    for _ in range(2):
        step(model, x, optimizer)
        for name, parameter in new.items():
            seen[name] |= parameter.grad is not None and bool(parameter.grad.any())
    assert all(seen.values()), seen
    assert not [name for name, parameter in new.items() if torch.equal(parameter, start[name])]


def check_way_back(model: nn.Module, path: str, before: list[Any]) -> None:
    back = copy.deepcopy(model)
    parent, _, key = path.rpartition(".")
    delattr(back.get_submodule(parent), key)
    if type(back.get_submodule(parent)) is KeyedModuleList:
        back.get_submodule(parent).__class__ = nn.ModuleList
    assert_alike(everything(back), before)


@pytest.mark.parametrize("kind", BLOCKS)
def test_one_more_block(kind: str) -> None:
    make, x, told, path, zeros = BLOCKS[kind]
    model = made(make)
    before, names, held = everything(model), list(model.state_dict()), list(model.parameters())
    expected, training = run(model, x), run(model, x, training=True)
    assert deepen(model, example_inputs=x, **told) == path
    assert torch.equal(run(model, x), expected)
    assert torch.equal(run(model, x, training=True), training)
    assert [name for name in model.state_dict() if not name.startswith(f"{path}.")] == names
    own = {id(parameter) for parameter in model.parameters()}
    assert own.issuperset(map(id, held))
    new = dict(model.get_submodule(path).named_parameters())
    assert {name for name, parameter in new.items() if not parameter.any()} >= zeros
    assert all(parameter.any() for name, parameter in new.items() if name.endswith("weight") and name not in zeros)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    check_way_back(model, path, before)
    if x.dim() == 4:
        assert run(model, torch.cat([x, x])).shape[0] == 2 * len(x)
    check_learning(model, path, x)


@pytest.mark.parametrize("kind", LAYERS)
def test_identity_layers(kind: str) -> None:
    make, x, name = LAYERS[kind]
    model = made(make)
    before, expected = everything(model), run(model, x)
    state = torch.get_rng_state()
    path = deepen(model, name, example_inputs=x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(run(model, x), expected, rtol=1e-12, atol=1e-12)
    new = model.get_submodule(path)
    old = model.get_submodule(name)
    assert type(new[0]) is type(old) or isinstance(old, nn.ConvTranspose2d)
    # A batch norm would take the bias out.
    assert (new[0].bias is None) == (old.bias is None or len(new) == 3)
    assert (new[0].weight.flatten() == 1).sum() == (new[0].weight != 0).sum() == len(new[0].weight)
    check_way_back(model, path, before)
    if "gated" not in kind and "dropout" not in kind:
        check_learning(model, path, x)


@pytest.mark.parametrize("kind", [*LAYERS, *ANY])
def test_residual_branches_behind_any_activation(kind: str) -> None:
    make, x, name = {**LAYERS, **ANY}[kind]
    model = made(make)
    before, expected = everything(model), run(model, x)
    generator = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    path = deepen(model, name, example_inputs=x, init="residual", generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(run(model, x), expected)
    assert isinstance(model.get_submodule(path), Residual)
    check_way_back(model, path, before)
    if "dropout" not in kind:
        torch.manual_seed(0)
        check_learning(model, path, x)


def test_a_batch_norm_takes_its_statistics_from_what_arrives() -> None:
    model = made(LAYERS["norm"][0])
    values = model[:3](X)
    new = model.get_submodule(deepen(model, "0", example_inputs=X))
    norm = new[1]
    torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, values.var((0, 2, 3)))
    # On that very batch, training sees the same numbers but for the correction of the variance.
    torch.testing.assert_close(new.train()(values), values, rtol=1e-2, atol=1e-2)


def test_new_blocks_go_right_behind_the_named_one_and_have_names_of_their_own() -> None:
    model = made(lambda: resnet(14, 0.5))
    paths = [deepen(model, name, example_inputs=X) for name in ("layer2.0", "layer2.0", "layer2.0_1", "layer2")]
    assert paths == ["layer2.0_1", "layer2.0_2", "layer2.0_1_1", "layer2.2"]
    assert list(model.layer2._modules) == ["0", "0_2", "0_1", "0_1_1", "1", "2"]
    model = made(lambda: lenet5(image_size=16))
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    assert [deepen(model, name, example_inputs=x) for name in ("0", "0", "2_1.0")] == ["2_1", "2_2", "2_1.2"]


def test_lists_find_their_modules_by_position() -> None:
    model = made(encoder)
    last = model.layers[1]
    deepen(model, "layers.0", example_inputs=SEQUENCES)
    for layers in (model.layers, copy.deepcopy(model).layers):
        assert [name for name, _ in layers.named_children()] == ["0", "0_1", "1"]
        assert layers[1] is layers.get_submodule("0_1")
        assert layers[-1] is layers[2] is layers.get_submodule("1")
        with pytest.raises(IndexError):
            layers[3]
    assert model.layers[-1] is last


def test_draws_are_those_of_the_generator() -> None:
    first, second = (made(lambda: resnet(14, 0.5)) for _ in range(2))
    for model in (first, second):
        state = torch.get_rng_state()
        deepen(model, "layer1", example_inputs=X, generator=torch.Generator().manual_seed(5))
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
    assert_alike(everything(first), everything(second))
    assert first.layer1[2].conv1.weight.abs().max() <= first.layer1[2].conv1.weight[0].numel() ** -0.5


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("init", ["zero", "identity", "residual"])
def test_optimizers_go_on(kind: str, init: str) -> None:
    model = made(lambda: nn.Sequential(one_to_one(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(2):
        step(model, VECTORS, optimizer)
    known = copy.deepcopy({id(p): state for p, state in optimizer.state.items()})
    path = deepen(model, "0" if init == "zero" else "1", example_inputs=VECTORS, optimizer=optimizer, init=init)
    check_state(model, optimizer)
    for p, state in optimizer.state.items():
        if id(p) in known:
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(state[k])) for k, v in known[id(p)].items())
    new = {name: p.detach().clone() for name, p in model.get_submodule(path).named_parameters()}
    for _ in range(3):
        step(model, VECTORS, optimizer)
    check_state(model, optimizer)
    assert not [name for name, p in model.get_submodule(path).named_parameters() if torch.equal(p, new[name])]


def test_new_parameters_join_the_groups_of_those_they_go_with() -> None:
    model = made(lambda: resnet(14, 0.5))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    second = SGD(model.layer2.parameters(), lr=0.1)
    deepen(model, "layer2", example_inputs=X, optimizer=[optimizer, second])
    new = model.layer2[2]
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(decayed) + 2, len(others) + 4]
    assert all(p.dim() > 1 for p in optimizer.param_groups[0]["params"])
    assert {id(p) for p in new.parameters()} < {id(p) for p in second.param_groups[0]["params"]}
    step(model, X, optimizer)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-4]
    assert optimizer.state[new.bn2.weight]["exp_avg"].any()


def test_followers_get_the_same_values_in_their_own_dtype() -> None:
    model = made(lambda: resnet(14, 0.5))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    half = copy.deepcopy(model).float().requires_grad_(False)
    deepen(model, "layer2.0", example_inputs=X, followers=[averaged, half])
    assert all(torch.equal(a, b) for a, b in zip(averaged.module.parameters(), model.parameters(), strict=True))
    assert list(half.state_dict()) == list(model.state_dict())
    new = half.layer2.get_submodule("0_1")
    assert not any(p.requires_grad for p in new.parameters())
    assert new.bn1.running_var.dtype == new.conv1.weight.dtype == torch.float32
    assert torch.equal(new.conv1.weight.double(), model.layer2.get_submodule("0_1").conv1.weight.float().double())
    step(model, X, SGD(model.parameters(), lr=0.1))
    averaged.update_parameters(model)
    assert torch.isfinite(run(averaged.module, X)).all()


def test_masks_know_of_new_parameters_that_go_with_masked_ones() -> None:
    model = made(lambda: resnet(14, 0.5))
    masks = Masks(model, {"layer2.1.conv1.weight": torch.rand(model.layer2[1].conv1.weight.shape) < 0.5})
    optimizer = SGD(model.parameters(), lr=0.1)
    masks.attach(optimizer)
    deepen(model, "layer2", example_inputs=X, optimizer=optimizer, masks=masks)
    assert list(masks) == ["layer2.1.conv1.weight", "layer2.2.conv1.weight"]
    assert masks["layer2.2.conv1.weight"].all()
    step(model, X, optimizer)
    step(model, X, optimizer)
    assert model.layer2[2].conv1.weight.all()
    assert not model.layer2[1].conv1.weight[~masks["layer2.1.conv1.weight"]].any()


def test_deeper_models_are_saved_and_loaded(tmp_path: Any) -> None:
    model = made(lambda: lenet5(image_size=16))
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    deepen(model, "0", example_inputs=x, init="residual")
    deepen(model, "7", example_inputs=x)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert list(again.state_dict()) == list(model.state_dict())
    assert torch.equal(run(again, x), run(model, x))


def test_inputs_of_several_kinds_and_results_in_a_tuple() -> None:
    def forward(m: Any, x: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = m.stage(m.table(ids) + x)
        return y, {"mean": y.mean()}

    class Two(Net):
        def forward(self, x: Tensor, ids: Tensor) -> Any:
            return forward(self, x, ids)

    torch.manual_seed(0)
    model = Two(lambda m, x: x, table=nn.Embedding(9, 5), stage=nn.ModuleList().append(one_to_one()[1])).double()
    model.stage = nn.Sequential(*model.stage)
    inputs = (VECTORS, torch.arange(6))
    assert deepen(model.eval(), "stage", example_inputs=inputs) == "stage.1"


def test_surgery_goes_on_with_deeper_models() -> None:
    model = made(lambda: resnet(8, 0.5))
    paths = [deepen(model, name, example_inputs=X) for name in ("layer2", "layer2.0")]
    step(model, X, SGD(model.parameters(), lr=0.1))
    expected = run(model, X)
    widen(model, f"{paths[1]}.conv1", 4, example_inputs=X)
    assert model.get_submodule(paths[1]).conv2.in_channels == 20
    compact(model, X, inplace=True)
    assert model.get_submodule(paths[1]).conv2.in_channels == 16
    torch.testing.assert_close(run(model, X), expected, rtol=1e-12, atol=1e-12)
    assert {f"{path}.conv1" for path in paths} < {group.producer for group in channel_groups(model, "test")}


def test_modes_and_layouts_stay() -> None:
    model = made(lambda: resnet(14, 0.5)).to(memory_format=torch.channels_last).train()
    model.layer2[1].bn1.eval()
    deepen(model, "layer2", example_inputs=X)
    new = model.layer2[2]
    assert [new.training, new.bn1.training, new.bn2.training] == [True, False, True]
    assert new.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    plain_model = made(LAYERS["norm"][0]).to(memory_format=torch.channels_last)
    layer = plain_model.get_submodule(deepen(plain_model, "0", example_inputs=X))[0]
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
