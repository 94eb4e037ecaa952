"""Losses: values as torch has them, and derivatives as autograd has them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow.curvature.evaluate import mean_loss
from resgrow.curvature.heads import Head, head_of, reduction_of
from resgrow.curvature.heads.custom import LARGEST


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOGITS, TOKENS, MAPS = 4 * uniform(3, 4) - 2, 4 * uniform(2, 3, 4) - 2, 4 * uniform(2, 3, 2, 2) - 2
LABELS, IGNORING = torch.tensor([1, 3, 0]), torch.tensor([1, 2, 0])
TOKEN_LABELS = torch.tensor([[0, 2, -100, 1], [-100, 1, 1, 0]])
MAP_LABELS = torch.tensor([[[0, 2], [1, 1]], [[2, 2], [0, 1]]])
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
PROBABILITIES = uniform(3, 4, seed=1)
HALF = uniform(3, 4, seed=2)


class Power(nn.Module):
    """Convex, couples the outputs of a sample."""

    reduction = "mean"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).sum(1).pow(4).mean() + output.square().mean()


class Focal(nn.Module):
    """Not convex in the output."""

    reduction = "sum"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        log = output.log_softmax(1).gather(1, target[:, None])
        return -((1 - log.exp()).square() * log).sum()


class Bumps(nn.Module):
    """Concave in some outputs, convex in others."""

    reduction = "sum"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return -torch.exp(-(output - target).square()).sum()


CONVEX = {
    "ce": (nn.CrossEntropyLoss(), LOGITS, LABELS),
    "ce sum": (nn.CrossEntropyLoss(reduction="sum"), LOGITS, LABELS),
    "ce weight": (nn.CrossEntropyLoss(WEIGHT), LOGITS, LABELS),
    "ce ignore": (nn.CrossEntropyLoss(ignore_index=2), LOGITS, IGNORING),
    "ce smooth": (nn.CrossEntropyLoss(label_smoothing=0.2), LOGITS, LABELS),
    "ce all": (nn.CrossEntropyLoss(WEIGHT, ignore_index=0, label_smoothing=0.2), LOGITS, LABELS),
    "ce probabilities": (nn.CrossEntropyLoss(), LOGITS, PROBABILITIES),
    "ce probabilities all": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2), LOGITS, PROBABILITIES),
    "ce tokens": (nn.CrossEntropyLoss(), TOKENS, TOKEN_LABELS),
    "ce tokens all": (nn.CrossEntropyLoss(WEIGHT[:3], label_smoothing=0.1), TOKENS, TOKEN_LABELS),
    "ce tokens sum": (nn.CrossEntropyLoss(WEIGHT[:3], reduction="sum"), TOKENS, TOKEN_LABELS),
    "ce map": (nn.CrossEntropyLoss(), MAPS, MAP_LABELS),
    "ce map probabilities": (nn.CrossEntropyLoss(WEIGHT[:3]), MAPS, uniform(2, 3, 2, 2, seed=3)),
    "ce function": (F.cross_entropy, LOGITS, LABELS),
    "ce partial": (partial(F.cross_entropy, label_smoothing=0.2, weight=WEIGHT), LOGITS, LABELS),
    "ce partial of partial": (partial(partial(F.cross_entropy, reduction="sum"), ignore_index=3), LOGITS, LABELS),
    "mse": (nn.MSELoss(), LOGITS, HALF),
    "mse sum": (nn.MSELoss(reduction="sum"), TOKENS, TOKENS.flip(0)),
    "mse function": (F.mse_loss, MAPS, MAPS.flip(0)),
    "mse scalar": (F.mse_loss, LOGITS[:, 0], HALF[:, 0]),
    "bce": (nn.BCEWithLogitsLoss(), LOGITS, HALF),
    "bce sum": (nn.BCEWithLogitsLoss(reduction="sum"), LOGITS, HALF),
    "bce all": (nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT.flip(0)), LOGITS, HALF),
    "bce partial": (partial(F.binary_cross_entropy_with_logits, pos_weight=WEIGHT + 1), LOGITS, HALF.round()),
    "smooth l1": (nn.SmoothL1Loss(), LOGITS, HALF),
    "huber": (partial(F.huber_loss, delta=0.7), LOGITS, HALF),
    "l1": (F.l1_loss, LOGITS, HALF),
    "power": (Power(), LOGITS, HALF),
}
SIGNED = {"focal": (Focal(), 3 * LOGITS, LABELS), "bumps": (Bumps(), LOGITS, HALF)}
Case = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(params=CONVEX)
def convex(request: pytest.FixtureRequest) -> Case:
    return CONVEX[request.param]


@pytest.fixture(params=CONVEX | SIGNED)
def case(request: pytest.FixtureRequest) -> Case:
    return (CONVEX | SIGNED)[request.param]


def exact(head: Head, output: Tensor, target: Tensor) -> Tensor:
    """Each sample's Hessian of ``head.loss``, ``(N, K, K)``; samples must not be coupled."""
    n, k = output.shape[0], output[0].numel()
    full = torch.autograd.functional.hessian(lambda f: head.loss(f, target), output).view(n, k, n, k)
    blocks = torch.stack([full[i, :, i] for i in range(n)])
    assert full.abs().sum() == pytest.approx(float(blocks.abs().sum())), "samples are coupled"
    return blocks


