from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from resgrow import ops
from resgrow.ops import reference

BACKWARD = torch.ops.resgrow.tristate_relu_backward.default
SHAPES = [
    (1, 1),
    (3, 5),
    (70, 13),  # columns with a last, shorter row
    (5, 1500),  # several blocks of columns
    (40, 1030),
    (2, 3, 9),
    (1, 2, 40001),  # runs cut into several work items
    (40, 70, 7, 7),  # columns of several to a channel, in several blocks
    (40, 20, 65),  # several runs of every channel in a work item
    (33000, 2),
    (4500, 48),  # more than the caches hold: row by row
    (8100, 33),  # rows that end within a vector
    (270, 1030),
    (2, 3, 7, 9),
    (6, 16, 10, 10),
    (3, 4, 2, 3, 5),
    (0, 3, 2),
    (2, 0, 3),
]


def layouts(x: Tensor) -> Iterator[Tensor]:
    """x in the memory orders that models use, in two that they do not, and with gaps."""
    yield x
    if x.dim() == 4:
        yield x.to(memory_format=torch.channels_last)
    if x.dim() == 5:
        yield x.to(memory_format=torch.channels_last_3d)
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield x.transpose(0, -1).contiguous().transpose(0, -1)
    yield torch.stack([x, x], -1)[..., 0]
    yield x[:1].expand(x.shape)


