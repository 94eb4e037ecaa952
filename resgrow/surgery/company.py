"""What goes along when a live model is changed: optimizers, averaged copies, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from resgrow.surgery.exchange import as_optimizers
from resgrow.surgery.masks import Masks
from resgrow.surgery.structure import Edit

Followers = nn.Module | Sequence[nn.Module] | None


@dataclass(frozen=True)
class Company:
    optimizers: Sequence[Optimizer]
    followers: Sequence[nn.Module]
    masks: Sequence[Masks]

    def edit(self, model: nn.Module) -> Edit:
        return Edit(model, self.optimizers, self.followers, self.masks)


def company(
    op: str,
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    followers: Followers = None,
    masks: Masks | Sequence[Masks] | None = None,
) -> Company:
    """All of it as lists, an averaged model as the model inside.

    Raises:
        TypeError: something else than optimizers, modules and masks.
        ValueError: an optimizer that does not work weight by weight or holds no parameter of the model, a follower
            whose tensors have other names or shapes, masks of another model.
    """
    optimizers = as_optimizers(op, model, optimizer)
    return Company(optimizers, _followers(op, model, followers), _masks(op, model, masks))


def _followers(op: str, model: nn.Module, given: Followers) -> list[nn.Module]:
    found = []
    for each in [given] if isinstance(given, nn.Module) else list(given or ()):
        if not isinstance(each, nn.Module):
            raise TypeError(f"{op}: followers must be modules (got {type(each).__name__})")
        follower = each.module if isinstance(each, AveragedModel) else each
        wanted, got = _shapes(model), _shapes(follower)
        if wanted != got:
            odd = next(name for name in [*wanted, *got] if wanted.get(name) != got.get(name))
            raise ValueError(
                f"{op}: followers must have the model's parameters and buffers (got {got.get(odd, 'none')} for {odd}, "
                f"which is {wanted.get(odd, 'none')} in the model); give copies of the model as it is now"
            )
        if follower is model:
            raise ValueError(f"{op}: a follower must be another model (got the model itself); leave it out")
        found.append(follower)
    return found


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _masks(op: str, model: nn.Module, given: Any) -> list[Masks]:
    found = []
    for each in [given] if isinstance(given, Masks) else list(given or ()):
        if not isinstance(each, Masks):
            raise TypeError(
                f"{op}: masks must be resgrow.Masks, as resgrow.prune gives them (got {type(each).__name__})"
            )
        if each.model is not model:
            raise ValueError(f"{op}: masks must be those of the model (got masks of another); give its own, or none")
        found.append(each)
    return found
