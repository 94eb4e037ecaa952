"""Physically smaller networks, after masks have emptied them."""

import copy
from collections.abc import Collection, Mapping, Sequence
from math import gcd

from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.surgery.company import Followers, company
from resgrow.surgery.forward import AnyInputs, Example, finite_outputs, outputs, require_same_outputs
from resgrow.surgery.masks import Masks
from resgrow.surgery.structure import (
    Edit,
    Group,
    absorb,
    bypasses,
    constant_inputs,
    dead,
    remove,
    structure_of,
    traced,
)
from resgrow.surgery.structure.bypass import Bypass
from resgrow.surgery.structure.heads import adapted
from resgrow.surgery.structure.trace import Traced
from resgrow.surgery.wrappers import unwrapped


def compact(
    model: nn.Module,
    example_inputs: AnyInputs,
    *,
    inplace: bool = False,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    followers: Followers = None,
    masks: Masks | Sequence[Masks] | None = None,
    round_to: int = 1,
) -> nn.Module:
    """The model without what has no effect: a copy, or itself; with the same outputs in evaluation mode.

    Units are found by following the model's operations: channels with all that is coupled to them (also along residual
    streams and through concatenations), whole groups of grouped convolutions, attention heads, neurons. A unit goes
    where nobody reads it (the weights that read it are zero), or where what is read of it is constant (its producer's
    weights are zero, or a norm's gain or a gate is): zeros without further ado, other constants where the readers'
    biases can hold them exactly, that is in front of linear layers and of convolutions without zero padding. What goes
    may empty others, so this repeats until nothing changes. At least one unit of each kind stays. So do units that a
    norm or a softmax runs over, since the others would change without them, and heads of modules whose code does not
    run with fewer.

    Layers and blocks go whole where nothing is left of them. A residual block whose branch gives zero, or the same
    whatever its input, becomes what its shortcut is: `torch.nn.Identity`, or some of its children in a row, under their
    names; a constant that is not zero lives on in a `resgrow.nn.Shift`. A branch that other code adds to something
    becomes a `resgrow.nn.Zero` where it keeps the shape of its input, or `resgrow.nn.Zeros`, which also stand for
    attention; what only these read goes, too.

    Zeros count however they came about: masks of channels, of blocks, or of single weights. Only layers and blocks do
    not go for a scale that is zero (the gain of a norm, a parameter that multiplies), with which many residual blocks
    start: it takes a weight without any entries left, or closed gates.

    Args:
        model: any module that ``torch.export`` can follow, whatever it returns its tensors in; of a compiled one, what
            was compiled. A wrapper for several processes has to be made after surgery, anew if there was one: it holds
            hooks on the old parameters.
        example_inputs: a tensor, the sequence of the model's arguments, or a mapping of its keyword arguments; the
            model is run on it before and after.
        inplace: make the model itself smaller. Parameters stay the objects that they are, with their gradients and
            hooks. Compiled code of it is compiled again at the next call.
        optimizer: with ``inplace``: one or several that hold the model's parameters; their state goes along, biases
            that are new join the groups of their weights, and parameters that have gone leave.
        followers: with ``inplace``: other models of the same structure, which lose the same units: an average of the
            weights (``torch.optim.swa_utils.AveragedModel``), a teacher. What they still had of those units is lost.
        masks: with ``inplace``: masks of the model, which go along. Others no longer fit and have to be made anew.
        round_to: leave a multiple of so many channels or neurons in each layer, or all that it had; some that have no
            effect stay for that. 8 or 16 is what most hardware is quickest with. Heads are not rounded.

    Returns:
        The smaller model. A copy is of the same class, with the original's dtypes, devices, layouts, training flags and
        requires_grad; gradients are not copied, and an optimizer has to be made anew for it.

    Raises:
        ValueError: ``torch.export`` cannot follow the model, or it does not run on example_inputs or is not finite
            there; it is wrapped for several processes; optimizer, followers or masks without ``inplace``; an optimizer
            that does not work weight by weight, followers of another structure, masks of another model; round_to below
            1.
        TypeError: example_inputs are not tensors, the model does not return any, or arguments of other types.
        RuntimeError: the smaller model's outputs differ by more than rounding.

        With any of them the model and all that goes with it are as they were, to the bit.
    """
    wrapper, model = model, unwrapped("compact", model)
    if type(round_to) is not int or round_to < 1:
        raise ValueError(f"compact: round_to must be a whole number of at least 1 (got {round_to!r}); 1 rounds nothing")
    along = {"optimizer": optimizer, "followers": followers, "masks": masks}
    if not inplace and any(each is not None for each in along.values()):
        given = ", ".join(name for name, each in along.items() if each is not None)
        raise ValueError(
            f"compact: optimizer, followers and masks go along with inplace=True only (got {given}); add it"
        )
    example = Example.of(example_inputs, "compact")
    others = company("compact", model, optimizer, followers, masks)
    expected = finite_outputs(model, example, "compact")
    edit = others.edit(model if inplace else copy.deepcopy(model))
    try:
        _shrink(edit, example, expected, round_to)
        require_same_outputs(expected, outputs(edit.model, example, "compact"), "compact")
    except BaseException:
        edit.undo()
        raise
    return wrapper if inplace else edit.model


