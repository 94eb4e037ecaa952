"""The ripple against the exact Hessian, against perturbations made by hand, and against finite differences."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brute import assert_unchanged, hessian_diagonal, state
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import resgrow
from resgrow.nn import TriStateReLU, resnet

CE = nn.CrossEntropyLoss()


def smooth() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def convolutions() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3),
        nn.GroupNorm(1, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    return uneven(model).double()


class Encoder(nn.Module):
    """Words, attention, a sum over the way round a layer, and an output layer that shares the words' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 8)
        self.place = nn.Parameter(torch.randn(4, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 7)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.words(x) + self.place).mean(1))


def uneven(model: nn.Module) -> nn.Module:
    """Norms that shift and scale."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "smooth": (smooth, lambda: torch.randn(20, 5).double(), 3),
    "convolutions": (convolutions, lambda: torch.randn(6, 2, 8, 8).double(), 3),
    "residual": (lambda: uneven(resnet(8, 0.25, 3, 4)).double(), lambda: torch.randn(5, 3, 8, 8).double(), 4),
    "encoder": (lambda: Encoder().double(), lambda: torch.randint(0, 7, (9, 4)), 7),
}


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    make, inputs, classes = MODELS[name]
    model, x = make(), inputs()
    return model, x, torch.randint(0, classes, (len(x),))


def own(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_parameters(recurse=False)]


@pytest.mark.parametrize("net", ["smooth", "convolutions"])
def test_analytic_is_the_exact_diagonal_with_its_signs(net: str) -> None:
    model, x, y = made(net)
    h = hessian_diagonal(model, CE, x, y)
    found = resgrow.ripple(model, CE, (x, y), sigma=0.3, curvature="hessian", draws=0, directions=0)
    by_hand = {
        layer.name: 0.09
        * sum(
            float(
                (0.5 * h[f"{layer.name}.{name}"] * model.get_parameter(f"{layer.name}.{name}").detach().square()).sum()
            )
            for name in own(model.get_submodule(layer.name))
        )
        for layer in found.layers
    }
    assert {layer.name: layer.analytic for layer in found.layers} == pytest.approx(by_hand, rel=1e-9)
    assert any(float(value.min()) < -1e-4 for value in h.values())
    assert all(layer.measured is None and layer.error is None and layer.reach is None for layer in found.layers)


def test_analytic_and_measured_agree_for_small_changes() -> None:
    model, x, y = made("smooth")
    found = resgrow.ripple(model, CE, (x, y), sigma=1e-2, curvature="hessian", draws=200, directions=0)
    for layer in found.layers:
        assert layer.measured is not None
        assert layer.error is not None
        assert 0 < layer.error < abs(layer.analytic)
        assert abs(layer.measured - layer.analytic) < 4 * layer.error


def test_pairs_cancel_the_gradient() -> None:
    """Far from a minimum a single perturbation is nearly all gradient."""
    model, x, y = made("smooth")
    found = resgrow.ripple(model, CE, (x, y), sigma=1e-3, draws=20, directions=0)
    before = CE(model(x), y)
    w, noise = model[0].weight, torch.randn(20, 6, 5, dtype=x.dtype)
    alone = [CE(functional_call(model, {"0.weight": w * (1 + 1e-3 * z)}, (x,)), y) - before for z in noise]
    error = found["0"].error
    assert error is not None
    assert error < 0.05 * float(torch.stack(alone).std() / 20**0.5)


def test_measured_is_the_mean_over_pairs_and_error_its_standard_error() -> None:
    model, x, y = made("convolutions")
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    generator = torch.Generator().manual_seed(5)
    found = resgrow.ripple(model, CE, batches, sigma=0.2, draws=3, directions=0, generator=generator, curvature="ggn")
    same = torch.Generator().manual_seed(5)
    torch.randint(2**62, (), generator=same)  # what the curvature pass draws its seed from
    before, rises = float(CE(model.eval()(x), y).detach()), []
    weight, bias = model[0].weight.detach(), model[0].bias.detach()
    for _ in range(3):
        z = [torch.randn(each.shape, generator=same).double() for each in (weight, bias)]
        losses = []
        for s in (0.2, -0.2):
            changed = {"0.weight": weight * (1 + s * z[0]), "0.bias": bias * (1 + s * z[1])}
            losses.append(float(CE(functional_call(model, changed, (x,)), y)))
        rises.append(sum(losses) / 2 - before)
    rises = torch.tensor(rises, dtype=torch.float64)
    assert found["0"].measured == pytest.approx(float(rises.mean()), rel=1e-9)
    assert found["0"].error == pytest.approx(float(rises.std() / 3**0.5), rel=1e-9)
    assert found.loss == pytest.approx(before, rel=1e-12)


def by_differences(model: nn.Module, found: Any, x: Tensor, seed: int) -> dict[str, dict[str, float]]:
    """Reach of each layer along the direction that a generator of this seed gives, from outputs kept whole."""
    generator, result = torch.Generator().manual_seed(seed), {}
    torch.randint(2**62, (), generator=generator)
    names = [layer.name for layer in found.layers]
    owned: set[int] = set()

    def outputs(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                seen[name] = (output if isinstance(output, Tensor) else output[0]).detach().clone()

            return hook

        handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        with torch.enable_grad():  # keeps attention on its slow path
            output = functional_call(model, weights, (x,)).detach()
        for handle in handles:
            handle.remove()
        return {**seen, "output": output}

    for name in names:
        prefix = f"{name}." if name else ""
        values = {}
        for key, p in model.get_submodule(name).named_parameters(recurse=False):
            if id(p) not in owned:
                owned.add(id(p))
                values[prefix + key] = p.detach()
        ways = {key: w * torch.randn(w.shape, generator=generator).double() for key, w in values.items()}
        plus, minus = (outputs({key: w + s * ways[key] for key, w in values.items()}) for s in (1e-6, -1e-6))
        rms = {at: float((plus[at] - minus[at]).norm() / 2e-6 / ((plus[at] + minus[at]) / 2).norm()) for at in plus}
        result[name] = {at: 0.1 * change for at, change in rms.items() if change}
    return result


@pytest.mark.parametrize("net", MODELS)
def test_reach_is_the_directional_derivative_at_every_layer(net: str) -> None:
    model, x, y = made(net)
    batches, generator = [(x[:3], y[:3]), (x[3:], y[3:])], torch.Generator().manual_seed(3)
    found = resgrow.ripple(model, CE, batches, curvature="fisher", draws=0, directions=1, generator=generator)
    assert not found.notes
    for name, wanted in by_differences(model.eval(), found, x, 3).items():
        assert found[name].reach == pytest.approx(wanted.pop("output"), rel=1e-5)
        assert found[name].downstream == pytest.approx(wanted, rel=1e-5)


def test_what_is_felt_where() -> None:
    model, x, y = made("residual")
    found = resgrow.ripple(model, CE, (x, y), draws=0)
    assert list(found["fc"].downstream) == ["fc"]
    assert "layer2.0.downsample.0" not in found["layer2.0.conv1"].downstream  # beside it, not behind
    assert set(found["layer2.0.conv1"].downstream) < set(found["conv1"].downstream)
    assert set(found["conv1"].downstream) == {layer.name for layer in found.layers}
    assert found["fc"].downstream["fc"] == pytest.approx(found["fc"].reach)
    # One layer's own output, linear in its weights without bias: E[(sum_k w_k z_k x_k)^2] / (sum_k w_k x_k)^2.
    w, patches = model.get_parameter("conv1.weight").detach().flatten(1), F.unfold(x, 3, padding=1)
    changed = (w.square() @ patches.square()).mean().sqrt() / (w @ patches).square().mean().sqrt()
    many = resgrow.ripple(model, CE, (x, y), draws=0, directions=60, sigma=0.5)
    assert many["conv1"].downstream["conv1"] == pytest.approx(0.5 * float(changed), rel=0.1)


class Cube(torch.autograd.Function):
    """Has no forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * 3 * x**2


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (Cube.apply, "forward AD|jvp"),
        (lambda x: x.detach() ** 3, "its tangents are not what a finite difference gives"),
    ],
    ids=["no derivative", "a lost one"],
)
def test_finite_differences_stand_in_and_are_told(function: Callable[[Tensor], Tensor], why: str) -> None:
    x, y = torch.randn(20, 5).double(), torch.randint(0, 3, (20,))
    layers = [nn.Linear(5, 4), nn.Linear(4, 3)]
    known, other = (nn.Sequential(layers[0], Apply(f), layers[1]).double() for f in (lambda x: x**3, function))
    wanted = resgrow.ripple(known, CE, (x, y), draws=0)
    found = resgrow.ripple(other, CE, (x, y), draws=0)
    assert not wanted.notes
    (note,) = found.notes
    assert note.startswith("reach of 0 by finite differences: ")
    assert any(part in note for part in why.split("|"))
    for name in ("0", "2"):
        assert found[name].reach == pytest.approx(wanted[name].reach, rel=1e-6)
        assert found[name].downstream == pytest.approx(wanted[name].downstream, rel=1e-6)


