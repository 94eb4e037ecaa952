"""Gated networks in everything that training is done with: compiled, in mixed precision, copied, saved, distributed."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from resgrow import Gates, swap_activations
from resgrow.nn import TriStateReLU, resnet

GATES = 0.02


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3), TriStateReLU(6), nn.Flatten(), nn.Linear(24, 5), TriStateReLU(5), nn.Linear(5, 3)
        )


def images(count: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 4, 4, generator=generator), torch.arange(count) % 3


def train(model: nn.Module, gates: Gates, x: Tensor, y: Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.Adam(gates.param_groups(lr=0.05), lr=0.01)
    handle = gates.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + gates.penalty(GATES)).backward()
        optimizer.step()
    handle.remove()


def values(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_compiled_whole_with_its_penalty() -> None:
    x, y = images()
    plain, model = network(), network()
    plain_gates, gates = Gates(plain), Gates(model)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y) + gates.penalty(GATES)

    torch.compile(loss, fullgraph=True)(x, y).backward()
    (F.cross_entropy(plain(x), y) + plain_gates.penalty(GATES)).backward()
    for got, want in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)


def test_compiled_training_moves_gates_as_eager_does() -> None:
    x, y = images()
    plain, model = network(), network()
    train(torch.compile(model), Gates(model), x, y)
    train(plain, Gates(plain), x, y)
    torch.testing.assert_close(values(model), values(plain), rtol=1e-4, atol=1e-5)


def test_mixed_precision() -> None:
    x, y = images()
    model, exact = network(), network()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        assert out.dtype == torch.bfloat16
        loss = F.cross_entropy(out.float(), y)
    (loss + Gates(model).penalty(GATES)).backward()
    (F.cross_entropy(exact(x), y) + Gates(exact).penalty(GATES)).backward()
    for got, want in zip(model.parameters(), exact.parameters(), strict=True):
        assert got.grad is not None
        assert want.grad is not None
        assert got.grad.dtype == torch.float32
        torch.testing.assert_close(got.grad, want.grad, rtol=0.1, atol=0.02 * float(want.grad.abs().max()) + 1e-3)


def test_a_copy_has_gates_of_its_own_shared_as_before() -> None:
    gated = swap_activations(resnet(8, 0.5, 1, 3), torch.randn(1, 1, 8, 8))
    copied = copy.deepcopy(gated)
    theirs, ours = Gates(gated), Gates(copied)
    assert len(ours.parameters()) == len(theirs.parameters())
    with torch.no_grad():
        for gate in ours.parameters():
            gate.zero_()
    assert set(ours.widths().values()) == {0}
    assert 0 not in theirs.widths().values()


def test_saved_and_loaded() -> None:
    x, y = images()
    model, other = network(), network()
    train(model, Gates(model), x, y)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    assert Gates(other).widths() == Gates(model).widths()
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Sequential(TriStateReLU(5)).load_state_dict(nn.Sequential(TriStateReLU(6)).state_dict())


def _rank(rank: int, port: int, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    x, y = images()
    model = network()
    # Gates are found in the module itself: its wrapper would put "module." before their names.
    train(DistributedDataParallel(model), Gates(model), x[rank::2], y[rank::2])
    torch.save(values(model), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_learn_what_one_does(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.equal(second)
    x, y = images()
    alone = network()
    train(alone, Gates(alone), x, y)
    torch.testing.assert_close(first, values(alone), rtol=1e-3, atol=1e-4)