def gates(channels: int, depth: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    w = torch.tensor([0.2, 0.5, 0.9], dtype=dtype).repeat(channels)[:channels]
    return w, torch.tensor(0.7 if depth else 0.3, dtype=dtype)


SAMPLES = [
    (layout, *gates(shape[1], depth=True))
    for shape in [(4, 3), (2, 5, 6), (2, 3, 8, 9)]
    for layout in list(layouts(torch.randn(shape, generator=torch.Generator().manual_seed(0))))[:3]
]


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(isa: str, shape: tuple[int, ...], dtype: torch.dtype, depth: bool) -> None:
    w, d = gates(shape[1], depth)
    grad = torch.randn(shape).to(dtype)
    for x in layouts(torch.randn(shape).to(dtype)):
        y = ops.tristate_relu(x, w, d)
        torch.testing.assert_close(y, reference.tristate_relu(x, w, d), rtol=0, atol=0)
        assert y.stride() == torch.empty_like(x).stride()
        got = BACKWARD(grad, x, w, d, True, True)
        want = reference.tristate_relu_backward(grad.double(), x.double(), w.double(), d.double())
        torch.testing.assert_close(got[0].double(), want[0], rtol=0, atol=0)
        rounding = 1e-12 if dtype == torch.float64 else 1e-5
        for result, exact in zip(got[1:], want[1:], strict=True):
            assert result.dtype == torch.float32
            scale = max(1.0, x.numel() ** 0.5)
            torch.testing.assert_close(result.double(), exact, rtol=1e-6, atol=rounding * scale)


@pytest.mark.parametrize("gate_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gates_are_compared_in_their_own_precision(gate_dtype: torch.dtype) -> None:
    half = torch.tensor(0.5, dtype=gate_dtype)
    w = torch.stack([half, torch.nextafter(half, torch.zeros_like(half))])
    x = torch.ones(2, 2)
    assert ops.tristate_relu(x, w, half).tolist() == [[1, 0], [1, 0]]
    grad_w, grad_d = BACKWARD(x, x, w, half, True, True)[1:]
    assert (grad_w.dtype, grad_d.dtype) == (gate_dtype, gate_dtype)
    assert grad_w.tolist() == [2, 2]


def test_special_values_are_those_of_the_reference(isa: str) -> None:
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-40]).repeat(20)
    x = special.expand(2, 3, 120).contiguous()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for depth in (False, True):
            w, d = gates(3, depth)
            for layout in (x.to(dtype), x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)):
                y, want = ops.tristate_relu(layout, w, d), reference.tristate_relu(layout, w, d)
                torch.testing.assert_close(y, want, rtol=0, atol=0, equal_nan=True)
                assert torch.equal(y.signbit() | y.isnan(), want.signbit() | want.isnan())


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 200_000),
        (500, 3, 70),
        (3000, 70),
        (8, 16, 33, 35),
        (2049, 16),  # two work items, too small for two threads
        (4097, 16),  # two, and a row that is left over
        (1, 3, 11_000),
        (70_000, 1),
        (9000, 33),
        (300, 1030),
    ],
)
def test_same_bits_for_every_number_of_threads(shape: tuple[int, ...], threads: None) -> None:
    x, grad = torch.randn(2, *shape).unbind()
    w, d = gates(shape[1], depth=True)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append([ops.tristate_relu(x, w, d), *BACKWARD(grad, x, w, d, True, True)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("depth", [False, True])
def test_gradcheck_of_x(depth: bool) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    x = (x + 0.1 * x.sign()).requires_grad_()  # away from the kink
    w, d = gates(3, depth, torch.float64)
    assert torch.autograd.gradcheck(lambda x: ops.tristate_relu(x, w, d), x, check_forward_ad=True)


@pytest.mark.parametrize("needed", range(1, 8))
def test_gives_the_gradients_that_are_needed(needed: int) -> None:
    leaves = [torch.randn(4, 3, 5), *gates(3, depth=False)]
    wanted = [bool(needed >> i & 1) for i in range(3)]
    for leaf, want in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(want)
    grad = torch.randn(4, 3, 5)
    ops.tristate_relu(*leaves).backward(grad)
    expected = reference.tristate_relu_backward(grad, *(leaf.detach() for leaf in leaves))
    for leaf, want, exact in zip(leaves, wanted, expected, strict=True):
        assert (leaf.grad is not None) == want
        if want:
            torch.testing.assert_close(leaf.grad, exact)


def test_backward_skips_what_is_not_needed() -> None:
    x, w, d = torch.randn(4, 3), *gates(3, depth=True)
    assert [tuple(t.shape) for t in BACKWARD(x, x, w, d, False, True)] == [(0,), (3,), ()]
    assert [tuple(t.shape) for t in BACKWARD(x, x, w, d, True, False)] == [(4, 3), (0,), (0,)]


def test_differentiates_once_only() -> None:
    x, w, d = torch.randn(4, 3, requires_grad=True), *gates(3, depth=False)
    (grad,) = torch.autograd.grad(ops.tristate_relu(x, w, d).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="tristate_relu: it can be differentiated once only"):
        grad.sum().backward()


def test_function_transforms() -> None:
    x, (w, d) = torch.randn(4, 3, 5), gates(3, depth=False)
    grad = torch.randn(4, 3, 5)
    got = torch.func.grad(lambda *a: (ops.tristate_relu(*a) * grad).sum(), argnums=(0, 1, 2))(x, w, d)
    for result, exact in zip(got, reference.tristate_relu_backward(grad, x, w, d), strict=True):
        torch.testing.assert_close(result, exact)
    tangent = torch.func.jvp(lambda x: ops.tristate_relu(x, w, d), (x,), (grad,))[1]
    torch.testing.assert_close(tangent, reference.tristate_relu_backward(grad, x, w, d)[0])
    with pytest.raises(RuntimeError, match="forward-mode"):
        torch.func.jvp(lambda w: ops.tristate_relu(x, w, d), (w,), (w,))


def test_compiles_without_graph_breaks() -> None:
    def loss(x: Tensor, w: Tensor, d: Tensor) -> Tensor:
        return ops.tristate_relu(x * 2, w, d).square().sum()

    leaves = [t.requires_grad_() for t in (torch.randn(4, 3, 5), *gates(3, depth=True))]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_under_autocast_the_type_of_x_decides() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    weight, (w, d) = torch.randn(3, 4), gates(3, depth=False)
    w.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.tristate_relu(F.linear(x, weight), w, d)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert w.grad is not None
    assert w.grad.dtype == torch.float32


class Heard(TorchFunctionMode):
    """The functions that are called in it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[object] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    """The operators that are dispatched in it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[object] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    """A tensor that stays of its class."""


def test_whoever_listens_for_operators_hears_it() -> None:
    x, (w, d) = torch.randn(4, 3), gates(3, depth=False)
    operator = torch.ops.resgrow.tristate_relu.default
    for mode in (Heard(), Dispatched()):
        with mode:
            y = ops.tristate_relu(x, w, d)
        assert mode.calls == [operator]
        assert torch.equal(y, ops.tristate_relu(x, w, d))
    assert type(ops.tristate_relu(x.as_subclass(Subclass), w, d)) is Subclass
    with torch.device("meta"):
        assert ops.tristate_relu(torch.empty(4, 3), w.to("meta"), d.to("meta")).is_meta
    traced = torch.fx.symbolic_trace(lambda x, w, d: ops.tristate_relu(x, w, d))
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [operator]


def test_is_in_traces() -> None:
    (w, d), other = gates(3, depth=False), torch.randn(5, 3)
    traced = torch.jit.trace(lambda x: ops.tristate_relu(x, w, d), (torch.randn(5, 3),))
    assert torch.equal(traced(other), ops.tristate_relu(other, w, d))


@pytest.mark.parametrize("sample", SAMPLES)
def test_registration(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, d = sample
    leaves = [t.clone().requires_grad_() for t in sample]
    assert set(torch.library.opcheck(torch.ops.resgrow.tristate_relu.default, leaves).values()) == {"SUCCESS"}
    for need in ((True, True), (True, False), (False, True)):
        results = torch.library.opcheck(BACKWARD, (torch.randn_like(x), x, w, d, *need))
        assert set(results.values()) == {"SUCCESS"}


def test_refuses_what_does_not_fit() -> None:
    x, w, d = torch.randn(2, 3, 4), *gates(3, depth=True)
    for args, match in [
        ((x[0, 0], w, d), r"x must be \(N, C, \*\)"),
        ((x, w[:2], d), r"w must be \(C,\)"),
        ((x, w[None], d), r"w must be \(C,\)"),
        ((x, w, d[None]), "d must be 0-dim"),
    ]:
        with pytest.raises(ValueError, match=f"^tristate_relu: {match}"):
            ops.tristate_relu(*args)
    for args in [(x.half(), w, d), (x.int(), w, d), (x, w.int(), d), (x, w, d.half())]:
        with pytest.raises(TypeError, match=r"^tristate_relu: \w must be float32, float64 or bfloat16"):
            ops.tristate_relu(*args)
    with pytest.raises(ValueError, match="must have one shape"):
        BACKWARD(x[:1], x, w, d, True, True)
    with pytest.raises(TypeError, match="must have one dtype"):
        BACKWARD(x.double(), x, w, d, True, True)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 8, 9), (0, 3)])