def test_layers_are_modules_with_weights_of_their_own() -> None:
    model, x, y = made("encoder")
    found = resgrow.ripple(model, CE, (x, y), draws=0, directions=0)
    attention = "block.self_attn"
    # The model's own places, and the words, which the head shares: its bias alone makes no row.
    assert [layer.name for layer in found.layers] == [
        "",
        "words",
        attention,
        f"{attention}.out_proj",
        "block.linear1",
        "block.linear2",
    ]
    assert found["words"].params == 56
    assert found["block.linear1"].params == 8 * 12 + 12
    every = resgrow.ripple(model, CE, (x, y), draws=0, directions=0, all_parameters=True)
    assert {layer.name for layer in every.layers} - {layer.name for layer in found.layers} == {
        "head",
        "block.norm1",
        "block.norm2",
    }
    assert every["head"].params == 7
    assert sum(layer.params for layer in every.layers) == sum(p.numel() for p in model.parameters())


def test_frozen_parameters_stay() -> None:
    model, x, y = made("smooth")
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    found = resgrow.ripple(model, CE, (x, y), curvature="hessian", draws=0, directions=0)
    assert [layer.name for layer in found.layers] == ["2", "4"]
    thawed = copy.deepcopy(model[2:]).requires_grad_(True)
    weight = hessian_diagonal(thawed, CE, torch.tanh(model[0](x)).detach(), y)["2.weight"]
    assert found["2"].analytic == pytest.approx(0.005 * float((weight * model[2].weight.square()).sum()))
    assert found["2"].params == 28


