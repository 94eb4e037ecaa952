"""One layer for another, inside a model and in the optimizers that hold its weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.surgery.structure.members import take_over_hooks

Move = Callable[[Tensor], Tensor]

# They see a weight as a whole: its history in one vector, its factored moments, its singular values.
_WHOLE = tuple(getattr(torch.optim, name) for name in ("LBFGS", "Adafactor", "Muon") if hasattr(torch.optim, name))


@dataclass(frozen=True)
class Site:
    """A layer and all the places in the model where it stands; ``name`` is the first."""

    name: str
    layer: nn.Module
    places: tuple[tuple[nn.Module, str], ...]


@dataclass(frozen=True)
class Exchange:
    """All that is to be assigned; see `plan`."""

    site: Site
    layer: nn.Module
    old: nn.Parameter
    new: nn.Parameter
    states: tuple[tuple[Optimizer, dict[str, Any] | None], ...]

    def commit(self) -> None:
        """Put the new layer in the place of the old one. Nothing but assignments, which do not fail."""
        for parent, key in self.site.places:
            setattr(parent, key, self.layer)
        for optimizer, state in self.states:
            for group in optimizer.param_groups:
                for position, parameter in enumerate(group["params"]):
                    if parameter is self.old:
                        group["params"][position] = self.new
            if state is not None:
                optimizer.state.pop(self.old)
                optimizer.state[self.new] = state


def sites(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[Site]:
    """Every layer of these kinds, subclasses included, in the model's order."""
    names: dict[int, str] = {}
    layers: dict[int, nn.Module] = {}
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, kinds):
            continue
        owner, _, key = name.rpartition(".")
        names.setdefault(id(module), name)
        layers[id(module)] = module
        if name:
            places.setdefault(id(module), []).append((model.get_submodule(owner), key))
    return [Site(name, layers[at], tuple(places.get(at, ()))) for at, name in names.items()]


def plan(
    site: Site, layer: Any, old: nn.Parameter, new: nn.Parameter, move: Move, optimizers: Sequence[Optimizer]
) -> Exchange:
    """What it takes to put ``layer`` with parameter ``new`` in the place of the site's, with parameter ``old``.

    The layer takes over the bias itself, the gradient and the hooks. Only the new layer is written to.

    Args:
        move: tensors like ``old`` to tensors like ``new``.
    """
    source: Any = site.layer
    layer.bias = source.bias
    take_over_hooks(layer, source)
    if old.grad is not None:
        new.grad = _like(new, move(old.grad))
    states = []
    for optimizer in optimizers:
        if holds(optimizer, old):
            state = optimizer.state.get(old)
            states.append((optimizer, None if state is None else _moved(state, old, new, move)))
    return Exchange(site, layer, old, new, tuple(states))


def strange_state(parameter: nn.Parameter, optimizers: Sequence[Optimizer]) -> str | None:
    """The name of a state entry that is neither one number per weight nor one for all, which cannot be moved."""
    for optimizer in optimizers:
        for name, entry in optimizer.state.get(parameter, {}).items():
            if isinstance(entry, Tensor) and entry.shape != parameter.shape and entry.numel() != 1:
                return str(name)
    return None


def holds(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    return any(held is parameter for group in optimizer.param_groups for held in group["params"])


def as_optimizers(op: str, model: nn.Module, given: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """The optimizers as a list; what trainers wrap them in (Lightning, accelerate) is taken off.

    Raises:
        TypeError: something else than optimizers.
        ValueError: one that does not work weight by weight, or holds no parameter of the model.
    """
    optimizers = [_unwrapped(each) for each in ([given] if isinstance(given, Optimizer) else given or ())]
    own = {id(parameter) for parameter in model.parameters()}
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{op}: optimizer must be a torch.optim.Optimizer (got {type(optimizer).__name__})")
        if isinstance(optimizer, _WHOLE):
            raise ValueError(
                f"{op}: the optimizer must work weight by weight (got {type(optimizer).__name__}, which looks at a "
                "weight as a whole); use one such as SGD or AdamW"
            )
        if not any(id(held) in own for group in optimizer.param_groups for held in group["params"]):
            raise ValueError(
                f"{op}: the optimizer must hold parameters of the model (got one that holds none of them); "
                "make it from model.parameters()"
            )
    return optimizers


def _unwrapped(optimizer: Any) -> Any:
    while isinstance(optimizer, Optimizer) and isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


def _moved(state: dict[str, Any], old: nn.Parameter, new: nn.Parameter, move: Move) -> dict[str, Any]:
    return {
        name: _like(new, move(entry)) if isinstance(entry, Tensor) and entry.shape == old.shape else entry
        for name, entry in state.items()
    }


def _like(parameter: nn.Parameter, t: Tensor) -> Tensor:
    """``t`` with the parameter's strides: fused optimizers walk through all of a weight's tensors as they lie."""
    return torch.empty_like(parameter, dtype=t.dtype, requires_grad=False).copy_(t)
