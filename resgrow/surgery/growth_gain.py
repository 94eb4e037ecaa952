"""The gain of units that a model does not have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from resgrow.curvature.batches import Batch
from resgrow.curvature.growth import Growth, growth, moments
from resgrow.curvature.heads import LossFn
from resgrow.surgery.forward import AnyInputs, Example
from resgrow.surgery.growth_sites import GrowthSite, NoSite, growth_site
from resgrow.surgery.structure import structure_of, traced
from resgrow.surgery.widen_names import named_group

_OP = "growth_gain"


def growth_gain(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any] | Batch,
    *,
    example_inputs: AnyInputs | Example,
    names: Sequence[str] | None = None,
    units: int | None = None,
) -> dict[str, Growth]:
    """How fast new units would lower the mean loss over ``data``, for each layer that could get some: ``rho+``.

    Where a layer is too narrow for what the loss asks of the next ones, its ``gain`` is large: the part of the update
    which they cannot give by weights of their own (Verbockhaven et al. 2024, "Growing tiny networks"). See
    `resgrow.Growth` for equations, scale and assumptions; ``resgrow.widen(..., init="tiny")`` adds these units.

    The model runs in evaluation mode and is left as it was. Data are read twice, see `resgrow.widen`.

    Args:
        model: any that ``torch.export`` can follow on example_inputs and that returns one tensor.
        loss_fn, data: as in `resgrow.curvature`.
        example_inputs: a tensor, the sequence of the model's arguments, or a mapping of its keyword arguments, of the
            data's size.
        names: layers (or parameters) by name, as in `resgrow.widen`; None for all that can grow in this way: Linear and
            convolutional layers without groups which alone make their units, with activations, batch norms, pooling
            and flattening between them and the layers of these kinds that read the units.
        units: at most so many of each layer, the best ones; None for all. A few take a fraction of the time where
            layers have more than a few hundred inputs.

    Returns:
        ``{name: Growth}``, in forward order; names are those given, or those of the layers that make the units.

    Raises:
        ValueError: ``units`` below 1, a name whose units cannot grow in this way, no data, a loss that is not finite, a
            model that cannot be followed.
        TypeError: arguments of other types.
    """
    if units is not None and (isinstance(units, bool) or not isinstance(units, int)):
        raise TypeError(f"{_OP}: units must be a whole number or None (got {units!r})")
    if units is not None and units < 1:
        raise ValueError(f"{_OP}: units must be at least 1 (got {units}); None is for all")
    example = Example.of(example_inputs, _OP)
    graph = traced(model, example, _OP)
    found = structure_of(model, graph)
    sites: dict[str, GrowthSite] = {}
    if names is None:
        for group in found.groups:
            try:
                each = growth_site(model, graph, group)
            except NoSite:
                continue
            sites[each.maker] = each
    else:
        for name in [names] if isinstance(names, str) else names:
            try:
                sites[name] = growth_site(model, graph, named_group(model, example, found, name, _OP))
            except NoSite as error:
                raise ValueError(f"{_OP}: {name} has no gain (got: {error}); leave it out of names") from error
    layers = [each.site for each in sites.values()]
    results = moments(_OP, model, loss_fn, data, layers, project=True) if layers else []
    return {
        name: growth(each, found, whiten=True, count=units)
        for name, each, found in zip(sites, layers, results, strict=True)
    }
