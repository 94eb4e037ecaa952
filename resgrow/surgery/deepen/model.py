"""One more block or layer for a live model, which computes what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow._modes import eval_mode
from resgrow.nn import KeyedModuleList
from resgrow.surgery.company import Company, Followers, company
from resgrow.surgery.deepen.addition import Addition, new_key, path_of
from resgrow.surgery.deepen.blocks import block_addition
from resgrow.surgery.deepen.layers import identity_addition, is_layer, residual_addition
from resgrow.surgery.forward import AnyInputs, Example, finite_outputs, outputs, require_same
from resgrow.surgery.masks import Masks
from resgrow.surgery.structure import Edit
from resgrow.surgery.structure.observe import equal, first_tensor, observed
from resgrow.surgery.wrappers import unwrapped

_COUNTED = "Where a number of layers is stored, as in model.config.num_hidden_layers, raise it before"
_INITS = ("auto", "zero", "identity", "residual")


@torch.no_grad()
def deepen(
    model: nn.Module,
    name: str,
    *,
    example_inputs: AnyInputs,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    init: str = "auto",
    followers: Followers = None,
    masks: Masks | Sequence[Masks] | None = None,
    generator: torch.Generator | None = None,
) -> str:
    """Add a block or a layer, in place. Outputs stay as they are, and all that is new learns within two steps.

    Everything that is there keeps its name and stays the object that it is, so optimizers, their groups and schedulers
    go on. New parameters join the groups of those that they are made after, with the state of parameters that have not
    been stepped, and are trained where those are. Taking the new module out again leaves the model that was.

    ``init``:

    * ``"zero"``: one more residual block, behind the last one of a stage or behind the block that is named. It is a
      copy of that block, or of another one there that keeps the shape, or else of one that changes it, without its
      shortcut and its strides. Weights are drawn as the layers' own initialisation has them (see
      `resgrow.surgery.fresh.fresh`), and zeros are put into what ends its branches: the gain and bias of a norm, a
      layer's weight and bias, a scale. These are found by following the block's operations. Outputs stay to the bit.
      Zeros learn at once, what is in front of them from the second step on; a block of zeros only would never learn.
      An activation behind the addition has to leave the block's input as it is, as ReLU does behind another ReLU.
    * ``"identity"``: for a Linear or convolution in an ``nn.Sequential``: behind its activation a layer of the same
      kind with identity weights and zero bias, the activation again, and between them a batch norm if the first has
      one, with the statistics of the values that arrive, which its gain and bias take back (Chen, Goodfellow and
      Shlens 2016, "Net2Net", section 3.2). Activations with f(f(x)) = f(x) only, such as ReLU. Outputs stay to
      rounding in evaluation mode.
    * ``"residual"``: a `resgrow.nn.Residual`, ``x + branch(x)``, for all that is not residual itself. For a Linear or
      convolution in a Sequential the branch is layer, norm if any, activation, layer of zeros, and stands behind the
      activation, which may be any. For a block it is a copy of that whose last norm or layer is zero, as transformers
      need that normalise behind the addition. Outputs stay to the bit.
    * ``"auto"``: "identity" for Linear and convolutions, "zero" for all else.

    Args:
        model: any module; of a block that is added, ``torch.export`` must be able to follow the kind.
        name: of a stage (``nn.Sequential``, ``nn.ModuleList`` or any module that runs its children in order), of a
            block in it, or of a layer.
        example_inputs: a tensor, the sequence of the model's arguments, or a mapping of its keyword arguments; the
            model is run on it before and after.
        optimizer: one or several that hold the model's parameters.
        followers: averaged copies of the model, to which the same happens.
        masks: of the model. New parameters that go with masked ones are masked, too, with everything present.
        generator: for the random numbers, of any device; torch's default one of the CPU otherwise.

    Returns:
        The name of the new module, such as "layer2.2" behind "layer2.1", the last one, and "layer2.0_1" behind
        "layer2.0", which is not the last.

    Raises:
        ValueError: a name that the model does not have or that stands for nothing which can be added to, another
            ``init``, an activation or a norm that does not go with it, frozen parameters, a model that does not run or
            is not finite, an optimizer that does not work weight by weight, followers with other parameters.
        TypeError: arguments of other types.
        RuntimeError: outputs on example_inputs would change, the model does not run the new module, or it would not
            learn.

        With any of them, model, optimizers, followers and masks are as they were, to the bit.
    """
    example = Example.of(example_inputs, "deepen")
    along = company("deepen", unwrapped("deepen", model), optimizer, followers, masks)
    return deepened(model, name, example, along, init=init, generator=generator).path


@dataclass(frozen=True)
class Deepened:
    """What `deepened` has done.

    Attributes:
        path: of the new module.
        last: names, in the model, of its parameters that are zero; none where it is an identity by others.
        edit: takes it back.
    """

    path: str
    last: tuple[str, ...]
    edit: Edit


@torch.no_grad()
def deepened(
    model: nn.Module,
    name: str,
    example: Example,
    along: Company,
    *,
    init: str = "auto",
    generator: torch.Generator | None = None,
) -> Deepened:
    """`deepen`, in such a way that the caller can take it back. Raises as `deepen`."""
    model = unwrapped("deepen", model)
    if init not in _INITS:
        raise ValueError(f"deepen: init must be one of {', '.join(_INITS)} (got {init!r})")
    edit = along.edit(model)
    layer = is_layer(_named(model, name))
    expected = finite_outputs(model, example, "deepen")
    if init == "identity" or (init == "auto" and layer):
        addition = identity_addition(model, name, example)
    elif init == "residual" and layer:
        addition = residual_addition(model, name, example, generator)
    else:
        addition = block_addition(model, name, example, init == "residual", generator)
    _require_trained(addition)
    try:
        path = _insert(edit, addition)
        _verify(model, path, addition, example, expected)
    except BaseException:
        edit.undo()
        raise
    return Deepened(path, tuple(f"{path}.{last}" for last in addition.last), edit)


def _named(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        close = get_close_matches(str(name), list(modules), 4)
        hint = f"close to it: {', '.join(close)}" if close else "see model.named_modules()"
        raise ValueError(f"deepen: name must be that of a module of the model (got {name!r}); {hint}")
    return modules[name]


def _require_trained(addition: Addition) -> None:
    parameters = dict(addition.module.named_parameters())
    frozen = [name for name in addition.last or parameters if not parameters[name].requires_grad]
    if frozen and (addition.last or len(frozen) == len(parameters)):
        raise ValueError(
            f"deepen: what is new is trained as that which it goes with (got {addition.beside[frozen[0]]}, which has "
            "requires_grad=False); call requires_grad_() on that one before"
        )


def _insert(edit: Edit, addition: Addition) -> str:
    parent = edit.model.get_submodule(addition.parent)
    key = new_key(parent, addition.after)
    if type(parent) is nn.ModuleList and addition.after != list(parent._modules)[-1]:
        edit.set_attributes(addition.parent, {"__class__": KeyedModuleList})
    edit.insert_module(addition.parent, key, addition.after, addition.module, addition.beside)
    return path_of(addition.parent, key)


def _verify(model: nn.Module, path: str, addition: Addition, example: Example, expected: Sequence[Tensor]) -> None:
    """RuntimeError where the new module is not run, changes anything, or would not learn."""
    try:
        seen = observed(model, example, {path: addition.module}, "deepen").get(path)
        actual = outputs(model, example, "deepen")
    except Exception as error:
        raise RuntimeError(
            f"deepen: the model must run with {path} (got: {error}); everything has been undone. {_COUNTED}"
        ) from error
    if seen is None:
        raise RuntimeError(
            f"deepen: the model's forward must run what is added (got {path}, which it does not call); everything has "
            f"been undone. {_COUNTED}"
        )
    if addition.last and not seen.same:
        behind = f" through {', '.join(addition.after_sums)}" if addition.after_sums else ""
        raise RuntimeError(
            f"deepen: the new block must return its input, to the bit (got another result of {path}, whose input goes"
            f"{behind or ' another way'}); everything has been undone. ReLU behind the addition wants inputs that are "
            "not negative, and norms there never fit: use init='residual'"
        )
    _require_equal(path, expected, actual, bool(addition.last))
    if addition.last:
        _require_learning(addition, path, seen.args, seen.kwargs)


def _require_equal(path: str, expected: Sequence[Tensor], actual: Sequence[Tensor], exact: bool) -> None:
    shapes = [[tuple(each.shape) for each in outputs] for outputs in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise RuntimeError(
            f"deepen: outputs must stay as they are with {path} (got shapes {shapes[1]} instead of {shapes[0]}); "
            "everything has been undone. Name another place, or let the model return less"
        )
    for one, other in zip(expected, actual, strict=True):
        if exact and not equal(one, other):
            raise RuntimeError(
                f"deepen: outputs must stay as they are, to the bit, with {path} (got a difference of "
                f"{float((one.double() - other.double()).abs().max()):.2g}); everything has been undone. The model "
                "does more with its blocks than to run them in order"
            )
        if not exact:
            require_same(one, other, "deepen")


def _require_learning(addition: Addition, path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """Zeros without a gradient would stay zeros."""
    module = addition.module
    last = {name: module.get_parameter(name) for name in addition.last}
    with eval_mode(module), torch.enable_grad():
        result = first_tensor(module(*args, **kwargs))
        assert result is not None
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        grads = torch.autograd.grad(result, list(last.values()), weights.to(result), allow_unused=True)
    moves = dict(zip(last, (grad is not None and bool(grad.any()) for grad in grads), strict=True))
    learning = {name.rpartition(".")[0] for name, moved in moves.items() if moved}
    still = [name for name in last if name.rpartition(".")[0] not in learning]
    if still:
        raise RuntimeError(
            f"deepen: the zeros of a new block must have a gradient (got none for {path}.{still[0]} on example_inputs, "
            "so it would never learn); everything has been undone. Pass inputs like those of training, or use "
            "init='residual'"
        )
