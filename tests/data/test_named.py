from __future__ import annotations

import gzip
import os
import sys
import types
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import (
    make_cifar,
    make_cifar100,
    make_cifar100_python,
    make_cifar_python,
    make_mnist,
    write_idx,
)

from resgrow._errors import InputError, RunError
from resgrow.data import checksums, load, named


@pytest.fixture(autouse=True)
def no_variable(request, monkeypatch):
    if request.node.get_closest_marker("data") is None:
        monkeypatch.delenv("RESGROW_DATA_DIR", raising=False)


PLACES = [
    *(("mnist", make_mnist, sub) for sub in ("", "mnist", "MNIST/raw")),
    *(("fashion-mnist", make_mnist, sub) for sub in ("", "fashion-mnist", "fashion_mnist", "FashionMNIST/raw")),
    *(("cifar10", make_cifar, sub) for sub in ("", "cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin")),
    *(("cifar10", make_cifar_python, sub) for sub in ("", "cifar-10-batches-py", "cifar-10/cifar-10-batches-py")),
    *(("cifar100", make_cifar100, sub) for sub in ("", "cifar100", "cifar-100-binary")),
    *(("cifar100", make_cifar100_python, sub) for sub in ("", "cifar-100-python", "cifar100/cifar-100-python")),
]


@pytest.mark.parametrize(("name", "make", "sub"), PLACES)
def test_found_in_the_folder_and_its_usual_subfolders(tmp_path, name, make, sub):
    make(tmp_path / sub)
    data = load(name, data_dir=tmp_path)
    assert data.name == name
    assert len(data.train_y) == 20
    assert data.verified is False


def test_a_subfolder_of_the_name_comes_before_the_folder(tmp_path):
    make_mnist(tmp_path, train=30)
    make_mnist(tmp_path / "fashion-mnist", train=20)
    assert len(load("fashion-mnist", data_dir=tmp_path).train_y) == 20
    assert len(load("mnist", data_dir=tmp_path).train_y) == 30


def test_binary_batches_come_before_pickled_ones(tmp_path):
    make_cifar(tmp_path / "cifar-10-batches-bin")
    make_cifar_python(tmp_path / "cifar-10-batches-py", per_batch=5)
    assert len(load("cifar10", data_dir=tmp_path).test_y) == 4


def test_fashion_has_names(tmp_path):
    make_mnist(tmp_path)
    assert load("fashion-mnist", data_dir=tmp_path).classes[9] == "Ankle boot"
    assert load("mnist", data_dir=tmp_path).classes[9] == "9"
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.array([*range(9), 12]))
    assert len(load("fashion-mnist", data_dir=tmp_path).classes) == 13


def test_found_through_the_environment(tmp_path, monkeypatch):
    make_mnist(tmp_path / "mnist")
    monkeypatch.setenv("RESGROW_DATA_DIR", str(tmp_path))
    assert len(load("mnist").train_y) == 20


def test_argument_comes_before_the_environment(tmp_path, monkeypatch):
    make_mnist(tmp_path / "argument", train=30)
    make_mnist(tmp_path / "environment", train=20)
    monkeypatch.setenv("RESGROW_DATA_DIR", str(tmp_path / "environment"))
    assert len(load("mnist", data_dir=tmp_path / "argument").train_y) == 30


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_no_folder_named(name):
    with pytest.raises(InputError, match=r"got neither --data-dir nor RESGROW_DATA_DIR.*https://"):
        load(name)


@pytest.mark.parametrize(
    ("name", "expected", "source"),
    [
        ("mnist", "train-images-idx3-ubyte", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        ("fashion-mnist", "t10k-labels-idx1-ubyte", "https://github.com/zalandoresearch/fashion-mnist"),
        ("cifar10", "cifar-10-batches-bin/data_batch_1.bin or cifar-10-batches-py/data_batch_1", "cifar-10-binary"),
        ("cifar100", "cifar-100-binary/train.bin or cifar-100-python/train", "cifar-100-binary.tar.gz from https://"),
    ],
)
def test_folder_without_the_files(tmp_path, name, expected, source):
    with pytest.raises(InputError) as caught:
        load(name, data_dir=tmp_path)
    for part in (expected, source, "or add --download", f"{tmp_path}", f"{tmp_path / name}"):
        assert part in str(caught.value)


def test_missing_file_and_its_source(tmp_path):
    make_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"got no train-labels-idx1-ubyte .*missing file from https://github\.com/zal"):
        load("fashion-mnist", data_dir=tmp_path)


def publish(monkeypatch, table: str, folder: Path) -> None:
    """What lies in the folder is what is published."""
    for path in folder.iterdir():
        monkeypatch.setitem(getattr(checksums, table), path.name, md5(path.read_bytes()).hexdigest())
        if path.suffix == ".gz":
            plain = md5(gzip.decompress(path.read_bytes())).hexdigest()
            monkeypatch.setitem(getattr(checksums, table), path.stem, plain)


