"""A swapped network trains as the masked dense one does, to the rounding of float32."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import resgrow
from resgrow.data import digits

BATCH = 64


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    raw = digits.read()
    return torch.from_numpy(raw.train_images).double() / 16 - 0.5, torch.from_numpy(raw.train_labels)


def network(activation: type[nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    """ResNet-20 with half of its 16x1 blocks gone, in all but the first and the last layer."""
    torch.manual_seed(0)
    model = resgrow.nn.resnet(20, in_channels=1)
    for block in (model, *model.modules()):
        for name in ("act1", "act2"):
            if hasattr(block, name):
                setattr(block, name, activation())
    scores = {name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    options = {"sparsity": 0.5, "block": (16, 1), "scope": "layer", "exclude": ("conv1", "fc")}
    masks = resgrow.prune(model, scores, **options)
    return model, masks.state_dict()


def epoch(model: nn.Module, optimizer: Optimizer, images: tuple[Tensor, Tensor]) -> list[float]:
    """Losses of all batches, in train mode."""
    x, y = images
    dtype = next(model.parameters()).dtype
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1)).split(BATCH)
    losses = []
    for batch in order:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[batch].to(dtype)), y[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@dataclass
class Run:
    losses: list[float]
    state: dict[str, Tensor]

    def distance(self, other: Run) -> tuple[float, float]:
        """Largest difference of a batch's loss, and the distance of the final states relative to the norm of all."""
        by_loss = max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True))
        squares, norm = (
            sum(float(t.square().sum()) for t in tensors)
            for tensors in ([value - other.state[name] for name, value in self.state.items()], self.state.values())
        )
        return by_loss, (squares / norm) ** 0.5


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-4),
    "adam": lambda p: torch.optim.Adam(p, 3e-3),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "activation"), [("momentum", nn.ReLU), ("adam", nn.GELU)], ids=["momentum-relu", "adam-gelu"]
)
def test_an_epoch_follows_the_masked_dense_run(
    name: str, activation: type[nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    """Against the masked dense run in float64: the sparse run in float32 is about as far off as the dense one.

    Rounding makes single rectifiers flip, which training amplifies; smooth activations show the rounding itself.
    """
    model, state = network(activation)

    def run(dtype: torch.dtype, sparse: bool) -> Run:
        own = copy.deepcopy(model).to(dtype, memory_format=torch.channels_last)
        optimizer = OPTIMIZERS[name](own.parameters())
        masks = resgrow.Masks(own, state).attach(optimizer)
        if sparse:
            assert len(resgrow.swap(own, masks, block=(16, 1), force=True).swapped) == 20
        losses = epoch(own, optimizer, images)
        resgrow.unswap(own, optimizer=optimizer)
        for parameter, mask in masks.items():
            assert not own.get_parameter(parameter)[~mask].any()
        return Run(losses, {key: value.double() for key, value in own.state_dict().items()})

    exact, dense, sparse = run(torch.float64, False), run(torch.float32, False), run(torch.float32, True)
    assert exact.losses[-1] < 0.7 * exact.losses[0]
    for ours, theirs in zip(sparse.distance(exact), dense.distance(exact), strict=True):
        assert ours < 3 * theirs + 1e-6
    if activation is nn.GELU:
        assert max(sparse.distance(exact)) < 1e-5
