"""Steps that no layer takes up: ReLUs work in place, and behind pooling; pooling follows its layer image by image."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from resgrow.nn import FusedConv2d, PooledConv2d
from resgrow.surgery.fuse.chain import Finder, adds, is_relu

# Their output is new and is not needed for a gradient.
_MAKERS = (nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Linear)


def settle_relus(traced: GraphModule) -> None:
    """Rewrites the graph of ``traced``; the numbers stay the same.

    A ReLU in place spares an allocation as large as its input, which costs more than the ReLU itself where the system
    hands out fresh pages. The largest of some numbers and zero is the same in any order, so that max-pooling, which
    leaves a quarter of the numbers, say, may come first.
    """
    finder = Finder(traced)
    for node in list(traced.graph.nodes):
        if not is_relu(node, finder.module(node)) or not _is_new(node.all_input_nodes[0], finder):
            continue
        source = node.all_input_nodes[0]
        pool = _pooling(node, finder)
        last = source if pool is None else pool
        with traced.graph.inserting_after(last):
            relu = traced.graph.call_function(torch.relu_, (last,))
        if pool is not None:
            pool.replace_all_uses_with(relu, delete_user_cb=lambda user, relu=relu: user is not relu)  # type: ignore[misc]
            pool.replace_input_with(node, source)
        else:
            node.replace_all_uses_with(relu)
        traced.graph.erase_node(node)


def join_pooling(traced: GraphModule) -> None:
    """Makes one module of a convolution and the max-pooling behind it, see :class:`resgrow.nn.PooledConv2d`."""
    finder = Finder(traced)
    for node in list(traced.graph.nodes):
        conv: Any = finder.module(node)
        user = _only_user(node)
        pool: Any = None if user is None else finder.module(user)
        joins = isinstance(conv, nn.Conv2d | FusedConv2d) and type(pool) is nn.MaxPool2d and not pool.return_indices
        if user is None or not joins or finder.calls(node) > 1:
            continue
        parent, _, name = str(node.target).rpartition(".")
        setattr(traced.get_submodule(parent), name, PooledConv2d(conv, pool))
        user.replace_all_uses_with(node)
        traced.graph.erase_node(user)


def _is_new(node: Node, finder: Finder) -> bool:
    """Whether a number is made here, and seen by one other node only."""
    return len(node.users) == 1 and (type(finder.module(node)) in _MAKERS or adds(node))


def _pooling(node: Node, finder: Finder) -> Node | None:
    """The only user, if it is max-pooling whose windows all hold some number (not so with dilation)."""
    user = _only_user(node)
    pool: Any = None if user is None else finder.module(user)
    if type(pool) is not nn.MaxPool2d or pool.return_indices or pool.dilation not in (1, (1, 1)):
        return None
    return user


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
