import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery_nets import convnet, randomised, saliency_like, small_resnet
from torch import Tensor, nn

from resgrow.nn import TriStateReLU, lenet5
from resgrow.surgery import compact, count_params, prune

torch.manual_seed(0)
X = torch.randn(3, 2, 11, 11, dtype=torch.float64)


def outputs(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def assert_same_outputs(small: nn.Module, model: nn.Module, x: Tensor = X) -> None:
    torch.testing.assert_close(outputs(small, x), outputs(model, x), rtol=1e-9, atol=1e-11)


def zero(model: nn.Module, name: str, index: object) -> None:
    with torch.no_grad():
        model.get_parameter(name)[index] = 0


@pytest.mark.parametrize("make", [convnet, small_resnet])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_channels_go_physically_and_outputs_stay(make: Callable[[], nn.Module], sparsity: float, scope: str) -> None:
    model = make().double()
    masks = prune(model, saliency_like(model), sparsity=sparsity, block="channel", scope=scope)
    small = compact(model, X)
    assert_same_outputs(small, model)
    assert count_params(small) == masks.live_parameters()


@pytest.mark.parametrize(("make", "most"), [(convnet, 0.2), (small_resnet, 0.95)])
@pytest.mark.parametrize("block", [(1, 1), (4, 1)])
def test_single_weights_and_blocks(make: Callable[[], nn.Module], most: float, block: tuple[int, int]) -> None:
    model = make().double()
    prune(model, saliency_like(model), sparsity=0.97, block=block)
    small = compact(model, X)
    assert_same_outputs(small, model)
    assert count_params(small) < most * count_params(model)


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    share=st.sampled_from([0.5, 0.8, 0.95]),
    padding=st.integers(0, 1),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_zeros_in_any_parameter(widths: list[int], share: float, padding: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    inputs = 2
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 2, padding=padding, bias=bias), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    layers += [nn.AvgPool2d(2, padding=padding), nn.Flatten(), nn.LazyLinear(4), TriStateReLU(4), nn.Linear(4, 2)]
    model = nn.Sequential(*layers).double().eval()
    model(X)
    randomised(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape) > share)
    small = compact(model, X)
    assert_same_outputs(small, model)
    assert count_params(compact(small, X)) == count_params(small)


def test_what_goes_empties_others() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    zero(model, "4.weight", (slice(None), [1, 2, 3]))  # nobody reads these neurons ...
    zero(model, "2.weight", ([0, 4], slice(1, 3)))  # ... and only they read these
    small = compact(model, X[0, 0, :, :3])
    assert [layer.weight.shape for layer in small[::2]] == [(2, 3), (2, 2), (2, 2)]
    assert (small[2].in_features, small[2].out_features) == (2, 2)
    assert_same_outputs(small, model, X[0, 0, :, :3])


def test_constants_move_into_the_next_bias() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, bias=False)).double()
    zero(model, "0.weight", 1)
    with torch.no_grad():
        model[0].bias[1] = 0.7
    model[2].weight.requires_grad_(False)
    small = compact(model, X)
    assert small[0].out_channels == 2
    torch.testing.assert_close(small[2].bias.data, 0.7 * model[2].weight[:, 1].sum((1, 2)))
    assert not small[2].bias.requires_grad
    assert model[2].bias is None
    assert_same_outputs(small, model)


def test_a_flattened_constant_moves_into_the_linear_bias() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 10), nn.Flatten(), nn.Linear(12, 2)).double()
    zero(model, "0.weight", 2)
    small = compact(model, X)
    assert (small[0].out_channels, small[2].in_features) == (2, 8)
    assert_same_outputs(small, model)


def gain_only() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    norm.register_parameter("bias", None)
    with torch.no_grad():
        norm.running_mean.fill_(-2)  # type: ignore[operator]
    return norm


@pytest.mark.parametrize(
    ("between", "reader", "goes"),
    [
        ([], nn.Conv2d(3, 2, 3, padding=1), False),
        ([], nn.Conv2d(3, 2, 3, padding="same"), False),
        ([], nn.Conv2d(3, 2, 1, padding="same"), True),
        ([], nn.Conv2d(3, 2, 3, padding="valid"), True),
        ([], nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), True),
        ([nn.MaxPool2d(3, 2, padding=1)], nn.Conv2d(3, 2, 3), True),
        ([nn.AvgPool2d(3, 2)], nn.Conv2d(3, 2, 3), True),
        ([nn.AvgPool2d(3, 2, ceil_mode=True)], nn.Conv2d(3, 2, 3), True),
        ([nn.AvgPool2d(3, 2, padding=1)], nn.Conv2d(3, 2, 3), False),
        ([nn.AvgPool2d(2, divisor_override=3)], nn.Conv2d(3, 2, 3), False),
        ([nn.BatchNorm2d(3)], nn.Conv2d(3, 2, 3), True),
        ([gain_only(), nn.ReLU()], nn.Conv2d(3, 2, 3), True),
        ([nn.BatchNorm2d(3, affine=False), nn.Dropout()], nn.Conv2d(3, 2, 3), True),
        ([nn.BatchNorm2d(3, track_running_stats=False)], nn.Conv2d(3, 2, 3), True),
        ([TriStateReLU(3, d=0.9)], nn.Conv2d(3, 2, 3), True),
    ],
)
def test_which_constants_may_go(between: list[nn.Module], reader: nn.Conv2d, goes: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), *copy.deepcopy(between), copy.deepcopy(reader)).double()
    zero(model, "0.weight", 1)
    small = compact(model, X)
    assert small[0].out_channels == (2 if goes else 3)
    assert_same_outputs(small, model)


