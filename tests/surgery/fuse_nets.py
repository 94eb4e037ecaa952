"""Networks whose steps can, or must not, be fused. Blocks of sparse layers are drawn at random."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow.nn import BlockSparseConv2d, BlockSparseLinear, TriStateReLU

C = 6  # channels, not a multiple of the block: the last one hangs over


def conv(inputs: int = C, outputs: int = C, kernel: int = 3, **options: object) -> BlockSparseConv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)
    blocks = torch.rand(-(-outputs // 4), layer.weight.shape[1], kernel, kernel) < 0.5
    return BlockSparseConv2d.from_dense(layer, blocks, (4, 1))


def linear(inputs: int = C, outputs: int = C, **options: object) -> BlockSparseLinear:
    blocks = torch.rand(-(-outputs // 4), inputs) < 0.5
    return BlockSparseLinear.from_dense(nn.Linear(inputs, outputs, **options), blocks, (4, 1))


def gates(d: float) -> TriStateReLU:
    layer = TriStateReLU(C, d=d)
    nn.init.uniform_(layer.w)
    return layer


class Net(nn.Module):
    """``rule(net, x)`` is the forward pass."""

    def __init__(self, rule: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.rule = rule
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, x)


def ready(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """In evaluation mode, norms as after some training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
            if module.track_running_stats:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model.to(dtype).eval()


def _residual(rule: Callable[[Tensor, Tensor], Tensor], **modules: nn.Module) -> Net:
    """A layer, its norm, and what ``rule`` does with that and an earlier number, which others use too."""

    def forward(net: Net, x: Tensor) -> Tensor:
        earlier = x.sin()
        y = rule(net.bn(net.conv(x)), earlier)
        return y + earlier.cos()

    return Net(forward, conv=conv(bias=False), bn=nn.BatchNorm2d(C), **modules)


def _activation(rule: Callable[[Tensor], Tensor]) -> Net:
    return Net(lambda net, x: rule(net.bn(net.conv(x))).square(), conv=conv(), bn=nn.BatchNorm2d(C))


# name: (model, shape of x, types of the modules that are left)
WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    **{
        f"relu as {name}": (lambda rule=rule: _activation(rule), (2, C, 5, 4), ["FusedConv2d"])
        for name, rule in {
            "F.relu": F.relu,
            "F.relu in place": lambda y: F.relu(y, inplace=True),
            "torch.relu": torch.relu,
            "torch.relu_": torch.relu_,
            "method": lambda y: y.relu(),
            "method in place": lambda y: y.relu_(),
        }.items()
    },
    **{
        f"addition as {name}": (lambda rule=rule: _residual(rule), (2, C, 5, 4), ["FusedConv2d"])
        for name, rule in {
            "+": lambda y, r: (y + r).relu(),
            "+ reversed": lambda y, r: (r + y).relu(),
            "+=": lambda y, r: operator.iadd(y, r).relu(),
            "torch.add": lambda y, r: torch.add(r, y).relu(),
            "method": lambda y, r: r.add(y).relu(),
            "method in place": lambda y, r: y.add_(r).relu_(),
            "without activation": lambda y, r: y + r,
        }.items()
    },
    **{
        f"{name} {kind}": (
            lambda layer=layer: nn.Sequential(layer(), nn.Identity(), nn.ReLU(inplace=True), nn.Dropout()),
            shape,
            [kind],
        )
        for name, layer, shape, kind in [
            ("plain", lambda: conv(stride=2), (2, C, 5, 4), "FusedConv2d"),
            ("grouped", lambda: conv(8, 8, groups=2), (2, 8, 5, 4), "FusedConv2d"),
            ("without kernel", lambda: conv(C, C, groups=3), (2, C, 5, 4), "FusedConv2d"),
            ("no batch dimension", conv, (C, 5, 4), "FusedConv2d"),
            ("no samples", conv, (0, C, 5, 4), "FusedConv2d"),
            ("sequences", linear, (2, 3, C), "FusedLinear"),
            ("vector", linear, (C,), "FusedLinear"),
        ]
    },
    "norm without gain": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(C, affine=False), nn.ReLU()),
        (2, C, 5, 4),
        ["FusedConv2d"],
    ),
    "norm alone": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(C)), (2, C, 5, 4), ["FusedConv2d"]),
    "gates": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(C), gates(0.3)), (2, C, 5, 4), ["FusedConv2d"]),
    "open gates": (lambda: nn.Sequential(conv(), gates(0.8)), (2, C, 5, 4), ["FusedConv2d"]),
    "linear, norm and gates": (
        lambda: nn.Sequential(linear(bias=False), nn.BatchNorm1d(C), gates(0.3)),
        (5, C),
        ["FusedLinear"],
    ),
    "dense": (
        lambda: nn.Sequential(nn.Conv2d(C, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        (2, C, 5, 4),
        ["Conv2d"],
    ),
    "linear residual": (
        lambda: Net(lambda net, x: F.relu(net.fc(x) + x), fc=linear()),
        (2, 3, C),
        ["FusedLinear"],
    ),
    "a layer alone": (lambda: conv(), (2, C, 5, 4), ["BlockSparseConv2d"]),
}


def _twice(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.conv(net.bn(net.conv(x)))).relu()


def _tied() -> nn.Module:
    first, second = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)
    second.weight = first.weight
    return nn.Sequential(first, nn.BatchNorm2d(C), second, nn.BatchNorm2d(C))


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def _replaced() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    model[0].forward = torch.sin
    return model


