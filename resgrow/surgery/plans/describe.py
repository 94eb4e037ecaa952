"""The plan of a model, and the tensors that go with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resgrow.surgery.layer_table import ROWS, build, config_of, is_leaf, layer_of
from resgrow.surgery.plans.numbers import numbers
from resgrow.surgery.plans.plan import DEEPEST, ModulePlan, Plan, Same, TensorPlan, join

Tensors = dict[str, Tensor]


def type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def describe(model: nn.Module) -> tuple[Plan, Tensors]:
    """The plan, and by their names the tensors, as they are: those that are shared once.

    Raises:
        TypeError: state that is not in parameters and buffers, or tensors of another kind than torch's dense one.
        ValueError: modules nested too deeply, or block-sparse layers that share their weights.
    """
    writer = _Writer()
    writer.visit(model, "")
    return writer.plan, writer.tensors


def own_tensors(module: nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


class _Writer:
    def __init__(self) -> None:
        self.plan: Plan = {}
        self.tensors: Tensors = {}
        self._paths: dict[int, str] = {}
        self._names: dict[int, str] = {}

    def visit(self, module: nn.Module, path: str) -> None:
        if id(module) in self._paths:
            self.plan[path] = Same(self._paths[id(module)])
            return
        if path.count(".") >= DEEPEST:
            raise ValueError(f"save: modules must not nest more than {DEEPEST} deep (got {path}); flatten the model")
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise TypeError(
                f"save: state must be in parameters and buffers (got {type(module).__name__} at {path or 'the top'}, "
                "which has get_extra_state); keep that in buffers"
            )
        self._paths[id(module)] = path
        name = layer_of(module)
        if name is not None and ROWS[name].stored is not None:
            self.plan[path] = self._packed(module, path, name)
        else:
            self.plan[path] = self._plain(module, path, name)
            for key, child in module._modules.items():
                if child is None:
                    self.plan[join(path, key)] = None
                else:
                    self.visit(child, join(path, key))

    def _plain(self, module: nn.Module, path: str, name: str | None) -> ModulePlan:
        built = None if name is None else _built(module, name)
        layer = None if name is None or built is None else (name, config_of(module))
        told = numbers(module) if built is None else {} if name and is_leaf(name) else numbers(built)
        tensors = {
            key: None if tensor is None else self._tensor(tensor, join(path, key), key in module._parameters)
            for key, tensor in own_tensors(module).items()
        }
        return ModulePlan(type_name(type(module)), module.training, told, tensors, layer)

    def _packed(self, module: nn.Module, path: str, name: str) -> ModulePlan:
        for key, tensor in own_tensors(module).items():
            if tensor is not None and self._names.setdefault(id(tensor), join(path, key)) != join(path, key):
                raise ValueError(
                    f"save: block-sparse layers must not share parameters (got {join(path, key)}, which is "
                    f"{self._names[id(tensor)]}, too); unswap first"
                )
        row = ROWS[name]
        assert row.stored is not None
        tensors: dict[str, TensorPlan | Same | None] = {}
        for key, tensor in row.stored(module).items():
            tensors[key] = None if tensor is None else TensorPlan.of(tensor, parameter=key != "mask")
            if tensor is not None:
                self._keep(tensor, join(path, key))
        return ModulePlan(type_name(type(module)), module.training, {}, tensors, (name, config_of(module)))

    def _tensor(self, tensor: Tensor, name: str, parameter: bool) -> TensorPlan | Same:
        if id(tensor) in self._names:
            return Same(self._names[id(tensor)])
        self._names[id(tensor)] = name
        self._keep(tensor, name)
        return TensorPlan.of(tensor, parameter)

    def _keep(self, tensor: Tensor, name: str) -> None:
        kind = _strange(tensor)
        if kind is not None:
            raise TypeError(
                f"save: tensors must be dense and hold numbers (got {kind} for {name}); convert it, or initialise it"
            )
        self.tensors[name] = tensor.detach()


def _strange(tensor: Tensor) -> str | None:
    if is_lazy(tensor):
        return "one that is not initialised"
    if tensor.is_meta:
        return "a meta tensor"
    plain = tensor.detach()
    if type(plain) is not Tensor or plain.layout != torch.strided or plain.is_quantized:
        return f"a {type(plain).__name__} of layout {plain.layout} and dtype {plain.dtype}"
    return None


def _built(module: nn.Module, name: str) -> nn.Module | None:
    """What its row makes, if that is this module: tensors of these shapes, and numbers that it has, too."""
    children = {key: child for key, child in module._modules.items() if child is not None}
    try:
        with torch.device("meta"):
            built = build(name, config_of(module), "", children)
    except ValueError:
        return None
    has = numbers(module)
    same = all(key in has and has[key] == value for key, value in numbers(built).items())
    return built if same and shapes(own_tensors(module)) == shapes(own_tensors(built)) else None


def shapes(tensors: dict[str, Tensor | None]) -> dict[str, tuple[int, ...] | None]:
    return {name: None if tensor is None else tuple(tensor.shape) for name, tensor in tensors.items()}
