"""A model of the planned structure, made from one of the original constructor or from the plan alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow.surgery.layer_table import build
from resgrow.surgery.plans.changes import Changes
from resgrow.surgery.plans.check import check, completed, contradiction, is_fit, is_packed, turned_into
from resgrow.surgery.plans.describe import own_tensors, type_name
from resgrow.surgery.plans.numbers import Misfit, differing
from resgrow.surgery.plans.plan import (
    FORMATS,
    ModulePlan,
    Plan,
    Same,
    TensorPlan,
    children,
    join,
    planned,
    stored_tensors,
)


def fit(plan: Plan, tensors: Mapping[str, Tensor], model: nn.Module | None) -> nn.Module:
    """``model`` itself, made what the plan says; without one, a model whose layers all come from the table.

    Modules are taken from where the model has them. A module that it has not is built from the table, else a copy of
    one of the same structure, a sibling if there is any: blocks that were added are copies of their siblings.

    Args:
        tensors: what `stored_tensors` of the plan names, in these shapes and dtypes.

    Raises:
        ValueError: the plan does not fit; the model is then as it was, to the bit.
    """
    entries = stored_tensors(plan)

    def shape(name: str, tensor: TensorPlan | Same | None) -> tuple[int, ...] | None:
        return None if tensor is None else entries[tensor.same if isinstance(tensor, Same) else name].shape

    plan = plan | {path: completed(path, node, shape) for path, node in planned(plan)}
    fitter = _Fitter(plan, tensors, model)
    made = fitter.make("")
    fitter.changes.commit()
    assert made is not None
    return made


class _Fitter:
    def __init__(self, plan: Plan, tensors: Mapping[str, Tensor], model: nn.Module | None) -> None:
        self.changes = Changes()
        self._plan, self._values, self._model = plan, tensors, model
        self._children, self._entries = children(plan), stored_tensors(plan)
        self._found = {} if model is None else dict(model.named_modules(remove_duplicate=False))
        self._given = dict(self._found)
        self._made: dict[str, nn.Module] = {}
        self._tensors: dict[str, Tensor] = {}
        self._taken: set[int] = set()
        self._device = torch.device("cpu") if model is None else _device(*model.parameters(), *model.buffers())

    def make(self, path: str) -> nn.Module | None:
        """The module that is going to stand at a path of the plan."""
        node = self._plan[path]
        if node is None:
            return None
        if isinstance(node, Same):
            return self._made[node.same]
        module = self._source(path, node)
        if module is None:
            return self._new(path, node)
        self._made[path] = module
        turned = turned_into(type(module), node.type)
        if turned is not None:
            self.changes.kind(module, turned)
        self._settle(module, path, node)
        self.changes.children(module, {key: self.make(child) for key, child in self._children[path].items()})
        return module

    def _source(self, path: str, node: ModulePlan) -> nn.Module | None:
        """A module of the model, or a copy of one, that can become the planned one; None for one to be built."""
        found = self._found.get(path)
        reason = "nothing" if found is None else f"a {type_name(type(found))}"
        if found is not None and not is_packed(node):
            try:
                check(found, node)
                return self._own(path, found)
            except Misfit as misfit:
                reason = str(misfit)
        if node.layer is not None and (path or self._model is None):
            return None
        subtree = [(n, m) for n, m in planned(self._plan) if n == path or n.startswith(f"{path}.")]
        for candidate in self._candidates(path) if path else ():
            if _fits(subtree, path, candidate):
                return self._own(path, copy.deepcopy(candidate), new=True)
        where = path or "the top"
        if self._model is None:
            raise ValueError(
                f"load: layers must be in the table to be built from the file alone (got {node.type} at {where}); give "
                "a model of the original constructor: load(folder, model=...)"
            )
        raise ValueError(
            f"load: the model must have a {node.type} at {where} (got {reason}); construct it as the saved one was"
        )

    def _own(self, path: str, module: nn.Module, new: bool = False) -> nn.Module:
        """The module, or a copy where it stands in another planned one's place already; known by its paths."""
        if id(module) in self._taken:
            module, new = copy.deepcopy(module), True
        self._taken.add(id(module))
        if new:
            for name in [name for name in self._found if name.startswith(f"{path}.")]:
                del self._found[name]
            self._found |= {join(path, n) if n else path: m for n, m in module.named_modules(remove_duplicate=False)}
        return module

    def _candidates(self, path: str) -> list[nn.Module]:
        parent = path.rpartition(".")[0]
        there = {name: module for name, module in self._given.items() if name}
        siblings = [name for name in there if name.rpartition(".")[0] == parent]
        return [there[name] for name in dict.fromkeys([*siblings, *there])]

    def _new(self, path: str, node: ModulePlan) -> nn.Module:
        """A module from its row, with the tensors of the file."""
        assert node.layer is not None
        parts = {key: self.make(child) for key, child in self._children[path].items()}
        there = {key: part for key, part in parts.items() if part is not None}
        if is_packed(node):
            module = build(*node.layer, path, there, self._packed(path, node)).train(node.training)
        else:
            with torch.device("meta"):
                module = build(*node.layer, path, there)
            try:
                check(module, node)
            except Misfit as misfit:
                raise contradiction(path, str(misfit)) from None
            self._settle(module, path, node)
            self.changes.children(module, parts)
        self._made[path] = module
        return module

    def _packed(self, path: str, node: ModulePlan) -> dict[str, Tensor | None]:
        tensors: dict[str, Tensor | None] = {}
        for name, tensor in node.tensors.items():
            if isinstance(tensor, Same):
                raise contradiction(path, f"{name} as that of another layer")
            stored = None if tensor is None else self._stored(join(path, name)).to(self._device)
            tensors[name] = stored.requires_grad_() if stored is not None and tensor and tensor.trainable else stored
        return tensors

    def _settle(self, module: nn.Module, path: str, node: ModulePlan) -> None:
        """Everything of a module but its children."""
        for name, value in differing(module, node.numbers).items():
            self.changes.attribute(module, name, value)
        self.changes.attribute(module, "training", node.training)
        device = _device(*own_tensors(module).values(), default=self._device)
        for name, tensor in node.tensors.items():
            key = tensor.same if isinstance(tensor, Same) else join(path, name)
            if name in module._buffers:
                self.changes.buffer(module, name, None if tensor is None else self._buffer(key, device))
            elif tensor is None:
                self.changes.parameter(module, name, None)
            else:
                self.changes.parameter(module, name, self._parameter(key, module._parameters[name], device))

    def _buffer(self, key: str, device: torch.device) -> Tensor:
        if key not in self._tensors:
            self._tensors[key] = self._stored(key).to(device)
        return self._tensors[key]

    def _parameter(self, key: str, old: nn.Parameter | None, device: torch.device) -> nn.Parameter:
        """The object of all places of this tensor: the model's own where it has one that can be resized."""
        if key not in self._tensors:
            values, trainable = self._stored(key).to(device), bool(self._entries[key].trainable)
            usable = type(old) is nn.Parameter and not old.is_meta and not old.is_inference()
            if old is not None and usable and id(old) not in self._taken:
                self._taken.add(id(old))
                self.changes.values(old, values.to(old.device), trainable)
                self._tensors[key] = old
            else:
                self._tensors[key] = nn.Parameter(values, trainable)
        parameter = self._tensors[key]
        if not isinstance(parameter, nn.Parameter):
            raise ValueError(f"load: a parameter must not be a buffer, too (got {key}); save the model again")
        return parameter

    def _stored(self, key: str) -> Tensor:
        entry = self._entries[key]
        # A copy: the file's tensors are parts of one piece of memory, aligned to nothing.
        return self._values[key].clone(memory_format=FORMATS[entry.format])


def _fits(subtree: Sequence[tuple[str, ModulePlan]], path: str, candidate: nn.Module) -> bool:
    """Whether a module can become the planned one at ``path``, with all that is not built from the table."""
    found = dict(candidate.named_modules(remove_duplicate=False))
    for name, node in subtree:
        module = found.get(name[len(path) :].removeprefix("."))
        if node.layer is None and (module is None or not is_fit(module, node)):
            return False
    return True


def _device(*tensors: Tensor | None, default: torch.device | None = None) -> torch.device:
    there = (tensor.device for tensor in tensors if tensor is not None and not tensor.is_meta)
    return next(there, default or torch.device("cpu"))
