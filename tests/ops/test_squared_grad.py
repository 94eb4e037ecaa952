"""squared_grad: every operator against its plain-torch meaning in float64, on every usable instruction set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from resgrow.ops import reference, squared_grad

CHANNELS_LAST = torch.channels_last


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


CONV2D = ("squared_grad_conv2d", "squared_input_grad_conv2d")
LINEAR = ("squared_grad_linear", "squared_input_grad_linear")
NORM = ("squared_grad_norm", "squared_input_grad_norm")


def check(op: str, *args: object, **options: object) -> None:
    """The operator agrees with its reference evaluated in float64 on the very same numbers."""
    actual = getattr(squared_grad, op)(*args, **options)
    meaning = getattr(reference, op)
    expected = meaning(*(a.double() if isinstance(a, Tensor) else a for a in args), **options)
    double = next(a for a in args if isinstance(a, Tensor)).dtype == torch.float64
    actual, expected = (r if isinstance(r, tuple) else (r,) for r in (actual, expected))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == (torch.float64 if double else torch.float32)
        assert a.is_contiguous()
        assert not a.requires_grad
        # What is not squared may cancel: errors are measured against the largest entry.
        scale = e.abs().max().item() if e.numel() else 1.0
        tolerance = 1e-12 if double else 2e-5
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance * scale + 1e-300)


def conv_case(
    n: int,
    c: int,
    size: tuple[int, int],
    o: int,
    k: int | tuple[int, int],
    *,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
) -> tuple[Tensor, Tensor, tuple]:
    """(x, grad, settings) of one convolution, contiguous."""
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (k, stride, padding, dilation)]
    out = [(size[i] + 2 * pairs[2][i] - pairs[3][i] * (pairs[0][i] - 1) - 1) // pairs[1][i] + 1 for i in range(2)]
    return draw(n, c, *size), draw(n, o, *out, seed=1), (*pairs, groups)


CONVS = {
    "3x3": conv_case(3, 16, (8, 8), 16, 3, padding=1),
    "3x3 wide": conv_case(2, 24, (9, 7), 64, 3, padding=1),
    "3x3 ragged": conv_case(2, 13, (7, 6), 37, 3, padding=1),
    "3x3 few outputs": conv_case(2, 32, (6, 6), 5, 3, padding=1),
    "3x3 stride 2": conv_case(3, 16, (9, 9), 32, 3, stride=2, padding=1),
    "3x3 dilated": conv_case(2, 16, (11, 12), 17, 3, padding=2, dilation=2),
    "1x1": conv_case(3, 20, (5, 7), 33, 1),
    "1x1 stride 2": conv_case(3, 16, (8, 7), 32, 1, stride=2),
    "1x1 padded": conv_case(2, 16, (4, 4), 12, 1, padding=1),
    "1 channel 5x5": conv_case(5, 1, (12, 12), 20, 5),
    "3 channels 3x3": conv_case(4, 3, (10, 9), 16, 3, padding=1),
    "3 channels 7x7 stride 2": conv_case(2, 3, (15, 15), 40, 7, stride=2, padding=3),
    "3 channels dilated": conv_case(2, 3, (13, 11), 18, 3, stride=2, padding=2, dilation=3),
    "5x5 lenet": conv_case(2, 20, (12, 12), 50, 5),
    "even kernel": conv_case(2, 9, (6, 9), 10, (2, 4), stride=(2, 1), padding=(0, 3), dilation=(3, 1)),
    "kernel is image": conv_case(4, 16, (4, 4), 16, 4),
    "padding beyond kernel": conv_case(2, 16, (3, 3), 16, 2, padding=3),
    "small padding beyond kernel": conv_case(2, 2, (3, 3), 16, 2, padding=3, stride=2),
    "one pixel": conv_case(4, 16, (1, 1), 16, 3, padding=1),
    "groups": conv_case(2, 32, (6, 5), 48, 3, padding=1, groups=2),
    "ragged groups": conv_case(2, 27, (6, 5), 15, 3, padding=1, groups=3),
    "small groups": conv_case(2, 8, (6, 5), 12, 3, padding=1, groups=4),
    "grouped 1x1": conv_case(2, 24, (5, 5), 36, 1, groups=3),
    "depthwise": conv_case(3, 32, (9, 10), 32, 3, padding=1, groups=32),
    "depthwise ragged": conv_case(2, 21, (7, 7), 21, 5, padding=2, stride=2, groups=21),
    "depthwise multiplier": conv_case(2, 6, (7, 8), 18, 3, padding=1, groups=6),
    "depthwise wide kernel": conv_case(2, 8, (14, 17), 8, (3, 13), padding=(1, 6), groups=8),
    "depthwise dilated": conv_case(2, 40, (9, 9), 40, 3, padding=2, dilation=2, groups=40),
    "depthwise one pixel": conv_case(2, 40, (1, 2), 40, 3, padding=1, groups=40),
    "depthwise 1x1": conv_case(2, 17, (3, 5), 17, 1, groups=17),
    "many samples": conv_case(200, 16, (8, 8), 16, 3, padding=1),
    "many samples, few tiles": conv_case(67, 3, (14, 15), 18, 3, padding=1),
    "many samples, one tile": conv_case(61, 12, (19, 17), 16, 1),
    "many ragged samples": conv_case(60, 20, (12, 12), 50, 5),
    "many ragged depthwise samples": conv_case(90, 37, (12, 12), 37, 3, padding=1, groups=37),
}

# Ways in which the same numbers may lie in memory.
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=CHANNELS_LAST),
    "sliced": lambda t: torch.cat([t, t], 1).contiguous(memory_format=CHANNELS_LAST)[:, : t.shape[1]],
    "transposed": lambda t: t.mT.contiguous().mT,
    "expanded": lambda t: t[:, :, :1, :1].expand_as(t),
    "bfloat16": lambda t: t.bfloat16(),
    "bfloat16 channels_last": lambda t: t.bfloat16().contiguous(memory_format=CHANNELS_LAST),
    "float64": lambda t: t.double(),
    "float64 channels_last": lambda t: t.double().contiguous(memory_format=CHANNELS_LAST),
}


@pytest.mark.parametrize("op", CONV2D)
@pytest.mark.parametrize("name", CONVS)
def test_conv2d(name: str, op: str, isa: str) -> None:
    x, grad, settings = CONVS[name]
    for form in FORMS.values():
        check(op, form(x), form(grad), *settings)
    mixed = (x, FORMS["channels_last"](grad))
    check(op, *mixed, *settings)
    check(op, FORMS["sliced"](x), grad, *settings)


@pytest.mark.parametrize("op", CONV2D)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7, 11, 12, 14, 25, 29])
def test_conv2d_every_tile_width(channels: int, op: str, isa: str) -> None:
    """Runs of every length, one and two vectors of output channels, even and odd numbers of vectors."""
    for outputs in (1, 4, 8, 17, 33, 40):
        x, grad, settings = conv_case(2, channels, (4, 5), outputs, 2, padding=1)
        for dtype in (torch.float32, torch.float64):
            args = (FORMS["channels_last"](x).to(dtype), FORMS["channels_last"](grad).to(dtype))
            check(op, *args, *settings)


def linear_case(*middle: int, n: int = 3, i: int = 19, o: int = 35) -> tuple[Tensor, Tensor]:
    return draw(n, *middle, i), draw(n, *middle, o, seed=1)


LINEARS = {
    "samples": linear_case(n=7),
    "many samples": linear_case(n=600),
    "one sample": linear_case(n=1),
    "classifier": linear_case(n=70, i=64, o=10),
    "wide": linear_case(n=33, i=130, o=100),
    "single": linear_case(n=5, i=1, o=1),
    "sequence": linear_case(11),
    "sequence of one": linear_case(1),
    "grid": linear_case(3, 4, i=32, o=32),
    "long sequence": linear_case(700, n=2, i=64, o=48),
    "many sequences": linear_case(70, n=37, i=40, o=19),
}


@pytest.mark.parametrize("op", LINEAR)
@pytest.mark.parametrize("name", LINEARS)
def test_linear(name: str, op: str, isa: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, grad = (t.to(dtype) for t in LINEARS[name])
        check(op, x, grad)
        strided = torch.stack([grad, grad], -1)[..., 0]
        check(op, x.mT.contiguous().mT, strided)
        constant = grad[:1].expand_as(grad)
        check(op, x, constant)


ELEMENTWISE = [
    (5, 16, 8, 8),
    (3, 21, 7, 5),
    (64, 10),
    (1, 1, 1),
    (4, 100, 9),
    (40, 37),
    (2, 3, 4, 5, 6),
    (70, 64, 2, 2),
]


@pytest.mark.parametrize("shape", ELEMENTWISE, ids=str)
def test_bias(shape: tuple[int, ...], isa: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        grad = draw(*shape, dtype=dtype)
        for dim in range(1, len(shape)):
            check("squared_grad_bias", grad, dim)
            check("squared_grad_bias", grad, dim - len(shape))
        check("squared_grad_bias", grad.mT.contiguous().mT)
        check("squared_grad_bias", grad[..., :1].expand_as(grad))


@pytest.mark.parametrize("op", NORM)
@pytest.mark.parametrize("shape", ELEMENTWISE, ids=str)
def test_norm(shape: tuple[int, ...], op: str, isa: str) -> None:
    mean, rstd = draw(shape[1]), draw(shape[1], seed=3).abs() + 0.1
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, grad = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
        last = x.movedim(1, -1).contiguous().movedim(-1, 1)
        grad_last = grad.movedim(1, -1).contiguous().movedim(-1, 1)
        for pair in ((x, grad), (last, grad_last), (last, grad), (x, grad_last), (x.mT.contiguous().mT, grad)):
            check(op, *pair, mean, rstd)
        check(op, x, grad, mean.bfloat16(), rstd.double())


@pytest.mark.parametrize("op", NORM)
def test_norm_keeps_precision_where_the_mean_is_large(op: str, isa: str) -> None:
    """(x - mean) is formed before anything is summed: no difference of large sums."""
    x, grad = draw(4, 24, 16, 16) + 1000.0, draw(4, 24, 16, 16, seed=1)
    check(op, x, grad, x.mean((0, 2, 3)), torch.ones(24))


@pytest.mark.usefixtures("threads")
def test_results_do_not_depend_on_the_number_of_threads(isa: str) -> None:
    x, grad, settings = conv_case(70, 32, (16, 16), 48, 3, padding=1)
    first, first_grad, first_settings = conv_case(70, 3, (16, 16), 24, 3, padding=1)
    depthwise, depthwise_grad, depthwise_settings = conv_case(70, 48, (16, 16), 48, 3, padding=1, groups=48)
    few, few_grad, few_settings = conv_case(70, 16, (16, 16), 16, 3, padding=1)
    one, one_grad, one_settings = conv_case(50, 1, (24, 24), 20, 5)
    rows, rows_grad = draw(700, 130), draw(700, 90, seed=1)
    words, words_grad = draw(20, 300, 32), draw(20, 300, 24, seed=1)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(
            [
                squared_grad.squared_grad_conv2d(x, grad, *settings),
                squared_grad.squared_grad_conv2d(FORMS["channels_last"](x), grad, *settings),
                squared_grad.squared_grad_conv2d(first, first_grad, *first_settings),
                squared_grad.squared_grad_conv2d(depthwise, depthwise_grad, *depthwise_settings),
                squared_grad.squared_grad_conv2d(few, few_grad, *few_settings),
                squared_grad.squared_grad_conv2d(FORMS["channels_last"](few), few_grad, *few_settings),
                squared_grad.squared_grad_conv2d(one, FORMS["channels_last"](one_grad), *one_settings),
                squared_grad.squared_grad_linear(rows, rows_grad),
                squared_grad.squared_grad_linear(words, words_grad),
                squared_grad.squared_grad_bias(grad),
                *squared_grad.squared_grad_norm(grad, grad, torch.zeros(48), torch.ones(48)),
                squared_grad.squared_input_grad_conv2d(x, grad, *settings),
                squared_grad.squared_input_grad_conv2d(FORMS["channels_last"](few), few_grad, *few_settings),
                squared_grad.squared_input_grad_conv2d(depthwise, depthwise_grad, *depthwise_settings),
                squared_grad.squared_input_grad_linear(words, words_grad),
                *squared_grad.squared_input_grad_norm(grad, grad, torch.zeros(48), torch.ones(48)),
            ]
        )
    for single, *others in zip(*results, strict=True):
        assert all(torch.equal(single, other) for other in others)


@pytest.mark.parametrize(("conv2d", "linear", "norm"), [*zip(CONV2D, LINEAR, NORM, strict=True)], ids=CONV2D)
def test_empty_inputs_give_zeros(conv2d: str, linear: str, norm: str) -> None:
    conv, linear, norm = (getattr(squared_grad, op) for op in (conv2d, linear, norm))
    assert torch.equal(conv(draw(0, 3, 8, 8), draw(0, 5, 6, 6), 3), torch.zeros(5, 3, 3, 3))
    assert torch.equal(conv(draw(2, 3, 2, 8), draw(2, 5, 0, 6), 3), torch.zeros(5, 3, 3, 3))
    assert conv(draw(2, 0, 8, 8), draw(2, 5, 6, 6), 3).shape == (5, 0, 3, 3)
    assert conv(draw(2, 3, 8, 8), draw(2, 0, 6, 6), 3).shape == (0, 3, 3, 3)
    assert torch.equal(linear(draw(0, 3), draw(0, 5)), torch.zeros(5, 3))
    assert torch.equal(linear(draw(2, 0, 3), draw(2, 0, 5)), torch.zeros(5, 3))
    assert linear(draw(2, 0), draw(2, 5)).shape == (5, 0)
    assert torch.equal(squared_grad.squared_grad_bias(draw(0, 3, 4)), torch.zeros(3))
    assert torch.equal(squared_grad.squared_grad_bias(draw(2, 3, 0)), torch.zeros(3))
    empty = draw(0, 3, 4)
    for part in norm(empty, empty, torch.zeros(3), torch.ones(3)):
        assert torch.equal(part, torch.zeros(3))


def test_equals_squares_of_autograds_per_sample_gradients() -> None:
    """Not only the reference: what a layer's own backward gives, one sample at a time."""
    layer = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, dtype=torch.float64)
    x = draw(5, 4, 9, 9, dtype=torch.float64)
    expected_weight, expected_bias, grads = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias), []
    for sample in x:
        output = layer(sample[None])
        loss = output.square().sum()
        grad_output, grad_weight, grad_bias = torch.autograd.grad(loss, (output, layer.weight, layer.bias))
        grads.append(grad_output)
        expected_weight += grad_weight.square()
        expected_bias += grad_bias.square()
    grad = torch.cat(grads)
    torch.testing.assert_close(squared_grad.squared_grad_conv2d(x, grad, 3, 2, 1), expected_weight)
    torch.testing.assert_close(squared_grad.squared_grad_bias(grad), expected_bias)


