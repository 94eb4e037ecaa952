"""Changes to modules that are collected first and made together, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from resgrow.surgery.structure.tensors import assign


class Changes:
    """Nothing is touched before `commit`, and an error during it takes back what was done."""

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[[], None], Callable[[], None]]] = []

    def commit(self) -> None:
        done: list[Callable[[], None]] = []
        try:
            for do, undo in self._steps:
                done.append(undo)
                do()
        except BaseException:
            for undo in reversed(done):
                undo()
            raise

    def attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """An attribute of the instance that is there already."""
        old = vars(module)[name]
        if old is not value:
            self._steps.append((_setter(vars(module), name, value), _setter(vars(module), name, old)))

    def kind(self, module: nn.Module, new: type[nn.Module]) -> None:
        old = type(module)
        self._steps.append((lambda: setattr(module, "__class__", new), lambda: setattr(module, "__class__", old)))

    def children(self, module: nn.Module, new: Mapping[str, nn.Module | None]) -> None:
        old = dict(module._modules)
        if list(old) == list(new) and all(old[key] is child for key, child in new.items()):
            return
        self._steps.append((lambda: _refill(module._modules, new), lambda: _refill(module._modules, old)))

    def buffer(self, module: nn.Module, name: str, new: Tensor | None) -> None:
        old = module._buffers[name]
        self._steps.append((_setter(module._buffers, name, new), _setter(module._buffers, name, old)))

    def parameter(self, module: nn.Module, name: str, new: nn.Parameter | None) -> None:
        """Another object."""
        old = module._parameters[name]
        if old is not new:
            self._steps.append((_setter(module._parameters, name, new), _setter(module._parameters, name, old)))
            if isinstance(module, nn.RNNBase):
                # Recurrent layers have a list of theirs besides.
                flat = [id(each) for each in module._flat_weights]
                listed = vars(module)["_flat_weights"]
                at = flat.index(id(old))
                self._steps.append((lambda: listed.__setitem__(at, new), lambda: listed.__setitem__(at, old)))

    def values(self, parameter: nn.Parameter, new: Tensor, trainable: bool) -> None:
        """Other numbers, of any shape, for the same object."""
        old, grad, trained = parameter.data, parameter.grad, parameter.requires_grad

        def do() -> None:
            parameter.grad = None
            assign(parameter, new)
            parameter.requires_grad_(trainable)

        def undo() -> None:
            parameter.grad = None
            assign(parameter, old)
            parameter.requires_grad_(trained)
            parameter.grad = grad

        self._steps.append((do, undo))


def _setter(mapping: dict[str, Any], name: str, value: Any) -> Callable[[], None]:
    return lambda: mapping.__setitem__(name, value)


def _refill(modules: dict[str, Any], new: Mapping[str, Any]) -> None:
    modules.clear()
    modules.update(new)
