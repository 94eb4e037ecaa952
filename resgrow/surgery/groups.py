"""Which channels are coupled: producer, followers, consumers.

A group's channels are made by one layer, pass per-channel layers, and are read by one or more others, so a channel
can only go from all of them at once. Groups are found by an explicit walk over `nn.Sequential` (also nested) and the
project's residual networks, which needs no example inputs, or else by following the model's operations. Units see
both as `Group`, see `coupled`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from resgrow.nn import BasicBlock, ResNet, TriStateReLU
from resgrow.surgery.forward import AnyInputs
from resgrow.surgery.structure import Group, Place, structure


@dataclass(frozen=True)
class Consumer:
    """A Conv2d or Linear that reads the group's channels in dimension 1 of its weight.

    Channel ``c`` fills columns ``c * repeat`` to ``(c + 1) * repeat``; ``repeat`` is the number of positions a
    Flatten has spread it over, else 1. ``path`` names the layers between producer and consumer in forward order.
    """

    name: str
    repeat: int
    path: tuple[str, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """``size`` channels: dimension 0 of ``producer``, and of the per-channel parameters of ``followers``."""

    producer: str
    size: int
    followers: tuple[str, ...]
    consumers: tuple[Consumer, ...]


def walkable(model: nn.Module) -> bool:
    """Whether `channel_groups` knows the model's way of running its layers."""
    return any(_behaves_like(model, kind) for kind in _WALKS)


def channel_groups(model: nn.Module, op: str) -> list[ChannelGroup]:
    """Groups of removable channels in forward order.

    The channels of the last layer, of residual streams, of grouped convolutions and of layers followed by something
    the walk does not know are in no group. The list may be empty.

    Args:
        model: `nn.Sequential`, `resgrow.nn.ResNet` or `resgrow.nn.BasicBlock`.
        op: name of the calling operation, for messages.

    Raises:
        TypeError: any other model.
        ValueError: two layers share a parameter.
    """
    if not walkable(model):
        raise TypeError(
            f"{op}: channels are known for nn.Sequential and resgrow.nn.ResNet only (got {type(model).__name__}); "
            "build the model from these, or prune it with block=(1, 1) or (bo, bi)"
        )
    _refuse_shared_parameters(model, op)
    return list(_walk("", model))


def coupled(model: nn.Module, example_inputs: AnyInputs | None, op: str) -> list[Group]:
    """Groups of removable units of any model, with parameters as their only places, by ``model.named_parameters()``.

    Args:
        model: one that `channel_groups` knows, or any that ``torch.export`` can follow on example_inputs.
        example_inputs: a batch for the model; not used for models of the first kind, unless an `nn.Sequential` has
            layers that the walk stops at.
        op: name of the calling operation, for messages. Operations that are not known are named in a UserWarning.

    Raises:
        ValueError: no example_inputs for a model of the second kind, or ``torch.export`` cannot follow it; two layers
            of a model of the first kind share a parameter.
        TypeError: example_inputs are not tensors.
    """
    if walkable(model) and (example_inputs is None or _all_known(model)):
        return [_as_group(model, group) for group in channel_groups(model, op)]
    if example_inputs is None:
        raise ValueError(
            f"{op}: channels of other models than nn.Sequential and resgrow.nn.ResNet are found by following their "
            f"operations, which needs example_inputs (got none for {type(model).__name__}); pass one batch of inputs, "
            "or choose block=(1, 1) or (bo, bi)"
        )
    found = structure(model, example_inputs, op)
    found.warn(op)
    return _of_parameters(model, found.groups)


def _as_group(model: nn.Module, group: ChannelGroup) -> Group:
    """Every parameter the group's channels lie in; the producer's weight comes first."""
    channels = torch.arange(group.size)[:, None]
    found = [Place(f"{group.producer}.weight", 0, channels, False)]
    own = [(group.producer, ("bias",)), *((name, ("weight", "bias", "w")) for name in group.followers)]
    for name, attributes in own:
        parameters = dict(model.get_submodule(name).named_parameters(recurse=False))
        found += [
            Place(f"{name}.{attribute}", 0, channels, False) for attribute in attributes if attribute in parameters
        ]
    for reader in group.consumers:
        columns = channels * reader.repeat + torch.arange(reader.repeat)
        found.append(Place(f"{reader.name}.weight", 1, columns, True))
    return Group(tuple(found))


def _of_parameters(model: nn.Module, groups: Sequence[Group]) -> list[Group]:
    """The groups that can lose units, without buffers.

    Shared parameters go by the name that ``model.named_parameters()`` has for them. A group of one unit keeps it.
    """
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
    result = []
    for group in groups:
        places = [replace(place, name=names[place.name]) for place in group.places if place.name in names]
        if places and group.size > 1:
            result.append(Group(tuple(places), group.split_by))
    return result


