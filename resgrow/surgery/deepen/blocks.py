"""One more block for a stage: a copy of one that is there, drawn anew, with residual branches that end in zeros."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from resgrow.nn import Residual
from resgrow.surgery.deepen.addition import Addition, copied, number, path_of, redraw, zero
from resgrow.surgery.deepen.shape import shape_keeping
from resgrow.surgery.forward import Example
from resgrow.surgery.structure.branches import Branches, last_parameters, residual_branches
from resgrow.surgery.structure.observe import Seen, observed
from resgrow.surgery.structure.trace import traced

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def block_addition(
    model: nn.Module, name: str, example: Example, wrapped: bool, generator: torch.Generator | None
) -> Addition:
    """A block behind the one that is named, or behind the last one of a stage.

    Args:
        wrapped: in a `Residual`, whatever the block itself computes.

    Raises:
        ValueError: no block there has what it takes.
    """
    places = list(_places(model, name, wrapped))
    paths = {path_of(parent, key) for parent, pairs in places for pair in pairs for key in pair}
    seen = observed(model, example, {path: model.get_submodule(path) for path in sorted(paths)}, "deepen")
    reasons: dict[str, str] = {}
    for parent, pairs in places:
        for after, key in pairs:
            source = path_of(parent, key)
            block = model.get_submodule(source)
            why = _unfit(block, seen.get(path_of(parent, after)), seen.get(source))
            found = None
            if why is None:
                found, why = _branches(block, seen[source], wrapped)
            if found is not None:
                return _made(model, parent, after, source, block, found, wrapped, generator)
            reasons.setdefault(source, str(why))
    for parent, pairs in () if wrapped else places:
        for source in [path_of(parent, key) for after, key in pairs if after == key]:
            blocks = shape_keeping(model.get_submodule(source), seen[source]) if source in seen else []
            for block in blocks:
                found, _ = _branches(block, _behind(seen[source]), wrapped)
                if found is not None:
                    key = source.rpartition(".")[2]
                    return _made(model, parent, key, source, block, found, wrapped, generator)
    raise ValueError(_refusal(model, name, reasons, wrapped))


def _behind(seen: Seen) -> Seen:
    """What a block is called with that stands behind the one that has been seen."""
    given = iter([seen.output])
    x = seen.input
    args = tuple(next(given) if each is x else each for each in seen.args)
    return Seen(args, {key: next(given) if each is x else each for key, each in seen.kwargs.items()}, seen.output)


def _places(model: nn.Module, name: str, wrapped: bool) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Parents, with (the child to stand behind, the child to copy) in order of preference."""
    module = model.get_submodule(name)
    is_list = isinstance(module, _LISTS)
    inside = [(key, key) for key, child in reversed(module._modules.items()) if child is not None]
    if wrapped:
        inside = [pair for pair in inside if is_list and any(True for _ in module.get_submodule(pair[0]).children())]
    parent, _, own = name.rpartition(".")
    beside: list[tuple[str, str]] = []
    if name:
        siblings = [key for key, child in model.get_submodule(parent)._modules.items() if child is not None]
        at = siblings.index(own)
        beside = [(own, key) for key in [own, *siblings[:at][::-1], *siblings[at + 1 :]]]
    for path, pairs in ((name, inside), (parent, beside)) if is_list else ((parent, beside), (name, inside)):
        if pairs:
            yield path, pairs


def _unfit(source: nn.Module, before: Seen | None, seen: Seen | None) -> str | None:
    """Why a block cannot be copied for what comes out of the block before; None where it can."""
    if before is None or seen is None:
        return "the forward pass does not call it"
    if next(source.parameters(), None) is None:
        return "it has no parameters"
    x, y, given = seen.input, seen.output, before.output
    if x is None or y is None or given is None:
        return "it does not take and return tensors"
    if not x.shape == y.shape == given.shape:
        return f"shape {tuple(x.shape)} becomes {tuple(y.shape)}" + (
            "" if given.shape == y.shape else f", not {tuple(given.shape)}"
        )
    return None if x.dtype == y.dtype == given.dtype else f"dtype {x.dtype} becomes {y.dtype}"


def _branches(source: nn.Module, seen: Seen, wrapped: bool) -> tuple[Branches | None, str | None]:
    """What has to be zero, or why there is nothing."""
    block = copied(source)
    names = [name for name, _ in block.named_parameters()]
    try:
        # With gradients, torch's layers do not take shortcuts that hide their parts.
        with torch.enable_grad():
            graph = traced(block.requires_grad_(), Example(seen.args, seen.kwargs), "deepen")
    except ValueError as error:
        return None, str(error)
    found = (last_parameters if wrapped else residual_branches)(graph, names)
    if found.last:
        return found, None
    if found.dead_ends:
        return None, f"it ends in {', '.join(found.dead_ends)}, behind which zeros would not learn"
    return None, "it does not add to its input"


def _made(
    model: nn.Module,
    parent: str,
    after: str,
    source: str,
    original: nn.Module,
    found: Branches,
    wrapped: bool,
    generator: torch.Generator | None,
) -> Addition:
    block = copied(original)
    last = tuple(found.last)
    redraw(block, generator)
    number(block, model)
    zero(block, last)
    beside = {name: f"{source}.{name}" for name, _ in block.named_parameters()}
    if not wrapped:
        return Addition(parent, after, block, beside, last, tuple(found.after))
    module = Residual(block)
    module.training = block.training
    names = {f"branch.{name}": value for name, value in beside.items()}
    return Addition(parent, after, module, names, tuple(f"branch.{name}" for name in last))


def _refusal(model: nn.Module, name: str, reasons: dict[str, str], wrapped: bool) -> str:
    kind = type(model.get_submodule(name)).__name__
    told = "; ".join(f"{path}: {why}" for path, why in list(reasons.items())[:4]) or "nothing inside or beside it"
    rule = "to have a result of its shape" if wrapped else "to add to its input, and to keep its shape"
    remedy = "another place" if wrapped else "another stage or block, or a layer; or use init='residual'"
    return f"deepen: a block at {name or 'the model'} ({kind}) has {rule} (got {told}); name {remedy}"
