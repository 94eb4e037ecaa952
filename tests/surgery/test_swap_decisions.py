"""Which layers are swapped, by what measurement, and why the others are not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from swap_nets import LAYERS, X, block_masks, measured_as, network, pruned
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import resgrow
from resgrow.nn import BlockSparseConv2d
from resgrow.surgery import SwapRow


def test_the_faster_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    masks = pruned(model)
    calls = measured_as(monkeypatch, lambda block: 2.0)
    table = resgrow.swap(model, masks)
    assert table.swapped == []
    assert {row.why for name, row in table.items() if name in LAYERS} == {"dense is faster"}
    assert type(model[3]) is nn.Conv2d
    measured_as(monkeypatch, lambda block: 0.5)
    table = resgrow.swap(model, masks)
    assert table.swapped == list(LAYERS)
    assert table["3"].why == "faster"
    assert table["3"].speed.ratio == 2
    assert {id(call["layer"]) for call in calls} == {id(call["layer"]) for call in calls if call["train"]}


def test_of_all_blocks_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {(16, 16): 0.9, (16, 1): 0.6, (8, 1): 0.5, (4, 1): 0.7}
    model = network()
    masks = pruned(model)  # in blocks of 4, some of which stand together
    measured_as(monkeypatch, seconds.__getitem__)
    table = resgrow.swap(model, masks)
    assert [speed.block for speed in table["3"].measured] == [(8, 1), (16, 1), (4, 1)]
    assert model[3].block == (8, 1)
    assert table["3"].density == pytest.approx(model[3].density())


def test_finer_blocks_that_hold_the_same_weights_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for block, tried in [((16, 16), [(16, 16)]), ((16, 1), [(16, 1)]), ((8, 1), [(16, 1), (8, 1)])]:
        model = network()
        masks = pruned(model, block)
        calls = measured_as(monkeypatch, lambda block: 0.5)
        resgrow.swap(model, {"5.weight": masks["5.weight"]})
        found = [call["block"] for call in calls if isinstance(call["layer"], nn.Linear)]
        assert found == tried


def test_force(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    masks = pruned(model)
    calls = measured_as(monkeypatch, lambda block: {(4, 1): 2.0}.get(block, 3.0))
    assert resgrow.swap(copy.deepcopy(model), block_masks(model), block=(4, 1), force=True).swapped == list(LAYERS)
    assert calls == []
    table = resgrow.swap(model, masks, force=True)
    assert {row.why for name, row in table.items() if name in LAYERS} == {"forced"}
    assert model[3].block == (4, 1)
    assert table["7"].why == "no absent blocks"


def test_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().to(memory_format=torch.channels_last)
    model[5].eval()
    masks = pruned(model)
    calls = measured_as(monkeypatch, lambda block: 2.0)
    x = X.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        resgrow.swap(model, masks, example_inputs=x, block=(4, 1), remeasure=True)
    conv, linear = calls
    assert conv["shape"] == (6, 20, 8, 8)
    assert linear["shape"] == (6, 324)
    assert (conv["train"], linear["train"]) == (True, False)
    assert conv["channels_last"]
    assert conv["dtype"] == torch.bfloat16
    assert conv["remeasure"]
    calls.clear()
    table = resgrow.swap(model.double(), masks, block=(4, 1))
    assert [call["shape"] for call in calls] == [(16, 20, 56, 56), (16, 324)]
    assert calls[0]["dtype"] == torch.float64
    assert "nominal" in str(table)
    assert "nominal" not in str(resgrow.swap(model, masks, block=(4, 1), example_inputs=X.double()))


class Branching(nn.Module):
    """Calls one layer twice, one with dropout and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)
        self.often, self.never = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        x = nn.functional.dropout(self.norm(x), 0.5, training=True)
        return {"y": self.often(x)[:, :, :2] * scale + self.often(self.often(x[:, :, :2]))}


def test_example_inputs_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Branching()
    with torch.no_grad():
        for conv in (model.often, model.never):
            conv.weight[:, ::2] = 0
    calls = measured_as(monkeypatch, lambda block: 2.0)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x, scale = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0)), torch.ones(1)
    for inputs in ((x, scale), [x, scale], {"x": x, "scale": scale}):
        table = resgrow.swap(model, example_inputs=inputs, block=(16, 1))
        assert calls.pop()["shape"] == (2, 16, 5, 5)
        assert table["never"].why == "not called with example_inputs"
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model.often._forward_pre_hooks


