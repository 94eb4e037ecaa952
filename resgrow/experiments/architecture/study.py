"""A trained network and what is made of it: the runs of one seed of ``finetune``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.data import Dataset
from resgrow.experiments.architecture.learning import accuracy, deviation, learn, renewed, train
from resgrow.experiments.config import FitConfig, make_config
from resgrow.experiments.frame.runs import Runs
from resgrow.experiments.models import as_network, build_model
from resgrow.nn import BasicBlock, ResNet
from resgrow.nn.resnet import initialise
from resgrow.saliency import saliency
from resgrow.surgery import compact, prune, swap_activations
from resgrow.surgery.count import count_macs, count_params
from resgrow.surgery.make_units import make_units
from resgrow.surgery.storage import load, save

# Adam, because the gates' learning rate is meant for it. A third of what the package trains other networks with from
# new weights: it has to heal, not to find the weights again.
FINE_LR = 1e-3


@dataclass(frozen=True)
class Study:
    """One seed's base and what is fine-tuned from it.

    Every method makes the run that it is named after, with those that it needs, unless they are there already, and
    gives back its network. Networks that others start from lie beside the results, in ``DIR/NAME/``.

    Args:
        runs: where results are kept.
        data: images that a residual network takes.
        model: a residual network of `make_config`.
        seed: of weights and of the order of images.
        epochs, fine: of the base, and of all that starts from it.
    """

    runs: Runs
    data: Dataset
    model: str
    seed: int
    epochs: int
    fine: int

    def base(self) -> nn.Module:
        """Trained from new weights by the package's recipe."""

        def make() -> tuple[nn.Module, dict[str, Any]]:
            config = self._recipe(self.epochs)
            network = build_model(config, self.data)
            return network, self._trained(network, config)

        return self._kept(self._known("base"), make)

    def gates(self, coefficient: float) -> nn.Module:
        """The base's weights and the gates inside its blocks, trained together."""
        base = self.base()

        def make() -> tuple[nn.Module, dict[str, Any]]:
            gated = as_network(swap_activations(base, self.data.train_x[:1], learn=inner_widths(base)))
            before = accuracy(gated, self.data)
            found = learn(gated, self.data, self._gentle(), coefficient)
            return found.small, {
                **self._facts(found.small),
                "before": before,
                "accuracy": accuracy(found.small, self.data),
                "train_loss": found.training.epochs[-1].loss,
                "deviation": deviation(gated, self.data),
                "curve": found.curve,
            }

        return self._kept(self._known("gates", fine=self.fine, gates=coefficient), make)

    def plain(self) -> None:
        """The base trained on as it is: what the further epochs are worth."""
        base = self.base()
        self.runs.make(self._known("plain", fine=self.fine), lambda: self._trained(base, self._gentle()))

    def magnitude(self, coefficient: float) -> None:
        """As many parameters as the gates of this coefficient left, chosen by their size at once, then trained on."""
        base, params = self.base(), count_params(self.gates(coefficient))
        self.runs.make(
            self._known("magnitude", fine=self.fine, gates=coefficient),
            lambda: self._trained(pruned(base, params, self.data.train_x[:1]), self._gentle()),
        )

    def scratch(self, coefficient: float) -> None:
        """The architecture that the gates of this coefficient found, from new weights, for as many epochs in all."""
        found = self.gates(coefficient)
        self.runs.make(
            self._known("scratch", fine=self.fine, gates=coefficient),
            lambda: self._trained(afresh(found, self.seed + 1000), self._recipe(self.epochs + self.fine)),
        )

    def _known(self, what: str, **more: Any) -> dict[str, Any]:
        return {"what": what, "model": self.model, "seed": self.seed, "epochs": self.epochs, **more}

    def _recipe(self, epochs: int) -> FitConfig:
        return make_config(self.data.name, self.model, budget="params=1", epochs=epochs, seed=self.seed)

    def _gentle(self) -> FitConfig:
        return make_config(
            self.data.name,
            self.model,
            budget="params=1",
            epochs=self.fine,
            optimizer="adam",
            lr=FINE_LR,
            seed=self.seed,
        )

    def _facts(self, network: nn.Module) -> dict[str, Any]:
        return {
            "params": count_params(network),
            "macs": count_macs(network, self.data.train_x[:1]),
            # Of blocks that are no longer there: 0.
            "widths": {**dict.fromkeys(self._widths, 0), **widths(network)},
        }

    @cached_property
    def _widths(self) -> tuple[str, ...]:
        return tuple(widths(build_model(self._recipe(1), self.data)))

    def _trained(self, network: nn.Module, config: FitConfig) -> dict[str, Any]:
        before = accuracy(network, self.data)
        last = train(network, self.data, config).epochs[-1]
        return {
            **self._facts(network),
            "before": before,
            "accuracy": last.test_accuracy,
            "train_loss": last.loss,
        }

    def _kept(self, known: Mapping[str, Any], make: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> nn.Module:
        """The network of a run: from its folder, which is written before its line is."""
        what, *rest = known.items()
        folder = self.runs.path.with_suffix("") / "-".join([what[1], *(f"{key}={value}" for key, value in rest)])

        def made() -> dict[str, Any]:
            network, result = make()
            save(network, folder)
            return result

        self.runs.make(known, made)
        if not folder.exists():  # the results came without their networks: the same seed makes the same again
            made()
        return as_network(load(folder))


def inner_widths(model: nn.Module) -> dict[str, str]:
    """What `swap_activations` is to learn: the width between the two convolutions of each block, and nothing else.

    The channels that `prune` can remove from these networks: gates and magnitude are to choose among the same ones.
    """
    relus = {name: "neither" for name, module in model.named_modules() if isinstance(module, nn.ReLU)}
    return relus | {f"{name}.act1": "width" for name in _blocks(model)}


def widths(model: nn.Module) -> dict[str, int]:
    """Channels inside each block, by its activation there."""
    return {f"{name}.act1": block.conv1.out_channels for name, block in _blocks(model).items()}


def _blocks(model: nn.Module) -> dict[str, BasicBlock]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BasicBlock)}


def pruned(model: nn.Module, params: int, example: Tensor) -> nn.Module:
    """A copy of at most ``params`` parameters, less by no more than one channel's: those of least magnitude go.

    Magnitudes are summed over all that belongs to a channel, and ranked per parameter over the whole network. Each
    block keeps one, even if that is more than ``params``: gates can close whole blocks.
    """
    masked = copy.deepcopy(model)
    units = make_units(masked, "channel")
    most = sum(float(costs.sum() - costs.max()) for costs in units.costs())
    share = min(count_params(masked) - params, most) / units.total()
    prune(masked, saliency(masked, method="magnitude"), sparsity=share, block="channel")
    return as_network(compact(masked, example))


def afresh(model: nn.Module, seed: int) -> nn.Module:
    """The same residual network with new weights, drawn as `resgrow.nn.resnet` draws them."""
    again = renewed(model, seed)
    assert isinstance(again, ResNet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialise(again)
    return again
