"""In which ways a folder can hold a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resgrow.data import cifar, idx, images
from resgrow.data.dataset import RawImages


@dataclass(frozen=True)
class Layout:
    """``recognise``: the folder to read from, or None. ``looks_like``: what is in it."""

    recognise: Callable[[Path], Path | None]
    read: Callable[[Path], RawImages]
    looks_like: str


def _batches(layout: cifar.Batches) -> Layout:
    return Layout(layout.recognise, layout.read, f"{layout.folder}/{layout.train[0]}")


# Where a folder has both, the binary one is read: it is quicker.
CIFAR10 = (_batches(cifar.CIFAR10_BINARY), _batches(cifar.CIFAR10_PYTHON))
CIFAR100 = (_batches(cifar.CIFAR100_BINARY), _batches(cifar.CIFAR100_PYTHON))
# Tried in this order; the first that recognises the folder reads it.
LAYOUTS = (
    Layout(idx.recognise, idx.read, f"{idx.TRAIN_IMAGES}[.gz] and three more"),
    *CIFAR10,
    *CIFAR100,
    Layout(images.recognise, images.read, "train/<class>/*.png and test/<class>/*.png"),
)
