"""More blocks and layers: the same outputs, a way back to the bit, and training that goes on and uses them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from deepen_nets import (
    ANY,
    BLOCKS,
    LAYERS,
    SEQUENCES,
    VECTORS,
    X,
    check_learning,
    check_way_back,
    encoder,
    made,
    one_to_one,
    run,
)
from structure_nets import Net, assert_alike, everything
from torch import Tensor, nn

from resgrow import deepen
from resgrow.nn import Residual, lenet5, resnet


@pytest.mark.parametrize("kind", BLOCKS)
def test_one_more_block(kind: str) -> None:
    make, x, told, path, zeros = BLOCKS[kind]
    model = made(make)
    before, names, held = everything(model), list(model.state_dict()), list(model.parameters())
    expected, training = run(model, x), run(model, x, training=True)
    assert deepen(model, example_inputs=x, **told) == path
    assert torch.equal(run(model, x), expected)
    assert torch.equal(run(model, x, training=True), training)
    assert [name for name in model.state_dict() if not name.startswith(f"{path}.")] == names
    own = {id(parameter) for parameter in model.parameters()}
    assert own.issuperset(map(id, held))
    new = dict(model.get_submodule(path).named_parameters())
    assert {name for name, parameter in new.items() if not parameter.any()} >= zeros
    assert all(parameter.any() for name, parameter in new.items() if name.endswith("weight") and name not in zeros)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    check_way_back(model, path, before)
    if x.dim() == 4:
        assert run(model, torch.cat([x, x])).shape[0] == 2 * len(x)
    check_learning(model, path, x)


@pytest.mark.parametrize("kind", LAYERS)
def test_identity_layers(kind: str) -> None:
    make, x, name = LAYERS[kind]
    model = made(make)
    before, expected = everything(model), run(model, x)
    state = torch.get_rng_state()
    path = deepen(model, name, example_inputs=x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(run(model, x), expected, rtol=1e-12, atol=1e-12)
    new = model.get_submodule(path)
    old = model.get_submodule(name)
    assert type(new[0]) is type(old) or isinstance(old, nn.ConvTranspose2d)
    # A batch norm would take the bias out.
    assert (new[0].bias is None) == (old.bias is None or len(new) == 3)
    assert (new[0].weight.flatten() == 1).sum() == (new[0].weight != 0).sum() == len(new[0].weight)
    check_way_back(model, path, before)
    if "gated" not in kind and "dropout" not in kind:
        check_learning(model, path, x)


@pytest.mark.parametrize("kind", [*LAYERS, *ANY])
def test_residual_branches_behind_any_activation(kind: str) -> None:
    make, x, name = {**LAYERS, **ANY}[kind]
    model = made(make)
    before, expected = everything(model), run(model, x)
    generator = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    path = deepen(model, name, example_inputs=x, init="residual", generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(run(model, x), expected)
    assert isinstance(model.get_submodule(path), Residual)
    check_way_back(model, path, before)
    if "dropout" not in kind:
        torch.manual_seed(0)
        check_learning(model, path, x)


def test_a_batch_norm_takes_its_statistics_from_what_arrives() -> None:
    model = made(LAYERS["norm"][0])
    values = model[:3](X)
    new = model.get_submodule(deepen(model, "0", example_inputs=X))
    norm = new[1]
    torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, values.var((0, 2, 3)))
    # On that very batch, training sees the same numbers but for the correction of the variance.
    torch.testing.assert_close(new.train()(values), values, rtol=1e-2, atol=1e-2)


def test_new_blocks_go_right_behind_the_named_one_and_have_names_of_their_own() -> None:
    model = made(lambda: resnet(14, 0.5))
    paths = [deepen(model, name, example_inputs=X) for name in ("layer2.0", "layer2.0", "layer2.0_1", "layer2")]
    assert paths == ["layer2.0_1", "layer2.0_2", "layer2.0_1_1", "layer2.2"]
    assert list(model.layer2._modules) == ["0", "0_2", "0_1", "0_1_1", "1", "2"]
    model = made(lambda: lenet5(image_size=16))
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    assert [deepen(model, name, example_inputs=x) for name in ("0", "0", "2_1.0")] == ["2_1", "2_2", "2_1.2"]


def test_lists_find_their_modules_by_position() -> None:
    model = made(encoder)
    last = model.layers[1]
    deepen(model, "layers.0", example_inputs=SEQUENCES)
    for layers in (model.layers, copy.deepcopy(model).layers):
        assert [name for name, _ in layers.named_children()] == ["0", "0_1", "1"]
        assert layers[1] is layers.get_submodule("0_1")
        assert layers[-1] is layers[2] is layers.get_submodule("1")
        with pytest.raises(IndexError):
            layers[3]
    assert model.layers[-1] is last


def test_draws_are_those_of_the_generator() -> None:
    first, second = (made(lambda: resnet(14, 0.5)) for _ in range(2))
    for model in (first, second):
        state = torch.get_rng_state()
        deepen(model, "layer1", example_inputs=X, generator=torch.Generator().manual_seed(5))
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
    assert_alike(everything(first), everything(second))
    assert first.layer1[2].conv1.weight.abs().max() <= first.layer1[2].conv1.weight[0].numel() ** -0.5


def test_inputs_of_several_kinds_and_results_in_a_tuple() -> None:
    def forward(m: Any, x: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = m.stage(m.table(ids) + x)
        return y, {"mean": y.mean()}

    class Two(Net):
        def forward(self, x: Tensor, ids: Tensor) -> Any:
            return forward(self, x, ids)

    torch.manual_seed(0)
    model = Two(lambda m, x: x, table=nn.Embedding(9, 5), stage=nn.ModuleList().append(one_to_one()[1])).double()
    model.stage = nn.Sequential(*model.stage)
    inputs = (VECTORS, torch.arange(6))
    assert deepen(model.eval(), "stage", example_inputs=inputs) == "stage.1"


def test_modes_and_layouts_stay() -> None:
    model = made(lambda: resnet(14, 0.5)).to(memory_format=torch.channels_last).train()
    model.layer2[1].bn1.eval()
    deepen(model, "layer2", example_inputs=X)
    new = model.layer2[2]
    assert [new.training, new.bn1.training, new.bn2.training] == [True, False, True]
    assert new.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    plain_model = made(LAYERS["norm"][0]).to(memory_format=torch.channels_last)
    layer = plain_model.get_submodule(deepen(plain_model, "0", example_inputs=X))[0]
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