def _reparametrised() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def _overwritten(net: Net, x: Tensor) -> Tensor:
    """The layer's input changes before the addition."""
    x = x.sin()
    y = net.conv(x)
    z = x.mul_(2)
    return y + z


def _addend_overwritten(net: Net, x: Tensor) -> Tensor:
    r = x.sin()
    y = net.conv(x)
    r.mul_(2)
    return F.relu(y + r)


def _into_the_other(net: Net, x: Tensor) -> Tensor:
    r = x.sin()
    y = operator.iadd(r, net.conv(x))
    return y * r


def _seen_twice(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = net.bn(y)
    return F.relu(z) + z + y


def _rows() -> nn.Module:
    """A linear layer on ``(2, 30, 4)`` and a norm that takes the 30 for channels."""
    return nn.Sequential(linear(4, 7), nn.BatchNorm1d(5 * C))


def _conv_and(**modules: nn.Module) -> dict[str, nn.Module]:
    return {"conv": conv(), "bn": nn.BatchNorm2d(C), **modules}


# name: (model, types of the modules that are left); x is (2, C, 5, 4). Here something must stay as it is.
PARTIAL: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "called twice": (
        lambda: Net(_twice, **_conv_and()),
        ["BlockSparseConv2d", "BatchNorm2d", "BlockSparseConv2d", "BatchNorm2d"],
    ),
    "shared weight": (_tied, ["Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d"]),
    "hook": (_hooked, ["Conv2d", "BatchNorm2d"]),
    "forward replaced": (_replaced, ["Conv2d", "BatchNorm2d"]),
    "parametrised": (_reparametrised, ["ParametrizedConv2d", "BatchNorm2d"]),
    "norm by the batch": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(C, track_running_stats=False), nn.ReLU()),
        ["BlockSparseConv2d", "BatchNorm2d"],
    ),
    "norm behind the activation": (
        lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(C)),
        ["FusedConv2d", "BatchNorm2d"],
    ),
    "other activation": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU6()), ["FusedConv2d", "ReLU6"]),
    "norm over rows": (
        lambda: nn.Sequential(nn.Flatten(1, 2), _rows()),
        ["Flatten", "BlockSparseLinear", "BatchNorm1d"],
    ),
    "seen twice": (lambda: Net(_seen_twice, **_conv_and()), ["BlockSparseConv2d", "BatchNorm2d"]),
    "weight read elsewhere": (
        lambda: Net(lambda net, x: net.bn(net.conv(x)) + net.conv.bias.sum(), **_conv_and()),
        ["BlockSparseConv2d", "BatchNorm2d"],
    ),
    "input overwritten": (lambda: Net(_overwritten, conv=conv()), ["BlockSparseConv2d"]),
    "addend overwritten": (lambda: Net(_addend_overwritten, conv=conv()), ["BlockSparseConv2d"]),
    "addition into the other": (lambda: Net(_into_the_other, conv=conv()), ["BlockSparseConv2d"]),
    "doubled": (lambda: Net(lambda net, x: _double(net.conv(x)), conv=conv()), ["BlockSparseConv2d"]),
    "weighted addition": (
        lambda: Net(lambda net, x: torch.add(net.conv(x), x, alpha=2), conv=conv()),
        ["BlockSparseConv2d"],
    ),
    "addition of a number": (lambda: Net(lambda net, x: net.conv(x) + 1, conv=conv()), ["BlockSparseConv2d"]),
    "addition that broadcasts": (
        lambda: Net(lambda net, x: F.relu(net.conv(x) + x.mean((2, 3), keepdim=True)), conv=conv()),
        ["FusedConv2d"],
    ),
    "addition that widens": (
        lambda: Net(lambda net, x: net.conv(x)[:, :, :1] + net.other(x), conv=conv(), other=conv()),
        ["BlockSparseConv2d", "FusedConv2d"],
    ),
}


def _double(y: Tensor) -> Tensor:
    return y + y


def bottleneck() -> nn.Module:
    """torchvision's order of steps, with sparse and dense layers and a shortcut of its own."""

    def forward(net: Net, x: Tensor) -> Tensor:
        out = net.relu(net.bn1(net.conv1(x)))
        out = net.relu(net.bn2(net.conv2(out)))
        out = net.bn3(net.conv3(out))
        identity = net.downsample(x)
        out += identity
        return net.relu(out)

    return Net(
        forward,
        conv1=conv(C, 4, 1, bias=False),
        bn1=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 4, 3, padding=1, stride=2, bias=False),
        bn2=nn.BatchNorm2d(4),
        conv3=conv(4, 9, 1, bias=False),
        bn3=nn.BatchNorm2d(9),
        downsample=nn.Sequential(conv(C, 9, 1, stride=2, bias=False), nn.BatchNorm2d(9)),
        relu=nn.ReLU(inplace=True),
    )
