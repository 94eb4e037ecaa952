"""Where a model's groups of units can grow by what the loss asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from resgrow.curvature.growth import Reader, Site
from resgrow.nn.tristate_relu import TriStateReLU
from resgrow.surgery.growth_routes import NoRoute, Route, node_of, routes
from resgrow.surgery.structure import Group, Place
from resgrow.surgery.structure.trace import Traced
from resgrow.surgery.widen_names import fans_out

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# One number per unit, which new units get by the module's own initialisation.
_BETWEEN = (_BatchNorm, nn.PReLU, TriStateReLU)


class NoSite(ValueError):
    """The message says why a group is none."""


@dataclass(frozen=True)
class GrowthSite:
    """A group of units with one layer that makes them.

    Attributes:
        site: what `resgrow.curvature.growth` works with.
        maker: the layer's name.
        readers: where those of ``site`` read the units, in its order.
        norms: names of batch norms directly behind the maker.
    """

    site: Site
    maker: str
    readers: tuple[Place, ...]
    norms: tuple[str, ...]


def growth_site(model: nn.Module, graph: Traced, group: Group) -> GrowthSite:
    """The site of a group.

    Raises:
        NoSite: units that several layers make, as in residual streams, heads, groups of channels, or something between
            maker and readers that has no linear form.
    """
    maker, read = _maker(model, group), [place for place in group.places if fans_out(model, place)]
    if not read:
        raise NoSite("no layer reads the units")
    try:
        start = node_of(graph, f"{maker}.weight" if maker else "weight")
        ends = {node_of(graph, place.name): place for place in read}
        found = list(routes(graph, start))
        readers = {route.end: _reader(model, graph, route, ends) for route in found}
    except NoRoute as error:
        raise NoSite(str(error)) from error
    if len(readers) != len(found) or len(readers) != len(ends):
        raise NoSite("each layer that reads the units must do so once, on a way of its own")
    norms = [route.norm for route in found if route.norm is not None]
    centred = len(norms) == len(found)
    names = tuple(dict.fromkeys(_path(graph, node) for node in norms)) if centred else ()
    site = Site(model.get_submodule(maker), tuple(readers.values()), centred)
    return GrowthSite(site, maker, tuple(ends[node] for node in readers), names)


def _maker(model: nn.Module, group: Group) -> str:
    if group.split_by:
        raise NoSite(f"{group.split_by[0] or 'the model'} splits them, as into heads")
    makers: dict[str, Any] = {}
    for place in group.places:
        path, _, attribute = place.name.rpartition(".")
        owner = model.get_submodule(path)
        if isinstance(owner, _LAYERS) and attribute in ("weight", "bias"):
            if getattr(owner, "groups", 1) != 1 or (place.index.shape[1] != 1 and place.dim == 0):
                raise NoSite("the units are groups of channels")
            if not fans_out(model, place):
                makers[path] = owner
        elif not isinstance(owner, _BETWEEN):
            raise NoSite(f"{place.name} belongs to a {type(owner).__name__}")
    if len(makers) != 1:
        raise NoSite(f"{len(makers)} layers make the units ({', '.join(list(makers)[:4])})")
    return next(iter(makers))


def _reader(model: nn.Module, graph: Traced, route: Route, ends: dict[Node, Place]) -> Reader:
    place = ends.get(route.end)
    if place is None:
        raise NoRoute("a layer reads it that is in no such group")
    layer: Any = model.get_submodule(place.name.rpartition(".")[0])
    columns = place.index.shape[1]
    linear = isinstance(layer, nn.Linear)
    shape = route.end.args[0].meta["val"].shape  # type: ignore[union-attr]
    if route.channel != (len(shape) - 1 if linear else 1) or (not linear and columns != 1):
        raise NoRoute(f"{place.name} reads it along another dimension")
    normed = bool(route.end.users) and all("batch_norm" in str(node.target) for node in route.end.users)
    return Reader(layer, route.steps, columns, layer.bias is not None or normed)


def _path(graph: Traced, norm: Node) -> str:
    """Of the module of a batch norm, by its first parameter or buffer; empty where it has none."""
    names = [graph.stored[each.name] for each in norm.all_input_nodes if each.name in graph.stored]
    return names[0].rpartition(".")[0] if names else ""
