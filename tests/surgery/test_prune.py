import copy
from collections.abc import Callable

import pytest
import torch
from surgery_nets import convnet, saliency_like, small_resnet
from torch import Tensor, nn

from resgrow.surgery import count_macs, make_units, prune


def test_removes_the_lowest_scores_of_all_layers_together() -> None:
    model = convnet()
    scores = saliency_like(model)
    names = make_units(model).parameters
    everything = torch.cat([scores[name].flatten() for name in names])
    k = round(0.6 * everything.numel())
    threshold = everything.kthvalue(k).values
    masks = prune(model, scores, sparsity=0.6)
    assert sum(int((~mask).sum()) for mask in masks.values()) == k
    for name in names:
        assert torch.equal(masks[name], scores[name] > threshold)
        assert torch.equal(model.get_parameter(name) != 0, masks[name])


def test_scope_layer_takes_the_same_share_everywhere() -> None:
    model = convnet()
    scores = {name: score + 10 * (name == "9.weight") for name, score in saliency_like(model).items()}
    masks = prune(model, scores, sparsity=0.5, scope="layer")
    for mask in masks.values():
        assert int(mask.sum()) == mask.numel() - round(0.5 * mask.numel())
    channels = prune(small_resnet(), saliency_like(small_resnet()), sparsity=0.75, block="channel", scope="layer")
    assert [int(channels[f"layer{i}.0.bn1.weight"].sum()) for i in (1, 2, 3)] == [1, 2, 4]
    nearly_all = prune(small_resnet(), saliency_like(small_resnet()), sparsity=0.99, block="channel", scope="layer")
    assert [int(nearly_all[f"layer{i}.0.bn1.weight"].sum()) for i in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize("block", [(1, 1), (2, 2), "channel"])
@pytest.mark.parametrize("make", [convnet, small_resnet])
def test_reaches_the_sparsity(block: tuple[int, int] | str, make: Callable[[], nn.Module]) -> None:
    model = make()
    units = make_units(model, block)
    masks = prune(model, saliency_like(model), sparsity=0.5, block=block)
    assert 0.43 < masks.density() <= 0.5
    assert set(masks) == set(units.parameters)
    assert prune(model, saliency_like(model), sparsity=0.0, block=block).density() == 1


def test_a_removed_channel_is_zero_everywhere() -> None:
    model = convnet()
    masks = prune(model, saliency_like(model), sparsity=0.5, block="channel")
    gone = ~masks["0.1.weight"]
    assert gone.any()
    for name in ("0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"):
        assert not model.get_parameter(name)[gone].any()
    assert not model[1].weight[:, gone].any()
    gates = ~masks["2.w"]
    assert not model[6].weight.unflatten(1, (7, 4))[:, gates].any()


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("block", [(1, 1), (4, 1), "channel"])
@pytest.mark.parametrize("make", [convnet, small_resnet])
def test_cost_in_macs_removes_that_share_of_them(
    make: Callable[[], nn.Module], block: tuple[int, int] | str, scope: str
) -> None:
    model, x = make(), torch.randn(2, 2, 11, 11)
    options = {"block": block, "scope": scope, "cost": "macs", "example_inputs": x}
    dense = make_units(model, block, example_inputs=x).total(by="macs")
    before = count_macs(model, x)
    masks = prune(model, saliency_like(model), sparsity=0.3, **options)
    removed = (before - count_macs(model, x, masks)) / dense
    assert 0.299 < removed < 0.5  # savings are rounded to whole multiply-accumulates, and units are not fractions


def test_cost_decides_between_layers() -> None:
    """Ascending score per cost, by hand: the score is equal everywhere, so whole layers go, the dearest first."""
    model, x = convnet(), torch.randn(1, 2, 11, 11)
    scores = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    first = model.get_parameter("0.0.weight")
    macs = count_macs(model, x)
    share = first.numel() * 81 / macs  # 9 x 9 positions, more than any other layer has
    masks = prune(model, scores, sparsity=share, cost="macs", example_inputs=x)
    assert [name for name, mask in masks.items() if not mask.all()] == ["0.0.weight"]
    assert not masks["0.0.weight"].any()
    by_params = prune(convnet(), scores, sparsity=share)
    assert masks.density() > by_params.density()


def test_excluded_layers_stay() -> None:
    model = convnet()
    before = copy.deepcopy(model.state_dict())
    masks = prune(model, saliency_like(model), sparsity=0.9, exclude=("0", "9.weight"))
    assert set(masks) == {"1.weight", "6.weight"}
    for name in ("0.0.weight", "9.weight"):
        assert torch.equal(model.get_parameter(name), before[name])


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda scores: {key: score for key, score in scores.items() if key != name}


def changed(name: str, change: Callable[[Tensor], object]) -> Callable[[dict[str, Tensor]], object]:
    return lambda scores: {**scores, name: change(scores.get(name, torch.ones(2)))}


@pytest.mark.parametrize("block", [(1, 1), "channel"])
@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (without("6.weight"), {}, ValueError, "missing.*6.weight"),
        (changed("elsewhere", lambda t: t), {}, ValueError, "unknown.*elsewhere"),
        (changed("1.weight", lambda t: t[:2]), {}, ValueError, r"\(2, 5, 2, 2\) on cpu for 1.weight"),
        (changed("1.weight", lambda t: t.to("meta")), {}, ValueError, "on meta for 1.weight"),
        (changed("1.weight", lambda t: t.masked_fill(t > 0.9, torch.nan)), {}, ValueError, "NaN.*1.weight"),
        (changed("1.weight", lambda t: t - torch.inf), {}, ValueError, "-inf"),
        (changed("1.weight", lambda t: t > 0), {}, TypeError, "bool"),
        (changed("1.weight", lambda t: t.tolist()), {}, TypeError, "list"),
        (lambda scores: list(scores.values()), {}, TypeError, "mapping"),
        (dict, {"sparsity": 1.0}, ValueError, "sparsity"),
        (dict, {"sparsity": -0.1}, ValueError, "sparsity"),
        (dict, {"sparsity": float("nan")}, ValueError, "sparsity"),
        (dict, {"sparsity": True}, ValueError, "sparsity"),
        (dict, {"sparsity": "most"}, ValueError, "sparsity"),
        (dict, {"scope": "network"}, ValueError, "scope"),
        (dict, {"exclude": ["nowhere"]}, ValueError, "nowhere"),
        (dict, {"block": (0, 2)}, ValueError, "block"),
        (dict, {"sparsity": 0.999, "block": "channel"}, ValueError, "at most"),
        (dict, {"cost": "latency"}, ValueError, "cost must be 'params' or 'macs'"),
        (dict, {"cost": "macs"}, ValueError, "needs example_inputs"),
        (dict, {"cost": "macs", "example_inputs": torch.ones(1, 3, 11, 11)}, ValueError, "does not run"),
    ],
)
def test_bad_input_leaves_the_model_alone(
    block: object,
    spoil: Callable[[dict[str, Tensor]], object],
    options: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    model = convnet()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        prune(model, spoil(saliency_like(model)), **{"sparsity": 0.5, "block": block, **options})  # type: ignore
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_channels_of_other_models_without_inputs_are_refused_with_a_remedy() -> None:
    model = nn.TransformerEncoderLayer(4, 2)
    with pytest.raises(ValueError, match=r"none for TransformerEncoderLayer\); pass one batch.*block=\(1, 1\)"):
        prune(model, saliency_like(model), sparsity=0.5, block="channel")
    assert prune(model, saliency_like(model), sparsity=0.5).density() == 0.5
