"""Block-sparse layers in the place of masked ones, where that is faster, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.nn.block_sparse import BlockSparseConv2d, BlockSparseLinear, from_dense
from resgrow.nn.block_sparse_base import BlockSparseLayer, present_blocks
from resgrow.ops.block_index import check_block
from resgrow.ops.block_sparse import has_kernel
from resgrow.surgery.exchange import Exchange, Site, as_optimizers, plan, sites, strange_state
from resgrow.surgery.forward import AnyInputs
from resgrow.surgery.layer_inputs import LayerInput, layer_inputs, nominal_input
from resgrow.surgery.masks import Masks, checked_masks
from resgrow.surgery.speed import Speed, measure
from resgrow.surgery.swap_refusals import KINDS, refusal
from resgrow.surgery.swap_table import Swap, SwapRow

# From coarse to fine: of two that hold the same weights the coarser one is at least as fast.
BLOCKS = ((16, 16), (16, 1), (8, 1), (4, 1))
_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")


@torch.inference_mode(mode=False)  # parameters made in inference mode could never be trained
@torch.no_grad()
def swap(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    example_inputs: AnyInputs | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    block: tuple[int, int] | str = "auto",
    force: bool = False,
    remeasure: bool = False,
) -> Swap:
    """Replace Conv2d and Linear layers with absent blocks by block-sparse ones, where these are measured faster here.

    In place, for a model and its live optimizer: parameters keep their values, gradients, moments and places in the
    parameter groups, and absent blocks stay absent from then on. A block is present where any of its weights is.
    Masks that are attached to the optimizer go on working under the names they have, absent weights within present
    blocks included. `unswap` undoes it. Layers in training mode are measured with both gradients, others forward;
    under autocast in its dtype. Wrap the model (DistributedDataParallel, torch.compile) afterwards. Processes that
    train together must swap alike: fill the cache by one of them first, or give ``block`` and ``force``.

    Args:
        model: changed in place, once everything has proved good.
        masks: which weights are present, such as from `resgrow.prune`; weights they do not name, and all without
            masks, are present where they are not zero. A weight that is all zeros needs a mask.
        example_inputs: a batch as the model is used with: a tensor, the sequence of its arguments, or a mapping of
            keyword arguments. Layers are measured on what it brings them, in one forward pass in evaluation mode.
            Without it on 16 images of side 3584 / channels (7 to 56), and on 16 rows.
        optimizer: one or several that hold the model's parameters; those that ``masks`` are attached to are known.
            An optimizer that is not given goes on updating the weights that were replaced.
        block: ``(bo, bi)``, or "auto" for the fastest of (16, 16), (16, 1), (8, 1) and (4, 1).
        force: swap whatever the measurement says; then measured only to choose among blocks.
        remeasure: measure even what is known, see `resgrow.surgery.measure`.

    Returns:
        One row for each Conv2d and Linear layer; print it.

    Raises:
        ValueError: a wrapped model, unknown or misshapen masks, example_inputs that the model does not run on, a bad
            block, an optimizer that works on whole weights (LBFGS, Adafactor, Muon) or on another model.
        TypeError: wrong types.
    """
    _check_model("swap", model)
    blocks = _candidates(block)
    present = {} if masks is None else checked_masks(model, masks)
    optimizers = as_optimizers("swap", model, optimizer)
    if isinstance(masks, Masks):
        optimizers += [known for known in masks.optimizers if all(known is not other for other in optimizers)]
    found = sites(model, (*KINDS, BlockSparseLayer))
    job = _Job(model, _by_parameter(model, present), optimizers, blocks, force, remeasure)
    if example_inputs is not None:
        job.inputs = layer_inputs("swap", model, [site.layer for site in found], example_inputs)
    decisions = [job.decide(site) for site in found]
    for _, exchange in decisions:
        if exchange is not None:
            exchange.commit()
    nominal = "input sizes are nominal: give example_inputs for those of your data" if example_inputs is None else ""
    return Swap([row for row, _ in decisions], nominal)


@torch.inference_mode(mode=False)  # parameters made in inference mode could never be trained
@torch.no_grad()
def unswap(model: nn.Module, *, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> Swap:
    """Replace block-sparse layers by dense ones with the same weights, zeros in absent blocks. The inverse of `swap`.

    Args:
        model: changed in place.
        optimizer: one or several that hold the model's parameters; moments move along, zeros where blocks are absent.

    Returns:
        One row for each layer that was block-sparse; subclasses of `BlockSparseConv2d` and `BlockSparseLinear` stay.

    Raises:
        ValueError, TypeError: as `swap`.
    """
    _check_model("unswap", model)
    optimizers = as_optimizers("unswap", model, optimizer)
    decisions = [_restored(site, optimizers) for site in sites(model, (BlockSparseLayer,))]
    for _, exchange in decisions:
        if exchange is not None:
            exchange.commit()
    return Swap([row for row, _ in decisions])


@dataclass
class _Job:
    """What all layers are decided by."""

    model: nn.Module
    masks: dict[int, Tensor]
    optimizers: list[Optimizer]
    blocks: tuple[tuple[int, int], ...]
    force: bool
    remeasure: bool
    inputs: dict[int, LayerInput] | None = None

    def __post_init__(self) -> None:
        names = self.model.named_parameters(remove_duplicate=False)
        owners = {(id(parameter), id(self._owner(name))) for name, parameter in names}
        self.owners = Counter(parameter for parameter, _ in owners)

    def _owner(self, name: str) -> nn.Module:
        return self.model.get_submodule(name.rpartition(".")[0])

    def decide(self, site: Site) -> tuple[SwapRow, Exchange | None]:
        layer: Any = site.layer
        if isinstance(layer, BlockSparseLayer):
            return _row(site, layer.block, layer.density(), True, "was so before"), None
        why = self._why_not(site)
        if why is not None:
            return _row(site, None, None, False, why), None
        mask = self.masks.get(id(layer.weight))
        candidates = _distinct(layer, layer.weight if mask is None else mask, self.blocks)
        if isinstance(candidates, str):
            return _row(site, None, None, False, candidates), None
        return self._choose(site, candidates)

    def _why_not(self, site: Site) -> str | None:
        layer: Any = site.layer
        why = refusal(layer)
        if why is not None:
            return why
        if not site.places:
            return "it is the model itself: wrap it in a Sequential"
        if self.owners[id(layer.weight)] > 1:
            return "shares its weight with another layer"
        if self.inputs is not None and id(layer) not in self.inputs:
            return "not called with example_inputs"
        if id(layer.weight) not in self.masks and not layer.weight.any():
            return "all zeros: give masks if it is pruned"
        if (strange := strange_state(layer.weight, self.optimizers)) is not None:
            return f"optimizer state {strange!r} is not per weight"
        return None

    def _choose(self, site: Site, candidates: dict[tuple[int, int], Tensor]) -> tuple[SwapRow, Exchange | None]:
        if self.force and len(candidates) == 1:
            ((block, mask),) = candidates.items()
            row = _row(site, block, mask.float().mean().item(), True, "forced")
        else:
            speeds = [self._measure(site.layer, mask, block) for block, mask in candidates.items()]
            speeds.sort(key=lambda speed: speed.sparse)
            best = speeds[0]
            faster = best.sparse < best.dense
            why = "faster" if faster else "forced" if self.force else "dense is faster"
            row = _row(site, best.block, best.density, faster or self.force, why, tuple(speeds))
        if not row.swapped or row.block is None:
            return row, None
        return row, _swapped(site, candidates[row.block], row.block, self.optimizers)

    def _measure(self, layer: Any, mask: Tensor, block: tuple[int, int]) -> Speed:
        given = nominal_input(layer) if self.inputs is None else self.inputs[id(layer)]
        kind = layer.weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.weight.dtype
        return measure(
            layer,
            given.shape,
            mask,
            block,
            train=layer.training,
            channels_last=given.channels_last,
            dtype=dtype,
            remeasure=self.remeasure,
        )


def _distinct(layer: Any, weights: Tensor, blocks: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Tensor] | str:
    """Masks over blocks of those sizes that may be fastest; where none has kernels or absent blocks, the reason."""
    shape = tuple(layer.weight.shape)
    usable = [block for block in blocks if has_kernel(shape, block, getattr(layer, "groups", 1))]
    if not usable:
        return "no kernel for its groups or these blocks"
    masks: dict[tuple[int, int], Tensor] = {}
    least = layer.weight.numel()
    for block in usable:
        mask = present_blocks(weights, block)
        held = _weights_held(mask, shape, block)
        if held < least:  # fewer than without absent blocks, and than any coarser size
            masks[block], least = mask, held
    return masks or "no absent blocks"


def _weights_held(mask: Tensor, shape: Sequence[int], block: tuple[int, int]) -> int:
    rows, columns = (
        torch.full((count,), size).clamp_(max=total - size * torch.arange(count)).to(mask.device)
        for count, size, total in zip(mask.shape[:2], block, shape[:2], strict=True)
    )
    counts = mask.flatten(2).sum(2) if mask.dim() > 2 else mask.long()
    return int((counts * rows[:, None] * columns).sum())


def _swapped(site: Site, mask: Tensor, block: tuple[int, int], optimizers: Sequence[Optimizer]) -> Exchange:
    dense: Any = site.layer
    layer = from_dense(dense, mask, block)
    return plan(site, layer, dense.weight, layer.values, layer.packed, optimizers)


def _restored(site: Site, optimizers: Sequence[Optimizer]) -> tuple[SwapRow, Exchange | None]:
    sparse: Any = site.layer
    why = None
    if type(sparse) not in (BlockSparseConv2d, BlockSparseLinear):
        why = "a subclass"
    elif not site.places:
        why = "it is the model itself: use to_dense()"
    elif (strange := strange_state(sparse.values, optimizers)) is not None:
        why = f"optimizer state {strange!r} is not per weight"
    if why is not None:
        return _row(site, sparse.block, sparse.density(), True, why), None
    layer = sparse.to_dense()
    exchange = plan(site, layer, sparse.values, layer.weight, sparse.unpacked, optimizers)
    return _row(site, sparse.block, sparse.density(), False, "restored"), exchange


def _row(
    site: Site,
    block: tuple[int, int] | None,
    density: float | None,
    swapped: bool,
    why: str,
    measured: tuple[Speed, ...] = (),
) -> SwapRow:
    layer: Any = site.layer
    shape = tuple(layer.shape) if isinstance(layer, BlockSparseLayer) else _shape(layer)
    return SwapRow(site.name, type(layer).__name__, shape, block, density, swapped, why, measured)


def _shape(layer: Any) -> tuple[int, ...]:
    """Of the weight; nothing where it is not known yet."""
    weight = layer.weight
    return () if nn.parameter.is_lazy(weight) else tuple(weight.shape)


def _check_model(op: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be an nn.Module (got {type(model).__name__})")
    for module in model.modules():
        if type(module).__name__ in _WRAPPERS:
            raise ValueError(
                f"{op}: the model must not be wrapped yet (got {type(module).__name__}); swap first, then wrap"
            )


def _candidates(block: tuple[int, int] | str) -> tuple[tuple[int, int], ...]:
    if block == "auto":
        return BLOCKS
    if isinstance(block, str):
        raise ValueError(f"swap: block must be a pair (outputs, inputs) or 'auto' (got {block!r})")
    return (check_block("swap", block),)


def _by_parameter(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[int, Tensor]:
    parameters = dict(model.named_parameters())
    return {id(parameters[name]): mask for name, mask in masks.items() if name in parameters}
