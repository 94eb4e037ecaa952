from __future__ import annotations

import math

import pytest
import torch

from resgrow._state_file import read_state, write_state


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return type(one) is type(other) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one != one)


def test_types_values_and_bits_come_back(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    state = {
        "steps": 7,
        "exact": 0.1 + 0.2,
        "odd": [math.inf, -math.inf, math.nan, -0.0, None, True, "ü\n"],
        "nested": ({}, [], (), {"dict": {"tensor": "0"}}),
        3: {"mask": shared > 4, "rows": shared[1:], "columns": shared.t(), "bits": torch.tensor(1.5).bfloat16()},
        None: torch.zeros(0, 2),
    }
    write_state(tmp_path / "state", state)
    read = read_state(tmp_path / "state")
    assert same(state, read)
    assert math.copysign(1, read["odd"][3]) == -1
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_other_types_are_refused_and_the_old_file_stays(tmp_path):
    write_state(tmp_path / "state", {"a": 1})
    with pytest.raises(TypeError, match=r"write_state: .*got set"):
        write_state(tmp_path / "state", {"a": [{1}]})
    assert read_state(tmp_path / "state") == {"a": 1}


@pytest.mark.parametrize("damage", ["short", "foreign"])
def test_damaged_and_foreign_files_are_named(tmp_path, damage):
    path = tmp_path / "state"
    if damage == "short":
        write_state(path, {"a": torch.ones(100)})
        path.write_bytes(path.read_bytes()[:-7])
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"read_state: .*state must be a whole file"):
        read_state(path)
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / "none")
