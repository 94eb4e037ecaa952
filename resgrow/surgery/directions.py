"""New units in the directions that the loss asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch
from resgrow.curvature.growth import Growth, growth, moments, random_growth, rereadable, weight_gradients
from resgrow.curvature.heads import LossFn, head_of
from resgrow.surgery.forward import Example
from resgrow.surgery.growth_sites import GrowthSite, NoSite, growth_site
from resgrow.surgery.new_units import random_units
from resgrow.surgery.structure import Edit, Group, traced
from resgrow.surgery.structure.edit import Fill
from resgrow.surgery.structure.insert import grown, insert

# Whether moments are projected off what existing weights can do, and fan-ins whitened.
DIRECTED = {"tiny": True, "gradmax": False}


def directed(
    init: str,
    model: nn.Module,
    example: Example,
    name: str,
    group: Group,
    larger: Group,
    grows: bool,
    generator: torch.Generator | None,
    loss_fn: LossFn | None,
    data: Iterable[Any] | Batch | None,
    known: Growth | None = None,
) -> Fill:
    """What is in the new entries of ``larger``; see `resgrow.widen`. The model is as it was afterwards.

    Args:
        known: the best units as `resgrow.growth_gain` has found them on these data, which spares finding them again.

    Raises:
        ValueError: no loss or data, units that do not have one maker and its readers, a loss that is not finite.
        TypeError: data that do not yield pairs.
    """
    if loss_fn is None or data is None:
        missing = "loss_fn" if loss_fn is None else "data"
        raise ValueError(f"widen: init={init!r} needs {missing} (got None); give it, or use init='random'")
    try:
        at = growth_site(model, traced(model, example, "widen"), group)
    except NoSite as error:
        raise ValueError(
            f"widen: init={init!r} needs one Linear or convolutional layer without groups that makes the units and "
            f"such layers that read them (got {name}: {error}); use init='random' or 'net2wider'"
        ) from error
    data, by = rereadable(data), larger.size - group.size
    found, best = None, known
    if best is None or len(best) < by:
        (found,) = moments("widen", model, loss_fn, data, [at.site], project=DIRECTED[init])
        best = growth(at.site, found, whiten=DIRECTED[init], count=by)
    lead = best.chosen(torch.arange(min(by, len(best))))
    units = Growth.joined([lead, lead.flipped()])
    if len(lead):
        trial = grown(group, len(units), "widen")
        fill = _fill(random_units(model, group, trial, True, generator), at, group, trial, units)
        units = units.chosen(_steepest(_gradients(model, loss_fn, data, at, group, trial, fill), by))
    if found is not None and len(units) < by:
        units = Growth.joined([units, random_growth(at.site, found, best, by - len(units), generator)])
    return _fill(random_units(model, group, larger, grows, generator), at, group, larger, units)


def _gradients(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any] | Batch,
    at: GrowthSite,
    group: Group,
    trial: Group,
    fill: Fill,
) -> Tensor:
    """Of the mean loss for the fan-outs of units that are there for the time being, ``(units, weights)``."""
    edit = Edit(model, ())
    try:
        insert(edit, group, trial, fill)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        weights = {place.name: parameters[place.name] for place in at.readers}
        gradients = weight_gradients("widen", model, head_of("widen", loss_fn), data, weights)
    finally:
        edit.undo()
    found = []
    for place in trial.places:
        if place.name in gradients and place.dim == 1:
            gradient = gradients[place.name].movedim(1, 0)
            found.append(gradient[place.index[group.size :].to(gradient.device)].flatten(1))
    return torch.cat(found, 1)


def _steepest(gradients: Tensor, by: int) -> Tensor:
    """Numbers of the ``by`` units of largest gradient, of which the second half are the first with the other sign.

    Both signs of a unit are taken only where they differ by more than that: not behind an odd activation.
    """
    norms = gradients.norm(dim=1)
    one, other = gradients.chunk(2)
    same = (one + other).norm(dim=1) <= 1e-4 * (one.norm(dim=1) + other.norm(dim=1))
    ranked = norms.clone()
    ranked[len(one) :][same] = -1
    order = ranked.argsort(descending=True, stable=True)
    return order[ranked[order] >= 0][:by].cpu()


def _fill(fresh: Fill, at: GrowthSite, group: Group, larger: Group, units: Growth) -> Fill:
    inside = f"{at.maker}." if at.maker else ""
    rows = {f"{inside}weight": units.fan_in, f"{inside}bias": units.bias}
    for norm in at.norms:
        rows |= {f"{norm}.running_mean": units.mean, f"{norm}.running_var": torch.ones_like(units.mean)}
    new = {place.name: place.index[group.size :].flatten() for place in larger.places if place.name in rows}

    def fill(name: str, values: Tensor) -> Tensor:
        values = fresh(name, values)
        if name in new:
            values.index_copy_(0, new[name].to(values.device), rows[name].to(values))
        return values

    return fill
