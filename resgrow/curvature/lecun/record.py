"""The recorded forward pass: every call of the model to torch is looked up in the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from resgrow.curvature.lecun.table import ALIASES, RULES, TRANSPARENT
from resgrow.curvature.lecun.tape import Call, Rule, Tape

# Builtins of these names take their arguments in another order than the functions of torch.nn.functional.
_DIFFERENT_BUILTINS = frozenset(["batch_norm", "instance_norm", "embedding"])
_IN_PLACE_DUNDERS = frozenset(["__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__"])


class Recorder(TorchFunctionMode):
    """Inside, calls run through their rules. The mode is off within a rule and within torch's own composites."""

    def __init__(self, tape: Tape, place: Callable[[], str]) -> None:
        super().__init__()
        self.tape, self.place = tape, place

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if name in TRANSPARENT or not any(t.requires_grad for t in _tensors((args, kwargs))):
            return func(*args, **kwargs)
        rule = RULES.get(name)
        if rule is None:
            return self._run_unknown(name, func, args, kwargs)
        args, kwargs, in_place = _arranged(func, args, kwargs)
        if not in_place:
            return rule(Call(self.tape, func, self._refusal(name)), *args, **kwargs)
        # Rules keep what they are given: it must not be what is overwritten.
        call = Call(self.tape, _out_of_place(name, func), self._refusal(name))
        return args[0].copy_(rule(call, args[0].clone(), *args[1:], **kwargs))

    def _run_unknown(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Properties, comparisons, sizes: harmless as long as nothing differentiable comes of them."""
        versions = [(t, t._version) for t in _tensors((args, kwargs)) if t.requires_grad]
        result = func(*args, **kwargs)
        if any(t.requires_grad for t in _tensors(result)) or any(t._version != before for t, before in versions):
            self._refusal(name)("")
        return result

    def _refusal(self, name: str) -> Callable[[str], NoReturn]:
        def refuse(detail: str) -> NoReturn:
            raise ValueError(_message(f"{name}()", self.place(), detail))

        return refuse


@contextmanager
def module_path(model: nn.Module) -> Iterator[Callable[[], str]]:
    """Yields a function that names the module being run, in words.

    Raises:
        ValueError: a module was compiled by TorchScript, whose calls nothing records.
    """
    names = {module: name for name, module in model.named_modules()}
    for module, name in names.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(_message("a compiled module", f"module '{name}'", "TorchScript hides its calls"))
    running: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        if module in names:
            running.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if running and running[-1] is module:
            running.pop()

    def place() -> str:
        module = running[-1] if running else model
        return f"module '{names[module]}' ({type(module).__name__})" if names[module] else type(module).__name__

    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield place
    finally:
        for handle in handles:
            handle.remove()


def check_graph(output: Tensor) -> None:
    """Every function with a derivative of its own that took part is a rule.

    Raises:
        ValueError: a ``torch.autograd.Function`` of the model or its libraries, which no mode sees.
    """
    pending, seen = [output.grad_fn], {output.grad_fn}
    while pending:
        node = pending.pop()
        function = getattr(node, "_forward_cls", None)
        if function is not None and not issubclass(function, Rule):
            raise ValueError(_message(function.__name__, "a torch.autograd.Function", ""))
        following = {parent for parent, _ in node.next_functions if parent is not None} - seen  # type: ignore[union-attr]
        seen |= following
        pending += following


def _message(function: str, place: str, detail: str) -> str:
    return (
        f"curvature: lecun: no rule for {function} in {place}{detail and ': ' + detail}; use method='ggn-mc', "
        "which lets autograd carry everything between layers"
    )


def _name(func: Callable[..., Any]) -> str:
    """As in the table. Operators of torch.ops have their namespace, so that they are not taken for functions."""
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(func._schema.name if isinstance(func, torch._ops.OpOverload) else func._qualified_op_name)
    name = getattr(func, "__name__", type(func).__name__).strip("_")
    if name in _DIFFERENT_BUILTINS and isinstance(func, BuiltinFunctionType):
        return f"torch.{name}"
    return ALIASES.get(name, name)


def _arranged(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
    """Arguments with the first tensor in front and without the option ``inplace``; whether the call is in place."""
    kwargs = dict(kwargs)
    if "input" in kwargs:
        args = (kwargs.pop("input"), *args)
    if "other" in kwargs:
        args = (*args, kwargs.pop("other"))
    in_place = _named_in_place(func) or bool(kwargs.pop("inplace", False))
    if isinstance(func, FunctionType):
        names = func.__code__.co_varnames[: func.__code__.co_argcount]
        position = names.index("inplace") if "inplace" in names else len(args)
        if position < len(args):  # always the last
            in_place, args = in_place or bool(args[position]), args[:position]
    return args, kwargs, in_place


def _named_in_place(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return name in _IN_PLACE_DUNDERS or (name.endswith("_") and not name.endswith("__"))


def _out_of_place(name: str, func: Callable[..., Any]) -> Callable[..., Any]:
    if not _named_in_place(func):
        return func
    return getattr(Tensor, name, None) or getattr(F, name)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _tensors(entry)
