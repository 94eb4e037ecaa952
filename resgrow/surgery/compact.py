"""Physically smaller networks, after masks have emptied them."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.surgery.exchange import as_optimizers
from resgrow.surgery.forward import Inputs, as_inputs, evaluate, require_same
from resgrow.surgery.structure import Edit, absorb, constant_inputs, dead, remove, structure_of, traced


def compact(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    inplace: bool = False,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> nn.Module:
    """The model without what has no effect: a copy, or itself; with the same outputs in evaluation mode.

    Units are found by following the model's operations: channels with all that is coupled to them (also along residual
    streams and through concatenations), whole groups of grouped convolutions, attention heads, neurons. A unit goes
    where nobody reads it (the weights that read it are zero), or where what is read of it is constant (its producer's
    weights are zero, or a norm's gain or a gate is): zeros without further ado, other constants where the readers'
    biases can hold them exactly, that is in front of linear layers and of convolutions without zero padding. What goes
    may empty others, so this repeats until nothing changes. At least one unit of each kind stays. So do units that a
    norm or a softmax runs over, since the others would change without them.

    Zeros count however they came about: masks of channels, of blocks, or of single weights.

    Args:
        model: any module that ``torch.export`` can follow.
        example_inputs: a tensor or the sequence of the model's arguments; the model is run on it before and after.
        inplace: make the model itself smaller. Parameters stay the objects that they are, with their gradients and
            hooks. Masks of it no longer fit afterwards: detach them before, and make new ones of what is left.
        optimizer: with ``inplace``: one or several that hold the model's parameters; their state goes along, and biases
            that are new join the groups of their weights.

    Returns:
        The smaller model. A copy is of the same class, with the original's dtypes, devices, layouts, training flags and
        requires_grad; gradients are not copied, and an optimizer has to be made anew for it.

    Raises:
        ValueError: ``torch.export`` cannot follow the model, or it does not run on example_inputs or is not finite
            there; an optimizer without ``inplace``, or one that does not work weight by weight.
        TypeError: example_inputs are not tensors, the model does not return one, or something else than optimizers.
        RuntimeError: the smaller model's outputs differ by more than rounding.

        With any of them the model and its optimizers are as they were, to the bit.
    """
    if optimizer is not None and not inplace:
        raise ValueError("compact: an optimizer goes along with inplace=True only (got inplace=False); add that")
    inputs = as_inputs(example_inputs, "compact")
    optimizers = as_optimizers("compact", model, optimizer)
    expected = evaluate(model, inputs, "compact")
    if not expected.isfinite().all():
        raise ValueError("compact: the model's outputs must be finite to be compared (got NaN or inf); check weights")
    edit = Edit(model if inplace else copy.deepcopy(model), optimizers)
    try:
        while _shrink(edit, inputs):
            pass
        require_same(expected, evaluate(edit.model, inputs, "compact"), "compact")
    except BaseException:
        edit.undo()
        raise
    return edit.model


def _shrink(edit: Edit, inputs: Sequence[Tensor]) -> bool:
    """Take out what is dead now; whether anything was."""
    graph = traced(edit.model, inputs, "compact")
    groups = structure_of(edit.model, graph).groups
    reads = constant_inputs(edit.model, graph)
    gone = dead(edit.model, groups, reads)
    if absorb(edit, groups, gone, reads):
        remove(edit, groups, gone)
    return bool(gone)
