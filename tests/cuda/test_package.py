"""What the package does with models, on CUDA: the same as on the CPU, to rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resgrow
from resgrow.nn import BlockSparseConv2d, TriStateReLU

LOSS = nn.CrossEntropyLoss()


def network() -> nn.Sequential:
    """Small, with a convolution and a linear layer that blocks of 16 divide."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    ).eval()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 1])


def there(machine, model: nn.Module) -> nn.Module:
    """A copy of the model on the machine, in memory that the interpreter watches."""
    moved = copy.deepcopy(model)
    for module in moved.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(machine.put(parameter.detach()), parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, machine.put(buffer))
    return moved


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual.cpu(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("method", ["ggn", "fisher", "lecun"])
def test_curvature(machine, method: str) -> None:
    model, (x, y) = network(), batch()
    with machine.on_host():
        expected = resgrow.curvature(model, LOSS, (x, y), method=method)
    found = resgrow.curvature(there(machine, model), LOSS, (machine.put(x), machine.put(y)), method=method)
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].device.type == machine.device.type
        close(found[name], expected[name])


def test_sampled_curvature_is_that_of_its_signs_and_unbiased_in_kind(machine) -> None:
    model, (x, y) = network(), batch()
    moved, data = there(machine, model), (machine.put(x), machine.put(y))
    found = [
        resgrow.curvature(
            moved, LOSS, data, method="ggn-mc", generator=torch.Generator(machine.device).manual_seed(seed)
        )
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])
    assert all(bool((h >= 0).all()) for h in found[0].values())


def test_saliency_prune_and_masks_under_an_optimizer(machine) -> None:
    model, (x, y) = network(), batch()
    with machine.on_host():
        expected = resgrow.prune(
            copy.deepcopy(model), resgrow.saliency(model, LOSS, (x, y), curvature="ggn", damping=0.1), sparsity=0.6
        )
    moved, data = there(machine, model), (machine.put(x), machine.put(y))
    scores = resgrow.saliency(moved, LOSS, data, curvature="ggn", damping=0.1)
    masks = resgrow.prune(moved, scores, sparsity=0.6)
    differing = sum(int((masks[name].cpu() != expected[name]).sum()) for name in expected)
    assert differing <= 4  # scores that lie within rounding of the threshold
    optimizer = torch.optim.Adam(moved.parameters(), 1e-2)
    masks.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        LOSS(moved(data[0]), data[1]).backward()
        optimizer.step()
    for name, mask in masks.items():
        assert not moved.get_parameter(name)[~mask].any()


@pytest.mark.parametrize("block", [(16, 16), (16, 1)], ids=str)
def test_swapped_layers_learn_as_masked_ones(machine, block: tuple[int, int]) -> None:
    model, (x, y) = network(), batch()
    moved, data = there(machine, model), (machine.put(x), machine.put(y))
    scores = {name: p.detach().abs() for name, p in moved.named_parameters()}
    masks = resgrow.prune(moved, scores, sparsity=0.4, block=block, exclude=("0.weight", "8.weight"))
    masked, optimizers = copy.deepcopy(moved), []
    twin_masks = {name: mask.clone() for name, mask in masks.items()}
    resgrow.swap(moved, masks, block=block, force=True)
    assert any(isinstance(m, BlockSparseConv2d) for m in moved.modules())
    for net in (moved, masked):
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        optimizers.append(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            LOSS(net(data[0]), data[1]).backward()
            if net is masked:
                for name, mask in twin_masks.items():
                    net.get_parameter(name).grad.mul_(mask)
            optimizer.step()
    close(moved(data[0]).detach(), masked(data[0]).detach().cpu())
    resgrow.unswap(moved, optimizer=optimizers[0])
    for name, parameter in masked.named_parameters():
        close(moved.get_parameter(name).detach(), parameter.detach().cpu())


def test_fused_for_inference(machine) -> None:
    model, (x, _) = network(), batch()
    moved, data = there(machine, model), machine.put(x)
    masks = resgrow.prune(
        moved, {name: p.detach().abs() for name, p in moved.named_parameters()}, sparsity=0.4, block=(16, 1)
    )
    resgrow.swap(moved, masks, block=(16, 1), force=True)
    with torch.no_grad():
        close(resgrow.fuse(moved)(data), moved(data).cpu())


def test_controller_takes_a_step(machine) -> None:
    model, (x, y) = network().train(), batch()
    moved, data = there(machine, model), (machine.put(x), machine.put(y))
    optimizer = torch.optim.Adam(moved.parameters(), 1e-3)
    ctl = resgrow.Controller(
        moved, optimizer, LOSS, budget=resgrow.Budget(params=0.8), unit="weight", deadline=2, every=1
    )
    for _ in range(2):
        optimizer.zero_grad()
        LOSS(moved(data[0]), data[1]).backward()
        optimizer.step()
        ctl.step(data)
    assert ctl.history
    live = sum(int(p.count_nonzero()) for p in moved.parameters())
    assert live <= sum(p.numel() for p in moved.parameters())
    for name, mask in ctl.masks.items():
        assert not moved.get_parameter(name)[~mask].any()


def test_gates_learn(machine) -> None:
    model, (x, y) = network(), batch()
    nets = [there(machine, model), model]
    results = []
    for net, data, where in zip(nets, [(machine.put(x), machine.put(y)), (x, y)], ["machine", "host"], strict=True):
        with machine.on_host() if where == "host" else torch.enable_grad():
            gated = resgrow.swap_activations(net, data[0])
            gates = resgrow.Gates(gated)
            optimizer = torch.optim.SGD(gates.param_groups(lr=0.5), 0.05)
            gates.attach(optimizer)
            for _ in range(2):
                optimizer.zero_grad()
                (F.cross_entropy(gated(data[0]), data[1]) + gates.penalty(1e-2)).backward()
                optimizer.step()
            results.append([p.detach().cpu() for p in gated.parameters()])
            assert any(isinstance(m, TriStateReLU) for m in gated.modules())
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("machine", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
def test_curvature_under_autocast(machine, dtype: torch.dtype) -> None:
    model, (x, y) = network(), batch()
    with machine.on_host():
        expected = resgrow.curvature(model, LOSS, (x, y), method="ggn")
    with torch.autocast("cuda", dtype):
        found = resgrow.curvature(there(machine, model), LOSS, (machine.put(x), machine.put(y)), method="ggn")
    for name in expected:
        close(found[name].float(), expected[name], 0.1)


@pytest.mark.cuda
@pytest.mark.parametrize("machine", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
def test_swap_measures_on_the_device(machine, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RESGROW_CACHE_DIR", str(tmp_path))
    moved = there(machine, network())
    masks = resgrow.prune(
        moved, {name: p.detach().abs() for name, p in moved.named_parameters()}, sparsity=0.5, block=(16, 16)
    )
    table = resgrow.swap(moved, masks, example_inputs=machine.put(batch()[0]))
    measured = [row.speed for row in table.values() if row.speed is not None]
    assert measured
    assert all(speed.dense > 0 and speed.sparse > 0 for speed in measured)
    (kept,) = tmp_path.glob("*.json")
    assert torch.cuda.get_device_name() in kept.read_text()
