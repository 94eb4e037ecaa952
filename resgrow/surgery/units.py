"""The smallest things that are removed: what single weights, blocks and channels have in common.

Units do three things and compute no saliency: they sum a given one over each unit, say what removing it would save,
and choose which go. A family holds *groups* (one per weight tensor, or per set of coupled channels); scores, costs,
live and keep are lists with one tensor per group and one element per unit.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow.surgery.latency import ModelLatency

# A unit that has nothing left to save still needs a finite price.
_TINY_COST = 1e-12
# Of the model's milliseconds: what a unit costs at least, that of a layer that is as fast without it.
LEAST_TIME = 1e-6


class Units(ABC):
    """Common interface of `WeightUnits`, `BlockUnits`, `ChannelUnits` and `ResidualUnits`; made by `make_units`.

    Attributes:
        parameters: names of the parameters whose elements the units cover.
        required: those of them that a saliency mapping must have; the others are used where they are there.
        groups: a name for each group, in the order of all lists.
    """

    parameters: tuple[str, ...]
    required: tuple[str, ...]
    groups: tuple[str, ...]

    def __init__(
        self, model: nn.Module, positions: Mapping[str, float] | None, latency: ModelLatency | None = None
    ) -> None:
        self._model = model
        self._positions = positions
        self._latency = latency
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        # A parameter that layers share costs what it costs in each of them.
        self._names = {name: alike for alike in names.values() for name in alike}

    def scores(self, saliency: Mapping[str, Tensor]) -> list[Tensor]:
        """Sum of the saliency over each unit.

        Args:
            saliency: ``{parameter name: tensor of its shape}``; parameters outside `parameters` are ignored.

        Raises:
            TypeError: not a mapping to floating-point tensors.
            ValueError: unknown or missing names, a wrong shape or device, NaN or minus infinity.
        """
        _check_saliency(self._model, saliency, self.parameters, self.required)
        return self._sum(saliency)

    @abstractmethod
    def _sum(self, saliency: Mapping[str, Tensor]) -> list[Tensor]:
        """`scores` of a checked mapping."""

    @abstractmethod
    def costs(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> list[Tensor]:
        """What removing each unit alone would save now: live parameters, MACs per sample, or milliseconds.

        Float tensors. Milliseconds fall in steps, of vectors of channels or where a block-sparse layer gets faster
        than a dense one; of them a unit gets its share of the step ahead, and at least a millionth of the model's.

        Args:
            masks: what is present; parameters without a mask are, and with None all are.
            by: "params", or for units made with example_inputs "macs" or, for channels and blocks, "latency_ms".
        """

    @abstractmethod
    def live(self, masks: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Which units are at least partly present: bool tensors."""

    @abstractmethod
    def to_masks(self, keep: Sequence[Tensor]) -> dict[str, Tensor]:
        """Bool masks of all `parameters`, False exactly on the units not kept."""

    def total(self, masks: Mapping[str, Tensor] | None = None, by: str = "params") -> float:
        """Live cost of all `parameters`; of ``by="latency_ms"`` that of the whole model.

        Milliseconds are those of the example's batch that the model would take which `compact` (or, for blocks, `swap`
        in evaluation mode) makes, as `ModelLatency` predicts them; units that are partly present count in full.
        """
        return float(sum(cost.sum(dtype=torch.float64) for cost in self.costs(masks, by)))

    def select(
        self,
        scores: Sequence[Tensor],
        save: float,
        masks: Mapping[str, Tensor] | None = None,
        by: str = "params",
        groups: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Which units to keep so that at least ``save`` of the live cost goes, the cheapest loss first.

        Live units go in ascending order of score / cost, ties by position, until what they save together reaches
        ``save``: the smallest such number of units. Units that are not live stay removed.

        Args:
            scores: one tensor per group, as from `scores`.
            save: cost to be saved, in parameters, MACs per sample or milliseconds; 0 or less saves nothing.
            masks: what is present now.
            by: as `costs`.
            groups: indices of the groups that may lose units; all by default.

        Returns:
            One bool tensor per group, True = keep.

        Raises:
            ValueError: more is to be saved than can be (the message says how much can), scores that do not match the
                units, NaN or minus infinity among them.
        """
        if save <= 0:
            check_scores(scores, self.live(masks))
            return self.live(masks)
        live, free, order, saved = self._ranking(scores, masks, by, groups)
        count = bisect_left(range(order.numel() + 1), save, key=saved)
        if count > order.numel():
            raise ValueError(unreachable(save, saved(order.numel()), by))
        return without(live, free, order[:count])

    def savable(
        self,
        scores: Sequence[Tensor],
        masks: Mapping[str, Tensor] | None = None,
        by: str = "params",
        groups: Sequence[int] | None = None,
    ) -> float:
        """The most that `select` could be asked to save, given the same arguments."""
        _, _, order, saved = self._ranking(scores, masks, by, groups)
        return saved(order.numel())

    def _ranking(
        self,
        scores: Sequence[Tensor],
        masks: Mapping[str, Tensor] | None,
        by: str,
        groups: Sequence[int] | None,
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Callable[[int], float]]:
        """Live units, those that may go, the order in which they go (indices into the concatenated True places of
        the second), and what the first n of that order save."""
        live = self.live(masks)
        check_scores(scores, live)
        costs = self.costs(masks, by)
        free, prices = [], [torch.empty(0, dtype=torch.float64, device=live[0].device)]
        for index, (score, cost, there) in enumerate(zip(scores, costs, live, strict=True)):
            if groups is not None and index not in groups:
                free.append(torch.zeros_like(there))
            else:
                price = score.double() / cost.double().clamp_min(_TINY_COST)
                free.append(self._free(price, there))
                prices.append(price[free[-1]])
        order = torch.sort(torch.cat(prices), stable=True).indices
        return live, free, order, self._saved(live, free, order, costs, masks, by)

    def _free(self, price: Tensor, live: Tensor) -> Tensor:
        """Which live units of one group may go; a family that must always keep some says so here."""
        return live

    def _saved(
        self,
        live: list[Tensor],
        free: list[Tensor],
        order: Tensor,
        costs: list[Tensor],
        masks: Mapping[str, Tensor] | None,
        by: str,
    ) -> Callable[[int], float]:
        """What the first n units in ``order`` save together; here the sum, for units that share no element."""
        flat = torch.cat([cost[spare] for cost, spare in zip(costs, free, strict=True)])
        sums = flat.double()[order].cumsum(0)
        return lambda count: float(sums[count - 1]) if count else 0.0

    def _factor(self, name: str, by: str) -> float:
        """Cost of one present element of parameter ``name``."""
        if by == "params":
            return 1.0
        if by != "macs":
            raise ValueError(f"costs: by must be 'params', 'macs' or 'latency_ms' (got {by!r})")
        if self._positions is None:
            raise ValueError("costs: by='macs' needs output sizes (got none); give make_units example_inputs")
        owners = [alias.rpartition(".") for alias in self._names[name]]
        return sum(self._positions.get(module, 0.0) for module, _, attribute in owners if attribute == "weight")

    def _needed_latency(self) -> ModelLatency:
        if self._latency is None:
            raise ValueError(
                "costs: by='latency_ms' needs a batch to measure with (got none); give make_units example_inputs"
            )
        return self._latency


def without(live: list[Tensor], free: list[Tensor], gone: Tensor) -> list[Tensor]:
    """``live`` less the units at ``gone``, indices into the concatenated True places of ``free``."""
    flags = torch.zeros(sum(int(spare.sum()) for spare in free), dtype=torch.bool, device=gone.device)
    flags[gone] = True
    keep = []
    for there, spare, chunk in zip(live, free, flags.split([int(spare.sum()) for spare in free]), strict=True):
        kept = there.clone()
        kept[spare] = ~chunk
        keep.append(kept)
    return keep


def unreachable(save: float, most: float, by: str) -> str:
    return (
        f"select: at most {most:g} {by} can be saved (got save={save:g}), because removed units save nothing and "
        "each channel group keeps one channel; ask for less, or exclude less"
    )


def check_scores(scores: Sequence[Tensor], live: Sequence[Tensor]) -> None:
    shapes = [tuple(score.shape) for score in scores]
    wanted = [tuple(there.shape) for there in live]
    if shapes != wanted:
        raise ValueError(f"select: scores must have the units' shapes (got {shapes}, units {wanted})")
    for index, score in enumerate(scores):
        if score.numel() and not score.min() > -math.inf:
            raise ValueError(f"select: scores must be numbers above -inf (got NaN or -inf in group {index})")


def _check_saliency(
    model: nn.Module, saliency: Mapping[str, Tensor], used: Sequence[str], required: Sequence[str]
) -> None:
    if not isinstance(saliency, Mapping):
        raise TypeError(f"scores: needs a mapping from parameter name to tensor (got {type(saliency).__name__})")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in saliency if name not in parameters]
    missing = [name for name in required if name not in saliency]
    if unknown or missing:
        raise ValueError(
            "scores: names must be parameters of the model and cover all candidates "
            f"(got unknown {unknown[:5]}, missing {missing[:5]}); compute the scores for this model, or exclude more"
        )
    for name in used:
        if name not in saliency:
            continue
        score = saliency[name]
        if not isinstance(score, Tensor) or not score.is_floating_point():
            given = score.dtype if isinstance(score, Tensor) else type(score).__name__
            raise TypeError(f"scores: needs floating-point tensors (got {given} for {name})")
        parameter = parameters[name]
        if score.shape != parameter.shape or score.device != parameter.device:
            raise ValueError(
                f"scores: a score must have its parameter's shape and device (got {tuple(score.shape)} on "
                f"{score.device} for {name}, {tuple(parameter.shape)} on {parameter.device}); compute the scores for "
                "this model where it is now"
            )
        # One pass: the minimum of anything with a NaN is NaN, which compares False.
        if score.numel() and not score.min() > -math.inf:
            raise ValueError(
                f"scores: must be numbers above -inf (got NaN or -inf in {name}); look for NaN in the loss or the data"
            )