def outer(v: Tensor) -> Tensor:
    flat = v.reshape(len(v), -1)
    return flat[:, :, None] * flat[:, None, :]


def test_loss_over_total_is_torchs_own_mean(case):
    loss_fn, output, target = case
    head = head_of("op", loss_fn)
    found = head.loss(output, target)
    if reduction_of("op", loss_fn) == "mean":
        found = found / head.total(output, target)
    else:
        assert head.total(output, target) == len(output)
    torch.testing.assert_close(found, loss_fn(output, target), rtol=1e-13, atol=0)


def test_mean_loss_over_batches_is_the_loss_of_all_data_together(case):
    loss_fn, output, target = case
    batches = [(output[:1], target[:1]), (output[1:], target[1:])]
    wanted = loss_fn(output, target) / (1 if reduction_of("op", loss_fn) == "mean" else len(output))
    assert mean_loss("op", nn.Identity(), loss_fn, batches) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_factors_and_diagonal_are_those_of_the_hessian(case, temperature):
    loss_fn, output, target = case
    if temperature != 1 and not getattr(head_of("op", loss_fn), "TEMPERED", False):
        pytest.skip("has no temperature")
    head = head_of("op", loss_fn, temperature)
    wanted = exact(head, output, target)
    factors = list(head.factors(output, target))
    assert all(s.shape == output.shape and s.dtype == output.dtype for _, s in factors)
    torch.testing.assert_close(sum(sign * outer(s) for sign, s in factors), wanted, rtol=1e-12, atol=1e-13)
    diagonal = wanted.diagonal(dim1=1, dim2=2).reshape(output.shape)
    torch.testing.assert_close(head.diagonal(output, target), diagonal, rtol=1e-12, atol=1e-13)


def test_a_random_vector_has_the_hessian_as_second_moment(convex):
    loss_fn, output, target = convex
    head, draws = head_of("op", loss_fn), 5000
    # The mean over a batch of copies is the mean over the batch: a sample's share of head.loss stays as it is.
    wanted = exact(head, output, target)
    generator = torch.Generator().manual_seed(1)
    vectors = head.sample(copies(output, draws), copies(target, draws), generator)
    squares = outer(vectors).view(draws, *wanted.shape)
    assert ((squares.mean(0) - wanted).abs() <= 5 * squares.std(0) / draws**0.5 + 1e-12).all()


def copies(t: Tensor, times: int) -> Tensor:
    return t.repeat(times, *[1] * (t.dim() - 1))