def test_squared_input_equals_autograds_weight_gradient_on_the_square() -> None:
    """Not only the reference: what a layer's own backward gives when its input is squared."""
    layer = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64)
    x = draw(5, 4, 9, 9, dtype=torch.float64)
    output = layer(x.square())
    grad = draw(*output.shape, dtype=torch.float64, seed=1)
    expected = torch.autograd.grad(output, (layer.weight, layer.bias), grad)
    torch.testing.assert_close(squared_grad.squared_input_grad_conv2d(x, grad, 3, 2, 1, groups=2), expected[0])
    zeros, ones = torch.zeros(6), torch.ones(6)
    torch.testing.assert_close(squared_grad.squared_input_grad_norm(grad, grad, zeros, ones)[1], expected[1])


def test_no_gradient_flows() -> None:
    x, grad = draw(4, 3).requires_grad_(), draw(4, 5).requires_grad_()
    assert not squared_grad.squared_grad_linear(x, grad).requires_grad
    images, maps = draw(2, 3, 5, 5).requires_grad_(), draw(2, 4, 3, 3).requires_grad_()
    assert not squared_grad.squared_grad_conv2d(images, maps, 3).requires_grad
    assert not squared_grad.squared_grad_bias(maps).requires_grad
    assert not squared_grad.squared_input_grad_linear(x, grad).requires_grad
    assert not squared_grad.squared_input_grad_conv2d(images, maps, 3).requires_grad
    for part in squared_grad.squared_input_grad_norm(images, images, torch.zeros(3), torch.ones(3)):
        assert not part.requires_grad
    for part in squared_grad.squared_grad_norm(images, images, torch.zeros(3), torch.ones(3)):
        assert not part.requires_grad


