"""How far a change of one layer's weights is felt: directional derivatives at the layers behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from resgrow.curvature.batches import Batch, call
from resgrow.ripple.layers import Layer

OUTPUT = None  # the key of the model's output; no layer's name
See = Callable[["str | None", Tensor], None]
Direction = Mapping[str, Tensor]

# Forward-mode is believed where its changes are those of a finite difference, to this (relative, and relative to the
# output): kinks and rounding stay below; tangents that an operation loses do not.
_AGREES = (0.1, 1e-3)


@dataclass
class Felt:
    """Sums of squares at each place, over outputs and directions: of what is there, and of its derivative."""

    value: dict[str | None, float] = field(default_factory=dict)
    change: dict[str | None, float] = field(default_factory=dict)

    def add(self, place: str | None, value: Tensor, change: Tensor | None) -> None:
        self.value[place] = self.value.get(place, 0.0) + _square(value)
        self.change[place] = self.change.get(place, 0.0) + (0.0 if change is None else _square(change))

    def join(self, other: Felt) -> None:
        for mine, theirs in ((self.value, other.value), (self.change, other.change)):
            for place, square in theirs.items():
                mine[place] = mine.get(place, 0.0) + square

    def relative(self) -> dict[str | None, float]:
        """RMS of the derivative over RMS of the output, where there is any."""
        return {
            place: (change / self.value[place]) ** 0.5 if self.value[place] else float("inf")
            for place, change in self.change.items()
            if change
        }


def reach(
    model: nn.Module, layer: Layer, watched: Sequence[Layer], batches: Sequence[Batch], directions: Sequence[Direction]
) -> tuple[Felt, str]:
    """Derivatives along ``w z`` of the output of each of ``watched`` and of the model, in eval mode.

    Args:
        directions: of `Layer.direction`.

    Returns:
        What is felt, and why finite differences had to stand in for forward-mode differentiation; empty where they did
        not have to.
    """
    total, reason = Felt(), ""
    with torch.no_grad(), _differentiable():
        for number, (inputs, _) in enumerate(batches):
            for direction in directions:
                if not reason:
                    found, reason = _tried(model, layer, watched, inputs, direction, check=not (number or total.value))
                    if reason:  # one method for all numbers of a layer
                        return _by_differences(model, layer, watched, batches, directions), reason
                    total.join(found)
    return total, reason


def _tried(
    model: nn.Module, layer: Layer, watched: Sequence[Layer], inputs: Any, direction: Direction, check: bool
) -> tuple[Felt, str]:
    """By forward-mode differentiation, or why not."""
    try:
        found = _forward_mode(model, layer, watched, inputs, direction)
    except RuntimeError as error:  # what has no tangent says so in one of several ways
        return Felt(), str(error).strip().splitlines()[0].rstrip(".")
    exact = min(1 / torch.finfo(w.dtype).eps for w in layer.weights.values()) > 1e6
    if check and exact and not _agree(found, _difference(model, layer, watched, inputs, direction)):
        return Felt(), "its tangents are not what a finite difference gives"
    return found, ""


def _forward_mode(model: nn.Module, layer: Layer, watched: Sequence[Layer], inputs: Any, direction: Direction) -> Felt:
    felt = Felt()

    def see(place: str | None, output: Tensor) -> None:
        value, change = forward_ad.unpack_dual(output)
        felt.add(place, value, change)

    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(w, direction[name]) for name, w in layer.weights.items()}
        with _watching(watched, see):
            _look(OUTPUT, call(model, inputs, duals), see)
    return felt


def _by_differences(
    model: nn.Module, layer: Layer, watched: Sequence[Layer], batches: Sequence[Batch], directions: Sequence[Direction]
) -> Felt:
    total = Felt()
    for inputs, _ in batches:
        for direction in directions:
            total.join(_difference(model, layer, watched, inputs, direction))
    return total


def _difference(model: nn.Module, layer: Layer, watched: Sequence[Layer], inputs: Any, direction: Direction) -> Felt:
    """By a central difference, whose step balances its own error with rounding."""
    step = max(torch.finfo(w.dtype).eps for w in layer.weights.values()) ** (1 / 3)
    sides = []
    for by in (step, -step):
        seen: list[tuple[str | None, Tensor]] = []
        with _watching(watched, lambda place, output, seen=seen: seen.append((place, output.clone()))):  # type: ignore[misc]
            output = call(model, inputs, layer.moved(direction, by))
            _look(OUTPUT, output, lambda place, output, seen=seen: seen.append((place, output)))  # type: ignore[misc]
        sides.append(seen)
    felt = Felt()
    for (place, plus), (_, minus) in zip(*sides, strict=True):
        felt.add(place, (plus + minus) / 2, (plus - minus) / (2 * step))
    return felt


def _agree(one: Felt, other: Felt) -> bool:
    relative, absolute = _AGREES
    for place, value in one.value.items():
        a, b = one.change[place] ** 0.5, other.change[place] ** 0.5
        if abs(a - b) > relative * max(a, b) + absolute * value**0.5:
            return False
    return True


@contextmanager
def _watching(watched: Sequence[Layer], see: See) -> Iterator[None]:
    def hook(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        _look(name, output, see)

    handles = [layer.module.register_forward_hook(partial(hook, layer.name)) for layer in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _look(place: str | None, output: Any, see: See) -> None:
    """At the first tensor of numbers in an output."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            see(place, leaf)
            return


@contextmanager
def _differentiable() -> Iterator[None]:
    """Attention in the forms that have tangents, and whose layers run as modules."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))) ** 2
