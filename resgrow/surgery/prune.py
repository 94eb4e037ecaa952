"""One-shot removal of the units with the lowest scores."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow.surgery.compensate import compensated
from resgrow.surgery.forward import AnyInputs
from resgrow.surgery.make_units import Block, make_units
from resgrow.surgery.masks import Masks
from resgrow.surgery.units import Units


def prune(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    *,
    sparsity: float,
    block: Block = (1, 1),
    scope: str = "global",
    exclude: Sequence[str] = (),
    cost: str = "params",
    example_inputs: AnyInputs | None = None,
    compensate: bool = True,
) -> Masks:
    """Zero the units whose removal raises the score least per parameter, or per multiply-accumulate.

    Scores of method "obs", or with ``refit``, also correct the survivors, such that they make up for what is removed.

    Args:
        model: pruned in place, once all arguments have proved good.
        scores: ``{parameter name: tensor of its shape}``, as from `resgrow.saliency`; all candidate weights must be
            there. For channels, scores of biases and norms count where they are given.
        sparsity: share of the candidates' cost to remove, in [0, 1): of their parameters, or of the
            multiply-accumulates that `make_units` counts for them. For weights and blocks the candidates are
            the Conv2d and Linear weights that are not excluded; for channels all that the channels cover. The smallest
            number of units that reaches the share goes.
        block: (1, 1) for single weights, (bo, bi) for blocks, "channel" for channels with all that is coupled (also
            attention heads and neurons), "residual" for residual branches; see `make_units`. Of a branch the scores of
            its last parameters count.
        scope: "global" ranks all units together; "layer" removes the share from each weight (or set of coupled
            channels) by itself, all channels but one at most; not for residual branches, which go or stay.
        exclude: names or fnmatch patterns of parameters or modules to leave alone, see `make_units`.
        cost: "params", or "macs" (multiply-accumulates per sample): weights that are used at many positions then go
            sooner.
        example_inputs: a batch for the model, which is run on it in evaluation mode. Needed for "macs", for residual
            branches, and for channels of models other than `nn.Sequential` and `resgrow.nn.ResNet`: any that
            ``torch.export`` can follow.
        compensate: correct the surviving weights by ``scores.compensation`` where the scores have one; False leaves
            them as they are. Biases are not corrected.

    Returns:
        The masks, applied; attach them to the optimizer before training goes on.

    Raises:
        ValueError: sparsity, scope, block or cost out of range, no or bad example_inputs where they are needed, a model
            that ``torch.export`` cannot follow, unknown names in exclude or scores, missing scores, wrong shapes, NaN,
            more sparsity than keeps one channel of each group, corrected weights that are not finite.
        TypeError: wrong types.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise ValueError(f"prune: sparsity must be a number in [0, 1) (got {sparsity!r}); 0.9 removes 90 %")
    if scope not in ("global", "layer"):
        raise ValueError(f"prune: scope must be 'global' or 'layer' (got {scope!r})")
    if cost not in ("params", "macs"):
        raise ValueError(f"prune: cost must be 'params' or 'macs' (got {cost!r})")
    if cost == "macs" and example_inputs is None:
        raise ValueError("prune: cost='macs' needs example_inputs (got none); pass one batch of inputs")
    if block == "residual" and scope == "layer":
        raise ValueError(
            "prune: scope='layer' takes a share of each group, and a residual branch goes or stays as a whole (got "
            "block='residual'); use scope='global'"
        )
    units = make_units(model, block, exclude, example_inputs if cost == "macs" or isinstance(block, str) else None)
    summed = units.scores(scores)
    if scope == "global":
        keep = units.select(summed, round(sparsity * units.total(by=cost)), by=cost)
    else:
        keep = _select_by_layer(units, summed, sparsity, cost)
    masks = Masks(model, units.to_masks(keep))
    compensation = getattr(scores, "compensation", None) if compensate else None
    if compensation is not None:
        _write(compensated(model, compensation, masks))
    masks.apply()
    return masks


@torch.no_grad()
def _write(values: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, value in values:
        parameter.copy_(value)


def _select_by_layer(units: Units, scores: list[Tensor], sparsity: float, by: str) -> list[Tensor]:
    keep = units.live()
    for index, cost in enumerate(units.costs(by=by)):
        wanted = round(sparsity * float(cost.sum(dtype=torch.float64)))
        save = min(wanted, units.savable(scores, by=by, groups=[index]))
        keep[index] = units.select(scores, save, by=by, groups=[index])[index]
    return keep
