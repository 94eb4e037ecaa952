"""What lies between a layer that makes units and those that read them, as linear maps of one unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from resgrow.curvature.growth import Step
from resgrow.surgery.structure.call import Call, by_name, described_call, shapes
from resgrow.surgery.structure.trace import Traced


class NoRoute(ValueError):
    """The message says what there is no linear map of."""


@dataclass(frozen=True)
class Route:
    """From the maker's output up to where ``end`` reads it.

    Attributes:
        channel: dimension of the units in what is read.
        norm: a batch norm that the maker's output enters first, None where there is none.
    """

    end: Node
    steps: tuple[Step, ...]
    channel: int
    norm: Node | None


def node_of(graph: Traced, weight: str) -> Node:
    """The only operation that a weight enters: Linear or a convolution.

    Raises:
        NoRoute: there are several, or another one.
    """
    found = [node for node in graph.nodes for each in node.all_input_nodes if graph.stored.get(each.name) == weight]
    if len(found) != 1 or _name(found[0]) not in _LAYERS:
        raise NoRoute(f"{weight} must enter one operation of a layer ({', '.join(map(_name, found)) or 'none'} found)")
    return found[0]


def routes(graph: Traced, maker: Node) -> Iterator[Route]:
    """All routes from a maker to Linear layers and convolutions.

    Raises:
        NoRoute: something else has no linear map, or dimension 0 does not hold the samples.
    """
    rank, wanted = len(shapes(maker)[0]), _LAYERS[_name(maker)]
    if (wanted is not None and rank != wanted) or rank < 2:
        raise NoRoute(f"dimension 0 must hold the samples ({shapes(maker)[0]} made)")
    start = rank - 1 if wanted is None else 1
    yield from _onwards(graph, Route(maker, (), start, None), fresh=True)


def _onwards(graph: Traced, at: Route, fresh: bool) -> Iterator[Route]:
    for node in at.end.users:
        if node.op == "output":
            raise NoRoute("the model returns it")
        call = described_call(node, lambda each: each)
        if _name(node) in _LAYERS:
            if call.get("input") is not at.end:
                raise NoRoute(f"{_name(node)} uses it as a weight")
            yield Route(node, at.steps, at.channel, at.norm)
            continue
        rule = by_name(_RULES, node.target)
        if rule is None:
            raise NoRoute(f"there is no linear form of {_name(node)}{f' in {call.where}' if call.where else ''}")
        others = [each for each in node.all_input_nodes if each is not at.end and each.name not in graph.stored]
        if others:
            raise NoRoute(f"{_name(node)} joins it with something else")
        step, channel = rule(call, shapes(at.end)[0], at.channel)
        norm = node if fresh and _name(node) == "batch_norm" else at.norm
        steps = at.steps if step is None else (*at.steps, step)
        yield from _onwards(graph, Route(node, steps, channel, norm), fresh and step is None and _passes(node))


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return node.op if schema is None else schema.name.partition("::")[2].rstrip("_")


def _passes(node: Node) -> bool:
    return _name(node) in _COPIES.split()


# A rule: the operation, the shape that goes in and the dimension of the units there -> the same for one unit, None for
# the identity, and the dimension of the units afterwards.
_Rule = Callable[[Call, tuple[int, ...], int], "tuple[Step | None, int]"]


def _identity(call: Call, shape: tuple[int, ...], channel: int) -> tuple[None, int]:
    return None, channel


def _as_it_is(call: Call, shape: tuple[int, ...], channel: int) -> tuple[Step, int]:
    """Operations that are linear, on each channel and sample alone."""
    return partial(_run, call.op, call.arguments), channel


def _run(op: Any, arguments: dict[str, Any], x: Tensor) -> Tensor:
    result: Tensor = op(**{name: x if isinstance(value, Node) else value for name, value in arguments.items()})
    return result


def _times(call: Call, shape: tuple[int, ...], channel: int) -> tuple[Step, int]:
    if any(isinstance(value, Node) for name, value in call.arguments.items() if name != "self"):
        raise NoRoute("it is multiplied by a tensor")
    return _as_it_is(call, shape, channel)


def _max_pool(call: Call, shape: tuple[int, ...], channel: int) -> tuple[Step, int]:
    """Average pooling in its place: which position wins is not known before the unit is."""
    dilation = call.get("dilation", 1)
    if any(each != 1 for each in (dilation if isinstance(dilation, list | tuple) else [dilation])):
        raise NoRoute("there is no linear form of max-pooling with dilation")
    dims = int(call.op._schema.name[-2])
    pool = getattr(torch.nn.functional, f"avg_pool{dims}d")
    size, stride = call.get("kernel_size"), call.get("stride") or call.get("kernel_size")
    padding, ceil = call.get("padding", 0), bool(call.get("ceil_mode", False))
    return partial(
        pool, kernel_size=size, stride=stride, padding=padding, ceil_mode=ceil, count_include_pad=False
    ), channel


def _reduced(call: Call, shape: tuple[int, ...], channel: int) -> tuple[Step, int]:
    """``mean`` and ``sum`` over positions."""
    dims = call.get("dim")
    over = {each % len(shape) for each in ([dims] if isinstance(dims, int) else dims or range(len(shape)))}
    if over & {0, channel}:
        raise NoRoute("samples or units are summed over")
    step, _ = _as_it_is(call, shape, channel)
    return step, channel if call.get("keepdim", False) else channel - sum(dim < channel for dim in over)


def _reshaped(call: Call, shape: tuple[int, ...], channel: int) -> tuple[Step, int]:
    """To another shape in the order of elements: the dimension that holds the units is shorter by their number."""
    units, after = shape[channel], call.shape
    if not after or after[0] != shape[0]:
        raise NoRoute("dimension 0 must hold the samples")
    inner, whole = prod(shape[channel + 1 :]), prod(shape[channel:])
    for dim in range(1, len(after)):
        within, all_of = prod(after[dim + 1 :]), prod(after[dim:])
        if within <= inner and inner % within == 0 and all_of >= whole and all_of % whole == 0:
            tail = [size // units if at == dim else size for at, size in enumerate(after)][1:]
            return partial(_to_shape, tail), dim
    raise NoRoute("its units are split")


def _to_shape(tail: list[int], x: Tensor) -> Tensor:
    return x.reshape(len(x), *tail)


def _permuted(call: Call, shape: tuple[int, ...], channel: int) -> tuple[Step, int]:
    order = list(range(len(shape)))
    if "dims" in call.arguments:
        order = [dim % len(shape) for dim in call.get("dims")]
    else:
        one, other = (int(call.get(name)) % len(shape) for name in ("dim0", "dim1"))
        order[one], order[other] = order[other], order[one]
    if order[0] != 0:
        raise NoRoute("dimension 0 must hold the samples")
    return partial(torch.permute, dims=tuple(order)), order.index(channel)


# Name of a layer's operation -> number of dimensions of its output; None: any from two on, with units in the last.
_LAYERS: dict[str, int | None] = {"linear": None, "conv1d": 3, "conv2d": 4, "conv3d": 5}
_COPIES = "dropout feature_dropout alpha_dropout clone contiguous alias detach to _to_copy lift_fresh_copy"
_NAMES: tuple[tuple[_Rule, str], ...] = (
    (_identity, _COPIES),
    (_identity, "batch_norm"),
    (
        _identity,
        "relu relu6 leaky_relu rrelu prelu elu selu celu gelu silu mish softplus tanh sigmoid log_sigmoid hardtanh "
        "hardsigmoid hardswish clamp clamp_min tristate_relu",
    ),
    (_times, "mul div neg"),
    (
        _as_it_is,
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d",
    ),
    (_max_pool, "max_pool1d max_pool2d max_pool3d"),
    (_reduced, "mean sum"),
    (_reshaped, "view reshape flatten unflatten squeeze unsqueeze"),
    (_permuted, "permute transpose"),
)
_RULES = {name: rule for rule, names in _NAMES for name in names.split()}
