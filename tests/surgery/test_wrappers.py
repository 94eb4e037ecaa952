"""Surgery on models that are compiled or wrapped for several devices or processes, before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from structure_nets import X, assert_alike, everything, made, outputs, random_units
from torch import Tensor, nn

from resgrow.surgery import compact, count_params, widen
from resgrow.surgery.structure import mask, structure
from resgrow.surgery.wrappers import unwrapped


def emptied() -> nn.Module:
    model = made("residual")
    groups = structure(model, (X,), "test").groups
    mask(model, groups, random_units(groups, 3, 0.4))
    return model


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def trained(call: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = call(X).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """The limit of compilations is counted per code of a forward, which tests share."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("given", ["inner", "wrapper"])
def test_a_compiled_wrapper_sees_what_has_changed(backend: str, given: str) -> None:
    model = emptied()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trained(compiled, optimizer)
    groups = structure(model, (X,), "test").groups
    mask(model, groups, random_units(groups, 3, 0.4))
    model.eval()
    expected, before = outputs(compiled), count_params(model)
    target = model if given == "inner" else compiled
    assert compact(target, X, inplace=True, optimizer=optimizer) is target
    assert count_params(model) < 0.7 * before
    close(outputs(compiled), expected)
    assert_trains_as_uncompiled(model, compiled, optimizer)
    expected, before = outputs(model), count_params(model)
    widen(target, "inner", 3, example_inputs=X, optimizer=optimizer)
    assert count_params(model) > before
    close(outputs(compiled), expected)
    assert_trains_as_uncompiled(model, compiled, optimizer)


@pytest.mark.slow
def test_inductor_sees_what_has_changed() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 4)
    compiled = torch.compile(model)
    with torch.no_grad():
        compiled(x)
        model[2].weight[:, ::2] = 0
        expected = model(x)
        compact(compiled, x, inplace=True)
        assert model[0].out_features == 4
        torch.testing.assert_close(compiled(x), expected)
        widen(compiled, "0", 3, example_inputs=x)
        torch.testing.assert_close(compiled(x), expected)


def assert_trains_as_uncompiled(
    model: nn.Module, compiled: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer
) -> None:
    twin, others = copy.deepcopy((model, optimizer))
    assert trained(compiled, optimizer) == pytest.approx(trained(twin, others), rel=1e-9)


def test_a_copy_of_a_compiled_model_is_uncompiled() -> None:
    model = emptied()
    compiled = torch.compile(model, backend="eager")
    small = compact(compiled, X)
    assert type(small) is type(model)
    assert count_params(small) < count_params(model)
    close(outputs(small), outputs(compiled))


def test_compiled_in_place_or_in_part() -> None:
    model = emptied()
    model.compile(backend="eager")
    expected = outputs(model)
    compact(model, X, inplace=True)
    close(outputs(model), expected)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.compile(nn.Linear(4, 6), backend="eager")
            self.second = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    outer, x = Outer().double(), torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        outer.second.weight[:, [1, 3]] = 0
    expected = outputs(outer, x)
    compact(outer, x, inplace=True)
    assert outer.second.in_features == 4
    close(outputs(outer, x), expected)


def test_data_parallel_is_reached_through() -> None:
    model = emptied()
    wrapped = nn.DataParallel(model)
    expected = outputs(wrapped)
    assert compact(wrapped, X, inplace=True) is wrapped
    close(outputs(wrapped), expected)
    widen(wrapped, "inner", 2, example_inputs=X)
    close(outputs(wrapped), expected)
    assert unwrapped("test", torch.compile(wrapped, backend="eager")) is model


def test_wrapped_for_several_processes_afterwards(group: None) -> None:
    model = emptied().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = nn.parallel.DistributedDataParallel(model)
    trained(first, optimizer)
    model.eval()
    groups = structure(model, (X,), "test").groups
    mask(model, groups, random_units(groups, 3, 0.4))
    expected, before = outputs(model), count_params(model)
    compact(first.module, X, inplace=True, optimizer=optimizer)
    assert count_params(model) < before
    del first
    twin, others = copy.deepcopy((model, optimizer))
    wrapped = nn.parallel.DistributedDataParallel(model)
    close(outputs(wrapped), expected)
    assert trained(wrapped, optimizer) == pytest.approx(trained(twin, others), rel=1e-9)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("op", ["compact", "widen"])
def test_refuses_a_wrapper_of_several_processes(group: None, op: str, compiled: bool) -> None:
    model = emptied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trained(model, optimizer)
    wrapped = nn.parallel.DistributedDataParallel(model)
    given = torch.compile(wrapped, backend="eager") if compiled else wrapped
    before = everything(model, optimizer)
    calls = {
        "compact": lambda: compact(given, X, inplace=True, optimizer=optimizer),
        "widen": lambda: widen(given, "inner", 2, example_inputs=X, optimizer=optimizer),
    }
    with pytest.raises(ValueError, match=rf"{op}: .*got DistributedDataParallel.*buckets.*call {op} on model\.module"):
        calls[op]()
    assert_alike(before, everything(model, optimizer))


def test_refuses_shards_and_what_is_no_module() -> None:
    # Sharding wants a mesh of devices; it marks modules by a class that it puts in front of theirs.
    class FSDPModule:
        pass

    class FSDPSequential(FSDPModule, nn.Sequential):
        pass

    with pytest.raises(ValueError, match=r"compact: each process must hold the whole model \(got FSDPModule.*before"):
        compact(FSDPSequential(nn.Linear(4, 4)), torch.randn(2, 4))
    with pytest.raises(TypeError, match=r"compact: model must be a torch.nn.Module \(got function\)"):
        compact(lambda x: x, torch.randn(2, 4))
