"""``merge_linear``: layers with nothing nonlinear between them become one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.passes.shape_prop import ShapeProp

from resgrow._modes import eval_mode
from resgrow.nn import TriStateReLU
from resgrow.surgery.forward import Inputs, as_inputs, evaluate, require_same
from resgrow.surgery.fuse.fold import affine
from resgrow.surgery.fuse.trace import trace
from resgrow.surgery.merge.find import Pair, Pairs, shape_of
from resgrow.surgery.merge.product import (
    Convolution,
    Map,
    Matrix,
    behind,
    convolution_after_convolution,
    matrix_after_convolution,
    matrix_after_matrix,
    scaled,
)

_COSTS = ("params", "macs")


@dataclass(frozen=True)
class MergeRow:
    """Two layers in a row.

    Attributes:
        first, second: their names.
        merged: whether they are one now.
        before, after: their cost, and that of the one layer; None where it could not be made.
        why: in a few words.
    """

    first: str
    second: str
    merged: bool
    before: int
    after: int | None
    why: str


@dataclass(frozen=True)
class Merged:
    """What `merge_linear` returns: the smaller ``model``, and a row for each pair of layers; print it."""

    model: nn.Module
    rows: tuple[MergeRow, ...]

    def __iter__(self) -> Iterator[MergeRow]:
        return iter(self.rows)

    def __str__(self) -> str:
        lines = [f"{row.first} + {row.second}: {'merged' if row.merged else 'apart'}, {row.why}" for row in self.rows]
        return "\n".join(lines) or "no two layers in a row"


@torch.no_grad()
def merge_linear(model: nn.Module, example_inputs: Inputs, *, cost: str = "params", force: bool = False) -> Merged:
    """A copy of the model in which Conv2d and Linear layers with only linear steps between them have become one.

    Linear steps are open depth gates of `TriStateReLU` (its closed channels, too), batch norms in evaluation mode,
    ``nn.Identity`` and flattening. Merged are Linear and Linear, Conv2d and Conv2d (stride, padding, dilation, groups
    and bias), and Conv2d and Linear across a flatten. The first layer's place takes the product, or for Conv2d and
    Linear the second's, and ``nn.Identity`` the others': the model's own code runs as before, and it can be trained on.

    Only what is exact in evaluation mode is merged, and by default only what makes the model smaller: 3x3 after 3x3
    makes 5x5, 25 taps where 18 were. Of several mergers in a row the one that saves most comes first.

    Args:
        model: one that ``torch.fx`` can trace; it is left alone.
        example_inputs: a tensor or the sequence of the model's arguments; both models are run on it.
        cost: "params" or "macs" (per sample on ``example_inputs``): what a merger must not raise.
        force: merge whatever can be merged exactly, at any cost.

    Returns:
        The copy, and what became of each pair of layers and why.

    Raises:
        ValueError: ``torch.fx`` cannot trace the model, it does not run on example_inputs, or another word for cost.
        TypeError: example_inputs are not tensors, or the model does not return one.
        RuntimeError: outputs differ by more than rounding: the forward pass does more than tracing shows.
    """
    if cost not in _COSTS:
        raise ValueError(f"merge_linear: cost must be one of {', '.join(_COSTS)} (got {cost!r})")
    inputs = as_inputs(example_inputs, "merge_linear")
    expected = evaluate(model, inputs, "merge_linear")
    small = copy.deepcopy(model)
    done: list[MergeRow] = []
    while True:
        options = _options(small, inputs, cost)
        apart = [option.row for option in options]
        worth = [option for option in options if option.layer is not None and (force or option.saves >= 0)]
        if not worth:
            break
        best = max(worth, key=lambda option: option.saves)
        _apply(small, best)
        done.append(replace(best.row, merged=True, why=_saving(best.row, cost)))
    require_same(expected, evaluate(small, inputs, "merge_linear"), "merge_linear")
    return Merged(small, (*done, *apart))


@dataclass(frozen=True)
class _Option:
    """A pair, and the layer that would take its place; ``slot`` names the place."""

    row: MergeRow
    layer: nn.Module | None
    slot: str
    emptied: tuple[str, ...]

    @property
    def saves(self) -> int:
        return 0 if self.row.after is None else self.row.before - self.row.after


def _options(model: nn.Module, inputs: Sequence[Tensor], cost: str) -> list[_Option]:
    traced = trace(model, "merge_linear", "merge the parts that can be traced")
    with eval_mode(traced):
        ShapeProp(traced).propagate(*inputs)
    pairs = Pairs(traced)
    return [_option(pairs, pair, cost) for pair in pairs.all()]


def _option(pairs: Pairs, pair: Pair, cost: str) -> _Option:
    first, second = str(pair.first.target), str(pair.second.target)
    layers = [pairs.module(pair.first), pairs.module(pair.second)]
    positions = [_positions(pair.first), _positions(pair.second)]
    before = sum(_cost(layer, at, cost) for layer, at in zip(layers, positions, strict=True))
    product = pair.why or _product(pairs, pair)
    if isinstance(product, str):
        return _Option(MergeRow(first, second, False, before, None, product), None, first, ())
    layer = product.layer(layers[0])
    after = _cost(layer, positions[1], cost)
    row = MergeRow(first, second, False, before, after, f"{after:,} {cost} would take the place of {before:,}")
    through = [node for node in pair.between if node.op == "call_module" and type(pairs.module(node)) is not nn.Flatten]
    slot = second if isinstance(layers[0], nn.Conv2d) and isinstance(layers[1], nn.Linear) else first
    names = [first, *(str(node.target) for node in through), second]
    return _Option(row, layer, slot, tuple(name for name in names if name != slot))


def _product(pairs: Pairs, pair: Pair) -> Map | str:
    layers = [pairs.module(pair.first), pairs.module(pair.second)]
    if any(getattr(layer, "padding_mode", "zeros") != "zeros" for layer in layers):
        return "padding with other than zeros"
    if any(isinstance(getattr(layer, "padding", None), str) for layer in layers):
        return "padding by name"
    first, second = _map(layers[0]), _map(layers[1])
    flat = False
    columns = []
    for node in pair.between:
        module = pairs.module(node)
        flat = flat or len(shape_of(node)) < len(shape_of(pair.first))
        if isinstance(module, TriStateReLU | nn.BatchNorm1d | nn.BatchNorm2d):
            if isinstance(first, Matrix) and len(shape_of(pair.first)) > 2:
                return "what lies between does not count the first one's outputs as channels"
            if flat:
                columns.append(_factors(module))
            else:
                first = scaled(first, *_factors(module))
    if isinstance(second, Matrix):
        for scale, shift in reversed(columns):
            second = behind(scale, shift, second)
    if isinstance(first, Convolution) and isinstance(second, Convolution):
        return convolution_after_convolution(first, second)
    if isinstance(first, Matrix) and isinstance(second, Matrix):
        return "they are flattened in between" if flat else matrix_after_matrix(first, second)
    if isinstance(first, Convolution) and isinstance(second, Matrix) and flat and len(shape_of(pair.first)) == 4:
        return matrix_after_convolution(first, second, shape_of(pair.first.all_input_nodes[0])[1:])
    return "a convolution and a matrix that are not one map of images"


def _factors(module: TriStateReLU | nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor | None]:
    """Scale and shift of each channel."""
    return ((module.w >= 0.5).double(), None) if isinstance(module, TriStateReLU) else affine(module)


def _map(layer: Any) -> Map:
    return Convolution.of(layer) if isinstance(layer, nn.Conv2d) else Matrix.of(layer)


def _positions(node: Node) -> int:
    """At how many places of one sample a layer's weight is used."""
    shape = shape_of(node)
    return math.prod(shape[2:] if len(shape) == 4 else shape[1:-1])


def _cost(layer: Any, positions: int, cost: str) -> int:
    if cost == "macs":
        return int(layer.weight.numel()) * positions
    return sum(int(p.numel()) for p in layer.parameters())


def _saving(row: MergeRow, cost: str) -> str:
    return f"{row.before:,} -> {row.after:,} {cost}"


def _apply(model: nn.Module, option: _Option) -> None:
    assert option.layer is not None
    _put(model, option.slot, option.layer)
    for name in option.emptied:
        _put(model, name, nn.Identity())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, module.train(model.get_submodule(name).training))