def test_silent_norms_and_closed_gates_remove_channels() -> None:
    model = convnet().double()
    zero(model, "0.1.weight", [0, 3])
    with torch.no_grad():
        model[0][1].bias[0] = -1.0  # behind the ReLU: zero
        model[0][1].bias[3] = 0.5
        model[2].w[4] = 0.2
    small = compact(model, X)
    assert (small[0][0].out_channels, small[0][1].num_features, small[1].in_channels) == (3, 3, 3)
    assert (small[1].out_channels, small[2].num_channels, small[2].w.numel(), small[6].in_features) == (6, 6, 6, 24)
    assert_same_outputs(small, model)


def test_a_constant_in_front_of_padding_stays_inside_a_block() -> None:
    model = small_resnet().double()
    block = model.layer2[0]
    zero(model, "layer2.0.conv1.weight", [0, 1])
    with torch.no_grad():
        block.bn1.running_mean.zero_()
        block.bn1.bias[0], block.bn1.bias[1] = 0.5, -0.5
    assert compact(model, X).layer2[0].conv1.out_channels == block.conv1.out_channels - 1


def test_every_layer_keeps_a_channel() -> None:
    for make in (convnet, small_resnet):
        model = make().double()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.zero_()
        small = compact(model, X)
        assert all(min(parameter.shape, default=1) >= 1 for parameter in small.parameters())
        assert_same_outputs(small, model)


def test_copies_all_that_is_not_a_width() -> None:
    model = convnet().to(memory_format=torch.channels_last)
    prune(model, saliency_like(model), sparsity=0.5, block="channel")
    model.train()
    model[0][1].eval()
    model[1].weight.requires_grad_(False)
    model(X.float()).sum().backward()
    before = copy.deepcopy(model.state_dict())
    layers = [type(module) for module in model.modules()]
    small = compact(model, X.float())
    assert [type(module) for module in small.modules()] == layers
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert small[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert not small[1].weight.is_contiguous()
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(parameter.grad is None for parameter in small.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[9].weight.grad is not None
    small(X.float()).sum().backward()
    torch.testing.assert_close(outputs(small, X.float()), outputs(model, X.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype: torch.dtype) -> None:
    model = lenet5(image_size=16)
    prune(model, saliency_like(model), sparsity=0.9, block="channel")
    x = torch.randn(2, 1, 16, 16)
    small = compact(model.to(dtype), x.to(dtype))
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert count_params(small) < 0.2 * count_params(model)


class Reshuffled(nn.Linear):
    pass


def test_subclasses_of_layers_and_other_activations() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), Reshuffled(4, 4), nn.Linear(4, 3), nn.Linear(3, 2)).double()
    zero(model, "4.weight", (slice(None), 1))
    zero(model, "2.weight", (slice(None), 1))
    small = compact(model, X[0, 0, :, :3])
    assert [m.out_features for m in small if isinstance(m, nn.Linear)] == [3, 4, 2, 2]


def test_bad_input() -> None:
    model = convnet()
    with pytest.raises(ValueError, match=r"compact: .*\(3, 4\)"):
        compact(model, torch.ones(3, 4))
    with pytest.raises(ValueError, match="at least one sample"):
        compact(model, torch.ones(0, 2, 11, 11))
    for wrong in ([], 3, None):
        with pytest.raises(TypeError, match="example_inputs must be a tensor or a sequence of tensors"):
            compact(model, wrong)
    model.forward = lambda x: "text"  # type: ignore[method-assign,assignment]
    with pytest.raises(TypeError, match="must return tensors"):
        compact(model, X.float())
    del model.forward
    model[9].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        compact(model, X.float())


def test_a_forward_pass_that_does_more_than_its_layers_is_noticed() -> None:
    model = convnet()
    zero(model, "6.weight", 0)
    zero(model, "9.weight", (slice(None), 0))
    model[6].register_forward_hook(lambda layer, inputs, output: output / output.shape[1])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="hooks"):
        compact(model, X.float())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
