"""Physically smaller copies of networks that masks have emptied."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from resgrow.surgery.forward import Inputs, as_inputs, evaluate, require_same
from resgrow.surgery.structure import Edit, absorb, constant_inputs, dead, remove, structure_of, traced


def compact(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """A copy of the model without what has no effect, with the same outputs in evaluation mode.

    Units are found by following the model's operations: channels with all that is coupled to them (also along residual
    streams and through concatenations), whole groups of grouped convolutions, attention heads, neurons. A unit goes
    where nobody reads it (the weights that read it are zero), or where what is read of it is constant (its producer's
    weights are zero, or a norm's gain or a gate is): zeros without further ado, other constants where the readers'
    biases can hold them exactly, that is in front of linear layers and of convolutions without zero padding. What goes
    may empty others, so this repeats until nothing changes. At least one unit of each kind stays. So do units that a
    norm or a softmax runs over, since the others would change without them.

    Zeros count however they came about: masks of channels, of blocks, or of single weights.

    Args:
        model: any module that ``torch.export`` can follow; it is left alone.
        example_inputs: a tensor or the sequence of the model's arguments; both models are run on it.

    Returns:
        The smaller copy, of the same class, with the original's dtypes, devices, layouts, training flags and
        requires_grad; gradients are not copied. An optimizer has to be made anew for it.

    Raises:
        ValueError: ``torch.export`` cannot follow the model, or it does not run on example_inputs or is not finite
            there.
        TypeError: example_inputs are not tensors, or the model does not return one.
        RuntimeError: the copy's outputs differ by more than rounding.
    """
    inputs = as_inputs(example_inputs, "compact")
    expected = evaluate(model, inputs, "compact")
    if not expected.isfinite().all():
        raise ValueError("compact: the model's outputs must be finite to be compared (got NaN or inf); check weights")
    small = copy.deepcopy(model)
    while _shrink(small, inputs):
        pass
    require_same(expected, evaluate(small, inputs, "compact"), "compact")
    return small


def _shrink(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Take out, in place, what is dead now; whether anything was."""
    graph = traced(model, inputs, "compact")
    groups = structure_of(model, graph).groups
    reads = constant_inputs(model, graph)
    gone = dead(model, groups, reads)
    if absorb(model, groups, gone, reads):
        remove(Edit(model), groups, gone)
    return bool(gone)
