"""What every data set looks like once it is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resgrow._errors import InputError

_ORIGIN = {True: "; the published files", False: "; not the published files", None: ""}


@dataclass(frozen=True)
class RawImages:
    """Images as they lie on disk: uint8 (N, C, H, W) and int64 labels (N,), for both halves.

    ``verified``: as in `Dataset`.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    verified: bool | None = None


@dataclass(frozen=True)
class Dataset:
    """A classification problem in memory.

    ``train_x``, ``test_x``: float32 (N, C, H, W), standardised per channel with mean and deviation
    of the *training* images. ``train_y``, ``test_y``: int64 (N,) in [0, len(classes)).
    ``verified``: True where every file has the checksum of the published one, False where one has not (a copy, own data
    in a published layout), None where nothing is published to compare with.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    verified: bool | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width

    def describe(self) -> str:
        """One line: what it is, how much of it, and whether the files are the published ones."""
        shape = "x".join(map(str, self.image_shape))
        line = f"{self.name}: {len(self.train_y):,} training and {len(self.test_y):,} test images of {shape}"
        return f"{line}, {len(self.classes)} classes{_ORIGIN[self.verified]}"

    def to(self, device: str | torch.device) -> Dataset:
        """The same with its tensors on ``device``."""
        tensors = {name: getattr(self, name).to(device) for name in ("train_x", "train_y", "test_x", "test_y")}
        return replace(self, **tensors)


def _channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per channel, exact: from 256 counts instead of a float copy of the images."""
    values = np.arange(256, dtype=np.float64)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.bincount(images[:, channel].reshape(-1), minlength=256) / images[:, channel].size
        mean = float(counts @ values)
        means.append(mean)
        deviations.append(float(np.sqrt(counts @ (values - mean) ** 2)))
    return np.array(means, np.float32), np.array(deviations, np.float32)


def _check(name: str, raw: RawImages) -> None:
    for half, images, labels in (
        ("training", raw.train_images, raw.train_labels),
        ("test", raw.test_images, raw.test_labels),
    ):
        if len(images) == 0:
            raise InputError(f"data: {name}: there must be {half} images (got none); complete the folder")
        if labels.min() < 0 or labels.max() >= len(raw.classes):
            raise InputError(
                f"data: {name}: {half} labels must lie in [0, {len(raw.classes)}) "
                f"(got {labels.min()} to {labels.max()}); check the labels file"
            )
    if raw.train_images.shape[1:] != raw.test_images.shape[1:]:
        raise InputError(
            f"data: {name}: training and test images must have one shape (got "
            f"{raw.train_images.shape[1:]} and {raw.test_images.shape[1:]}); are both halves of one data set?"
        )
    if len(raw.classes) < 2:
        raise InputError(f"data: {name}: there must be at least 2 classes (got {len(raw.classes)})")


def standardise(name: str, raw: RawImages) -> Dataset:
    """Raw images -> ``Dataset``. Raises InputError where halves are empty or do not fit together."""
    _check(name, raw)
    mean, deviation = _channel_moments(raw.train_images)
    # A constant channel carries nothing: dividing by 1 leaves it at 0.
    deviation = np.where(deviation > 0, deviation, np.float32(1))

    def prepare(images: np.ndarray) -> Tensor:
        x = torch.from_numpy(images.astype(np.float32))
        return x.sub_(torch.from_numpy(mean)[:, None, None]).div_(torch.from_numpy(deviation)[:, None, None])

    def labels(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64))

    return Dataset(
        name=name,
        train_x=prepare(raw.train_images),
        train_y=labels(raw.train_labels),
        test_x=prepare(raw.test_images),
        test_y=labels(raw.test_labels),
        classes=raw.classes,
        verified=raw.verified,
    )


def numbered_classes(*labels: np.ndarray) -> tuple[str, ...]:
    """ "0", "1", ... up to the largest label present, for layouts that name no classes."""
    highest = max((int(part.max()) for part in labels if len(part)), default=-1)
    return tuple(str(i) for i in range(highest + 1))


def listing(paths: Sequence[Path]) -> str:
    """Paths for an error message."""
    return ", ".join(str(path) for path in paths)