def _shrink(edit: Edit, example: Example, expected: Sequence[Tensor], round_to: int) -> None:
    """Take out what is dead, until nothing is."""
    fixed: set[str] = set()
    while True:
        graph = traced(edit.model, example, "compact")
        found = bypasses(edit.model, graph, example, "compact", fixed)
        if found:
            fixed |= _bypass(edit, found, example, expected)
            continue
        mark = edit.mark()
        gone = _narrow(edit, graph, round_to, fixed)
        if not gone:
            return
        split = {path for group in gone for path in group.split_by}
        if split and not _same(edit, example, expected):
            edit.undo(mark)
            # One by one, so that those which can lose heads do.
            alone = {path for path in split if not _narrows(edit, graph, example, expected, fixed | (split - {path}))}
            fixed |= alone or split


def _bypass(edit: Edit, found: Sequence[Bypass], example: Example, expected: Sequence[Tensor]) -> set[str]:
    """Take out layers and blocks; which have to stay, by their paths, as code does more with them than to call them."""
    mark = edit.mark()
    for each in found:
        parameters = list(edit.model.get_submodule(each.path).parameters())
        edit.replace(each.path, each.make, beside=parameters[-1])
        _run_by_parts(edit, each.path.rpartition(".")[0])
    if _same(edit, example, expected):
        return set()
    edit.undo(mark)
    if len(found) == 1:
        return {found[0].path}
    return {path for each in found for path in _bypass(edit, [each], example, expected)}


def _run_by_parts(edit: Edit, path: str) -> None:
    """torch's fused encoder layer wants all of its layers to be there."""
    module = edit.model.get_submodule(path)
    attention = module.self_attn if isinstance(module, nn.TransformerEncoderLayer) else None
    if type(attention) is nn.MultiheadAttention:
        edit.set_attributes(f"{path}.self_attn", adapted(attention, attention.num_heads, attention.num_heads))


def _same(edit: Edit, example: Example, expected: Sequence[Tensor]) -> bool:
    """Whether the model runs and gives what it did."""
    try:
        require_same_outputs(expected, outputs(edit.model, example, "compact"), "compact")
    except Exception:
        return False
    return True


def _narrows(edit: Edit, graph: Traced, example: Example, expected: Sequence[Tensor], fixed: Collection[str]) -> bool:
    """Whether `_narrow` would leave a model that gives what it did."""
    mark = edit.mark()
    _narrow(edit, graph, 1, fixed)
    same = _same(edit, example, expected)
    edit.undo(mark)
    return same


def _narrow(edit: Edit, graph: Traced, round_to: int, fixed: Collection[str]) -> list[Group]:
    """Take units out; which groups had any.

    Args:
        fixed: modules whose heads stay, for their code does not run with fewer.
    """
    found = structure_of(edit.model, graph).groups
    groups = [group for group in found if not any(path in fixed for path in group.split_by)]
    reads = constant_inputs(edit.model, graph)
    gone = _rounded(groups, dead(edit.model, groups, reads), round_to)
    if absorb(edit, groups, gone, reads):
        remove(edit, groups, gone)
    return [groups[number] for number in gone]


def _rounded(groups: Sequence[Group], gone: Mapping[int, Tensor], to: int) -> dict[int, Tensor]:
    """Less of ``gone``, such that what stays is a multiple of ``to`` in channels, of which a unit may have several."""
    result = {}
    for number, units in gone.items():
        group = groups[number]
        step = 1 if group.split_by else to // gcd(to, group.places[0].index.shape[1])
        stay = min(group.size, -(-int((~units).sum()) // step) * step)
        spare = units.nonzero().flatten()[group.size - stay :]
        left = units.clone()
        left[spare] = False
        if left.any():
            result[number] = left
    return result
