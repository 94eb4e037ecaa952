"""Fused copies: the outputs of the model they come from, and only what is exact is fused."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from fuse_nets import PARTIAL, WHOLE, C, Net, bottleneck, conv, linear, ready
from torch import Tensor, nn
from torch.nn import functional as F

import resgrow
from resgrow.nn import BlockSparseConv2d, FusedConv2d, FusedLinear, TriStateReLU


def called(fused: torch.fx.GraphModule) -> list[str]:
    """Types of the modules in the order of their calls."""
    return [type(fused.get_submodule(n.target)).__name__ for n in fused.graph.nodes if n.op == "call_module"]


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x.clone())


def swapped(model: nn.Module, density: float = 0.4, block: tuple[int, int] = (4, 1)) -> nn.Module:
    """Every convolution whose blocks have kernels, and every linear layer, becomes sparse."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1:
            rows, columns, *kernel = module.weight.shape
            mask = torch.rand(-(-rows // block[0]), -(-columns // block[1]), *kernel) < density
            kind = BlockSparseConv2d if isinstance(module, nn.Conv2d) else resgrow.nn.BlockSparseLinear
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, kind.from_dense(module, mask, block))
    return model


@pytest.mark.parametrize("case", WHOLE)
def test_all_steps_become_one(case: str) -> None:
    make, shape, left = WHOLE[case]
    model = ready(make())
    fused = resgrow.fuse(model)
    assert called(fused) == left
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(outputs(fused, x), outputs(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", PARTIAL)
def test_what_would_change_the_output_stays(case: str) -> None:
    make, left = PARTIAL[case]
    model = ready(make())
    fused = resgrow.fuse(model)
    assert called(fused) == left
    x = torch.randn(2, C, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(outputs(fused, x), outputs(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_residual_network(dtype: torch.dtype, layout: torch.memory_format) -> None:
    model = ready(swapped(resgrow.nn.resnet(8, in_channels=2)), dtype)
    x = torch.randn(3, 2, 16, 16, dtype=dtype).contiguous(memory_format=layout)
    before = copy.deepcopy(model.state_dict())
    fused = resgrow.fuse(model, x)
    assert set(called(fused)) == {"FusedConv2d", "BlockSparseLinear"}
    assert sum(node.op == "call_function" for node in fused.graph.nodes) == 0  # no addition is left
    want, got = outputs(model, x), outputs(fused, x)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert (want - got).abs().max() <= tolerance * want.abs().max()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())  # the model is left alone
    assert not any(type(m) is FusedConv2d for m in model.modules())
    assert fused.training is False
    assert not any(p.requires_grad for p in fused.parameters())


def test_shortcut_with_a_norm_and_a_shared_activation() -> None:
    model = ready(bottleneck())
    fused = resgrow.fuse(model)
    assert called(fused) == ["FusedConv2d", "Conv2d", "FusedConv2d", "FusedConv2d"]
    x = torch.randn(2, C, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(outputs(fused, x), outputs(model, x), rtol=1e-12, atol=1e-12)


def _targets(fused: torch.fx.GraphModule) -> list[str]:
    """What is called, by name, in order."""
    named = {"call_module": lambda n: type(fused.get_submodule(n.target)).__name__, "call_method": lambda n: n.target}
    named["call_function"] = lambda n: n.target.__name__
    return [named[n.op](n) for n in fused.graph.nodes if n.op in named]


@pytest.mark.parametrize(
    ("pool", "order"),
    [
        (nn.MaxPool2d(3, 2, 1), ["PooledConv2d", "relu_"]),
        (nn.MaxPool2d(2, ceil_mode=True), ["PooledConv2d", "relu_"]),
        (nn.MaxPool2d(2, 1, 1, dilation=2), ["Conv2d", "relu_", "MaxPool2d"]),  # a window may hold only padding
        (nn.AvgPool2d(2), ["Conv2d", "relu_", "AvgPool2d"]),
    ],
    ids=["max", "ceil", "dilation", "average"],
)
@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True)], ids=["", "in place"])
def test_relus_behind_dense_layers_are_cheap(pool: nn.Module, order: list[str], relu: nn.Module) -> None:
    model = ready(nn.Sequential(nn.Conv2d(C, 7, 3), nn.BatchNorm2d(7), relu, pool))
    fused = resgrow.fuse(model)
    assert _targets(fused) == order
    x = torch.randn(2, C, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(outputs(fused, x), outputs(model, x), rtol=1e-12, atol=1e-12)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(fused(x).square().sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(model(x).square().sum(), x)[0])


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_pooling_a_few_images_at_a_time(monkeypatch, sparse: bool, batch: int) -> None:
    layer = conv(stride=2) if sparse else nn.Conv2d(C, C, 3, 2, 1)
    model = ready(nn.Sequential(layer, nn.BatchNorm2d(C), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), torch.float32)
    fused = resgrow.fuse(model)
    assert _targets(fused) == ["PooledConv2d", *([] if sparse else ["relu_"]), "Flatten"]
    x = torch.randn(batch, C, 16, 16).contiguous(memory_format=torch.channels_last)
    sizes: list[int] = []
    fused.get_submodule("0.1").register_forward_hook(lambda module, args, y: sizes.append(len(y)))
    whole = outputs(fused, x)
    assert sizes == [batch]
    monkeypatch.setattr("resgrow.nn.pooled._BETWEEN", 3 * C * 8 * 8 * 4)
    sizes.clear()
    torch.testing.assert_close(outputs(fused, x), whole)
    assert sizes == {0: [0], 1: [1], 2: [2], 7: [3, 3, 1]}[batch]
    torch.testing.assert_close(whole, outputs(model, x))
    sizes.clear()
    fused(x.requires_grad_()).sum().backward()
    assert sizes == [batch]


def test_pooling_of_what_runs_twice_stays_apart() -> None:
    model = ready(Net(lambda net, x: net.pool(net.conv(net.conv(x))), conv=conv(), pool=nn.MaxPool2d(2)))
    assert _targets(resgrow.fuse(model)) == ["BlockSparseConv2d", "BlockSparseConv2d", "MaxPool2d"]
    dense = nn.Conv2d(C, C, 1)
    model = ready(Net(lambda net, x: net.pool(net.conv(net.conv(x))), conv=dense, pool=nn.MaxPool2d(2)))
    fused = resgrow.fuse(model)
    assert _targets(fused) == ["Conv2d", "Conv2d", "MaxPool2d"]
    x = torch.randn(2, C, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(outputs(fused, x), outputs(model, x))


def test_relus_that_others_see_stay_before_pooling() -> None:
    def seen(net: Net, x: Tensor) -> Tensor:
        y = F.relu(net.conv(x))
        return net.pool(y) + y.sum()

    def with_places(net: Net, x: Tensor) -> Tensor:
        y, places = net.pool(F.relu(net.conv(x)))
        return y + places

    x = torch.randn(2, C, 6, 6, dtype=torch.float64)
    for rule, pool in ((seen, nn.MaxPool2d(2)), (with_places, nn.MaxPool2d(2, return_indices=True))):
        model = ready(Net(rule, conv=nn.Conv2d(C, C, 1), pool=pool))
        fused = resgrow.fuse(model)
        assert _targets(fused)[:3] == ["Conv2d", "relu_", "MaxPool2d"]
        torch.testing.assert_close(outputs(fused, x), outputs(model, x))


def test_norms_of_another_dtype_stay() -> None:
    """Folded into bfloat16 weights they would be rounded."""
    model = ready(nn.Sequential(conv(), nn.BatchNorm2d(C)), torch.float32)
    model[0].bfloat16()
    fused = resgrow.fuse(model)
    assert called(fused) == ["BlockSparseConv2d", "BatchNorm2d"]
    x = torch.randn(2, C, 5, 4, dtype=torch.bfloat16)
    assert torch.equal(outputs(fused, x), outputs(model, x))


def test_relus_whose_input_others_see_write_nowhere() -> None:
    def seen(net: Net, x: Tensor) -> Tensor:
        y = net.conv(x)
        return F.relu(y) + y.sin() + F.relu(x) + torch.relu(x.view(x.shape))

    model = ready(Net(seen, conv=nn.Conv2d(C, C, 1)))
    fused = resgrow.fuse(model)
    assert "relu_" not in _targets(fused)
    x = torch.randn(2, C, 5, 4, dtype=torch.float64)
    before = x.clone()
    torch.testing.assert_close(fused(x), model(before))
    assert torch.equal(x, before)
    added = ready(Net(lambda net, x: F.relu(net.conv(x) + x) - x, conv=nn.Conv2d(C, C, 1)))
    fused = resgrow.fuse(added)
    assert _targets(fused) == ["Conv2d", "add", "relu_", "sub"]
    torch.testing.assert_close(outputs(fused, x), outputs(added, x))


def test_gates_open_closed_and_between() -> None:
    """Every state of a gate, on numbers of both signs and zero."""
    layer = conv(C, 4, 1)
    with torch.no_grad():
        layer.values.zero_()
        layer.bias.copy_(torch.tensor([-1.0, 0, 1, -2]))
    act = TriStateReLU(4, d=0.8)
    with torch.no_grad():
        act.w.copy_(torch.tensor([1, 1, 0.4, 0.5]))
    for d, want in ((0.8, [-1.0, 0, 0, -2]), (0.2, [0.0, 0, 0, 0])):
        with torch.no_grad():
            act.d.fill_(d)
        model = ready(nn.Sequential(layer, act))
        y = outputs(resgrow.fuse(model), torch.randn(1, C, 1, 1, dtype=torch.float64))
        assert y.flatten().tolist() == want
        assert torch.equal(y, outputs(model, torch.zeros(1, C, 1, 1, dtype=torch.float64)))


def test_not_a_number_passes_and_infinity_is_as_documented() -> None:
    layer = conv(C, 4, 1)
    with torch.no_grad():
        layer.values.zero_()
        layer.bias.copy_(torch.tensor([float("nan"), float("inf"), -float("inf"), -1]))
    fused = resgrow.fuse(ready(nn.Sequential(layer, nn.ReLU())))
    y = outputs(fused, torch.zeros(1, C, 1, 1, dtype=torch.float64)).flatten()
    assert y.isnan().tolist() == [True, False, True, False]
    assert y[1] == float("inf")
    assert y[3] == 0


def test_autocast() -> None:
    model = ready(swapped(resgrow.nn.resnet(8, in_channels=2)), torch.float32)
    x = torch.randn(3, 2, 16, 16)
    fused = resgrow.fuse(model, x)
    want = outputs(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        got, half = outputs(fused, x), outputs(model, x)
    assert got.dtype == half.dtype == torch.bfloat16
    assert (got - want).abs().max() <= 0.05 * want.abs().max()


@pytest.mark.parametrize("in_place", [False, True])
def test_residual_of_another_dtype_under_autocast(in_place: bool) -> None:
    """Float32 plus bfloat16 is float32, except in place."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.conv(x)
        if in_place:
            y += x
        else:
            y = y + x
        return F.relu(y)

    model = ready(Net(forward, conv=conv()), torch.float32)
    fused = resgrow.fuse(model)
    assert called(fused) == ["FusedConv2d"]
    x = torch.randn(2, C, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        want, got = outputs(model, x), outputs(fused, x)
    assert got.dtype == want.dtype == (torch.bfloat16 if in_place else torch.float32)
    torch.testing.assert_close(got, want)


def test_gradients_of_the_input() -> None:
    model = ready(bottleneck())
    fused = resgrow.fuse(model)
    ours = torch.randn(2, C, 6, 5, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    fused(ours).square().sum().backward()
    model(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    linear_model = ready(nn.Sequential(linear(), nn.ReLU()))
    x = torch.randn(3, C, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(resgrow.fuse(linear_model)(x).sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(linear_model(x).sum(), x)[0])


def test_inputs_without_batch_where_channels_are_counted() -> None:
    """(C, C, W) would be read with channels in dimension 1 by the norm."""
    fused = resgrow.fuse(ready(nn.Sequential(conv(), nn.BatchNorm2d(C))))
    with pytest.raises(ValueError, match=r"FusedConv2d: x must have 4 dimensions.*got \(6, 6, 4\)"):
        fused(torch.randn(C, C, 4, dtype=torch.float64))
    fused = resgrow.fuse(ready(nn.Sequential(linear(), nn.BatchNorm1d(C))))
    with pytest.raises(ValueError, match=r"FusedLinear: x must have 2 dimensions.*got \(2, 6, 6\)"):
        fused(torch.randn(2, C, C, dtype=torch.float64))


def round_trips(fused: torch.fx.GraphModule) -> dict[str, nn.Module]:
    stored = io.BytesIO()
    torch.save(fused.state_dict(), stored)
    other = copy.deepcopy(fused)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(torch.load(io.BytesIO(stored.getvalue())))
    return {
        "copied": copy.deepcopy(fused),
        "pickled": pickle.loads(pickle.dumps(fused)),
        "loaded": other,
        "fused again": resgrow.fuse(fused),
    }


@pytest.mark.parametrize("how", ["copied", "pickled", "loaded", "fused again"])
def test_round_trips(how: str) -> None:
    model = ready(swapped(resgrow.nn.resnet(8, in_channels=2)))
    fused = resgrow.fuse(model)
    x = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    assert torch.equal(outputs(round_trips(fused)[how], x), outputs(fused, x))


def test_compiled_and_exported() -> None:
    model = ready(swapped(resgrow.nn.resnet(8, in_channels=2)), torch.float32)
    x = torch.randn(2, 2, 16, 16)
    fused = resgrow.fuse(model, x)
    want = outputs(fused, x)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(outputs(compiled, x), want)
    batch = torch.export.Dim("batch", min=2)
    with torch.no_grad():
        exported = torch.export.export(fused, (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(outputs(exported, x), want)
    more = torch.randn(5, 2, 16, 16)
    torch.testing.assert_close(outputs(exported, more), outputs(fused, more))


def test_layers_describe_themselves() -> None:
    layer = conv()
    fused = resgrow.fuse(nn.Sequential(layer, nn.ReLU()).eval())
    found = fused.get_submodule("0")
    assert isinstance(found, FusedConv2d)
    assert found.density() == pytest.approx(layer.density())
    assert "6, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)" in repr(found)
    assert "activation=True" in repr(found)
    found = resgrow.fuse(nn.Sequential(linear(), nn.ReLU()).eval()).get_submodule("0")
    assert isinstance(found, FusedLinear)
    assert "6, 6, block=(4, 1)" in repr(found)


def test_training_mode_is_refused() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU())
    with pytest.raises(ValueError, match=r"must be in evaluation mode.*got the model and 3 more.*eval\(\)"):
        resgrow.fuse(model)
    model.eval()[1].train()
    with pytest.raises(ValueError, match="got 1 in training mode"):
        resgrow.fuse(model)
    with pytest.raises(TypeError, match="must be a torch"):
        resgrow.fuse(torch.relu)


def test_models_that_cannot_be_traced_are_refused_with_the_reason() -> None:
    model = Net(lambda net, x: net.conv(x) if x.sum() > 0 else x, conv=conv()).eval()
    with pytest.raises(ValueError, match=r"torch.fx must be able to trace the model \(got TraceError: .*control flow"):
        resgrow.fuse(model)
    with pytest.raises(ValueError, match="swap leaves it"):
        resgrow.fuse(model)


def test_example_inputs_find_a_path_that_tracing_cannot_see() -> None:
    model = Net(lambda net, x: net.conv(x).relu() if isinstance(x, Tensor) else net.conv(x), conv=conv()).eval()
    resgrow.fuse(model)
    with pytest.raises(ValueError, match="must give the outputs of the model on example_inputs"):
        resgrow.fuse(model, torch.randn(2, C, 5, 4))
    with pytest.raises(ValueError, match="does not run on example_inputs"):
        resgrow.fuse(model, torch.randn(2, C + 1, 5, 4))
    with pytest.raises(TypeError, match="must be a tensor or a sequence"):
        resgrow.fuse(model, [])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "resnet50", "regnet_y_400mf"])
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    model = ready(swapped(models.get_model(name, weights=None), block=(8, 1)))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fused = resgrow.fuse(model, x)
    left = called(fused)
    assert "BatchNorm2d" not in left
    assert "FusedConv2d" in left
    if name.startswith("resnet"):
        assert "ReLU" not in left
        assert not any(node.target in (torch.add,) for node in fused.graph.nodes)
    torch.testing.assert_close(outputs(fused, x), outputs(model, x), rtol=1e-9, atol=1e-9)