def spoil(path: Path) -> None:
    """Another last label, or another pixel."""
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    place = -1 if path.suffix == ".gz" else len(data) // 2
    data[place] ^= 1
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize(
    ("name", "make", "table", "changed"),
    [
        ("mnist", make_mnist, "MNIST", "t10k-labels-idx1-ubyte.gz"),
        ("fashion-mnist", make_mnist, "FASHION_MNIST", "train-labels-idx1-ubyte.gz"),
        ("cifar10", make_cifar, "CIFAR10", "test_batch.bin"),
        ("cifar10", make_cifar_python, "CIFAR10", "data_batch_2"),
        ("cifar100", make_cifar100, "CIFAR100", "train.bin"),
        ("cifar100", make_cifar100_python, "CIFAR100", "test"),
    ],
)
def test_published_files_are_told_from_others(tmp_path, monkeypatch, name, make, table, changed):
    make(tmp_path)
    publish(monkeypatch, table, tmp_path)
    for data in (load(name, data_dir=tmp_path), load(tmp_path)):
        assert data.verified is True
        assert data.describe().endswith("; the published files")
    spoil(tmp_path / changed)
    for data in (load(name, data_dir=tmp_path), load(tmp_path)):
        assert data.verified is False
        assert data.describe().endswith("; not the published files")


def test_files_packed_anew_are_the_published_ones(tmp_path, monkeypatch):
    make_mnist(tmp_path)
    publish(monkeypatch, "MNIST", tmp_path)
    for path in list(tmp_path.iterdir()):
        plain = gzip.decompress(path.read_bytes())
        if "labels" in path.name:
            path.unlink()
            path.with_suffix("").write_bytes(plain)
        else:
            path.write_bytes(gzip.compress(plain, 1, mtime=0))
    assert load("mnist", data_dir=tmp_path).verified is True


def test_the_other_data_set_is_named(tmp_path, monkeypatch):
    make_mnist(tmp_path)
    publish(monkeypatch, "FASHION_MNIST", tmp_path)
    with pytest.raises(InputError, match=r"must be those of MNIST \(got Fashion-MNIST's, .*--data fashion-mnist"):
        load("mnist", data_dir=tmp_path)
    assert load(tmp_path).classes[0] == "T-shirt/top"


def test_own_data_in_idx_files_is_compared_with_nothing(tmp_path):
    data = load(make_mnist(tmp_path / "own"))
    assert data.verified is None
    assert data.describe() == "own: 20 training and 10 test images of 1x28x28, 10 classes"
    assert load("digits").verified is None


def test_files_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("RESGROW_DATA_DIR", str(tmp_path / "environment"))
    folder = tmp_path / "argument" / "sub"
    folder.mkdir(parents=True)
    (folder / "a.csv").touch()
    with pytest.raises(InputError, match=r"data: b\.csv must be there \(looked in .*argument/sub.*\); look there"):
        named.find(["a.csv", "b.csv"], tmp_path / "argument", ("sub",), "look there")
    (folder / "b.csv").touch()
    assert named.find(["a.csv", "b.csv"], tmp_path / "argument", ("sub",), "") == [folder / "a.csv", folder / "b.csv"]
    monkeypatch.delenv("RESGROW_DATA_DIR")
    with pytest.raises(InputError, match=r"a\.csv and b\.csv must be there \(looked in neither --data-dir nor"):
        named.find(["a.csv", "b.csv"], None, (), "look there")


def _fake_torchvision(monkeypatch, **classes):
    module = types.ModuleType("torchvision.datasets")
    for name, value in classes.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


@pytest.mark.parametrize(
    ("name", "kind", "make", "where"),
    [
        ("mnist", "MNIST", make_mnist, "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST", make_mnist, "FashionMNIST/raw"),
        ("cifar10", "CIFAR10", make_cifar_python, "cifar-10-batches-py"),
        ("cifar100", "CIFAR100", make_cifar100_python, "cifar-100-python"),
    ],
)
def test_download_puts_the_files_where_the_reader_looks(tmp_path, monkeypatch, name, kind, make, where):
    def fetch(root, download):
        assert download
        make(Path(root) / where)

    _fake_torchvision(monkeypatch, **{kind: fetch})
    assert len(load(name, data_dir=tmp_path, download=True).train_y) == 20


def test_no_download_where_the_files_are(tmp_path, monkeypatch):
    def mnist(root, download):
        raise AssertionError("must not be called")

    _fake_torchvision(monkeypatch, MNIST=mnist)
    make_mnist(tmp_path)
    assert len(load("mnist", data_dir=tmp_path, download=True).train_y) == 20


def test_failed_download(tmp_path, monkeypatch):
    def mnist(root, download):
        raise OSError("no route to host")

    _fake_torchvision(monkeypatch, MNIST=mnist)
    with pytest.raises(RunError, match=r"no route to host.*check network"):
        load("mnist", data_dir=tmp_path, download=True)


def test_download_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(RunError, match="downloading needs torchvision"):
        load("mnist", data_dir=tmp_path, download=True)


def real(name):
    if not os.environ.get("RESGROW_DATA_DIR"):
        pytest.skip("RESGROW_DATA_DIR is not set")
    try:
        return load(name)
    except InputError as error:
        if "must be there" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.data
def test_real_files():
    data = real("mnist")
    assert data.train_x.shape == (60000, 1, 28, 28)
    assert data.test_x.shape == (10000, 1, 28, 28)
    assert torch.bincount(data.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # Published moments: mean .1307, deviation .3081 of pixels in [0, 1]; a black pixel is at -.4242.
    assert data.train_x.min().item() == pytest.approx(-0.1307 / 0.3081, abs=1e-3)
    assert data.train_x.mean().item() == pytest.approx(0, abs=1e-3)
    assert data.verified is True


@pytest.mark.data
def test_real_cifar10():
    data = real("cifar10")
    assert data.train_x.shape == (50000, 3, 32, 32)
    assert torch.bincount(data.train_y).tolist() == [5000] * 10
    assert torch.bincount(data.test_y).tolist() == [1000] * 10
    assert data.classes[0] == "airplane"
    assert data.verified is not None
