"""Growth against its definition: every sample, every position, every weight on its own, in float64."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow.curvature.growth import Growth, Moments, Reader, Site, growth, moments, random_growth
from resgrow.curvature.growth.decompose import SMALL, inverse_root, leading
from resgrow.curvature.growth.lags import Lagged

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
LOSS = nn.CrossEntropyLoss()


class Case:
    """maker -> middle -> reader -> tail, and the linear map of one unit that the middle is."""

    def __init__(
        self,
        maker: nn.Module,
        middle: nn.Module,
        reader: nn.Module,
        x: tuple[int, ...],
        route: tuple[Callable[[Tensor], Tensor], ...] = (),
        columns: int = 1,
        norm: nn.Module | None = None,
    ) -> None:
        self.model = nn.Sequential(maker, norm or nn.Identity(), middle, reader, nn.Flatten()).double()
        self.maker, self.reader = maker, reader
        self.site = Site(maker, (Reader(reader, route, columns, reader.bias is not None),), norm is not None)
        self.x = torch.randn(x, dtype=torch.float64)
        self.y = torch.randint(0, self.model(self.x).shape[1], (len(self.x),))

    def moments(self, project: bool = False) -> Moments:
        (found,) = moments("test", self.model, LOSS, (self.x, self.y), [self.site], project=project)
        return found


CASES: dict[str, Callable[[], Case]] = {
    "linear": lambda: Case(nn.Linear(4, 3), nn.Identity(), nn.Linear(3, 5), (40, 4)),
    "no bias": lambda: Case(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 5, bias=False), (40, 4)),
    "tokens": lambda: Case(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), (30, 5, 4)),
    "convolutions": lambda: Case(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 2, (2, 3), stride=(1, 2), padding=(1, 2), dilation=(2, 1)),
        (24, 2, 7, 6),
    ),
    "same": lambda: Case(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, (2, 4), padding="same"), (24, 1, 6, 7)),
    "circular": lambda: Case(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        (24, 1, 5, 5),
    ),
    "pooled": lambda: Case(
        nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Conv2d(2, 3, 2), (24, 1, 8, 8), (partial(F.avg_pool2d, kernel_size=2),)
    ),
    "flattened": lambda: Case(
        nn.Conv2d(1, 2, 3),
        nn.Sequential(nn.ReLU(), nn.Flatten()),
        nn.Linear(2 * 9, 4),
        (60, 1, 5, 5),
        (partial(torch.flatten, start_dim=1),),
        9,
    ),
    "at one size": lambda: Case(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1), (24, 2, 4, 5)
    ),
    "narrow maps": lambda: Case(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding="same"), (90, 2, 2, 2)
    ),
    "kernels of 1 and 3": lambda: Case(
        nn.Conv2d(2, 3, (3, 1), padding=(1, 0)), nn.Tanh(), nn.Conv2d(3, 2, (3, 3), padding=1), (24, 2, 4, 5)
    ),
    "points": lambda: Case(nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1, bias=False), (24, 4, 4, 3)),
    "one dimension": lambda: Case(nn.Conv1d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv1d(3, 2, 3, padding=1), (30, 2, 6)),
    "three dimensions": lambda: Case(
        nn.Conv3d(1, 2, (3, 1, 3), padding=(1, 0, 1)), nn.Tanh(), nn.Conv3d(2, 2, 3, padding=1), (12, 1, 3, 2, 3)
    ),
    "normed at one size": lambda: Case(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1), (24, 2, 4, 4), norm=nn.BatchNorm2d(3)
    ),
    "then with strides": lambda: Case(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, 2, padding=1), (24, 2, 6, 5)
    ),
    "normed": lambda: Case(
        nn.Conv2d(2, 3, 2, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 2), (24, 2, 5, 5), norm=nn.BatchNorm2d(3)
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]()


def seen_by(layer: nn.Module, x: Tensor) -> Tensor:
    """``(N, *positions, D)``: what each position sees, by one-hot kernels."""
    if isinstance(layer, nn.Linear):
        return x
    rows = layer.weight[0].numel()
    kernels = torch.eye(rows, dtype=x.dtype).view(rows, *layer.weight.shape[1:])
    return layer._conv_forward(x, kernels, None).movedim(1, -1)


def desired(case: Case) -> tuple[Tensor, Tensor]:
    """Minus the gradient at the reader's output, and the reader's input."""
    model = case.model.eval()
    h = model[:3](case.x)
    out = model[3](h)
    (grad,) = torch.autograd.grad(LOSS(model[4](out), case.y), out)
    return -grad, h.detach()


def projected(case: Case, v: Tensor, h: Tensor) -> Tensor:
    """Least squares over all samples and positions, output by output."""
    linear = isinstance(case.reader, nn.Linear)
    rows = seen_by(case.reader, h).detach().flatten(0, -2)
    if case.reader.bias is not None:
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
    last = v if linear else v.movedim(1, -1)
    columns = last.flatten(0, -2)
    left = columns - rows @ torch.linalg.pinv(rows) @ columns
    left = left.view(last.shape)
    return left if linear else left.movedim(-1, 1)


def definition(case: Case, v: Tensor) -> Moments:
    """``sum over p of b_i(p) G(p)``, G the gradient that a unit at place p with one single weight receives."""
    b = seen_by(case.maker, case.x).detach()
    constant = case.maker.bias is not None and not case.site.centred
    if constant:
        b = torch.cat([b, torch.ones_like(b[..., :1])], -1)
    mean = b.flatten(0, -2).mean(0)
    if case.site.centred:
        b = b - mean
    (reader,) = case.site.readers
    cross = torch.zeros(b.shape[-1], case.reader.weight.shape[0], *reader.taps, dtype=b.dtype)
    for i in range(b.shape[-1]):
        unit = b[..., i].unsqueeze(-1 if isinstance(case.maker, nn.Linear) else 1).clone().requires_grad_()
        z = unit
        for step in reader.route:
            z = step(z)
        for o, *tap in product(*map(range, cross.shape[1:])):
            kernel = torch.zeros(cross.shape[1], 1, *cross.shape[2:], dtype=b.dtype)
            kernel[(o, 0, *tap)] = 1
            if isinstance(case.reader, nn.Linear):
                read = F.linear(z, kernel[:, 0])
            else:
                read = case.reader._conv_forward(z, kernel, None)
            (received,) = torch.autograd.grad((read * v).sum(), unit, retain_graph=True)
            cross[(i, o, *tap)] = (unit * received).sum()
    rows = b.flatten(0, -2)
    return Moments(rows.T @ rows / len(rows), (cross.detach(),), mean, constant)


@pytest.mark.parametrize("project", [False, True])
def test_moments_are_what_they_are_defined_as(case: Case, project: bool) -> None:
    v, h = desired(case)
    expected = definition(case, projected(case, v, h) if project else v)
    found = case.moments(project)
    assert found.biased == expected.biased
    assert torch.allclose(found.second, expected.second, rtol=1e-12, atol=1e-14)
    scale = float(definition(case, v).cross[0].abs().max())
    assert (found.cross[0] - expected.cross[0]).abs().max() < 1e-10 * scale
    assert found.cross[0].abs().max() > 1e-3 * scale  # something is left
    if case.site.centred:
        assert torch.allclose(found.mean, expected.mean)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (2, 1), (3, 5)])
@pytest.mark.parametrize(("before", "after"), [((3, 3), (3, 3)), ((1, 3), (3, 3)), ((3, 1), (1, 1))])
def test_sums_over_lags_are_those_over_positions(
    sizes: tuple[int, int], before: tuple[int, int], after: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    w, x = torch.randn(4, 2, *sizes, dtype=torch.float64), torch.randn(4, 3, *sizes, dtype=torch.float64)
    lagged = Lagged(2, before, 3, after, w.device)
    for start in (0, 2):
        lagged.add(w[start : start + 2], x[start : start + 2])
    seen = [
        F.unfold(each, kernel, padding=(kernel[0] // 2, kernel[1] // 2)).unflatten(1, (each.shape[1], *kernel))
        for each, kernel in ((w, before), (x, after))
    ]
    assert torch.allclose(lagged.sums(), torch.einsum("noabp,ncdep->oabcde", *seen), atol=1e-12)


def spread(rows: int, columns: int) -> Tensor:
    """A few directions that stand out of noise."""
    generator = torch.Generator().manual_seed(0)
    noise, left, right = (
        torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((rows, columns), (rows, 4), (4, columns))
    )
    return noise + 2 * left @ right


@pytest.mark.parametrize(("rows", "columns"), [(500, 700), (700, 500), (300, 300)])
def test_leading_directions_of_large_matrices(rows: int, columns: int) -> None:
    matrix, state = spread(rows, columns), torch.get_rng_state()
    exact = torch.linalg.svd(matrix, full_matrices=False)
    u, values, v = leading(matrix, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip((u, values, v), leading(matrix, 4), strict=True))
    assert torch.allclose(values[:4], exact[1][:4], rtol=1e-10)
    best = exact[0][:, :4] * exact[1][:4] @ exact[2][:4]
    assert torch.allclose((u * values)[:, :4] @ v[:4], best, atol=1e-6)
    u, values, v = leading(matrix, 12)
    assert torch.allclose(values[:12], exact[1][:12], rtol=1e-2)
    u, values, v = leading(matrix, None)
    assert torch.allclose(values, exact[1][: len(values)], rtol=1e-8)
    assert (exact[1][len(values) :] < 1e-4 * exact[1][0]).all()
    assert torch.allclose((u * values) @ v, matrix, atol=1e-3)


def test_inverse_roots_of_large_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    size = SMALL + 40
    rows = torch.randn(2 * size, size, dtype=torch.float64, generator=generator)
    rows[:, :20] = 0  # dead inputs
    rows[:, 20:30] = rows[:, 30:40]
    rows[:, 40] += 3 * rows[:, 50]
    second = rows.T @ rows / len(rows)
    root = inverse_root(second)
    assert root.lower is not None
    asked = second @ torch.randn(size, 3, dtype=torch.float64, generator=generator)
    found, exact = root.along(root.across(asked)), torch.linalg.pinv(second, rtol=1e-6, hermitian=True) @ asked
    assert torch.allclose(found, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    assert not found[:20].any()
    white = root.across(root.across(second).T)
    assert torch.linalg.eigvalsh(white).amax() < 1 + 1e-6
    assert (torch.linalg.eigvalsh(white) > 0.99).sum() == size - 30


def test_directions_and_gains_are_those_of_the_singular_value_decomposition(case: Case) -> None:
    v, h = desired(case)
    expected = definition(case, projected(case, v, h))
    values, vectors = torch.linalg.eigh(expected.second)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    u, singular, w = torch.linalg.svd(root @ expected.cross[0].flatten(1), full_matrices=False)
    found = growth(case.site, case.moments(True), whiten=True)
    count = len(found)
    assert count
    assert torch.allclose(found.gain, singular[:count].square(), rtol=1e-8)
    assert (singular[count:] <= 1.1e-3 * singular[0]).all()
    rows = torch.cat([found.fan_in.flatten(1), found.bias[:, None][:, : expected.biased]], 1)
    # The two vectors of each have their signs in common.
    outer = torch.einsum("ki,kj->kij", rows, found.fan_out[0].flatten(1))
    assert torch.allclose(outer, torch.einsum("ki,kj->kij", (root @ u).T, w)[:count], atol=1e-6, rtol=1e-5)
    assert torch.allclose(rows @ expected.second @ rows.T, torch.eye(count, dtype=rows.dtype), atol=1e-6)
    assert found.fan_in.shape[1:] == case.maker.weight.shape[1:]
    if case.site.centred:
        assert torch.allclose(found.mean, rows @ expected.mean)
        assert not found.bias.any()


def test_gradmax_is_the_decomposition_of_the_gradient_itself(case: Case) -> None:
    v, _ = desired(case)
    expected = definition(case, v)
    u, singular, _ = torch.linalg.svd(expected.cross[0].flatten(1), full_matrices=False)
    found = growth(case.site, case.moments(False), whiten=False)
    assert torch.allclose(found.gain, singular[: len(found)].square(), rtol=1e-8)
    rows = torch.cat([found.fan_in.flatten(1), found.bias[:, None][:, : expected.biased]], 1)
    assert torch.allclose(((rows @ expected.second) * rows).sum(1), torch.ones(len(rows), dtype=rows.dtype))
    cosines = (rows[0] / rows[0].norm()) @ u[:, 0]
    assert abs(abs(float(cosines)) - 1) < 1e-10


def test_batches_and_pieces_of_them_add_up(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = case.moments(True)
    monkeypatch.setattr(sys.modules["resgrow.curvature.growth.sums"], "CHUNK", 1)
    batches = list(zip(case.x.split(7), case.y.split(7), strict=True))
    sums = nn.CrossEntropyLoss(reduction="sum")
    for loss, data in ((LOSS, batches), (LOSS, iter(batches)), (sums, batches)):
        (parts,) = moments("test", case.model, loss, data, [case.site], project=True)
        assert torch.allclose(parts.second, whole.second, rtol=1e-10, atol=1e-13)
        assert torch.allclose(parts.cross[0], whole.cross[0], rtol=1e-6, atol=1e-10)


def test_single_precision_is_summed_in_double(case: Case) -> None:
    exact = growth(case.site, case.moments(True), whiten=True)
    case.model.float()
    case.x = case.x.float()
    found = case.moments(True)
    assert found.second.dtype == found.cross[0].dtype == torch.float64
    assert torch.allclose(growth(case.site, found, whiten=True).gain[0], exact.gain[0], rtol=1e-3)


def test_weights_that_are_class_weights_scale_the_mean() -> None:
    torch.manual_seed(0)
    case = CASES["linear"]()
    weights = torch.rand(5, dtype=torch.float64) + 0.5
    loss = nn.CrossEntropyLoss(weight=weights, ignore_index=2)
    data = list(zip(case.x.split(9), case.y.split(9), strict=True))
    (found,) = moments("test", case.model, loss, data, [case.site], project=False)
    out = case.model(case.x)
    (grad,) = torch.autograd.grad(loss(out, case.y), out)
    b = torch.cat([case.x, torch.ones(len(case.x), 1, dtype=case.x.dtype)], 1)
    assert torch.allclose(found.cross[0][..., 0], -b.T @ grad)


def test_several_readers_are_one_fan_out() -> None:
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.one, self.other = nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = self.make(x)
            return self.one(h) + self.other(h).tanh()

    model = Two().double()
    x, y = torch.randn(40, 4, dtype=torch.float64), torch.randint(0, 5, (40,))
    readers = (Reader(model.one, (), 1, True), Reader(model.other, (), 1, True))
    both = Site(model.make, readers, False)
    alone = [Site(model.make, (reader,), False) for reader in readers]
    together, *apart = moments("test", model, LOSS, (x, y), [both, *alone], project=False)
    for mine, its in zip(together.cross, apart, strict=True):
        assert torch.equal(mine, its.cross[0])
    found = growth(both, together, whiten=True)
    assert [tuple(part.shape[1:]) for part in found.fan_out] == [(5, 1), (5, 1)]
    norms = sum(part.flatten(1).square().sum(1) for part in found.fan_out)
    assert torch.allclose(norms, torch.ones(len(found), dtype=torch.float64))
    assert found.gain[0] > max(float(growth(s, m, whiten=True).gain[0]) for s, m in zip(alone, apart, strict=True))


def test_random_units_are_orthogonal_to_those_found() -> None:
    torch.manual_seed(0)
    case = CASES["linear"]()
    found = case.moments()
    best = growth(case.site, found, whiten=True).chosen(torch.arange(2))
    state = torch.get_rng_state()
    more = random_growth(case.site, found, best, 7, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    rows, others = (torch.cat([each.fan_in, each.bias[:, None]], 1) for each in (best, more))
    assert torch.allclose(rows @ others[:3].T, torch.zeros(2, 3, dtype=rows.dtype), atol=1e-12)
    assert (rows @ others[3:].T).abs().amin(1).gt(1e-3).all()  # five weights have room for no more
    assert torch.allclose(((others @ found.second) * others).sum(1), torch.ones(7, dtype=rows.dtype))
    assert not more.gain.any()
    assert not any(part.any() for part in more.fan_out)


def test_without_gradient_there_is_nothing_to_gain() -> None:
    case = CASES["linear"]()
    with torch.no_grad():
        case.y = case.model(case.x)
    (found,) = moments("test", case.model, nn.MSELoss(), (case.x, case.y), [case.site], project=True)
    best = growth(case.site, found, whiten=True)
    assert len(best) == 0
    assert len(Growth.joined([best, best.flipped()])) == 0
    assert len(random_growth(case.site, found, best, 3, None)) == 3


def test_constant_inputs_do_not_blow_up() -> None:
    case = CASES["linear"]()
    case.x[:, 1] = 2.0
    case.x[:, 2] = 0.0
    best = growth(case.site, case.moments(True), whiten=True)
    assert best.gain.isfinite().all()
    assert best.fan_in[:, 2].abs().max() < 1e-12
    assert best.fan_in.abs().max() < 1e3


class Twice(nn.Module):
    def __init__(self, aside: bool = False) -> None:
        super().__init__()
        self.make, self.read, self.aside = nn.Linear(4, 4), nn.Linear(4, 5), aside

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.make(x), self.read.weight) if self.aside else self.read(self.make(self.make(x)))


BAD: dict[str, tuple[Callable[[], nn.Module], object, type[Exception], str]] = {
    "runs twice": (Twice, None, ValueError, r"test: layers must run once in a forward pass \(got Linear.*twice"),
    "not as a module": (lambda: Twice(True), None, ValueError, r"test: layers must run as modules \(got Linear"),
    "no data": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5)), [], ValueError, r"test: data yielded no"),
    "not pairs": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5)), [3], TypeError, r"test: data must yield"),
    "not finite": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5)),
        (torch.full((2, 4), math.nan), torch.zeros(2, dtype=torch.int64)),
        ValueError,
        r"test: the loss must be finite \(got nan\)",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_refusals_leave_no_hooks(kind: str) -> None:
    make, data, error, message = BAD[kind]
    model = make().train()
    maker, reader = (each for each in model.modules() if isinstance(each, nn.Linear))
    site = Site(maker, (Reader(reader, (), 1, True),), False)
    given = (torch.randn(6, 4), torch.randint(0, 5, (6,))) if data is None else data
    with pytest.raises(error, match=message):
        moments("test", model, LOSS, given, [site], project=True)
    assert all(not each._forward_hooks and not each._forward_pre_hooks for each in model.modules())
    assert all(each.training for each in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_other_sizes_than_those_of_the_route_are_refused() -> None:
    case = CASES["flattened"]()
    case.site = Site(case.maker, (Reader(case.reader, (lambda x: x.reshape(len(x), 4),), 4, True),), False)
    with pytest.raises(ValueError, match=r"test: what lies between Conv2d.*give example_inputs of the data's size"):
        case.moments()


def test_shuffled_data_are_the_same_in_both_passes() -> None:
    torch.manual_seed(0)
    case = CASES["linear"]()
    seen: list[Tensor] = []

    class Noisy:
        def __iter__(self):  # type: ignore[no-untyped-def]
            x = case.x + torch.randn_like(case.x)
            seen.append(x)
            yield x, case.y

    state = torch.get_rng_state()
    moments("test", case.model, LOSS, Noisy(), [case.site], project=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(seen) == 2
    assert torch.equal(*seen)
