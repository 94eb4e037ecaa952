"""Stochastic depth (Huang et al. 2016) for any model with residual branches, by hooks, and its survival statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resgrow._text import table
from resgrow.depth.drops import Drops
from resgrow.depth.survival import Survival
from resgrow.surgery.forward import AnyInputs, Example
from resgrow.surgery.residual_ends import End, residual_ends
from resgrow.surgery.wrappers import unwrapped

_SCHEDULES = ("linear", "uniform")


def stochastic_depth(
    model: nn.Module,
    example_inputs: AnyInputs,
    rate: float = 0.2,
    schedule: str = "linear",
    *,
    per_sample: bool = False,
    exclude: Sequence[str] = (),
    memory: int = 1000,
    seed: int = 0,
) -> StochasticDepth:
    """Drop residual branches at random while the model trains, and learn from the losses which of them matter::

        depth = resgrow.stochastic_depth(model, x, rate=0.2)
        for inputs, target in loader:
            loss = loss_fn(model(inputs), target)
            ...                              # backward, optimizer.step()
            depth.observe(loss)
        print(depth.table())                 # loss without and with each branch

    In training mode each branch of ``x + f(x)`` becomes ``x + b / (1 - r) f(x)``, ``b`` 0 with probability ``r`` and 1
    otherwise (Huang, Sun, Liu, Sedra and Weinberger 2016, "Deep networks with stochastic depth"; scaled in training, so
    that evaluation needs no change). In evaluation mode the model is what it is, to the bit.

    Branches are those that ``make_units(model, "residual")`` finds, of the same names. Everything is done by forward
    hooks: code, parameters and ``state_dict`` of the model stay as they are. The branch is still computed when it is
    dropped; its parameters then have gradients of zero.

    Args:
        model: any that ``torch.export`` can follow.
        example_inputs: a tensor, the sequence of the model's arguments, or a mapping of its keyword arguments.
        rate: probability with which branches are dropped, in [0, 1).
        schedule: "uniform": all alike; "linear": branch ``l`` of ``L``, in forward order, at ``l / L`` of the rate
            (their equation 4), so that the last has the whole of it.
        per_sample: decide for each sample by itself, instead of for the batch.
        exclude: see `resgrow.surgery.make_units`: branches with any such parameter inside are never dropped.
        memory: after about so many steps the statistics forget.
        seed: of the decisions, which have a generator of their own.

    Raises:
        ValueError: no branch that could be dropped, arguments out of range, a model that ``torch.export`` cannot follow
            or that does not run, several processes in one wrapper.
        TypeError: arguments of other types.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"stochastic_depth: rate must be a number in [0, 1) (got {rate!r}); 0.2 drops a fifth")
    if schedule not in _SCHEDULES:
        raise ValueError(f"stochastic_depth: schedule must be one of {_SCHEDULES} (got {schedule!r})")
    if type(memory) is not int or memory < 2:
        raise ValueError(f"stochastic_depth: memory must be a whole number of at least 2 steps (got {memory!r})")
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "stochastic_depth: a forward pass must be one (got nn.DataParallel, whose replicas would draw at the same "
            "time); use a single device, or DistributedDataParallel with the hooks on the module inside"
        )
    model = unwrapped("stochastic_depth", model)
    example = Example.of(example_inputs, "stochastic_depth")
    drops = Drops(model, per_sample, seed)
    depth = StochasticDepth(drops, Survival(0, memory), example, float(rate), schedule, exclude)
    depth.refresh()
    if not depth.rates:
        reasons = "; ".join(f"{path}: {why}" for path, why in list(depth.left_out.items())[:4])
        raise ValueError(
            "stochastic_depth: the model must add something to the very values that it is computed from, in a module "
            f"that returns it (got {reasons or 'no such branch'}); put the branch into a module, or resgrow.nn.Residual"
        )
    return depth


