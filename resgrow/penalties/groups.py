"""Penalties on groups of weights, whose proximal steps set whole groups to zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Over = str | tuple[int, int]


class GroupPenalty:
    """``strength sum_g sqrt(|g|) ||w_g||`` over groups of weights, and its proximal step::

        penalty = GroupPenalty(model, 1e-4, over="output")
        penalty.attach(optimizer)            # after each step: whole groups become exactly zero
        loss = criterion(model(x), y)        # or: + penalty.value(), by its subgradient, without exact zeros

    With ``norm="l2"`` (L2,1) this is group lasso: over "column" the group-wise brain damage of Lebedev & Lempitsky
    ("Fast ConvNets using group-wise brain damage"), over "output" the auto-sizing of Murray & Chiang ("Auto-sizing
    neural networks: with applications to n-gram language models"), who also use ``norm="linf"`` (Linf,1).
    The factor ``sqrt(|g|)`` makes groups of different sizes comparable (Yuan & Lin).

    Args:
        model: its Linear and convolution layers count; found once, here.
        strength: what a group of one weight of size 1 costs, to be seen against the mean loss.
        norm: "l2", or "linf" for the largest weight of each group.
        over: what a group is: "output" (a neuron or filter), "input" (all that reads an input channel), "column" (all
            outputs' weights of one input channel and tap), or ``(bo, bi)``, blocks of one tap.
        exclude: names of layers that are left alone, such as the last one.

    Raises:
        ValueError: another word, a negative strength, unknown names, or no layer left.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        *,
        norm: str = "l2",
        over: Over = "output",
        exclude: Collection[str] = (),
    ) -> None:
        if norm not in _NORMS:
            raise ValueError(f"GroupPenalty: norm must be one of {', '.join(_NORMS)} (got {norm!r})")
        if not 0 <= strength < math.inf:
            raise ValueError(f"GroupPenalty: strength must be a number, not negative (got {strength})")
        _check_over(over)
        found = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
        if unknown := set(exclude) - set(found):
            raise ValueError(
                f"GroupPenalty: exclude must name layers (got {sorted(unknown)}, and {sorted(found)} exist)"
            )
        weights = {name: module.weight for name, module in found.items() if name not in exclude}
        if not weights:
            raise ValueError("GroupPenalty: the model must have Linear or convolution layers (got none left)")
        self.strength, self.over = strength, over
        self._norm = _NORMS[norm]
        self._weights = weights

    def value(self) -> Tensor:
        """The penalty, 0-dim and differentiable (zero groups get no gradient), to be added to the mean loss."""
        parts = []
        for weight in self._weights.values():
            groups = _grouped(weight, self.over)
            parts.append(self._norm.of(groups).sum() * math.sqrt(_size(weight, self.over)))
        return self.strength * torch.stack([part.to(parts[0]) for part in parts]).sum()

    @torch.no_grad()
    def prox_(self, step: float) -> None:
        """``w = argmin_v 1/2 ||v - w||^2 + step * penalty(v)`` in place: what follows a step of gradient descent with
        learning rate ``step`` on the loss alone."""
        for weight in self._weights.values():
            self._shrink(weight, step)

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """A proximal step after each step of ``optimizer``, with the learning rate of each weight's group at that time.

        Exact for SGD without momentum. For others, Adam among them, it is the usual simplification: their own scale of
        each weight is not taken into account.
        """
        weights = {id(weight): weight for weight in self._weights.values()}

        def step(optimizer: Any, *_: object) -> None:
            with torch.no_grad():
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        if id(parameter) in weights:
                            self._shrink(parameter, float(group["lr"]))

        return optimizer.register_step_post_hook(step)

    def left(self) -> dict[str, int]:
        """Groups of each layer that are not zero."""
        return {name: int(_grouped(weight.detach(), self.over).any(1).sum()) for name, weight in self._weights.items()}

    def _shrink(self, weight: Tensor, step: float) -> None:
        groups = _grouped(weight, self.over)
        amount = step * self.strength * math.sqrt(_size(weight, self.over))
        weight.copy_(_ungrouped(self._norm.prox(groups, amount), weight, self.over))


def _l2_prox(groups: Tensor, amount: float) -> Tensor:
    """``v max(0, 1 - amount / ||v||)``."""
    norms = groups.norm(dim=1, keepdim=True)
    return groups * (1 - amount / norms.clamp_min(torch.finfo(groups.dtype).tiny)).clamp_min(0)


def _linf_prox(groups: Tensor, amount: float) -> Tensor:
    """``v`` less its projection on the L1 ball of radius ``amount`` (Moreau): the largest weights are cut to one level.

    The level leaves ``amount`` above it: found by sorting (Duchi et al., "Efficient projections onto the L1-ball").
    """
    if amount == 0:
        return groups
    sizes = groups.abs().sort(dim=1, descending=True).values
    counts = torch.arange(1, groups.shape[1] + 1, device=groups.device, dtype=groups.dtype)
    levels = (sizes.cumsum(1) - amount) / counts
    last = (sizes > levels).sum(1, keepdim=True).clamp_min(1) - 1
    level = levels.gather(1, last).clamp_min(0)
    return groups.clamp(-level, level)


@dataclass(frozen=True)
class _Norm:
    of: Callable[[Tensor], Tensor]  # (groups, size) -> (groups,)
    prox: Callable[[Tensor, float], Tensor]


_NORMS = {
    "l2": _Norm(lambda groups: groups.norm(dim=1), _l2_prox),
    "linf": _Norm(lambda groups: groups.abs().amax(1), _linf_prox),
}


@dataclass(frozen=True)
class _Kind:
    """One way of grouping ``flat`` ``(O, I, taps)`` into ``(groups, size)``, and back to the shape ``(O, I, taps)``."""

    size: Callable[[int, int, int], int]
    group: Callable[[Tensor], Tensor]
    ungroup: Callable[[Tensor, int, int, int], Tensor]


_KINDS = {
    "output": _Kind(lambda o, i, t: i * t, lambda flat: flat.flatten(1), lambda g, o, i, t: g.view(o, i, t)),
    "input": _Kind(
        lambda o, i, t: o * t,
        lambda flat: flat.transpose(0, 1).flatten(1),
        lambda g, o, i, t: g.view(i, o, t).transpose(0, 1),
    ),
    "column": _Kind(lambda o, i, t: o, lambda flat: flat.flatten(1).T, lambda g, o, i, t: g.T.reshape(o, i, t)),
}


def _kind(over: Over) -> _Kind:
    if isinstance(over, str):
        return _KINDS[over]
    rows, columns = over

    def group(flat: Tensor) -> Tensor:
        """With zeros where blocks hang over the edge."""
        padded = F.pad(flat, (0, 0, 0, -flat.shape[1] % columns, 0, -flat.shape[0] % rows))
        blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
        return blocks.permute(0, 2, 4, 1, 3).flatten(3).flatten(0, 2)

    def ungroup(groups: Tensor, outputs: int, inputs: int, taps: int) -> Tensor:
        blocks = groups.view(-(-outputs // rows), -(-inputs // columns), taps, rows, columns).permute(0, 3, 1, 4, 2)
        return blocks.flatten(2, 3).flatten(0, 1)[:outputs, :inputs]

    return _Kind(lambda o, i, t: rows * columns, group, ungroup)


def _check_over(over: Over) -> None:
    pair = isinstance(over, tuple) and len(over) == 2 and all(isinstance(b, int) and b >= 1 for b in over)
    if not pair and over not in _KINDS:
        raise ValueError(
            f"GroupPenalty: over must be one of {', '.join(_KINDS)} or a pair (outputs, inputs) of positive integers "
            f"(got {over!r})"
        )


def _sizes(weight: Tensor) -> tuple[int, int, int]:
    """Outputs, inputs, taps."""
    return weight.shape[0], weight.shape[1], weight[0, 0].numel()


def _size(weight: Tensor, over: Over) -> int:
    """Weights in a group (of whole blocks, where ragged ones hold fewer)."""
    return _kind(over).size(*_sizes(weight))


def _grouped(weight: Tensor, over: Over) -> Tensor:
    """``(groups, size)``."""
    return _kind(over).group(weight.reshape(_sizes(weight)))


def _ungrouped(groups: Tensor, like: Tensor, over: Over) -> Tensor:
    """The weight, of the shape of ``like``, whose groups these are."""
    return _kind(over).ungroup(groups, *_sizes(like)).reshape(like.shape)
