"""What a curvature of single samples cannot be computed for, and what the message says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature


class Averaged(nn.Module):
    """Subtracts the batch's mean: no sample has an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Parameter(torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return torch.einsum("ni,io->no", x - x.mean(0), self.b)


X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("model", "loss_fn", "data", "options", "message"),
    [
        (nn.Linear(3, 3), F.cross_entropy, (X, Y), {"method": "hessien"}, "method must be one of.*hessien"),
        (nn.Linear(3, 3), F.cross_entropy, (X, Y), {"samples": 0}, "samples must be at least 1"),
        (nn.Linear(3, 3), F.cross_entropy, (X, Y), {"temperature": 0.0}, "temperature must be positive"),
        (nn.Linear(3, 3), nn.CrossEntropyLoss(weight=-torch.ones(3)), (X, Y), {}, "class weights"),
        (nn.Linear(3, 3), nn.CrossEntropyLoss(reduction="none"), (X, Y), {}, "reduction 'none'"),
        (nn.Linear(3, 3), lambda o, t: o.sum(), (X, Y), {"method": "fisher"}, "how it reduces"),
        (nn.Linear(3, 3), F.cross_entropy, [], {}, "no batches"),
        (nn.Linear(3, 3), F.cross_entropy, [(X[:0], Y[:0])], {}, "no samples"),
        (nn.Linear(3, 3), F.cross_entropy, (X * float("inf"), Y), {}, "not finite"),
        (nn.DataParallel(nn.Linear(3, 3)), F.cross_entropy, (X, Y), {}, "DataParallel; use module.module"),
        (nn.BatchNorm1d(3, track_running_stats=False), F.cross_entropy, (X, Y), {}, "running statistics"),
    ],
)
def test_what_cannot_be_right_is_refused(model, loss_fn, data, options, message):
    with pytest.raises(ValueError, match=message):
        curvature(model, loss_fn, data, **options)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.filterwarnings("ignore:curvature. no rule")
@pytest.mark.parametrize("samples", [2, 4])
def test_samples_that_have_no_output_of_their_own_are_refused(samples):
    model, x = Averaged(), X[:samples]
    with pytest.raises(ValueError, match="samples of a batch influence each other"):
        curvature(model, F.cross_entropy, (x, Y[: len(x)]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_refused():
    scripted = torch.jit.trace(nn.Linear(3, 3), X)
    with pytest.raises(ValueError, match="cannot see into"):
        curvature(nn.Sequential(scripted, nn.Linear(3, 3)), F.cross_entropy, (X, Y))


def test_samples_elsewhere_than_in_front_of_the_input_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Flatten(0, 1), nn.Unflatten(0, (5, 4)))
    with pytest.raises(ValueError, match=r"first dimension of an input \(got 4 samples and \(5, 4, 3\)\)"):
        curvature(model, F.cross_entropy, (torch.randn(5, 4, 3), Y))


def test_batches_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="batch 1 is a Tensor"):
        curvature(nn.Linear(3, 3), F.cross_entropy, [X])


def test_an_input_modified_after_its_layer_is_noticed():
    class Spoiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            output = self.b(hidden)
            hidden.add_(1)
            return output

    with pytest.raises(RuntimeError, match=r"input of linear with b.*modified in place"):
        curvature(Spoiled(), F.cross_entropy, (X, Y))