@pytest.mark.parametrize("temperature", [0.5, 4.0])
@pytest.mark.parametrize("name", ["ce all", "ce tokens all", "bce all"])
def test_temperature_is_that_of_the_softened_loss(name, temperature):
    loss_fn, output, target = CONVEX[name]
    head = head_of("op", loss_fn, temperature)
    wanted = temperature**2 * loss_fn(output / temperature, target)
    torch.testing.assert_close(head.loss(output, target) / head.total(output, target), wanted)


def test_factors_leave_out_what_is_zero_for_every_sample():
    count = {name: len(list(head_of("op", CONVEX[name][0]).factors(*CONVEX[name][1:]))) for name in CONVEX}
    assert count["ce"] == 3, "one fewer than classes"
    assert count["ce tokens"] == 2 * 4
    assert count["bce all"] == 3, "one output has weight 0"
    assert count["l1"] == 1, "at least one, even if zero"
    head = head_of("op", nn.CrossEntropyLoss())
    nothing = torch.full((2, 4), -100)
    assert [s.abs().max() for _, s in head.factors(TOKENS, nothing)] == [0]
    assert head.total(TOKENS, nothing) == 0
    one_position = torch.tensor([[-100, 1, -100, -100], [-100, 0, -100, -100]])
    assert len(list(head.factors(TOKENS, one_position))) == 2


def test_saturated_softmax_keeps_its_digits_in_single_precision():
    output = torch.tensor([[20.0, 0.0, -3.0, 1.0], [-3.0, 0.0, 1.0, 25.0], [0.0, 30.0, -1.0, -200.0]])
    target = torch.tensor([0, 3, 1])
    head = head_of("op", nn.CrossEntropyLoss())
    q = output.double().softmax(1)
    others = torch.stack([q[:, [j for j in range(4) if j != c]].sum(1) for c in range(4)], 1)
    wanted = -outer(q)
    wanted.diagonal(dim1=1, dim2=2).copy_(q * others)
    found = sum(outer(s.double()) for _, s in head.factors(output, target))
    size = outer((q * others).sqrt())
    assert ((found - wanted).abs() <= 1e-5 * size + 1e-38).all()
    torch.testing.assert_close(head.diagonal(output, target).double(), q * others, rtol=2e-6, atol=1e-45)


def test_random_vectors_do_not_depend_on_rare_events_where_softmax_saturates():
    """A sampled label's gradient has the kurtosis 1 / (1 - q_max), here 1e5; random signs have at most 3."""
    output = torch.tensor([[12.0, 0.0, -1.0, 0.3]], dtype=torch.float64)
    direction = torch.tensor([1.0, -0.3, 0.5, 2.0], dtype=torch.float64)
    head, draws = head_of("op", nn.CrossEntropyLoss()), 20000
    vectors = head.sample(output.expand(draws, 4), torch.zeros(draws).long(), torch.Generator().manual_seed(0))
    squares = (vectors @ direction).square()
    exact_value = direction @ exact(head, output, torch.zeros(1).long())[0] @ direction
    assert abs(squares.mean() - exact_value) < 5 * squares.std() / draws**0.5
    assert squares.square().mean() / exact_value**2 < 3.1


def test_signed_factors_of_a_loss_that_is_not_convex():
    for loss_fn, output, target in SIGNED.values():
        assert {sign for sign, _ in head_of("op", loss_fn).factors(output, target)} == {-1.0, 1.0}
        with pytest.raises(ValueError, match=r"not convex.*method='ggn'"):
            head_of("op", loss_fn).sample(output, target, torch.Generator())


def test_a_subclass_goes_by_its_own_hessian():
    class Doubled(nn.CrossEntropyLoss):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return 2 * super().forward(output, target)

    found = head_of("op", Doubled()).diagonal(LOGITS, LABELS)
    torch.testing.assert_close(found, 2 * head_of("op", nn.CrossEntropyLoss()).diagonal(LOGITS, LABELS))