class StochasticDepth:
    """Random depth of a model, made by `stochastic_depth`, which attaches it.

    Every forward pass of the model in training mode draws anew, whatever runs inside of it draws nothing, so that
    activation checkpoints see the same branches again. A module that is in evaluation mode by itself, as frozen ones
    are, keeps its branches.

    * ``copy.deepcopy`` and pickle: a copy of the model has hooks of its own, which draw from a copy of the generator;
      copy or pickle model and this object together, as in ``copy.deepcopy((model, depth))``, to have both.
    * ``torch.compile``: make this object before the model is compiled: code that has been compiled does not see hooks
      that come later, upon which `observe` raises. The draw breaks the graph once, at its very beginning, so torch
      refuses ``fullgraph=True``.
    * Several processes: hooks are those of the module inside a wrapper. With one seed all ranks drop the same branches.
    * Surgery: hooks go with the modules. Call `refresh` when blocks have come or gone.

    Attributes:
        rates: how often each branch is dropped, by its path, in forward order.
        left_out: branches that cannot be dropped, and why.
        per_sample: whether samples are decided on one by one.
    """

    def __init__(
        self,
        drops: Drops,
        survival: Survival,
        example: Example,
        rate: float,
        schedule: str,
        exclude: Sequence[str],
    ) -> None:
        self.rates: dict[str, float] = {}
        self.left_out: dict[str, str] = {}
        self._drops, self._survival, self._example = drops, survival, example
        self._rate, self._schedule, self._exclude = rate, schedule, exclude
        # For each branch its last parameters, which keep their names when others go.
        self._last: list[tuple[str, ...]] = []

    @property
    def per_sample(self) -> bool:
        return self._drops.per_sample

    @property
    def attached(self) -> bool:
        return self._drops.attached

    def attach(self) -> StochasticDepth:
        """Drop from now on, again after `detach`. Returns the object itself."""
        self._drops.attach()
        return self

    def detach(self) -> None:
        """Take all hooks off: the model trains as it is. Statistics stay. Code compiled before keeps all branches."""
        self._drops.detach()

    def refresh(self, example_inputs: AnyInputs | None = None) -> None:
        """Look at the model anew, after blocks have been taken out or added. Statistics of branches that are still
        there stay; rates are the schedule's for the branches of now, which may be none.

        Args:
            example_inputs: others than those given in the beginning, where they no longer fit.

        Raises:
            ValueError, TypeError: as `stochastic_depth`; nothing has changed then.
        """
        example = self._example if example_inputs is None else Example.of(example_inputs, "stochastic_depth")
        found = residual_ends(self._drops.model, example, self._exclude, "stochastic_depth")
        ends: dict[str, End] = {}
        left_out: dict[str, str] = {}
        batch = example.tensors()[0].shape[0]
        for path, end in found.items():
            if end is None:
                left_out[path] = "no module of its own, called once, returns it"
            elif self.per_sample and end.shape[:1] != (batch,):
                left_out[path] = f"shape {end.shape} of its result does not begin with the {batch} samples"
            else:
                ends[path] = end
        rates = _rates(self._rate, self._schedule, len(ends))
        known = {last: number for number, last in enumerate(self._last)}
        self._last = [end.last for end in ends.values()]
        self._survival = self._survival.taken([known.get(last) for last in self._last])
        self._example, self.left_out, self.rates = example, left_out, dict(zip(ends, rates, strict=True))
        self._drops.change([end.path for end in ends.values()], rates)

    def decisions(self) -> dict[str, Tensor]:
        """Which branches survived in the last forward pass in training mode: bool, 0-dim, or ``(N,)`` by sample.

        Empty before there was one, and after `observe`.
        """
        if self._drops.drawn is None:
            return {}
        kept, drawn = self._drops.drawn
        rows = kept if self.per_sample else kept[:, 0]
        return {path: row for path, row, here in zip(self.rates, rows, drawn, strict=True) if here}

    def observe(self, loss: Tensor | float | Sequence[float]) -> None:
        """Tell which loss the last forward pass in training mode had.

        Args:
            loss: a number, or ``(N,)`` with ``per_sample``: the loss with ``reduction="none"``, one for each sample.

        Raises:
            ValueError: there was no forward pass since the last call, a loss of another shape, NaN or infinity.
                Nothing has changed then.
        """
        if self._drops.drawn is None:
            raise ValueError(
                "StochasticDepth.observe: a forward pass in training mode must come before each call (got none since "
                "the last); call it after each step. A model compiled before the hooks came does not see them: compile "
                "it again after torch.compiler.reset()"
            )
        kept, drawn = self._drops.drawn
        losses = torch.as_tensor(loss).detach().double().cpu()
        wanted = (kept.shape[1],) if self.per_sample else ()
        if losses.shape != wanted:
            raise ValueError(
                f"StochasticDepth.observe: the loss must have the shape of the decisions, {wanted} (got "
                f"{tuple(losses.shape)}); reduce it to the mean, or to one number for each sample with per_sample"
            )
        if not bool(losses.isfinite().all()):
            raise ValueError(f"StochasticDepth.observe: the loss must be finite (got {losses.tolist()}); leave it out")
        self._survival.add(losses.reshape(-1), kept, drawn)
        self._drops.drawn = None

    def importance(self) -> dict[str, tuple[float, float]]:
        """What each branch is worth: the mean loss without less that with it, and the standard error of that.

        Of the loss in training, where survivors are scaled up and others are missing, too. (nan, inf) where too little
        has been seen.
        """
        difference, error = self._survival.differences()
        return dict(zip(self.rates, zip(difference.tolist(), error.tolist(), strict=True), strict=True))

    def table(self) -> str:
        """A line for each branch: its rate, and the loss with it, without it, their difference and its error."""
        means, counts = self._survival.means().T.tolist(), self._survival.counts.T.tolist()
        rows = [
            (path, f"{rate:.3f}", f"{n:,}", _text(with_it), f"{m:,}", _text(without), _text(value), _text(error))
            for (path, rate), (with_it, without), (n, m), (value, error) in zip(
                self.rates.items(), means, counts, self.importance().values(), strict=True
            )
        ]
        return table(("branch", "rate", "with", "loss", "without", "loss", "difference", "error"), rows, ("branch",))

    def state_dict(self) -> dict[str, Any]:
        """Generator, decisions not yet observed, statistics, in plain types and tensors."""
        drawn = None if self._drops.drawn is None else tuple(each.clone() for each in self._drops.drawn)
        return {
            "rates": dict(self.rates),
            "generator": self._drops.generator.get_state(),
            "drawn": drawn,
            "survival": self._survival.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, bit for bit.

        Raises:
            ValueError: it is of other branches or other rates; nothing has changed then.
        """
        if list(state["rates"].items()) != list(self.rates.items()):
            raise ValueError(
                "StochasticDepth.load_state_dict: branches and rates must be the same (got "
                f"{_few(state['rates'])}, here {_few(self.rates)}); bring the model into the structure that it was "
                "saved in, and call refresh"
            )
        survival = Survival.of(state["survival"])
        self._drops.generator.set_state(state["generator"])
        self._drops.drawn = None if state["drawn"] is None else tuple(each.clone() for each in state["drawn"])
        self._survival = survival


def _rates(rate: float, schedule: str, count: int) -> list[float]:
    return [rate * (number / count if schedule == "linear" else 1) for number in range(1, count + 1)]


def _text(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _few(rates: Mapping[str, float]) -> str:
    more = f" and {len(rates) - 4} more" if len(rates) > 4 else ""
    return ", ".join(f"{path} {rate:.3g}" for path, rate in list(rates.items())[:4]) + more or "none"
