"""Swapped models where models go: other people's networks, torch.compile, autocast, torch.export, ONNX, DDP."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resgrow
from resgrow.nn import BlockSparseConv2d, BlockSparseLinear, resnet
from resgrow.ops import decompositions

FORCED = {"block": (16, 1), "force": True}


def pruned(model: nn.Module, *exclude: str) -> resgrow.Masks:
    scores = {name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    return resgrow.prune(model, scores, sparsity=0.7, block=(16, 1), scope="layer", exclude=exclude)


def small() -> tuple[nn.Module, Tensor]:
    """A swapped ResNet-8 in eval mode, and images for it."""
    torch.manual_seed(0)
    model = resnet(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    assert len(resgrow.swap(model, pruned(model), **FORCED).swapped) == 10
    return model.eval(), torch.randn(2, 3, 12, 12)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("resnet18", 18), ("mobilenet_v3_large", 30), ("mobilenet_v3_small", 30)])
def test_torchvision(name: str, least: int) -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.get_model(name, num_classes=10).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(model)
    x = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    masks = pruned(model)
    twin.load_state_dict(model.state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), 0.01, momentum=0.9) for m in (model, twin)]
    masks.attach(optimizers[0])
    resgrow.Masks(twin, masks).attach(optimizers[1])
    table = resgrow.swap(model, masks, example_inputs=x, **FORCED)
    assert len(table.swapped) >= least
    assert {row.why for row in table.values() if not row.swapped} <= {
        "no absent blocks",
        "no kernel for its groups or these blocks",
    }
    for m in (model, twin):
        m.eval()
    torch.testing.assert_close(model(x), twin(x), rtol=1e-3, atol=1e-4)
    for m, optimizer in zip((model, twin), optimizers, strict=True):
        m.train()
        torch.manual_seed(0)  # dropout
        F.cross_entropy(m(x), torch.arange(4)).backward()
        optimizer.step()
    resgrow.unswap(model, optimizer=optimizers[0])
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert ours.stride() == theirs.stride(), key
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compile(training: bool) -> None:
    model, x = small()
    model.train(training)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), twin(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_swapping_under_a_compiled_model() -> None:
    """It is better to compile afterwards, but the compiled model notices."""
    model = resnet(8).eval()
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(2, 3, 12, 12)
    masks = pruned(model)
    expected = compiled(x)
    resgrow.swap(model, masks, **FORCED)
    torch.testing.assert_close(compiled(x), expected)
    with torch.no_grad():
        model.layer1[0].conv1.values.mul_(2)
    assert torch.equal(compiled(x), model(x))
    resgrow.unswap(model)
    torch.testing.assert_close(compiled(x), model(x))


def test_autocast() -> None:
    model, x = small()
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    y.float().sum().backward()
    assert model.layer1[0].conv1.values.grad.dtype == torch.float32


def namespaces(program: torch.export.ExportedProgram) -> set[str]:
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)}


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    model, x = small()
    expected = model(x)
    program = torch.export.export(model, (x,), strict=strict)
    assert namespaces(program) == {"aten", "resgrow"}
    torch.testing.assert_close(program.module()(x), expected)
    plain = program.run_decompositions(decompositions())
    assert namespaces(plain) == {"aten"}
    torch.testing.assert_close(plain.module()(x), expected)
    resgrow.unswap(model)
    program = torch.export.export(model, (x,), strict=strict)
    assert namespaces(program) == {"aten"}
    torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dense", [True, False], ids=["unswapped", "decomposed"])
def test_onnx(dense: bool) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = small()
    expected = model(x)
    if dense:
        resgrow.unswap(model)
        program = torch.export.export(model, (x,))
    else:
        program = torch.export.export(model, (x,)).run_decompositions(decompositions())
    onnx = torch.onnx.export(program, dynamo=True)
    assert onnx is not None
    session = runtime.InferenceSession(onnx.model_proto.SerializeToString())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), expected, rtol=1e-3, atol=1e-4)


def test_distributed(group: None) -> None:
    model, x = small()
    twin = copy.deepcopy(model)
    wrapped = nn.parallel.DistributedDataParallel(model.train())
    wrapped(x).square().sum().backward()
    twin.train()(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for function in (resgrow.swap, resgrow.unswap):
        with pytest.raises(ValueError, match=r"got DistributedDataParallel.; swap first, then wrap"):
            function(wrapped)


def test_transformers_read_the_weight_of_their_layers() -> None:
    """The fast path of nn.TransformerEncoderLayer takes weights from its layers instead of calling them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)).eval()
    masks = pruned(model)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = model(x)
    table = resgrow.swap(model, masks, **FORCED)
    assert table.swapped == ["0.linear1", "0.linear2"]
    assert table["0.self_attn.out_proj"].why == "a subclass"
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x), expected)


def test_layers_answer_to_the_names_of_dense_ones() -> None:
    conv = BlockSparseConv2d.from_dense(nn.Conv2d(8, 16, (3, 1), groups=2, padding=(1, 0)))
    linear = BlockSparseLinear.from_dense(nn.Linear(8, 16))
    assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (8, 16, (3, 1))
    assert (conv.padding, conv.groups, conv.padding_mode) == ((1, 0), 2, "zeros")
    assert (linear.in_features, linear.out_features) == (8, 16)
    assert torch.equal(linear.weight, linear.dense_weight())
    with pytest.raises(KeyError, match="weight"):
        linear.weight = nn.Parameter(torch.zeros(16, 8))
