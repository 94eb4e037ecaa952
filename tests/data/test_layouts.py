from __future__ import annotations

import numpy as np
import pytest
import torch
from dataset_files import make_images
from PIL import Image

from resgrow._errors import InputError
from resgrow.data import load
from resgrow.data.dataset import RawImages, standardise


def test_digits_split_is_fixed_and_stratified():
    first, second = load("digits"), load("digits")
    assert first.train_x.shape == (1437, 1, 8, 8)
    assert first.test_x.shape == (360, 1, 8, 8)
    assert torch.equal(first.test_x, second.test_x)
    counts = torch.bincount(first.test_y)
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_standardised_with_the_training_moments_only():
    data = load("digits")
    assert data.train_x.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train_x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert abs(data.test_x.mean().item()) > 1e-5


def test_constant_channel_stays_finite():
    images = np.full((4, 1, 2, 2), 7, np.uint8)
    labels = np.array([0, 1, 0, 1])
    data = standardise("flat", RawImages(images, labels, images, labels, ("a", "b")))
    assert torch.equal(data.train_x, torch.zeros(4, 1, 2, 2))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"train_images": np.zeros((0, 1, 2, 2), np.uint8), "train_labels": np.zeros(0, int)}, "training images"),
        ({"test_images": np.zeros((4, 1, 3, 2), np.uint8)}, "must have one shape"),
        ({"test_labels": np.array([0, 1, 2, 1])}, "must lie in \\[0, 2\\)"),
        ({"classes": ("a",), "train_labels": np.zeros(4, int), "test_labels": np.zeros(4, int)}, "at least 2"),
    ],
)
def test_halves_must_fit(change, rule):
    images, labels = np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 1, 0, 1])
    parts = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    with pytest.raises(InputError, match=rule):
        standardise("odd", RawImages(**{**parts, "classes": ("a", "b"), **change}))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_image_folder(tmp_path, mode, channels):
    data = load(make_images(tmp_path, mode))
    assert data.train_x.shape == (6, channels, 8, 10)
    assert data.classes == ("cat", "dog")
    assert data.test_y.tolist() == [0, 0, 0, 1, 1, 1]
    assert (data.test_x[3:, 0] > data.test_x[:3, 0]).all()


def test_one_coloured_image_makes_all_coloured(tmp_path):
    make_images(tmp_path, "L")
    Image.new("RGB", (10, 8)).save(tmp_path / "test" / "dog" / "9.jpg")
    assert load(tmp_path).train_x.shape[1] == 3


def test_image_of_another_size_is_named(tmp_path):
    make_images(tmp_path)
    Image.new("RGB", (9, 8)).save(tmp_path / "test" / "dog" / "odd.png")
    with pytest.raises(InputError, match=r"odd\.png.*10x8 \(got 9x8\)"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_broken_image_is_named(tmp_path, content):
    make_images(tmp_path)
    (tmp_path / "train" / "cat" / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png: the image must be readable"):
        load(tmp_path)


def test_sixteen_bit_image_is_refused(tmp_path):
    make_images(tmp_path)
    Image.new("I;16", (10, 8)).save(tmp_path / "train" / "cat" / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png: images must have 8 bits"):
        load(tmp_path)


def test_unknown_test_class(tmp_path):
    make_images(tmp_path)
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(InputError, match="none named bird"):
        load(tmp_path)


def test_empty_half(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="there must be images"):
        load(tmp_path)


def test_unknown_layout_and_unknown_name(tmp_path):
    with pytest.raises(InputError, match="known are: train-images-idx3-ubyte"):
        load(tmp_path)
    with pytest.raises(
        InputError, match=r"digits, mnist, fashion-mnist, cifar10, cifar100 or an existing folder \(got 'digit'\)"
    ):
        load("digit")
