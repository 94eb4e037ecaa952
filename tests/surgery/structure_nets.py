"""Networks whose dimensions are coupled in every way, random units of theirs, and all that a change could leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from resgrow.nn import TriStateReLU, resnet
from resgrow.surgery.structure import Group


class Residual(nn.Module):
    """A stream that two blocks add to, a shared layer, and a squeeze-and-excitation gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner, self.norm, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for _ in range(2):
            x = x + self.outer(F.silu(self.norm(self.inner(x))))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x.mean((2, 3)))


class Concatenated(nn.Module):
    """As in a U-Net: down, up by a transposed convolution, and the two side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(10, 4, 2, 2), nn.Conv2d(10, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x).relu()
        b = self.up(self.deep(F.max_pool2d(a, 2)).relu())
        return self.out(torch.cat([b, a], 1).relu())


class Grouped(nn.Module):
    """Depthwise, groups of four, a group norm, channels shuffled and halved."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depthwise = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped, self.norm = nn.Conv2d(16, 8, 1, groups=4), nn.GroupNorm(4, 8)
        self.left, self.out = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(self.depthwise(self.wide(x)).relu())).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        a, b = x.chunk(2, 1)
        return self.out(torch.cat([self.left(a), b], 1))


def cardinal() -> nn.Module:
    """As in ResNeXt: groups between layers that mix them."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 4, 1),
    )


class Attention(nn.Module):
    def __init__(self, heads: int = 4, head_dim: int = 3, width: int = 12) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, head_dim, heads * head_dim
        self.qkv, self.proj = nn.Linear(width, 3 * self.attn_dim), nn.Linear(self.attn_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        n, count, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, count, self.attn_dim))


class Transformer(nn.Module):
    """Images in patches, attention, a gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 1, 12))
        self.positions, self.first, self.second = (
            nn.Parameter(torch.randn(1, 5, 12)),
            nn.LayerNorm(12),
            nn.LayerNorm(12),
        )
        self.attention, self.wide, self.narrow = Attention(), nn.Linear(12, 20), nn.Linear(10, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.attention(self.first(x))
        gate, value = self.wide(self.second(x)).chunk(2, -1)
        return self.head((x + self.narrow(F.gelu(gate) * value))[:, 0])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "concatenated": Concatenated,
    "grouped": Grouped,
    "cardinal": cardinal,
    "transformer": Transformer,
    "package's": lambda: resnet(8, 0.5, 3, 4),
    "gated": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        TriStateReLU(8),
        nn.Flatten(),
        nn.Linear(8 * 36, 7),
        nn.PReLU(7),
        nn.Linear(7, 2),
    ),
}
X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return uneven(MODELS[name]().double().eval())


def uneven(model: nn.Module) -> nn.Module:
    """Fresh norms hide mistakes: they neither shift nor scale."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model


def without_zeros(model: nn.Module, small: tuple[str, ...]) -> nn.Module:
    """Parameters that start at zero, or so small as those with names that end like this, are random."""
    for name, parameter in model.named_parameters():
        if name.endswith(small) or not parameter.any():
            nn.init.normal_(parameter)
    return model


def random_units(groups: list[Group], seed: int, share: float) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gone = {number: torch.rand(group.size, generator=generator) < share for number, group in enumerate(groups)}
    for units in gone.values():
        units[int(torch.randint(len(units), (), generator=generator))] = False
    return gone


def outputs(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)


class Net(nn.Module):
    """Whatever ``forward`` does with the layers."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def trained(model: nn.Module, optimizer: Optimizer, steps: int = 2, x: Tensor = X) -> None:
    torch.manual_seed(1)
    target = torch.randn_like(outputs(model, x))
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()


def everything(model: nn.Module, *optimizers: Optimizer) -> list[Any]:
    """Tensors by value, and what else a change could leave behind."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    result: list[Any] = [(name, tensor.detach().clone()) for name, tensor in tensors]
    result += [("grad", p.grad if p.grad is None else p.grad.clone()) for p in model.parameters()]
    result += [(name, m.extra_repr(), type(m)) for name, m in model.named_modules()]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = optimizer.state.get(p, {})
                result += [(key, v.clone() if isinstance(v, Tensor) else v) for key, v in sorted(state.items())]
    return result


def assert_alike(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one[0] == other[0]
        if isinstance(one[1], Tensor):
            assert one[1].stride() == other[1].stride()
            assert torch.equal(one[1], other[1]), one[0]
        else:
            assert one[1:] == other[1:]
