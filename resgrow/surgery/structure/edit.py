"""Changes to a live model, which can be taken back: with gradients, optimizers, masks and averaged copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.surgery.masks import Masks
from resgrow.surgery.structure.attributes import described
from resgrow.surgery.structure.members import Members, take_over_hooks
from resgrow.surgery.structure.tensors import NEW, assign, gathered, owners

# Name of a parameter or buffer -> dimension -> for each new index the old one, or NEW.
Sources = Mapping[str, Mapping[int, Tensor]]
Fill = Callable[[str, Tensor], Tensor]


@dataclass
class Edit:
    """Changes to a model and to whatever goes with it, which can be taken back.

    Parameters stay the objects that they are: whoever holds one, an optimizer, a list for clipping, a hook, goes on
    with it. New entries of optimizer state and of gradients are zero.

    Attributes:
        followers: models of the same structure, such as an averaged copy: what happens to the model happens to them.
        masks: of the model; entries of new elements are present.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer] = ()
    followers: Sequence[nn.Module] = ()
    masks: Sequence[Masks] = ()
    _undo: list[Callable[[], None]] = field(default_factory=list)

    @property
    def models(self) -> tuple[nn.Module, ...]:
        return (self.model, *self.followers)

    def reindex(self, sources: Sources, fill: Fill | None = None) -> None:
        """Gather every tensor by its sources.

        Args:
            fill: called with (name, values) for tensors with new entries, which are zero; returns what to put in.
        """
        for model in self.models:
            self._reindex(model, sources, fill)
        for masks in self.masks:
            there = {name: mask for name, mask in masks.items() if name in sources}
            self.set_masks(masks, {**masks, **{n: gathered(m, sources[n], True) for n, m in there.items()}})

    def set_attributes(self, path: str, values: Mapping[str, Any]) -> None:
        for model in self.models:
            self._set_attributes(model.get_submodule(path), values)

    def set_values(self, parameter: nn.Parameter, values: Tensor) -> None:
        """Other numbers of the same shape."""
        old = parameter.detach().clone()

        def back() -> None:
            parameter.data.copy_(old)

        self._undo.append(back)
        parameter.data.copy_(values)

    def renew(self, indices: Mapping[str, Mapping[int, Tensor]], fill: Fill) -> None:
        """Other numbers in some entries, at the same sizes; gradients and optimizer state there start at zero.

        Args:
            indices: name -> dimension -> which indices.
            fill: as in `reindex`, called with all that is there now.
        """
        for model in self.models:
            for name, dims in indices.items():
                module = model.get_submodule(name.rpartition(".")[0])
                tensor = getattr(module, name.rpartition(".")[2])
                values = fill(name, tensor.detach().clone())
                if not isinstance(tensor, nn.Parameter):
                    self._set_buffer(module, name.rpartition(".")[2], values)
                    continue
                self.set_values(tensor, values)
                self._forget(tensor, partial(_cleared, dims=dims))

    def add_parameter(self, path: str, name: str, parameter: nn.Parameter, beside: nn.Parameter) -> None:
        """One more for a module that has None in its place; optimizers get it in the groups of ``beside``."""
        for model in self.models:
            module = model.get_submodule(path)
            own = (
                parameter if model is self.model else nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            )
            self._undo.append(partial(setattr, module, name, None))
            setattr(module, name, own)
        members = Members(self.optimizers)
        self._undo.append(members.back)
        members.join(parameter, beside)

    def replace(
        self,
        path: str,
        make: Callable[[nn.Module], nn.Module],
        beside: Mapping[str, nn.Parameter] | nn.Parameter | None = None,
    ) -> None:
        """Another module in the place of one, wherever that stands; it takes over the hooks.

        Parameters that are no longer in the model leave the optimizers and the masks.

        Args:
            path: of the module; not the model itself.
            make: the old module to the new one, which may have the old one or its children inside. Called for the
                model and for each follower.
            beside: one whose groups in the optimizers all new parameters join, or one for each, by its name in the
                model.
        """
        before = {id(parameter): parameter for parameter in self.model.parameters()}
        for model in self.models:
            self._replace(model, model.get_submodule(path), make)
        after = {id(parameter) for parameter in self.model.parameters()}
        members = Members(self.optimizers)
        self._undo.append(members.back)
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in before and beside is not None:
                members.join(parameter, beside if isinstance(beside, nn.Parameter) else beside[name])
        for key, parameter in before.items():
            if key not in after:
                members.leave(parameter)
        names = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        for masks in self.masks:
            self.set_masks(masks, {name: mask for name, mask in masks.items() if name in names})

    def set_masks(self, masks: Masks, new: Mapping[str, Tensor]) -> None:
        self._undo.append(partial(masks.exchange, dict(masks)))
        masks.exchange(new)

    def apply_masks(self, masks: Masks, new: Mapping[str, Tensor]) -> None:
        """Other masks, as `Masks.update` puts them into force: in weights, gradients and optimizer state, of followers
        in weights."""
        self.set_masks(masks, {**masks, **new})
        for name, mask in new.items():
            if mask.all():
                continue
            for model in self.models:
                parameter = model.get_parameter(name)
                self.set_values(parameter, parameter.detach() * mask.to(parameter.device))
            self._forget(self.model.get_parameter(name), mask.mul)

    def insert_module(self, path: str, key: str, after: str, module: nn.Module, beside: Mapping[str, str]) -> None:
        """One more child of a module, right behind another; names and order of all that is there stay.

        Followers get a copy of it with the dtypes, devices and requires_grad of their own parameters. Where a mask is
        known for the parameter beside which a new one stands, all of the new one is present.

        Args:
            path: of the parent.
            key: of the new child, which the parent has none of yet.
            after: key of the child that it stands behind.
            beside: for each parameter of ``module``, by its name there, the model's parameter (by its name) whose
                groups in the optimizers it joins.
        """
        for model in self.models:
            parent = model.get_submodule(path)
            new = module if model is self.model else _adapted(module, parent, model, beside)
            self._undo.append(partial(_set_children, parent, dict(parent._modules)))
            children: dict[str, nn.Module | None] = {}
            for name, child in parent._modules.items():
                children[name] = child
                if name == after:
                    children[key] = new
            _set_children(parent, children)
        members = Members(self.optimizers)
        self._undo.append(members.back)
        for name, parameter in module.named_parameters():
            members.join(parameter, self.model.get_parameter(beside[name]))
        prefix = f"{path}.{key}." if path else f"{key}."
        for masks in self.masks:
            new_masks = {
                prefix + name: torch.ones_like(parameter, dtype=torch.bool)
                for name, parameter in module.named_parameters()
                if beside[name] in masks
            }
            self.set_masks(masks, {**masks, **new_masks})

    def mark(self) -> int:
        """For `undo`: what has been changed up to now."""
        return len(self._undo)

    def undo(self, mark: int = 0) -> None:
        """Everything as it was before, to the bit; or as it was at a mark."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def _reindex(self, model: nn.Module, sources: Sources, fill: Fill | None) -> None:
        places = owners(model)
        for name, dims in sources.items():
            for module, attribute in places[name][:1]:
                tensor = getattr(module, attribute)
                new = gathered(tensor.detach(), dims)
                if fill is not None and any(bool((source == NEW).any()) for source in dims.values()):
                    new = fill(name, new)
                if isinstance(tensor, nn.Parameter):
                    self._resize(tensor, new, dims)
                else:
                    for owner, key in places[name]:
                        self._set_buffer(owner, key, new)
        touched = {id(module): module for name in sources for module, _ in places[name]}
        for module in touched.values():
            self._set_attributes(module, described(module))

    def _set_attributes(self, module: nn.Module, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            old = getattr(module, name)
            if old != value:
                self._undo.append(partial(setattr, module, name, old))
                setattr(module, name, value)

    def _resize(self, parameter: nn.Parameter, new: Tensor, dims: Mapping[int, Tensor]) -> None:
        old_shape, old, grad = parameter.shape, parameter.data, parameter.grad
        states = [(o.state[parameter], dict(o.state[parameter])) for o in self.optimizers if parameter in o.state]

        def back() -> None:
            parameter.grad = None
            assign(parameter, old)
            parameter.grad = grad
            for state, entries in states:
                state.clear()
                state.update(entries)

        self._undo.append(back)
        parameter.grad = None
        assign(parameter, new)
        if grad is not None:
            parameter.grad = gathered(grad, dims)
        for state, entries in states:
            for key, entry in entries.items():
                if isinstance(entry, Tensor) and entry.shape == old_shape and entry.dim():
                    state[key] = gathered(entry, dims)

    def _forget(self, parameter: nn.Parameter, clear: Callable[[Tensor], Tensor]) -> None:
        """Clear entries of the gradient and of optimizer state."""
        if parameter.grad is not None:
            self._undo.append(partial(setattr, parameter, "grad", parameter.grad))
            parameter.grad = clear(parameter.grad)
        for state in (optimizer.state[parameter] for optimizer in self.optimizers if parameter in optimizer.state):
            self._undo.append(partial(state.update, dict(state)))
            for key, entry in state.items():
                if isinstance(entry, Tensor) and entry.shape == parameter.shape and entry.dim():
                    state[key] = clear(entry)

    def _set_buffer(self, module: nn.Module, name: str, new: Tensor) -> None:
        old = module._buffers[name]
        self._undo.append(partial(module._buffers.__setitem__, name, old))
        module._buffers[name] = new

    def _replace(self, model: nn.Module, old: nn.Module, make: Callable[[nn.Module], nn.Module]) -> None:
        parents = [(parent, key) for parent in model.modules() for key, each in parent._modules.items() if each is old]
        new = make(old)
        new.training = old.training
        take_over_hooks(new, old)
        for parent, key in parents:
            self._undo.append(partial(parent._modules.__setitem__, key, old))
            parent._modules[key] = new


def _cleared(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    result = tensor.clone()
    for dim, index in dims.items():
        result.index_fill_(dim, index.to(tensor.device), 0)
    return result


def _set_children(parent: nn.Module, children: Mapping[str, nn.Module | None]) -> None:
    """In this order, in the dictionary that is there."""
    parent._modules.clear()
    parent._modules.update(children)


def _adapted(module: nn.Module, parent: nn.Module, model: nn.Module, beside: Mapping[str, str]) -> nn.Module:
    """A copy for a follower."""
    new = copy.deepcopy(module).train(parent.training)
    for (name, parameter), original in zip(new.named_parameters(), module.parameters(), strict=True):
        like = model.get_parameter(beside[name])
        parameter.data = original.detach().to(like.device, like.dtype, copy=True)
        parameter.requires_grad_(like.requires_grad)
    first = next(iter(zip(new.parameters(), module.parameters(), strict=True)), None)
    if first is not None:
        for buffer in new.buffers():
            buffer.data = buffer.data.to(first[0].device, first[0].dtype if buffer.dtype == first[1].dtype else None)
    return new