def test_gain_and_cost() -> None:
    model, x, y = made("residual")
    found = resgrow.ripple(model, CE, (x, y), draws=0, directions=0, example_inputs=x[:1], units=3)
    gains = resgrow.growth_gain(model, CE, (x, y), example_inputs=x[:1])
    assert set(gains) == {"layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"}
    for layer in found.layers:
        wanted = float(gains[layer.name].gain[:3].sum()) if layer.name in gains else None
        assert layer.gain == (None if wanted is None else pytest.approx(wanted))
    counted = resgrow.profile(model, x[:1])
    assert {layer.name: (layer.params, layer.macs) for layer in found.layers} == {
        layer.name: (layer.params, layer.macs) for layer in counted.layers if layer.macs
    }


def test_a_model_that_cannot_be_followed_has_no_gain() -> None:
    class Branching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if self.switch > 0 else -x)

    model, x, y = Branching(*smooth()), torch.randn(8, 5).double(), torch.zeros(8, dtype=torch.int64)
    model.register_buffer("switch", torch.ones(()))
    found = resgrow.ripple(model, CE, (x, y), draws=1, example_inputs=x)
    assert [layer.gain for layer in found.layers] == [None] * 3
    assert any(note.startswith("gains are not known: growth_gain") for note in found.notes)
    assert found["0"].macs == 30


