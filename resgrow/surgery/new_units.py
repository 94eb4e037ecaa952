"""What is in the entries that new units of a group have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from resgrow.surgery.fresh import fresh
from resgrow.surgery.structure import Group
from resgrow.surgery.structure.edit import Fill
from resgrow.surgery.widen_names import fans_out


def random_units(model: nn.Module, group: Group, larger: Group, grows: bool, generator: torch.Generator | None) -> Fill:
    """What makes the units is drawn, what reads them is zero.

    Args:
        group, larger: the units that are there, and with the new ones behind them.
        grows: new units make tensors larger; otherwise ``larger`` is all that fits already.
    """
    sizes = {name: list(tensor.shape) for name, tensor in _tensors(model).items()}
    for place in larger.places if grows else ():
        sizes[place.name][place.dim] += place.index[group.size :].numel()
    drawn: dict[tuple[str, int], Tensor] = {}
    for place in larger.places:
        if not fans_out(model, place):
            path, _, attribute = place.name.rpartition(".")
            shape = list(sizes[place.name])
            shape[place.dim] = place.index[group.size :].numel()
            drawn[place.name, place.dim] = fresh(model.get_submodule(path), attribute, shape, generator)

    def fill(name: str, values: Tensor) -> Tensor:
        places = [place for place in larger.places if place.name == name]
        # A weight can make units from themselves, in a residual stream: what reads them has the last word.
        for place in sorted(places, key=partial(fans_out, model)):
            new = place.index[group.size :].flatten().to(values.device)
            if (name, place.dim) in drawn:
                values.index_copy_(place.dim, new, drawn[name, place.dim])
            else:
                values.index_fill_(place.dim, new, 0)
        return values

    return fill


def copied_units(model: nn.Module, group: Group, larger: Group, grows: bool, generator: torch.Generator | None) -> Fill:
    """Copies of units, which share what reads them."""
    device = None if generator is None else generator.device
    copied = torch.randint(group.size, (larger.size - group.size,), generator=generator, device=device).cpu()
    sources = torch.cat([torch.arange(group.size), copied])
    shares = torch.bincount(sources)[sources]

    def fill(name: str, values: Tensor) -> Tensor:
        for place in larger.places:
            if place.name != name:
                continue
            index = place.index.to(values.device)
            rows = values.index_select(place.dim, index[copied].flatten())
            values.index_copy_(place.dim, index[group.size :].flatten(), rows)
            if fans_out(model, place):
                counts = torch.ones(values.shape[place.dim], dtype=values.dtype, device=values.device)
                counts[index] = shares.to(counts)[:, None]
                values /= counts.view([-1 if dim == place.dim else 1 for dim in range(values.dim())])
        return values

    return fill


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


INITS: dict[str, Callable[[nn.Module, Group, Group, bool, torch.Generator | None], Fill]] = {
    "random": random_units,
    "net2wider": copied_units,
}