def registered_calls() -> list[tuple[Callable, tuple]]:
    ops = torch.ops.resgrow
    calls: list[tuple[Callable, tuple]] = []
    for name in ("3x3", "1 channel 5x5", "depthwise", "grouped 1x1"):
        x, grad, settings = CONVS[name]
        calls.append((ops.squared_grad_conv2d.default, (x, grad, *settings)))
        calls.append((ops.squared_input_grad_conv2d.default, (x, grad, *settings)))
    x, grad, settings = CONVS["3x3 stride 2"]
    last = x.bfloat16().contiguous(memory_format=CHANNELS_LAST)
    calls.append((ops.squared_grad_conv2d.default, (last.requires_grad_(), grad.bfloat16(), *settings)))
    for name in ("samples", "sequence"):
        calls.append((ops.squared_grad_linear.default, LINEARS[name]))
        calls.append((ops.squared_input_grad_linear.default, LINEARS[name]))
    x = draw(3, 5, 4, 4)
    calls.append((ops.squared_grad_bias.default, (x, -1)))
    calls.append((ops.squared_grad_norm.default, (x.double(), x.double(), draw(5), draw(5))))
    calls.append((ops.squared_input_grad_norm.default, (x, x.requires_grad_(), draw(5), draw(5))))
    return calls