class Counting(nn.Module):
    """Writes to a buffer and draws random numbers whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(convolutions(), nn.Dropout())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(3)
        return self.inner(x)


def test_nothing_is_touched() -> None:
    model, (_, x, y) = Counting(), made("convolutions")
    CE(model(x), y).backward()
    model.inner[0][1].eval()
    before, given = state(model), copy.deepcopy(x)
    resgrow.ripple(model, CE, (x, y), draws=2, example_inputs=x[:1])
    assert_unchanged(model, before)
    assert torch.equal(x, given)
    model.inner[0][8].weight.data.fill_(math.nan)
    before = state(model)[1:]
    with pytest.raises(ValueError, match=r"finite|NaN"):
        resgrow.ripple(model, CE, (x, y))
    for now, then in zip(state(model)[1:], before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)


def test_the_same_numbers_each_time() -> None:
    model, x, y = made("convolutions")
    first, second = (resgrow.ripple(model, CE, (x, y), draws=2) for _ in range(2))
    assert first == second
    other = resgrow.ripple(model, CE, (x, y), draws=2, generator=torch.Generator().manual_seed(1))
    assert other["0"].measured != first["0"].measured


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x, y = made("convolutions")
    wanted = resgrow.ripple(model, CE, (x, y), draws=1, example_inputs=x[:1])
    assert resgrow.ripple(wrap(model), CE, (x, y), draws=1, example_inputs=x[:1]) == wanted


def test_compiled_layers_run_eagerly() -> None:
    model, x, y = made("convolutions")
    wanted = resgrow.ripple(model, CE, (x, y), draws=1)
    model.eval().compile(backend="eager")
    model(x)
    assert resgrow.ripple(model, CE, (x, y), draws=1) == wanted


def test_block_sparse_and_gated_layers() -> None:
    """Of a masked weight and its compact form the ripple is the same: zeros stay zero."""
    dense = nn.Sequential(nn.Linear(16, 32), TriStateReLU(32), nn.Linear(32, 3)).double()
    mask = torch.rand(2, 16) < 0.5
    with torch.no_grad():
        dense[0].weight *= mask.repeat_interleave(16, 0)
    sparse = copy.deepcopy(dense)
    sparse[0] = resgrow.nn.BlockSparseLinear.from_dense(dense[0], mask=mask, block=(16, 1))
    x, y = torch.randn(10, 16).double(), torch.randint(0, 3, (10,))
    wanted = resgrow.ripple(dense, CE, (x, y), curvature="ggn", draws=0, directions=60)
    found = resgrow.ripple(sparse, CE, (x, y), curvature="ggn", draws=0, directions=60)
    assert [layer.name for layer in found.layers] == ["0", "2"]
    for name in ("0", "2"):
        assert found[name].analytic == pytest.approx(wanted[name].analytic, rel=1e-9)
        assert found[name].reach == pytest.approx(wanted[name].reach, rel=0.2)


def test_table_and_rows() -> None:
    model, x, y = made("residual")
    found = resgrow.ripple(model, CE, (x, y), draws=2, example_inputs=x[:1])
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "kind", "params", "MACs", "analytic", "measured", "±", "reach", "gain"]
    assert len(lines) == 1 + len(found.layers) + 1
    first = found["conv1"]
    assert first.reach is not None
    assert lines[1].split()[:4] == ["conv1", "Conv2d", f"{first.params}", f"{first.macs:,}"]
    assert f"{first.analytic:+.2e}" in lines[1]
    assert f"{100 * first.reach:.2f} %" in lines[1]
    assert lines[-1].endswith("sigma 0.1, curvature ggn-mc, 2 pairs of draws, 4 directions, gain of 1 unit")
    bare = str(resgrow.ripple(model, CE, (x, y), draws=0, directions=0)).splitlines()
    assert bare[0].split() == ["layer", "kind", "params", "analytic"]
    told = json.loads(json.dumps(found.as_dict()))
    assert told["layers"][0]["downstream"] == dict(first.downstream)
    assert [row["name"] for row in found.to_rows()] == [layer.name for layer in found.layers]
    assert all(
        value is None or isinstance(value, (str, int, float)) for row in found.to_rows() for value in row.values()
    )
    with pytest.raises(KeyError):
        found["no such layer"]


def test_progress_is_told_of_every_layer() -> None:
    model, x, y = made("smooth")
    told: list[Any] = []
    resgrow.ripple(model, CE, (x, y), draws=1, progress=lambda *given: told.append(given))
    assert told == [(1, 3), (2, 3), (3, 3)]


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "sigma": ({"sigma": 0.0}, ValueError, r"ripple: sigma must be a positive number \(got 0.0\)"),
    "sigma of another type": ({"sigma": "big"}, ValueError, r"ripple: sigma must be a positive number \(got 'big'\)"),
    "draws": ({"draws": -1}, ValueError, r"ripple: draws must be at least 0 \(got -1\)"),
    "directions": ({"directions": 1.5}, TypeError, r"ripple: directions must be a whole number \(got 1.5\)"),
    "units": ({"units": 0}, ValueError, r"ripple: units must be at least 1 \(got 0\)"),
    "curvature": ({"curvature": "newton"}, ValueError, "curvature: method must be one of hessian|ggn"),
    "data": ({"data": []}, ValueError, "ripple: data yielded no batches"),
    "pairs": ({"data": [torch.zeros(3, 5)]}, TypeError, r"ripple: data must yield \(input, target\) pairs"),
    "example": ({"example_inputs": "x"}, TypeError, "ripple: example_inputs must be a tensor"),
    "shape": ({"example_inputs": torch.zeros(1, 7).double()}, ValueError, "must run on example_inputs"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind: str) -> None:
    options, error, message = BAD[kind]
    model, x, y = made("smooth")
    given = {"data": (x, y), **options}
    before = state(model)
    with pytest.raises(error, match=message):
        resgrow.ripple(model, CE, given.pop("data"), **given)
    assert_unchanged(model, before)


def test_a_loss_that_is_a_number_only_without_the_change() -> None:
    model, x, y = made("smooth")
    model[0].weight.data *= 1e200
    with pytest.raises(
        ValueError, match=r"ripple: the loss must be a number with 0 changed \(got NaN at sigma=1e\+200"
    ):
        resgrow.ripple(model, CE, (x, y), sigma=1e200)


def test_models_without_layers() -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"ripple: the model must have a trainable parameter of two dimensions"):
        resgrow.ripple(norm, CE, (x, y))
    assert [layer.name for layer in resgrow.ripple(norm, CE, (x, y), all_parameters=True).layers] == [""]
    with pytest.raises(ValueError, match="ripple: parameters must be initialised"):
        resgrow.ripple(nn.LazyLinear(3), CE, (x, y))
    with pytest.raises(TypeError, match=r"ripple: model must be a torch.nn.Module \(got function\)"):
        resgrow.ripple(lambda x: x, CE, (x, y))  # type: ignore[arg-type]
