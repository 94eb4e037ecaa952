"""Which parameters are candidates for removal, and in which units."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from resgrow.surgery.channel_units import ChannelUnits
from resgrow.surgery.count import layer_positions
from resgrow.surgery.exclude import excluded_parameters
from resgrow.surgery.forward import AnyInputs, Example
from resgrow.surgery.groups import coupled
from resgrow.surgery.latency import ModelLatency
from resgrow.surgery.residual_ends import found_residuals
from resgrow.surgery.residual_units import ResidualUnits
from resgrow.surgery.structure import Group
from resgrow.surgery.units import Units
from resgrow.surgery.weight_units import BlockUnits, WeightUnits

Block = tuple[int, int] | str
T = TypeVar("T")
_NAMED = ("channel", "residual")


def make_units(
    model: nn.Module,
    block: Block = (1, 1),
    exclude: Sequence[str] = (),
    example_inputs: AnyInputs | None = None,
    biases: bool = False,
) -> Units:
    """The units a model can lose.

    Args:
        model: any module. For channels `nn.Sequential`, `resgrow.nn.ResNet` (those inside its blocks), or any model
            that ``torch.export`` can follow on example_inputs.
        block: (1, 1) for single weights, (bo, bi) for blocks of output by input channels, "channel" for channels,
            "residual" for residual branches.
            Weights and blocks are those of all Conv2d and Linear layers. Channels are whatever can be removed in one
            piece: of models that are followed also those of residual streams and concatenations, neurons, whole
            groups of grouped convolutions, and attention heads. A residual branch is what is added to the very values
            that it is computed from, whatever comes behind the addition, of any model that ``torch.export`` can follow:
            see `ResidualUnits`. It has to end in parameters which, zero, make it zero and which nothing else reads.
        exclude: names of parameters or modules, or fnmatch patterns of either; a module stands for all in it.
            Excluded weights and blocks stay; of an excluded layer the output channels stay, with all that is coupled
            to them, while its inputs follow what the layers before it lose. A norm or a bias by itself keeps no
            channel. Branches with anything excluded inside stay.
        example_inputs: a tensor or the sequence of the model's arguments; the model is run on it in evaluation mode.
            Needed for costs in MACs, for residual branches, and for channels of models other than `nn.Sequential` and
            `resgrow.nn.ResNet`. Also for costs in milliseconds, which are those of this batch; layers are measured when
            these are asked for.
            MACs are those of Conv2d and Linear layers that are called as modules; other parameters count 0, such as
            those of transposed convolutions, of `nn.MultiheadAttention` and of any weight that the model's own code
            multiplies with.
        biases: of single weights, whether the layers' biases are units, too; they cost no MACs.

    Raises:
        ValueError: a bad block, biases of other units, an exclude that matches nothing, nothing left to remove, bad
            example_inputs, none where they are needed, ``torch.export`` cannot follow the model.
        TypeError: exclude is one string, example_inputs or the model's output on them are not tensors.
    """
    _check_block(block)
    if biases and (isinstance(block, str) or tuple(block) != (1, 1)):
        raise ValueError(f"make_units: biases are units of their own among single weights only (got block={block!r})")
    excluded = excluded_parameters(model, exclude, "make_units")
    positions = None if example_inputs is None else layer_positions(model, example_inputs)
    # Measures nothing before it is asked.
    latency = None if example_inputs is None else ModelLatency(model, Example.of(example_inputs, "make_units"))
    if block == "channel":
        found = coupled(model, example_inputs, "make_units")
        groups = [group for group in found if not _producers(model, group) & excluded]
        return ChannelUnits(model, _some(groups, block, exclude), positions, latency)
    if block == "residual":
        if example_inputs is None:
            raise ValueError(
                "make_units: block='residual' needs example_inputs to follow the model's operations (got none); pass "
                "one batch of inputs"
            )
        _, branches = found_residuals(model, example_inputs, exclude, "make_units")
        return ResidualUnits(model, _some(branches, block, exclude), positions)
    names = _some([name for name in _candidates(model, biases) if name not in excluded], block, exclude)
    if tuple(block) == (1, 1):
        return WeightUnits(model, names, positions)
    return BlockUnits(model, names, (int(block[0]), int(block[1])), positions, latency)


def count_latency(model: nn.Module, example_inputs: AnyInputs, masks: Mapping[str, Tensor] | None = None) -> float:
    """Milliseconds that the example's batch takes a model in evaluation mode, or is predicted to take what `compact`
    leaves of it with masks of channels.

    Layers are measured with the current number of threads, and remembered; `resgrow.surgery.latency.ModelLatency`
    tells how. `profile` measures a model that is there.

    Args:
        model: with at least one channel that could go; it is run in evaluation mode.
        example_inputs: a tensor, the sequence of the model's arguments, or a mapping of its keyword arguments.
        masks: which channels are present, such as from ``prune(model, scores, block="channel")``; one that is partly
            present counts in full.

    Raises:
        ValueError, TypeError: as `make_units`; a model that is on neither CPU nor CUDA.
    """
    return make_units(model, "channel", example_inputs=example_inputs).total(masks, "latency_ms")


def _some(found: list[T], block: Block, exclude: Sequence[str]) -> list[T]:
    if not found:
        rule = ", as a branch has to be added to what it reads" if block == "residual" else ""
        raise ValueError(
            f"make_units: nothing is left to remove with block={block!r}{rule} (got exclude={list(exclude)}); exclude "
            "less, or choose other units"
        )
    return found


def _producers(model: nn.Module, group: Group) -> set[str]:
    """Names of the weights that make the group's units: not those that read them, and neither biases nor norms."""
    made = {place.name for place in group.places if not place.read}
    return {name for name in made if model.get_parameter(name).dim() > 1}


def _check_block(block: Block) -> None:
    if block in _NAMED:
        return
    sizes = tuple(block) if isinstance(block, tuple | list) else ()
    if len(sizes) != 2 or not all(type(size) is int and size >= 1 for size in sizes):
        raise ValueError(f"make_units: block must be (bo, bi) with bo, bi >= 1, or one of {_NAMED} (got {block!r})")


def _candidates(model: nn.Module, biases: bool) -> list[str]:
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    names = []
    for name, _ in model.named_parameters():
        module, _, attribute = name.rpartition(".")
        if module in layers and (attribute == "weight" or (biases and attribute == "bias")):
            names.append(name)
    return names
