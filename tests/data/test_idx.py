from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from dataset_files import idx_bytes, make_mnist, write_idx

from resgrow._errors import InputError
from resgrow.data import load
from resgrow.data.idx import read_idx


@pytest.mark.parametrize("name", ["a-idx3-ubyte", "a-idx3-ubyte.gz"])
def test_reads_back_what_was_written(tmp_path, name):
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / name, array)
    assert np.array_equal(read_idx(tmp_path / name, 3), array)


def _corrupt(data: bytes, what: str) -> bytes:
    return {
        "magic": b"\x00\x00\x0d\x03" + data[4:],
        "dimensions": b"\x00\x00\x08\x01" + data[4:],
        "empty dimension": data[:4] + bytes(4) + data[8:],
        "short": data[:-1],
        "long": data + b"\x00",
        "header only": data[:10],
        "nothing": b"",
    }[what]


@pytest.mark.parametrize(
    ("what", "rule"),
    [
        ("magic", "magic number must be 0x00000803"),
        ("dimensions", "magic number must be 0x00000803"),
        ("empty dimension", "every dimension must be at least 1"),
        ("short", "promises 24 values for shape \\(2, 3, 4\\) \\(got 23\\)"),
        ("long", "promises 24 values for shape \\(2, 3, 4\\) \\(got 25\\)"),
        ("header only", "header of 16 bytes \\(got 10"),
        ("nothing", "header of 16 bytes \\(got 0"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damage_is_named(tmp_path, what, rule, suffix):
    path = tmp_path / f"bad-idx3-ubyte{suffix}"
    data = _corrupt(idx_bytes(np.zeros((2, 3, 4))), what)
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(InputError, match=rule) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not gzip"])
def test_gzip_damage_is_named(tmp_path, damage):
    whole = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (20, 8, 8))))
    middle = len(whole) // 2
    path = tmp_path / "images.gz"
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
            "not gzip": b"plainly something else",
        }[damage]
    )
    with pytest.raises(InputError, match=r"images\.gz: the gzip stream must be whole .* fetch it again"):
        read_idx(path, 3)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_folder_of_four_files(tmp_path, suffix):
    data = load(make_mnist(tmp_path / "own", suffix))
    assert data.name == "own"
    assert data.train_x.shape == (20, 1, 28, 28)
    assert data.train_x.dtype == torch.float32
    assert data.test_y.tolist() == list(range(10))
    assert data.train_y.dtype == torch.int64
    assert data.classes == tuple("0123456789")
    # Pixel values grow with the label, and standardising keeps their order.
    assert torch.equal(data.test_x[:, 0, 5, 5].argsort(), data.test_y)


def test_missing_file_is_named(tmp_path):
    make_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="got no t10k-labels-idx1-ubyte"):
        load(tmp_path)


def test_label_count_must_match(tmp_path):
    make_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(19))
    with pytest.raises(InputError, match="got 19 labels for 20 images"):
        load(tmp_path)


def test_test_label_that_training_lacks_is_still_a_class(tmp_path):
    make_mnist(tmp_path, test=3)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.array([0, 1, 12]))
    assert len(load(tmp_path).classes) == 13
