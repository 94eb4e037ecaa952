"""Whether a module can become a planned one, and whether a plan agrees with itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from resgrow.nn import KeyedModuleList
from resgrow.nn.attention import NarrowAttention
from resgrow.surgery.layer_table import ROWS, build, config_of, is_leaf
from resgrow.surgery.plans.describe import own_tensors, shapes, type_name
from resgrow.surgery.plans.numbers import Misfit, differing, numbers
from resgrow.surgery.plans.plan import ModulePlan, TensorPlan, join

# Classes that surgery turns a module into in place: the new one, and the one that constructors make.
_TURNED: dict[type[nn.Module], type[nn.Module]] = {
    NarrowAttention: nn.MultiheadAttention,
    KeyedModuleList: nn.ModuleList,
}


def is_packed(node: ModulePlan) -> bool:
    return node.layer is not None and ROWS[node.layer[0]].stored is not None


def is_fit(module: nn.Module, node: ModulePlan) -> bool:
    try:
        check(module, node)
    except Misfit:
        return False
    return True


def check(module: nn.Module, node: ModulePlan) -> None:
    """Whether the module can become the planned one, but for its children.

    Raises:
        Misfit: what stands against it.
    """
    kind = type(module)
    if not _is_named(kind, node.type) and turned_into(kind, node.type) is None:
        raise Misfit(f"a {type_name(kind)}")
    if node.layer is not None:
        if kind is not ROWS[node.layer[0]].kind:
            raise Misfit(f"a {type_name(kind)} for a row {node.layer[0]}")
        for name, value in config_of(module).items():
            if isinstance(value, str) and node.layer[1][name] != value:
                raise Misfit(f"{name}={value!r}, which was {node.layer[1][name]!r}")
    own = own_tensors(module)
    if own.keys() != node.tensors.keys():
        odd = sorted(own.keys() ^ node.tensors.keys())[0]
        raise Misfit(f"{'a further' if odd in own else 'no'} tensor {odd}")
    for name, tensor in node.tensors.items():
        if isinstance(tensor, TensorPlan) and (tensor.trainable is None) != (name in module._buffers):
            raise Misfit(f"{name} as a {'buffer' if name in module._buffers else 'parameter'}")
    differing(module, node.numbers)


def turned_into(kind: type, name: str) -> type[nn.Module] | None:
    """The class that surgery gives a module of class ``kind``, if it is the one of that name."""
    return next((new for new, old in _TURNED.items() if old is kind and _is_named(new, name)), None)


def _is_named(kind: type, name: str) -> bool:
    """A script's own classes are in ``__main__`` when it runs, and in a module when that is imported."""
    if type_name(kind) == name:
        return True
    scripts = kind.__module__ == "__main__" or name == f"__main__.{kind.__qualname__}"
    return scripts and name.endswith(f".{kind.__qualname__}")


def completed(path: str, node: ModulePlan, shape: Callable[[str, Any], tuple[int, ...] | None]) -> ModulePlan:
    """With the numbers of a layer of the table, which its config implies.

    Raises:
        ValueError: the tensors are not those that the config implies.
    """
    if node.layer is None or not is_leaf(node.layer[0]):
        return node
    if node.numbers:
        raise contradiction(path, f"numbers beside the config, {sorted(node.numbers)}")
    with torch.device("meta"):
        built = build(*node.layer, path)
    try:
        check(built, node)
    except Misfit as misfit:
        raise contradiction(path, str(misfit)) from None
    wanted = shapes(own_tensors(built))
    for name, tensor in node.tensors.items():
        found = shape(join(path, name), tensor)
        if found != wanted[name]:
            raise ValueError(
                f"load: tensors must fit the described layers (got {found} for {join(path, name)}, layer wants "
                f"{wanted[name]}); save the model again"
            )
    return replace(node, numbers=numbers(built))


def contradiction(path: str, found: str) -> ValueError:
    return ValueError(
        f"load: model.json must not contradict itself at {path or 'the top'} (got {found}); save the model again"
    )
