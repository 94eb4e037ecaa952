"""Small trained networks in float64, and the loss that deletions are to raise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

import resgrow.data
from resgrow.data import digits
from resgrow.experiments.localise.networks import train

# Images that a loss is the mean of.
JUDGED = 512
RATE = 3e-3
SMOOTHING = 0.1


def perceptron(activation: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 10))


@dataclass(frozen=True)
class Kind:
    """A network and its data.

    ``images``: (N, ...) that it is trained on, and labels. ``epochs``: its share of a training's. ``states``: what it
    is looked at in. ``hessian``: whether it is small enough for an exact Hessian, a backward pass per weight.
    """

    make: Callable[[], nn.Module]
    images: Callable[[str | None], tuple[Tensor, Tensor]]
    states: tuple[str, ...] = ("trained", "minimum")
    epochs: float = 1.0
    hessian: bool = True


def _digits(flat: bool) -> tuple[Tensor, Tensor]:
    raw = digits.read()
    x = torch.from_numpy(raw.train_images).float() / 16
    return (x.flatten(1) if flat else x.reshape(len(x), 1, 8, 8))[:JUDGED], torch.from_numpy(raw.train_labels)[:JUDGED]


def _mnist(data_dir: str | None) -> tuple[Tensor, Tensor]:
    data = resgrow.data.load("mnist", data_dir)
    return data.train_x[: 8 * JUDGED].clone(), data.train_y[: 8 * JUDGED].clone()


NETWORKS = {
    "perceptron": Kind(lambda: perceptron(nn.ReLU), lambda _: _digits(flat=True)),
    "tanh": Kind(lambda: perceptron(nn.Tanh), lambda _: _digits(flat=True)),
    "resnet8": Kind(lambda: resgrow.nn.resnet(8, 0.25, in_channels=1), lambda _: _digits(flat=False)),
    "lenet5": Kind(resgrow.nn.lenet5, _mnist, ("trained",), 0.25, hessian=False),
}


@dataclass(frozen=True)
class Net:
    """A network that is not trained any more, the mean loss it was trained on, and the images that this is taken over.

    ``x`` is of shape (`JUDGED`, ...), all floating-point tensors are float64, and the model is in eval mode.
    """

    model: nn.Module
    loss_fn: nn.Module
    x: Tensor
    y: Tensor

    @cached_property
    def dense(self) -> float:
        return self.loss({})

    @torch.no_grad()
    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """With ``weights`` in place of the model's own of these names."""
        return float(self.loss_fn(functional_call(self.model, dict(weights), (self.x,)), self.y))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """What is deleted: all but biases and what norms have."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.dim() >= 2}


def trained(name: str, state: str, seed: int, epochs: int, data_dir: str | None) -> Net:
    """A network of `NETWORKS` in one of these states.

    * ``trained``: Adam and cross-entropy, what a user has. Its gradient is not zero, and softmax is near saturation.
    * ``minimum``: the same, then trained on by L-BFGS with labels smoothed by `SMOOTHING`, whose loss has a minimum.
      What Optimal Brain Damage assumes.

    Raises:
        InputError: the data set is not there.
    """
    kind = NETWORKS[name]
    x, y = kind.images(data_dir)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.make()
    train(model, (x, y), max(1, round(kind.epochs * epochs)), RATE, seed)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=SMOOTHING if state == "minimum" else 0.0)
    net = Net(model.eval().double(), loss_fn, x[:JUDGED].double(), y[:JUDGED])
    if state == "minimum":
        _converge(net)
    return net


def _converge(net: Net, steps: int = 400) -> None:
    optimizer = torch.optim.LBFGS(
        net.model.parameters(),
        max_iter=steps,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-8,
        tolerance_change=1e-13,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net.loss_fn(net.model(net.x), net.y)
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()
