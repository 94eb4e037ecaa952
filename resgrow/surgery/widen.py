"""More units for a layer of a live model, which computes what it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.curvature.batches import Batch
from resgrow.curvature.growth import Growth
from resgrow.curvature.heads import LossFn
from resgrow.surgery.company import Company, Followers, company
from resgrow.surgery.directions import DIRECTED, directed
from resgrow.surgery.exchange import strange_state
from resgrow.surgery.forward import AnyInputs, Example, finite_outputs, outputs, require_same_outputs
from resgrow.surgery.masks import Masks
from resgrow.surgery.new_units import INITS
from resgrow.surgery.spare import wake
from resgrow.surgery.structure import Edit, Group, structure
from resgrow.surgery.structure.edit import Fill
from resgrow.surgery.structure.insert import grown, insert
from resgrow.surgery.widen_names import fans_out, named_group
from resgrow.surgery.wrappers import unwrapped


@torch.no_grad()
def widen(
    model: nn.Module,
    name: str,
    by: int,
    *,
    example_inputs: AnyInputs,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    followers: Followers = None,
    masks: Masks | Sequence[Masks] | None = None,
    init: str = "random",
    generator: torch.Generator | None = None,
    loss_fn: LossFn | None = None,
    data: Iterable[Any] | Batch | None = None,
) -> None:
    """Add units to a layer, in place, and to everything that goes with them. Outputs stay as they are.

    Units are found by following the model's operations: channels, also those of residual streams and concatenations,
    neurons, attention heads, groups of channels. New ones are the last of their group in every tensor: rows of the
    layers that make them, entries of norms between, columns of the layers that read them. Parameters stay the objects
    that they are, so optimizers, their groups and schedulers go on; gradients and optimizer state are zero for new
    entries. Compiled code is compiled again at the next call.

    Where ``masks`` are given, capacity that they hold back comes first: units that are absent from all that reads them
    (as ``prune(block="channel")`` leaves them) are woken in their places, with new values and zero gradients and state.
    Shapes stay then, and outputs to the bit. What is missing is added.

    ``init``:

    * ``"random"``: columns that read the new units are zero, and what makes them is drawn as the layers' own
      initialisation has it (see `resgrow.surgery.fresh.fresh`; Linear and convolutions: uniform within
      ``1 / sqrt(fan_in)``, the fan-in before). After one optimizer step the columns are not zero any more, after two
      everything new has been trained.
    * ``"net2wider"``: new units are copies of random existing ones, with their norms and statistics, and what reads a
      unit and its copies divides its weights among them (Chen, Goodfellow and Shlens 2016, "Net2Net", section 3.1).
      Copies get equal gradients: only dropout, or noise that the caller adds, makes them differ.
    * ``"tiny"``: what makes the units is what ``loss_fn`` on ``data`` asks for most, beyond what changes of existing
      weights can give (Verbockhaven et al. 2024, "Growing tiny networks"; equations in `resgrow.Growth`). Columns that
      read them are zero: it is their first gradient that has the direction, and is large. Fan-ins are scaled such that
      the units have mean square 1 before their activation; a batch norm directly behind has their mean and variance
      as its own, gain 1 and bias 0. Activations make signs matter: of the ``by`` leading directions with both signs
      those ``by`` units are taken whose columns have the largest gradient, as measured (one sign of each, where the
      activation is odd). Where there are fewer, the rest is random, orthogonal to the directions found, of the same
      size.
    * ``"gradmax"``: the same with the directions of the largest gradient itself (Evci et al. 2022, "GradMax"). There
      fan-ins are zero and fan-outs have the directions; behind a ReLU, whose derivative at zero is zero, that would be
      dead, so their roles are changed: of the same singular vectors these are the others.

    The last two are for units that one Linear or convolutional layer without groups makes, and such layers read, with
    activations, batch norms, pooling and flattening between. The model is run in evaluation mode, two or three times
    over the data, and each pass should read the same: a loader or a list, of which an iterator's batches become one.
    The more samples, the better: there should be more output positions than inputs of a unit, and of what reads it.

    The function is kept to rounding (a few ulp), not to the bit, by units that are added: sums over more terms run in
    another order.

    Args:
        model: any that ``torch.export`` can follow on example_inputs, whatever it returns its tensors in.
        name: a layer by its module name, such as "layer1.0.conv1", or a parameter, whose outputs are the units. Any
            layer of a residual stream stands for the stream.
        by: how many units: channels, whole heads, or whole groups of channels in grouped convolutions.
        example_inputs: a tensor, the sequence of the model's arguments, or a mapping of its keyword arguments; the
            model is run on them in evaluation mode.
        optimizer: one or several that hold the model's parameters, or none.
        followers: other models of the same structure, which get the same units: an average of the weights
            (``torch.optim.swa_utils.AveragedModel``), a teacher. Their outputs stay, too.
        masks: of the model; they go along, with everything present in new entries. Others no longer fit.
        init: "random", "net2wider", "tiny" or "gradmax".
        generator: for the random numbers, of any device; torch's default one of the CPU otherwise.
        loss_fn, data: for "tiny" and "gradmax", as in `resgrow.curvature`; samples of the size of example_inputs.

    Raises:
        ValueError: a name that the model does not have or whose outputs are not units of one group, ``by`` below 1,
            another ``init``, or one that does not fit the units, no data or a loss that is not finite, a model that
            cannot be followed or run or is not finite, an optimizer that does not work weight by weight, followers of
            another structure, masks of another model.
        TypeError: arguments of other types.
        RuntimeError: outputs on example_inputs would change, as where products of the group's own activations are
            summed, or where sizes stand in the model's code.

        With any of them, the model and all that goes with it are as they were, to the bit.
    """
    widened(
        model,
        name,
        by,
        Example.of(example_inputs, "widen"),
        company("widen", unwrapped("widen", model), optimizer, followers, masks),
        init=init,
        generator=generator,
        loss_fn=loss_fn,
        data=data,
    )


@dataclass(frozen=True)
class Widened:
    """What `widened` has done.

    Attributes:
        edit: takes it back.
        columns: where other weights read the new units: parameter name -> dimension -> indices.
    """

    edit: Edit
    columns: Mapping[str, Mapping[int, Tensor]]


@torch.no_grad()
def widened(
    model: nn.Module,
    name: str,
    by: int,
    example: Example,
    along: Company,
    *,
    init: str = "random",
    generator: torch.Generator | None = None,
    loss_fn: LossFn | None = None,
    data: Iterable[Any] | Batch | None = None,
    known: Growth | None = None,
) -> Widened:
    """`widen`, in such a way that the caller can take it back. Raises as `widen`.

    Args:
        known: for "tiny", what `resgrow.growth_gain` says of this layer, this model and these data.
    """
    model = unwrapped("widen", model)
    if isinstance(by, bool) or not isinstance(by, int):
        raise TypeError(f"widen: by must be a whole number (got {by!r})")
    if by < 1:
        raise ValueError(f"widen: by must be at least 1 (got {by}); prune and compact make layers narrower")
    if init not in (*INITS, *DIRECTED):
        raise ValueError(f"widen: init must be one of {', '.join((*INITS, *DIRECTED))} (got {init!r})")
    if init in INITS and (loss_fn is not None or data is not None):
        raise ValueError(f"widen: init={init!r} does not look at a loss (got loss_fn or data); leave them out")
    expected = finite_outputs(model, example, "widen")
    found = structure(model, example, "widen")
    group = named_group(model, example, found, name, "widen")
    _check(model, group, name, along.optimizers)

    # Units that are woken have taken the best directions when others are added.
    given = [known] if init == "tiny" else []

    def made(group: Group, larger: Group, grows: bool) -> Fill:
        if init in DIRECTED:
            best = given.pop() if given else None
            return directed(init, model, example, name, group, larger, grows, generator, loss_fn, data, best)
        return INITS[init](model, group, larger, grows, generator)

    edit = along.edit(model)
    try:
        units = wake(edit, found.groups, group, by, made)
        larger = group
        if len(units) < by:
            larger = grown(group, by - len(units), "widen")
            insert(edit, group, larger, made(group, larger, True))
        _verify(model, example, expected, f"{by} more units in {name}")
    except BaseException:
        edit.undo()
        raise
    new = torch.cat([units, torch.arange(group.size, larger.size)])
    columns: dict[str, dict[int, Tensor]] = {}
    for place in larger.places:
        if fans_out(model, place):
            columns.setdefault(place.name, {})[place.dim] = place.index[new].flatten()
    return Widened(edit, columns)


def _check(model: nn.Module, group: Group, name: str, optimizers: Sequence[Optimizer]) -> None:
    if not any(fans_out(model, place) for place in group.places):
        raise ValueError(
            f"widen: units must be read through weights of their own (got {name}, whose {group.size} units only meet "
            "each other, as those of queries and keys do): new ones would change the outputs"
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for place in group.places:
        strange = strange_state(parameters[place.name], optimizers) if place.name in parameters else None
        if strange is not None:
            raise ValueError(
                f"widen: the optimizer's state must have one number per weight, or one for all (got {strange!r} of "
                f"{place.name}, which has neither); use an optimizer such as SGD or AdamW"
            )


def _verify(model: nn.Module, example: Example, expected: Sequence[Tensor], what: str) -> None:
    try:
        require_same_outputs(expected, outputs(model, example, "widen"), "widen")
    except Exception as error:
        raise RuntimeError(
            f"widen: outputs must stay as they are with {what} (got: {error}); everything has been undone. Sums over "
            "products of these units, their order in the model's code or sizes that stand there can be the reason"
        ) from error
