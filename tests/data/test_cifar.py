from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from dataset_files import (
    make_cifar,
    make_cifar100,
    make_cifar100_python,
    make_cifar_python,
    python2_pickle,
)

from resgrow._errors import InputError
from resgrow.data import load

TEN = [(make_cifar, "cifar-10-batches-bin"), (make_cifar_python, "cifar-10-batches-py")]
HUNDRED = [(make_cifar100, "cifar-100-binary"), (make_cifar100_python, "cifar-100-python")]


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("make", "folder"), TEN)
def test_cifar10(tmp_path, make, folder, inside):
    make(tmp_path / folder)
    data = load(tmp_path / folder if inside else tmp_path)
    assert data.train_x.shape == (20, 3, 32, 32)
    assert data.test_y.tolist() == [0, 1, 2, 3]
    assert data.train_y.tolist() == [0, 1, 2, 3] * 5
    # The label was painted into the first red pixel: channel and position must be right.
    assert torch.equal(data.test_x[:, 0, 0, 0].argsort(), torch.arange(4))
    assert data.classes[3] == ("cat" if make is make_cifar else "name 3")
    assert data.verified is False


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("make", "folder"), HUNDRED)
def test_cifar100_has_the_fine_labels(tmp_path, make, folder, inside):
    make(tmp_path / folder)
    data = load(tmp_path / folder if inside else tmp_path)
    assert data.train_x.shape == (20, 3, 32, 32)
    assert data.test_y.tolist() == [i * 7 % 100 for i in range(20)]
    assert torch.equal(data.test_x[:, 0, 0, 0].argsort(), data.test_y.argsort())
    assert data.classes == tuple(f"fine_{i}" for i in range(100))


@pytest.mark.parametrize(("make", "_"), [*TEN, *HUNDRED])
def test_a_folder_of_any_name(tmp_path, make, _):
    assert load(make(tmp_path / "own")).train_x.shape == (20, 3, 32, 32)


def test_both_layouts_hold_the_same(tmp_path):
    one, other = load(make_cifar100(tmp_path / "a")), load(make_cifar100_python(tmp_path / "b"))
    assert torch.equal(one.train_x, other.train_x)
    assert torch.equal(one.test_y, other.test_y)


def test_class_names_from_the_folder(tmp_path):
    make_cifar(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert load(tmp_path).classes == tuple("abcdefghij")
    make_cifar100(tmp_path / "fine")
    (tmp_path / "fine" / "fine_label_names.txt").unlink()
    assert load(tmp_path / "fine").classes == tuple(str(i) for i in range(100))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make_cifar, "data_batch_3.bin"),
        (make_cifar_python, "test_batch"),
        (make_cifar100, "test.bin"),
        (make_cifar100_python, "train"),
    ],
)
def test_missing_batch(tmp_path, make, name):
    make(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(
        InputError, match=rf"must be there \(got no {name}\); unpack cifar-100?-\w+\.tar\.gz from https:"
    ):
        load(tmp_path)


@pytest.mark.parametrize("length", [0, 3072, 3073 * 4 - 1])
def test_damaged_batch(tmp_path, length):
    make_cifar(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"data_batch_2\.bin: its length must be a multiple of 3073"):
        load(tmp_path)


def test_wrong_labels(tmp_path):
    make_cifar(tmp_path)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\x63" + path.read_bytes()[1:])
    with pytest.raises(InputError, match=r"test_batch\.bin: labels must lie in \[0, 10\) \(got 1 to 99\)"):
        load(tmp_path)


def batch(**changes):
    return {"labels": [1, 2], "data": np.zeros((2, 3072), np.uint8), **changes}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"data": [1, 2]}, r"uint8 \(N, 3072\) \(got none\)"),
        ({"data": np.zeros((2, 3072), np.int64)}, r"uint8 \(N, 3072\) \(got int64 \(2, 3072\)\)"),
        ({"data": np.zeros((2, 3071), np.uint8)}, r"got uint8 \(2, 3071\)"),
        ({"data": np.zeros((0, 3072), np.uint8)}, r"got uint8 \(0, 3072\)"),
        ({"labels": [1]}, r"labels must be one whole number per image, 2 \(got 1\)"),
        ({"labels": ["1", "2"]}, "labels must be one whole number per image"),
        ({"labels": "cat"}, "labels must be one whole number per image"),
        ({"labels": [1, 10]}, r"labels must lie in \[0, 10\) \(got 1 to 10\)"),
        ({"labels": [-1, 1]}, r"labels must lie in \[0, 10\) \(got -1 to 1\)"),
        ({"labels": [1, 10**30]}, r"labels must lie in \[0, 10\)"),
    ],
)
def test_python_batch_that_does_not_fit(tmp_path, changes, rule):
    make_cifar_python(tmp_path)
    (tmp_path / "data_batch_4").write_bytes(pickle.dumps(batch(**changes), protocol=3))
    with pytest.raises(InputError, match=rf"data_batch_4: .*{rule}"):
        load(tmp_path)


def test_python_labels_may_be_an_array(tmp_path):
    make_cifar_python(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch(labels=np.array([3, 5], np.int32)), protocol=4))
    assert load(tmp_path).test_y.tolist() == [3, 5]


def test_names_that_do_not_fit_are_left_out(tmp_path):
    make_cifar_python(tmp_path)
    (tmp_path / "batches.meta").write_bytes(python2_pickle({"label_names": ["one"]}))
    assert load(tmp_path).classes[3] == "cat"
