"""Every function in the table of ``lecun`` against the recursion by definition, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lecun_functions import ARITHMETIC, IN_PLACE, SMOOTH, VIEWS
from lecun_layers import DOUBLE, LAYERS, POOLS, draw
from lecun_reference import Step, recursion
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resgrow.curvature.heads.base import Head
from resgrow.curvature.lecun import lecun
from resgrow.curvature.lecun.record import _name
from resgrow.curvature.lecun.table import RULES, TRANSPARENT
from resgrow.curvature.request import Request


class Given(Head):
    """Curvature and gradient at the output are given: random, and of either sign."""

    def __init__(self, d: Tensor, g: Tensor) -> None:
        self.d, self.g = d, g

    def diagonal(self, output: Tensor, target: Tensor) -> Tensor:
        return self.d

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        return self.g

    def total(self, output: Tensor, target: Tensor) -> float:
        return 1.0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("lecun needs derivatives only")

    def factors(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        raise AssertionError("lecun needs the diagonal only")

    def sample(self, output: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        raise AssertionError("lecun draws nothing")


class Function(nn.Module):
    """A function of activations and parameters. Activations are parameters too, so that results show their ``d``."""

    def __init__(self, function: Callable[..., Tensor], activations: list[Tensor], parameters: list[Tensor]) -> None:
        super().__init__()
        self.function = function
        self.activations = nn.ParameterList(nn.Parameter(t.clone()) for t in activations)
        self.parameters_ = nn.ParameterList(nn.Parameter(t.clone()) for t in parameters)

    def forward(self, _: Tensor) -> Tensor:
        return self.function(*(t.clone() for t in self.activations), *self.parameters_)


CASES = {
    f"{kind}: {name}": one
    for kind, cases in {
        "layer": LAYERS,
        "pool": POOLS,
        "activation": SMOOTH,
        "arithmetic": ARITHMETIC,
        "view": VIEWS,
        "in place": IN_PLACE,
    }.items()
    for name, one in cases.items()
}


def compare(name: str) -> None:
    function, activations, parameters, curved = CASES[name]
    model = Function(function, activations, parameters)
    names = [n for n, _ in model.named_parameters()]
    y = function(*activations, *parameters)
    d, g = draw(*y.shape, seed=11), draw(*y.shape, seed=12)
    found = lecun(request(model, Given(d, g)))
    values = dict(zip(names, [*activations, *parameters], strict=True))
    expected = recursion([Step(function, tuple(names), "y", curved)], values, d, g)
    assert list(found) == names
    for key in names:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-12, atol=1e-12)


def request(model: nn.Module, head: Head) -> Request:
    x = torch.zeros(1, dtype=DOUBLE)
    return Request(model, head, [(x, x)], "lecun", 1, torch.Generator())


@pytest.mark.parametrize("name", CASES)
def test_function(name: str) -> None:
    compare(name)


class Names(TorchFunctionMode):
    """Collects what the table is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(_name(func))
        return func(*args, **(kwargs or {}))


def test_every_row_of_the_table_is_compared() -> None:
    with Names() as names:
        for function, activations, parameters, _ in CASES.values():
            function(*activations, *parameters)
    elsewhere = {"cuda", "float", "half", "bfloat16"}  # another device; curvature is rounded with the activation
    assert (RULES.keys() | TRANSPARENT) - names.seen == elsewhere
