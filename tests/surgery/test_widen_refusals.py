"""What widen refuses, and why; model and optimizer are then as they were, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from structure_nets import Net, X, assert_alike, everything, made, trained
from torch import Tensor, nn
from torch.optim import SGD, Adam

from resgrow import widen


def queries_meet_keys(m: Any, x: Tensor) -> Tensor:
    x = m.patches(x).flatten(2).transpose(1, 2)
    return m.head(((m.q(x) @ m.k(x).transpose(1, 2)).softmax(-1) @ x).mean(1))


def attention_without_heads() -> nn.Module:
    return Net(
        queries_meet_keys,
        patches=nn.Conv2d(3, 8, 4, 4),
        q=nn.Linear(8, 6),
        k=nn.Linear(8, 6),
        head=nn.Linear(8, 2),
    )


def two_readers(m: Any, x: Tensor) -> Tensor:
    a, b = m.conv(x).unflatten(1, (2, 4)).unbind(1)
    return m.first(a) + m.second(b)


BAD: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[Exception], str]] = {
    "unknown": (lambda: made("residual"), {"name": "iner"}, ValueError, r"got 'iner'\); close to it: inner"),
    "far": (lambda: made("residual"), {"name": "zzz"}, ValueError, r"see model.named_modules"),
    "container": (lambda: made("gated"), {"name": ""}, ValueError, r"parameters itself \(got '', a Sequential\)"),
    "without parameters": (lambda: made("gated"), {"name": "3"}, ValueError, r"a Flatten\); name the layer in front"),
    "output": (lambda: made("residual"), {"name": "head"}, ValueError, r"head: the model's output.*such as inner, "),
    "into a norm": (lambda: made("transformer"), {"name": "patches"}, ValueError, r"first: a norm averages over it"),
    "only read": (lambda: made("residual"), {"name": "head.weight"}, ValueError, r"outputs of head.weight must be"),
    "not used": (
        lambda: Net(lambda m, x: m.a(x), a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 2, 1)),
        {"name": "b"},
        ValueError,
        r"the forward pass does not use it",
    ),
    "none": (lambda: made("residual"), {"by": 0}, ValueError, r"by must be at least 1 \(got 0\)"),
    "one number": (lambda: made("gated"), {"name": "2.d"}, ValueError, r"2.d: one number for all units"),
    "half": (lambda: made("residual"), {"by": 1.5}, TypeError, r"whole number \(got 1.5\)"),
    "true": (lambda: made("residual"), {"by": True}, TypeError, r"whole number \(got True\)"),
    "init": (lambda: made("residual"), {"init": "zeros"}, ValueError, r"net2wider, tiny, gradmax \(got 'zeros'\)"),
    "inputs": (lambda: made("residual"), {"example_inputs": [3]}, TypeError, r"widen: example_inputs"),
    "small inputs": (lambda: made("residual"), {"example_inputs": X[:, :2]}, ValueError, r"does not run"),
    "not finite": (lambda: made("residual"), {"example_inputs": X * torch.nan}, ValueError, r"must be finite"),
    "no reader": (attention_without_heads, {"name": "q"}, ValueError, r"got q, whose 6 units only meet each other"),
    "one channel, flattened": (
        lambda: nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(64, 2)),
        {"name": "0"},
        ValueError,
        r"a single unit, which is lost sight of where a shape is changed",
    ),
    "halves": (lambda: made("grouped"), {"name": "wide"}, RuntimeError, r"2 more units in wide.*has been undone"),
    "copied halves": (lambda: made("grouped"), {"name": "wide", "init": "net2wider"}, RuntimeError, r"been undone"),
    "a size in the code": (
        lambda: Net(
            lambda m, x: m.read(m.conv(x) / m.conv.out_channels), conv=nn.Conv2d(3, 4, 1), read=nn.Conv2d(4, 2, 1)
        ),
        {"name": "conv"},
        RuntimeError,
        r"outputs must agree",
    ),
    "an assertion": (
        lambda: Net(lambda m, x: m.read(checked(m.conv(x))), conv=nn.Conv2d(3, 4, 1), read=nn.Conv2d(4, 2, 1)),
        {"name": "conv"},
        RuntimeError,
        r"got: four",
    ),
    "flipped": (
        lambda: Net(lambda m, x: m.read(m.conv(x).flip(1)), conv=nn.Conv2d(3, 4, 1), read=nn.Conv2d(4, 2, 1)),
        {"name": "conv"},
        ValueError,
        r"one order in all tensors \(got conv.weight and read.weight",
    ),
    "two groups": (
        lambda: Net(two_readers, conv=nn.Conv2d(3, 8, 1), first=nn.Conv2d(4, 2, 1), second=nn.Conv2d(4, 2, 1)),
        {"name": "conv"},
        ValueError,
        r"one group \(got 2 groups, in conv; in conv\)",
    ),
    "a branch": (
        lambda: Net(lambda m, x: m.conv(x) if x.sum() > -99 else x, conv=nn.Conv2d(3, 4, 1)),
        {"name": "conv"},
        ValueError,
        r"widen: torch.export must be able to follow",
    ),
}  # fmt: skip


def checked(x: Tensor) -> Tensor:
    assert x.shape[1] == 4, "four"
    return x


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_leaves_everything_as_it_was(kind: str) -> None:
    make, arguments, error, message = BAD[kind]
    model = make().double().eval()
    optimizer = Adam(model.parameters(), lr=1e-3)
    trained(model, optimizer)
    before = everything(model, optimizer)
    given: dict[str, Any] = {"name": "stem", "by": 2, "example_inputs": X, "optimizer": optimizer, **arguments}
    with pytest.raises(error, match=message):
        widen(model, **given)
    assert_alike(everything(model, optimizer), before)


def test_optimizers_that_look_at_the_whole_weight_are_refused() -> None:
    model = made("residual")
    with pytest.raises(ValueError, match=r"widen: the optimizer must work weight by weight \(got LBFGS"):
        widen(model, "stem", 1, example_inputs=X, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(TypeError, match=r"widen: optimizer must be a torch.optim.Optimizer \(got int"):
        widen(model, "stem", 1, example_inputs=X, optimizer=[3])  # type: ignore[list-item]
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.state[model.stem.weight]["factor"] = torch.zeros(8)
    with pytest.raises(ValueError, match=r"'factor' of stem.weight"):
        widen(model, "stem", 1, example_inputs=X, optimizer=optimizer)