def _refuse_shared_parameters(model: nn.Module, op: str) -> None:
    owners: dict[int, str] = {}
    # Activations of a residual stream share their gates, and no stream is in a group.
    gates = {id(gate.w) for gate in model.modules() if isinstance(gate, TriStateReLU)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in gates:
            continue
        other = owners.setdefault(id(parameter), name)
        if other != name:
            raise ValueError(
                f"{op}: channels of shared parameters cannot be removed (got {other} shared with {name}); "
                "give each layer its own, or prune with block=(1, 1)"
            )


def _behaves_like(module: nn.Module, kind: type[nn.Module]) -> bool:
    return isinstance(module, kind) and type(module).forward is kind.forward


def _walk(name: str, module: nn.Module) -> Iterator[ChannelGroup]:
    for kind, walk in _WALKS.items():
        if _behaves_like(module, kind):
            yield from walk(name, module)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _walk_sequential(name: str, module: nn.Module) -> Iterator[ChannelGroup]:
    chain: list[tuple[str, nn.Module]] = []
    for leaf_name, leaf in _leaves(name, module):
        if any(_behaves_like(leaf, kind) for kind in _WALKS):
            yield from _walk_chain(chain)
            yield from _walk(leaf_name, leaf)
            chain = []
        else:
            chain.append((leaf_name, leaf))
    yield from _walk_chain(chain)


def _leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # _modules, not named_children: a stateless layer may stand in several places, and each counts.
    for child_name, child in module._modules.items():
        full_name = _join(name, child_name)
        if child is not None and _behaves_like(child, nn.Sequential):
            yield from _leaves(full_name, child)
        elif child is not None:
            yield full_name, child


def _walk_block(name: str, module: nn.Module) -> Iterator[ChannelGroup]:
    inner = ("conv1", "bn1", "act1", "conv2")
    yield from _walk_chain([(_join(name, part), module.get_submodule(part)) for part in inner])


def _walk_resnet(name: str, module: nn.Module) -> Iterator[ChannelGroup]:
    for stage in ("layer1", "layer2", "layer3"):
        yield from _walk(_join(name, stage), module.get_submodule(stage))


_WALKS: dict[type[nn.Module], Callable[[str, nn.Module], Iterator[ChannelGroup]]] = {
    nn.Sequential: _walk_sequential,
    BasicBlock: _walk_block,
    ResNet: _walk_resnet,
}

_ELEMENTWISE = (nn.ReLU, nn.Dropout, nn.Identity)
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_PER_CHANNEL = {nn.BatchNorm2d: "num_features", TriStateReLU: "num_channels"}


@dataclass
class _Open:
    """A group whose consumer has not come yet."""

    producer: str
    size: int
    spatial: bool  # a Conv2d's (N, C, H, W); a Linear's channels are the last dimension
    flat: bool = False
    followers: tuple[str, ...] = ()
    path: tuple[str, ...] = ()

    def passes(self, name: str, layer: nn.Module) -> bool:
        """Whether channels stay apart through ``layer``; records it if so."""
        kind = type(layer)
        if kind in _PER_CHANNEL:
            if getattr(layer, _PER_CHANNEL[kind]) != self.size or (kind is nn.BatchNorm2d and not self.spatial):
                return False
            self.followers += (name,)
        elif isinstance(layer, nn.Flatten):
            if (layer.start_dim, layer.end_dim) != (1, -1):
                return False
            self.flat = True
        elif not (kind in _ELEMENTWISE or (kind in _POOLING and self.spatial and not self.flat)):
            return False
        self.path += (name,)
        return True

    def read_by(self, name: str, layer: nn.Module) -> ChannelGroup | None:
        """The finished group, if ``layer`` reads these channels in dimension 1 of its weight."""
        if isinstance(layer, nn.Conv2d):
            width, fits = layer.in_channels, self.spatial and not self.flat and layer.groups == 1
        else:
            assert isinstance(layer, nn.Linear)
            width, fits = layer.in_features, self.flat or not self.spatial
        repeat = width // self.size
        # Behind a Linear a Flatten would interleave positions with channels instead of following them.
        if not fits or width != repeat * self.size or (repeat != 1 and not (self.spatial and self.flat)):
            return None
        return ChannelGroup(self.producer, self.size, self.followers, (Consumer(name, repeat, self.path),))


def _all_known(model: nn.Module) -> bool:
    """Whether the walk gets through all layers."""
    if not _behaves_like(model, nn.Sequential):
        return True
    kinds = (nn.Linear, nn.Flatten, *_ELEMENTWISE, *_POOLING, *_PER_CHANNEL)
    return all(
        type(leaf) in kinds
        or (type(leaf) is nn.Conv2d and leaf.groups == 1)
        or any(_behaves_like(leaf, kind) for kind in _WALKS)
        for _, leaf in _leaves("", model)
    )


def _walk_chain(chain: list[tuple[str, nn.Module]]) -> Iterator[ChannelGroup]:
    producer: _Open | None = None
    for name, layer in chain:
        if type(layer) in (nn.Conv2d, nn.Linear):
            group = producer.read_by(name, layer) if producer else None
            if group:
                yield group
            producer = _open(name, layer)
        elif producer and not producer.passes(name, layer):
            producer = None


def _open(name: str, layer: nn.Module) -> _Open | None:
    if isinstance(layer, nn.Conv2d):
        return _Open(name, layer.out_channels, spatial=True) if layer.groups == 1 else None
    assert isinstance(layer, nn.Linear)
    return _Open(name, layer.out_features, spatial=False)