def weight_normed(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


class OwnConv(nn.Conv2d):
    """Behaves as it likes."""


def spoiled(layer: nn.Module, spoil: Callable[[nn.Module], object]) -> nn.Module:
    spoil(layer)
    return layer


def conv(kind: type[nn.Module] = nn.Conv2d, **options: object) -> nn.Module:
    return kind(16, 16, 3, **options)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "subclass": (lambda: conv(OwnConv), "a subclass"),
    "lazy": (lambda: nn.LazyConv2d(16, 3), "lazy: run the model once before"),
    "parametrization": (lambda: nn.utils.parametrizations.weight_norm(conv()), "parametrization or hook"),
    "weight_norm": (lambda: weight_normed(conv()), "parametrization or hook"),
    "torch.nn.utils.prune": (
        lambda: spoiled(conv(), lambda c: torch_prune.l1_unstructured(c, "weight", 0.5)),
        "parametrization or hook",
    ),
    "replaced forward": (lambda: spoiled(conv(), lambda c: setattr(c, "forward", lambda x: x)), "forward is replaced"),
    "weight hook": (
        lambda: spoiled(conv(), lambda c: c.weight.register_hook(lambda grad: grad)),
        "hooks on its weight",
    ),
    "accumulation hook": (
        lambda: spoiled(conv(), lambda c: c.weight.register_post_accumulate_grad_hook(lambda p: None)),
        "hooks on its weight",
    ),
    "state hook": (
        lambda: spoiled(conv(), lambda c: c.register_state_dict_pre_hook(lambda *a: None)),
        "state_dict hooks",
    ),
    "half": (lambda: conv().half(), "a dtype without kernels"),
    "meta": (lambda: conv(device="meta"), "on a device without kernels"),
    "reflect": (lambda: conv(padding=1, padding_mode="reflect"), "padding with other than zeros"),
    "same": (lambda: conv(padding="same"), "padding by name"),
    "depthwise": (lambda: conv(groups=16), "no kernel"),
    "zeros": (lambda: spoiled(conv(), lambda c: nn.init.zeros_(c.weight)), "all zeros"),
    "full": (conv, "no absent blocks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_stay_dense_and_why(name: str) -> None:
    make, why = REFUSED[name]
    layer = make()
    if name not in ("zeros", "full", "lazy", "meta"):
        with torch.no_grad():
            layer.weight[:, 1:] = 0
    model = nn.Sequential(layer, nn.ReLU())
    table = resgrow.swap(model, force=True, block=(16, 1))
    assert table.swapped == []
    assert why in table["0"].why
    assert model[0] is layer
    assert why in str(table)


def test_tied_weights_and_the_model_itself_stay_dense() -> None:
    linear, head = nn.Linear(16, 16), nn.Linear(16, 16)
    head.weight = linear.weight
    with torch.no_grad():
        linear.weight[:, ::2] = 0
    model = nn.Sequential(linear, head)
    table = resgrow.swap(model, force=True, block=(16, 1))
    assert {row.why for row in table.values()} == {"shares its weight with another layer"}
    table = resgrow.swap(linear, force=True, block=(16, 1))
    assert "wrap it" in table[""].why
    sparse = resgrow.nn.BlockSparseLinear.from_dense(linear)
    assert "to_dense" in resgrow.unswap(sparse)[""].why


def test_a_swapped_subclass_is_left_alone() -> None:
    class Own(BlockSparseConv2d):
        pass

    dense = nn.Conv2d(16, 16, 1)
    model = nn.Sequential(Own.from_dense(dense, torch.ones(1, 16, 1, 1, dtype=torch.bool)))
    table = resgrow.unswap(model)
    assert table["0"].why == "a subclass"
    assert table.swapped == ["0"]
    assert type(model[0]) is Own


def test_state_that_is_not_per_weight_keeps_a_layer_dense() -> None:
    model = network()
    masks = pruned(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.state[model[3].weight]["rows"] = torch.ones(36)
    table = resgrow.swap(model, masks, optimizer=optimizer, force=True, block=(4, 1))
    assert table.swapped == ["5"]
    assert "'rows'" in table["3"].why
    optimizer.state[model[5].values]["rows"] = torch.ones(36)
    assert "'rows'" in resgrow.unswap(model, optimizer=optimizer)["5"].why


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block": (0, 1)}, ValueError, "block must be a pair"),
        ({"block": "best"}, ValueError, "'best'"),
        ({"masks": {"nowhere.weight": torch.ones(1, dtype=torch.bool)}}, ValueError, "nowhere"),
        ({"masks": {"3.weight": torch.ones(1, dtype=torch.bool)}}, ValueError, "shape"),
        ({"example_inputs": torch.ones(1, 7, 8, 8)}, ValueError, "must run on example_inputs"),
        ({"example_inputs": "x"}, TypeError, "example_inputs"),
        ({"optimizer": torch.optim.SGD(network().parameters(), 0.1)}, ValueError, "holds none of them"),
        ({"optimizer": "adam"}, TypeError, "must be a torch.optim.Optimizer"),
    ],
)
def test_bad_arguments_change_nothing(options: dict[str, object], error: type[Exception], message: str) -> None:
    model = network()
    pruned(model)
    before = list(model.modules())
    with pytest.raises(error, match=message):
        resgrow.swap(model, **{"force": True, "block": (4, 1), **options})  # type: ignore[arg-type]
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))


@pytest.mark.parametrize("name", ["LBFGS", "Adafactor", "Muon"])
def test_optimizers_that_look_at_whole_weights_are_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    kind = getattr(torch.optim, name, None)
    if kind is None:
        pytest.skip(f"this torch has no {name}")
    for function in (resgrow.swap, resgrow.unswap):
        with pytest.raises(ValueError, match=f"weight by weight .got {name}"):
            function(model, optimizer=kind(model.parameters()))


def test_wrapped_models_are_refused() -> None:
    with pytest.raises(ValueError, match="swap first, then wrap"):
        resgrow.swap(nn.DataParallel(network()))
    with pytest.raises(TypeError, match=r"nn\.Module"):
        resgrow.swap(list(network()))  # type: ignore[arg-type]


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    masks = pruned(model, (16, 1))
    measured_as(monkeypatch, lambda block: 0.5e-3, dense=1e-3)
    table = resgrow.swap(model, masks, block=(16, 1), example_inputs=X)
    lines = str(table).splitlines()
    assert len(lines) == len(table) + 2
    assert lines[2].split()[:3] == ["3", "16x1", f"{model[3].density():.3f}"]
    assert "6x20x8x8" in lines[2]
    assert lines[2].split()[4:6] == ["1.000", "0.500"]
    assert lines[2].endswith("2.00x  sparse: faster")
    assert "2 of 4 sparse" in lines[-1]
    assert "2.000" in lines[-1]
    assert repr(table) == "Swap(4 layers, 2 block-sparse)"
    assert isinstance(table["3"], SwapRow)
    assert table["3"].kind == "Conv2d"
    assert table["3"].weight == (36, 20, 3, 3)
    with pytest.raises(KeyError):
        table["nowhere"]
