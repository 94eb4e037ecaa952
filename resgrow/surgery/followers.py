"""Averaged copies and masks that go along with a change of a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim.swa_utils import AveragedModel

from resgrow.surgery.masks import Masks


def as_followers(op: str, model: nn.Module, given: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """The copies as a list; of an ``AveragedModel`` what it averages.

    Raises:
        TypeError: something else than modules.
        ValueError: the model itself, or one with other parameters.
    """
    each = [given] if isinstance(given, nn.Module) else list(given or ())
    followers = [follower.module if isinstance(follower, AveragedModel) else follower for follower in each]
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for follower in followers:
        if not isinstance(follower, nn.Module):
            raise TypeError(f"{op}: followers must be modules (got {type(follower).__name__})")
        own = {name: tuple(parameter.shape) for name, parameter in follower.named_parameters()}
        if follower is model or own != shapes:
            odd = "the model itself" if follower is model else str(sorted(own.items() ^ shapes.items())[:2])
            raise ValueError(
                f"{op}: followers must be copies of the model, with parameters of its names and shapes (got {odd}); "
                "pass those made by copy.deepcopy or AveragedModel"
            )
    return followers


def as_masks(op: str, given: Masks | Sequence[Masks] | None) -> list[Masks]:
    """The masks as a list.

    Raises:
        TypeError: something else than `Masks`.
    """
    masks = [given] if isinstance(given, Masks) else list(given or ())
    for each in masks:
        if not isinstance(each, Masks):
            raise TypeError(f"{op}: masks must be resgrow.Masks (got {type(each).__name__})")
    return masks
