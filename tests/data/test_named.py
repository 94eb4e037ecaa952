from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from dataset_files import make_mnist

from resgrow._errors import InputError, RunError
from resgrow.data import load


@pytest.fixture(autouse=True)
def no_variable(request, monkeypatch):
    if request.node.get_closest_marker("data") is None:
        monkeypatch.delenv("RESGROW_DATA_DIR", raising=False)


@pytest.mark.parametrize("sub", ["", "mnist", "MNIST/raw"])
def test_found_in_the_folder_and_its_usual_subfolders(tmp_path, sub):
    make_mnist(tmp_path / sub)
    assert len(load("mnist", data_dir=tmp_path).train_y) == 20


def test_found_through_the_environment(tmp_path, monkeypatch):
    make_mnist(tmp_path / "mnist")
    monkeypatch.setenv("RESGROW_DATA_DIR", str(tmp_path))
    assert len(load("mnist").train_y) == 20


def test_argument_comes_before_the_environment(tmp_path, monkeypatch):
    make_mnist(tmp_path / "argument", train=30)
    make_mnist(tmp_path / "environment", train=20)
    monkeypatch.setenv("RESGROW_DATA_DIR", str(tmp_path / "environment"))
    assert len(load("mnist", data_dir=tmp_path / "argument").train_y) == 30


def test_no_folder_named():
    with pytest.raises(InputError, match="got neither --data-dir nor RESGROW_DATA_DIR"):
        load("mnist")


def test_folder_without_the_files(tmp_path):
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.*--download") as caught:
        load("mnist", data_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)


def _fake_torchvision(monkeypatch, mnist):
    module = types.ModuleType("torchvision.datasets")
    module.MNIST = mnist
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_download_puts_the_files_where_the_reader_looks(tmp_path, monkeypatch):
    def mnist(root, download):
        assert download
        make_mnist(Path(root) / "MNIST" / "raw", suffix="")

    _fake_torchvision(monkeypatch, mnist)
    assert len(load("mnist", data_dir=tmp_path, download=True).train_y) == 20


def test_no_download_where_the_files_are(tmp_path, monkeypatch):
    def mnist(root, download):
        raise AssertionError("must not be called")

    _fake_torchvision(monkeypatch, mnist)
    make_mnist(tmp_path)
    assert len(load("mnist", data_dir=tmp_path, download=True).train_y) == 20


def test_failed_download(tmp_path, monkeypatch):
    def mnist(root, download):
        raise OSError("no route to host")

    _fake_torchvision(monkeypatch, mnist)
    with pytest.raises(RunError, match=r"no route to host.*check network"):
        load("mnist", data_dir=tmp_path, download=True)


def test_download_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(RunError, match="downloading needs torchvision"):
        load("mnist", data_dir=tmp_path, download=True)


@pytest.mark.data
def test_real_files():
    if not os.environ.get("RESGROW_DATA_DIR"):
        pytest.skip("RESGROW_DATA_DIR is not set")
    data = load("mnist")
    assert data.train_x.shape == (60000, 1, 28, 28)
    assert data.test_x.shape == (10000, 1, 28, 28)
    assert torch.bincount(data.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # Published moments: mean .1307, deviation .3081 of pixels in [0, 1]; a black pixel is at -.4242.
    assert data.train_x.min().item() == pytest.approx(-0.1307 / 0.3081, abs=1e-3)
    assert data.train_x.mean().item() == pytest.approx(0, abs=1e-3)