def test_in_place_gives_the_same_over_any_layout(isa: str, shape: tuple[int, ...]) -> None:
    w, d = gates(shape[1], depth=True)
    for x in list(layouts(torch.randn(shape)))[:-1]:  # the last one overlaps itself
        expected, version = ops.tristate_relu(x, w, d), x._version
        strides = x.stride()
        assert ops.tristate_relu(x, w, d, inplace=True) is x
        assert torch.equal(x, expected)
        assert x.stride() == strides
        assert x._version == version + 1


def test_in_place_refuses_what_it_would_spoil() -> None:
    w, d = gates(3, depth=True)
    with pytest.raises(RuntimeError, match="single memory location"):
        ops.tristate_relu(torch.randn(1, 3).expand(4, 3), w, d, inplace=True)
    with pytest.raises(RuntimeError, match="writes over its input"):
        torch.ops.resgrow.tristate_relu_(torch.randn(4, 3), w.requires_grad_(), d)
    x = torch.randn(4, 3, requires_grad=True)
    y = ops.tristate_relu(x * 1, w, d, inplace=True)
    y.sum().backward()
    assert x.grad is not None


def test_in_place_is_registered_as_it_behaves() -> None:
    w, d = gates(3, depth=True)
    torch.library.opcheck(torch.ops.resgrow.tristate_relu_.default, (torch.randn(2, 3, 5), w, d))
    compiled = torch.compile(lambda x: ops.tristate_relu(x + 1, w, d, inplace=True), fullgraph=True)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(compiled(x), ops.tristate_relu(x + 1, w, d))