@pytest.mark.parametrize("call", registered_calls(), ids=lambda call: call[0].name())
def test_registration(call: tuple[Callable, tuple]) -> None:
    torch.library.opcheck(*call)


def test_compiles_without_graph_breaks() -> None:
    x, grad, _ = CONVS["3x3"]

    def step(x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        mean, rstd = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        return (
            squared_grad.squared_grad_conv2d(x * 2, grad, 3, padding=1),
            squared_grad.squared_grad_linear(x.flatten(1), grad.flatten(1)),
            squared_grad.squared_grad_bias(grad),
            *squared_grad.squared_grad_norm(x, grad, mean, rstd),
            squared_grad.squared_input_grad_conv2d(x * 2, grad, 3, padding=1),
            squared_grad.squared_input_grad_linear(x.flatten(1), grad.flatten(1)),
            *squared_grad.squared_input_grad_norm(x, grad, mean, rstd),
        )

    for compiled, plain in zip(
        torch.compile(step, fullgraph=True, backend="aot_eager")(x, grad), step(x, grad), strict=True
    ):
        torch.testing.assert_close(compiled, plain)


X, G = draw(2, 4, 6, 6), draw(2, 6, 4, 4)
WRONG: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (ValueError, "one batch size", lambda: squared_grad.squared_grad_conv2d(X, G[:1], 3)),
    (ValueError, "width of grad must be 4", lambda: squared_grad.squared_grad_conv2d(X, G[..., :3], 3)),
    (ValueError, "height of grad must be 5", lambda: squared_grad.squared_grad_conv2d(X, G, (2, 3))),
    (ValueError, "must be positive", lambda: squared_grad.squared_grad_conv2d(X, G, 0)),
    (ValueError, "must be positive", lambda: squared_grad.squared_grad_conv2d(X, G, 3, stride=0)),
    (ValueError, "must be positive", lambda: squared_grad.squared_grad_conv2d(X, G, 3, dilation=-1)),
    (ValueError, "not be negative", lambda: squared_grad.squared_grad_conv2d(X, G, 3, padding=-1)),
    (ValueError, "divide the channels", lambda: squared_grad.squared_grad_conv2d(X, G, 3, groups=4)),
    (ValueError, "divide the channels", lambda: squared_grad.squared_grad_conv2d(X, G, 3, groups=0)),
    (ValueError, "unsqueeze", lambda: squared_grad.squared_grad_conv2d(X[0], G[0], 3)),
    (ValueError, "int or a pair", lambda: squared_grad.squared_grad_conv2d(X, G, (3, 3, 3))),
    (TypeError, "one dtype", lambda: squared_grad.squared_grad_conv2d(X, G.double(), 3)),
    (TypeError, "float32, float64 or bfloat16", lambda: squared_grad.squared_grad_conv2d(X.half(), G.half(), 3)),
    (TypeError, "float32, float64 or bfloat16", lambda: squared_grad.squared_grad_linear(X.int(), X.int())),
    (ValueError, "agree in every dimension", lambda: squared_grad.squared_grad_linear(draw(2, 3), draw(3, 3))),
    (ValueError, "at least 2", lambda: squared_grad.squared_grad_linear(draw(3), draw(3))),
    (ValueError, "at least 2", lambda: squared_grad.squared_grad_linear(draw(3, 2), draw(3, 1, 2))),
    (ValueError, "other than the first", lambda: squared_grad.squared_grad_bias(G, 0)),
    (ValueError, "other than the first", lambda: squared_grad.squared_grad_bias(G, 4)),
    (ValueError, "at least 2", lambda: squared_grad.squared_grad_bias(draw(3))),
    (ValueError, "one shape", lambda: squared_grad.squared_grad_norm(X, G, torch.zeros(4), torch.ones(4))),
    (ValueError, "with C = 4", lambda: squared_grad.squared_grad_norm(X, X, torch.zeros(3), torch.ones(4))),
    (ValueError, "one batch size", lambda: squared_grad.squared_input_grad_conv2d(X, G[:1], 3)),
    (ValueError, "int or a pair", lambda: squared_grad.squared_input_grad_conv2d(X, G, (3, 3, 3))),
    (TypeError, "one dtype", lambda: squared_grad.squared_input_grad_conv2d(X, G.double(), 3)),
    (ValueError, "agree in every dimension", lambda: squared_grad.squared_input_grad_linear(draw(2, 3), draw(3, 3))),
    (ValueError, "with C = 4", lambda: squared_grad.squared_input_grad_norm(X, X, torch.zeros(3), torch.ones(4))),
    (TypeError, "floating point", lambda: squared_grad.squared_grad_norm(X, X, torch.arange(4), torch.ones(4))),
]


@pytest.mark.parametrize(("error", "message", "call"), WRONG, ids=[f"{m}-{i}" for i, (_, m, _) in enumerate(WRONG)])
def test_errors_say_what_is_wrong(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=rf"squared_\w+: .*{message}"):
        call()