def test_half_precision_outputs_keep_their_dtype():
    for name in ("ce all", "mse", "bce all", "power"):
        loss_fn, output, target = CONVEX[name]
        head, output = head_of("op", loss_fn), output.bfloat16()
        assert head.diagonal(output, target).dtype == torch.bfloat16
        assert head.sample(output, target, torch.Generator().manual_seed(0)).dtype == torch.bfloat16
        assert head.gradient(output, target).dtype == torch.bfloat16
        assert all(s.dtype == torch.bfloat16 for _, s in head.factors(output, target))


class Centred(nn.Module):
    """Samples are compared with the batch's mean."""

    reduction = "sum"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - output.mean(0)).square().sum()


class Vector(Centred):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return output.square().sum(1)


class Root(Centred):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (0 * output).square().sum().sqrt() + output.abs().sqrt().sum()


WIDE = torch.zeros(2, LARGEST + 1)


@pytest.mark.parametrize(
    ("loss_fn", "output", "target", "message"),
    [
        (Centred(), LOGITS, HALF, "samples must not influence each other.*Centred.*hutchinson"),
        (Vector(), LOGITS, HALF, "must be a scalar.*Vector.*\\(3,\\)"),
        (Root(), 0 * LOGITS, HALF, "second derivatives of Root.*not finite"),
        (nn.SmoothL1Loss(), WIDE, WIDE, "at most 1024.*got 1025.*fisher"),
        (nn.MSELoss(), LOGITS[:, :1], HALF[:, 0], "same shape.*\\(3, 1\\) and \\(3,\\)"),
        (nn.BCEWithLogitsLoss(), LOGITS, HALF[:1], "same shape"),
        (nn.BCEWithLogitsLoss(pos_weight=-WEIGHT), LOGITS, HALF.round(), "weights must be >= 0"),
        (nn.CrossEntropyLoss(), LOGITS, LABELS + 1, "in \\[0, 4\\) or ignore_index=-100 \\(got 4"),
        (nn.CrossEntropyLoss(), LOGITS, HALF[:, 0], "indices are integers.*float64"),
        (nn.CrossEntropyLoss(), LOGITS, LABELS[:2], "targets of shape.*\\(3, 4\\) and \\(2,\\)"),
        (nn.CrossEntropyLoss(), LOGITS, HALF.long(), "probabilities in floating point.*int64"),
        (nn.CrossEntropyLoss(), LOGITS[:, 0], LABELS, "\\(N, classes, \\*positions\\).*\\(3,\\)"),
        (nn.CrossEntropyLoss(-WEIGHT), LOGITS, LABELS, "must be >= 0"),
    ],
)
def test_what_has_no_such_hessian_is_refused(loss_fn, output, target, message):
    with pytest.raises(ValueError, match=message):
        list(head_of("op", loss_fn).factors(output, target))


@pytest.mark.parametrize(
    ("loss_fn", "temperature", "message"),
    [
        (nn.MSELoss(), 2.0, "op: temperature applies to cross-entropy and binary.*MSELoss"),
        (Power(), 2.0, "temperature applies.*Power"),
        (nn.CrossEntropyLoss(), float("inf"), "positive and finite"),
        (nn.CrossEntropyLoss(reduction="none"), 1.0, "CrossEntropyLoss with reduction 'none'"),
        (partial(F.mse_loss, reduction="none"), 1.0, "mse_loss with reduction 'none'"),
        (partial(F.mse_loss, size_average=False), 1.0, "size_average and reduce.*use reduction="),
        (lambda output, target: output.sum(), 1.0, "how it reduces.*<lambda> with reduction None"),
    ],
)
def test_losses_that_do_not_say_what_they_mean_are_refused(loss_fn, temperature, message):
    with pytest.raises(ValueError, match=message):
        head_of("op", loss_fn, temperature)


def test_a_function_says_how_it_reduces_by_its_argument():
    def loss(output: Tensor, target: Tensor, reduction: str = "sum") -> Tensor:
        return output.sum()

    assert reduction_of("op", loss) == "sum"
    assert reduction_of("op", partial(loss, reduction="mean")) == "mean"
    assert reduction_of("op", F.nll_loss) == "mean"
    assert reduction_of("op", partial(Focal(), extra=1)) == "sum"
