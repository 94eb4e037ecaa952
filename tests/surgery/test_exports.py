"""Smaller models leave for elsewhere as any model does: torch.export, its files, and ONNX."""

from __future__ import annotations

import io
from math import prod

import pytest
import torch
from structure_nets import MODELS, X, made, outputs, random_units
from surgery_nets import randomised, saliency_like
from torch import Tensor, nn

from resgrow.nn import resnet
from resgrow.surgery import compact, count_params, prune, widen
from resgrow.surgery.structure import mask, structure


def smaller_resnet() -> tuple[nn.Module, Tensor, Tensor]:
    """The package's, in float32, with the outputs of the masked model."""
    torch.manual_seed(0)
    model, x = randomised(resnet(8, 0.5, 3, 4)).eval(), torch.randn(4, 3, 8, 8)
    prune(model, saliency_like(model), sparsity=0.5, block="channel")
    before, expected = count_params(model), outputs(model, x)
    compact(model, x, inplace=True)
    assert count_params(model) < 0.6 * before
    return model, x, expected


def test_a_program_of_any_batch_size_in_a_file() -> None:
    model, x, expected = smaller_resnet()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded(x[:3]), outputs(model, x[:3]), rtol=1e-4, atol=1e-4)
    stored = sum(tensor.numel() for name, tensor in program.state_dict.items() if "running" not in name)
    assert stored == count_params(model) + sum(name.endswith("num_batches_tracked") for name in program.state_dict)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_float64(name: str) -> None:
    model = made(name)
    groups = structure(model, (X,), "test").groups
    mask(model, groups, random_units(groups, 3, 0.4))
    expected = outputs(model)
    compact(model, X, inplace=True)
    program = torch.export.export(model, (X,))
    torch.testing.assert_close(program.module()(X), expected, rtol=1e-12, atol=1e-12)
    assert {key: tensor.shape for key, tensor in program.state_dict.items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }


def test_a_wider_one() -> None:
    model = made("residual")
    expected = outputs(model)
    widen(model, "inner", 3, example_inputs=X)
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whose", ["the package's", "torchvision's"])
def test_onnx_agrees(whose: str) -> None:
    """What onnxruntime computes of a ResNet that lost half of its channels is what torch computes of the masked one."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    if whose == "torchvision's":
        model = pytest.importorskip("torchvision.models").resnet18(num_classes=10)
    else:
        model = resnet(8, 0.5, 3, 4)
    randomised(model).eval()
    x = torch.randn(2, 3, 32, 32)
    prune(model, saliency_like(model), sparsity=0.5, block="channel", scope="layer", example_inputs=x)
    before, expected = count_params(model), outputs(model, x)
    small = compact(model, x)
    share = 0.3 if whose == "torchvision's" else 0.6  # prune leaves the residual streams of the package's own
    assert count_params(small) < share * before
    program = torch.onnx.export(small, (x,), dynamo=True)
    assert program is not None
    stored = sum(prod(tensor.dims) for tensor in program.model_proto.graph.initializer)
    assert stored < share * before
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (torch.from_numpy(y) - expected).abs().max() <= 1e-4 * expected.abs().max()
