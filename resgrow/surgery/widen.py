"""More units for a layer of a live model, which computes what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.curvature.batches import Batch
from resgrow.curvature.heads import LossFn
from resgrow.surgery.directions import DIRECTED, directed
from resgrow.surgery.exchange import as_optimizers, strange_state
from resgrow.surgery.forward import Inputs, as_inputs, evaluate, require_same
from resgrow.surgery.fresh import fresh
from resgrow.surgery.structure import Edit, Group, structure
from resgrow.surgery.structure.edit import Fill
from resgrow.surgery.structure.insert import grown, insert
from resgrow.surgery.widen_names import fans_out, named_group


@torch.no_grad()
def widen(
    model: nn.Module,
    name: str,
    by: int,
    *,
    example_inputs: Inputs,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
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
    entries. Masks of the widened tensors no longer fit and have to be made anew; the same holds for compiled code.

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

    The function is kept to rounding (a few ulp), not to the bit: sums over more terms run in another order.

    Args:
        model: any that ``torch.export`` can follow on example_inputs and that returns one tensor.
        name: a layer by its module name, such as "layer1.0.conv1", or a parameter, whose outputs are the units. Any
            layer of a residual stream stands for the stream.
        by: how many units: channels, whole heads, or whole groups of channels in grouped convolutions.
        example_inputs: a tensor or the sequence of the model's arguments; the model is run on them in evaluation mode.
        optimizer: one or several that hold the model's parameters, or none.
        init: "random", "net2wider", "tiny" or "gradmax".
        generator: for the random numbers, of any device; torch's default one of the CPU otherwise.
        loss_fn, data: for "tiny" and "gradmax", as in `resgrow.curvature`; samples of the size of example_inputs.

    Raises:
        ValueError: a name that the model does not have or whose outputs are not units of one group, ``by`` below 1,
            another ``init``, or one that does not fit the units, no data or a loss that is not finite, a model that
            cannot be followed or run or is not finite, an optimizer that does not work weight by weight.
        TypeError: arguments of other types.
        RuntimeError: outputs on example_inputs would change, as where products of the group's own activations are
            summed, or where sizes stand in the model's code.

        With any of them, model and optimizers are as they were, to the bit.
    """
    if isinstance(by, bool) or not isinstance(by, int):
        raise TypeError(f"widen: by must be a whole number (got {by!r})")
    if by < 1:
        raise ValueError(f"widen: by must be at least 1 (got {by}); prune and compact make layers narrower")
    if init not in (*_INITS, *DIRECTED):
        raise ValueError(f"widen: init must be one of {', '.join((*_INITS, *DIRECTED))} (got {init!r})")
    if init in _INITS and (loss_fn is not None or data is not None):
        raise ValueError(f"widen: init={init!r} does not look at a loss (got loss_fn or data); leave them out")
    inputs = as_inputs(example_inputs, "widen")
    optimizers = as_optimizers("widen", model, optimizer)
    expected = evaluate(model, inputs, "widen")
    if not expected.isfinite().all():
        raise ValueError("widen: the model's outputs must be finite to be compared (got NaN or inf); check weights")
    group = named_group(model, inputs, structure(model, inputs, "widen"), name, "widen")
    _check(model, group, name, optimizers)
    larger = grown(group, by, "widen")
    if init in DIRECTED:
        fill = directed(init, _random, model, inputs, name, group, larger, generator, loss_fn, data)
    else:
        fill = _INITS[init](model, group, larger, generator)
    edit = Edit(model, optimizers)
    try:
        insert(edit, group, larger, fill)
        _verify(model, inputs, expected, f"{by} more units in {name}")
    except BaseException:
        edit.undo()
        raise


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


def _verify(model: nn.Module, inputs: Sequence[Tensor], expected: Tensor, what: str) -> None:
    try:
        actual = evaluate(model, inputs, "widen")
        if actual.shape != expected.shape:
            raise ValueError(f"the outputs' shape becomes {tuple(actual.shape)}")
        require_same(expected, actual, "widen")
    except Exception as error:
        raise RuntimeError(
            f"widen: outputs must stay as they are with {what} (got: {error}); everything has been undone. Sums over "
            "products of these units, their order in the model's code or sizes that stand there can be the reason"
        ) from error


def _random(model: nn.Module, group: Group, larger: Group, generator: torch.Generator | None) -> Fill:
    """What makes the units is drawn, what reads them is zero."""
    sizes = {name: list(tensor.shape) for name, tensor in _tensors(model).items()}
    for place in larger.places:
        sizes[place.name][place.dim] += place.index[group.size :].numel()
    drawn: dict[tuple[str, int], Tensor] = {}
    for place in larger.places:
        if not fans_out(model, place):
            path, _, attribute = place.name.rpartition(".")
            shape = list(sizes[place.name])
            shape[place.dim] = place.index[group.size :].numel()
            drawn[place.name, place.dim] = fresh(model.get_submodule(path), attribute, shape, generator)

    def fill(name: str, values: Tensor) -> Tensor:
        places = [place for place in larger.places if place.name == name]
        # A weight can make units from themselves, in a residual stream: what reads them has the last word.
        for place in sorted(places, key=partial(fans_out, model)):
            new = place.index[group.size :].flatten().to(values.device)
            if (name, place.dim) in drawn:
                values.index_copy_(place.dim, new, drawn[name, place.dim])
            else:
                values.index_fill_(place.dim, new, 0)
        return values

    return fill


def _net2wider(model: nn.Module, group: Group, larger: Group, generator: torch.Generator | None) -> Fill:
    """Copies of units, which share what reads them."""
    device = None if generator is None else generator.device
    copied = torch.randint(group.size, (larger.size - group.size,), generator=generator, device=device).cpu()
    sources = torch.cat([torch.arange(group.size), copied])
    shares = torch.bincount(sources)[sources]

    def fill(name: str, values: Tensor) -> Tensor:
        for place in larger.places:
            if place.name != name:
                continue
            index = place.index.to(values.device)
            rows = values.index_select(place.dim, index[copied].flatten())
            values.index_copy_(place.dim, index[group.size :].flatten(), rows)
            if fans_out(model, place):
                counts = torch.ones(values.shape[place.dim], dtype=values.dtype, device=values.device)
                counts[index] = shares.to(counts)[:, None]
                values /= counts.view([-1 if dim == place.dim else 1 for dim in range(values.dim())])
        return values

    return fill


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


_INITS: dict[str, Callable[[nn.Module, Group, Group, torch.Generator | None], Fill]] = {
    "random": _random,
    "net2wider": _net2wider,
}
