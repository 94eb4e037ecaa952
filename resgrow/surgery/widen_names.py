"""Which group of units the user means by the name of a layer or of a parameter."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from resgrow.surgery.forward import Example
from resgrow.surgery.structure import Group, Place
from resgrow.surgery.structure.groups import Structure, kept_because


def fans_out(model: nn.Module, place: Place) -> bool:
    """Whether a place holds what other weights do with a unit, rather than what makes it."""
    owner = model.get_submodule(place.name.rpartition(".")[0])
    # Inputs and outputs of a group of channels are one unit.
    return place.read and not (isinstance(owner, _ConvTransposeNd) and owner.groups > 1)


def named_group(model: nn.Module, inputs: Example, found: Structure, name: str, op: str) -> Group:
    """The one group whose units are the outputs of a layer, or lie in a parameter.

    Raises:
        ValueError: there is no such layer or parameter, its outputs are not units, or are those of several groups.
    """
    parameters = _parameters(model, name, op)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    own = {id(parameter) for parameter in parameters.values()}
    groups = [
        group
        for group in found.groups
        if any(id(tensors.get(place.name)) in own and not fans_out(model, place) for place in group.places)
    ]
    if len(groups) == 1:
        return groups[0]
    if groups:
        raise ValueError(
            f"{op}: {name or 'the model'} must hold units of one group (got {len(groups)} groups, in "
            f"{'; in '.join(_layers_of(model, group) for group in groups)}); name a layer or a parameter that only "
            "the wanted group is in"
        )
    names = [key for key, tensor in tensors.items() if id(tensor) in own]
    why = _reasons(model, inputs, names, op) + [f"unknown: {each}" for each in found.unknown]
    raise ValueError(
        f"{op}: outputs of {name or 'the model'} must be units that something reads through weights of its own, and "
        f"free in number (got: {'; '.join(why[:4])}); name a layer inside, such as "
        f"{', '.join(sorted({_maker(model, group) for group in found.groups})[:4]) or '(none can be widened)'}"
    )


def _parameters(model: nn.Module, name: str, op: str) -> dict[str, nn.Parameter]:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    if name in tensors:
        return {name: tensors[name]}
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        close = get_close_matches(name, [*modules, *tensors], 4)
        hint = f"close to it: {', '.join(close)}" if close else "see model.named_modules()"
        raise ValueError(f"{op}: name must be that of a layer or a parameter of the model (got {name!r}); {hint}")
    own = dict(modules[name].named_parameters(name, recurse=False))
    if not own:
        inside = [key for key in tensors if key.startswith(f"{name}." if name else "")]
        layers = list(dict.fromkeys(key.rpartition(".")[0] for key in inside))[:4]
        raise ValueError(
            f"{op}: the layer must have parameters itself (got {name!r}, a {type(modules[name]).__name__}); name "
            f"{'one inside it, such as ' + ', '.join(layers) if layers else 'the layer in front of it'}"
        )
    return own


def _layers_of(model: nn.Module, group: Group) -> str:
    names = (place.name.rpartition(".")[0] or place.name for place in group.places if not fans_out(model, place))
    return ", ".join(dict.fromkeys(names))


def _maker(model: nn.Module, group: Group) -> str:
    return _layers_of(model, group).split(", ")[0]


def _reasons(model: nn.Module, inputs: Example, names: list[str], op: str) -> list[str]:
    why: list[str] = []
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        across = isinstance(owner, nn.Embedding) or (isinstance(owner, _ConvTransposeNd) and owner.groups == 1)
        dim = 1 if across and name.endswith("weight") else 0
        shape = model.get_parameter(name).shape
        if not shape:
            why.append(f"{name}: one number for all units")
        elif shape[dim] == 1:
            why.append("a single unit, which is lost sight of where a shape is changed")
        else:
            why += kept_because(model, inputs, op, name, dim)
    return list(dict.fromkeys(why))
