"""Parameters by the names they have in the dense model, wherever `swap` has put their values."""

from __future__ import annotations

from torch import nn

from resgrow.nn.block_sparse_base import BlockSparseLayer

Place = tuple[nn.Parameter, BlockSparseLayer | None]


def dense_parameters(model: nn.Module) -> dict[str, Place]:
    """``model.named_parameters()``, with the ``values`` of block-sparse layers under the name of their weight.

    Returns:
        ``{name: (parameter, layer)}``; the layer is None where the parameter is what the name says.
    """
    places: dict[str, Place] = {}
    for name, parameter in model.named_parameters():
        owner, _, attribute = name.rpartition(".")
        layer = model.get_submodule(owner)
        if attribute == "values" and isinstance(layer, BlockSparseLayer):
            places[f"{owner}.weight" if owner else "weight"] = (parameter, layer)
        else:
            places[name] = (parameter, None)
    return places


def dense_parameter(model: nn.Module, name: str) -> Place:
    """One of `dense_parameters`.

    Raises:
        AttributeError: the model has no such parameter.
    """
    owner, _, attribute = name.rpartition(".")
    layer = model.get_submodule(owner)
    if attribute == "weight" and isinstance(layer, BlockSparseLayer):
        return layer.values, layer
    return model.get_parameter(name), None


def dense_shape(place: Place) -> tuple[int, ...]:
    parameter, layer = place
    return tuple(parameter.shape) if layer is None else layer.shape
