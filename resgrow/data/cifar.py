"""The layouts of CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html): images (N, 3, 32, 32).

Binary: each record is one label byte (CIFAR-100: two, the superclass and the class) and 3,072 pixel bytes (red, green,
blue planes of 32x32, row-major). Python: each batch is a pickled dictionary with ``data``, uint8 (N, 3072), rows as
before, and the list ``labels`` (CIFAR-100: ``fine_labels``); it is read by `plain_pickle`, which runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resgrow._errors import InputError
from resgrow.data import checksums
from resgrow.data.dataset import RawImages
from resgrow.data.plain_pickle import read_plain

SITE = "https://www.cs.toronto.edu/~kriz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Batches:
    """One layout: its folder, what lies in it, and how that is read."""

    title: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str  # the file with the classes' names
    classes: tuple[str, ...]  # where that file is missing
    marks: tuple[str, ...]  # one of these files makes a folder of any name this layout
    labels: int | str  # binary: label bytes per record, of which the last counts; python: the key
    read_batch: Callable[[Batches, Path], tuple[np.ndarray, np.ndarray]]
    read_names: Callable[[Batches, Path], tuple[str, ...]]
    published: checksums.Table

    def recognise(self, folder: Path) -> Path | None:
        """The folder with the batches: ``folder`` itself or its subfolder of the standard name."""
        for candidate in (folder, folder / self.folder):
            named = candidate.name == self.folder and candidate.is_dir()
            if named or any((candidate / name).is_file() for name in self.marks):
                return candidate
        return None

    def read(self, folder: Path) -> RawImages:
        """The training batches and the test batch. Raises InputError naming the file that is missing or damaged."""
        paths = [folder / name for name in (*self.train, self.test)]
        for path in paths:
            if not path.is_file():
                raise InputError(
                    f"data: {folder}: all {self.title} batches must be there (got no {path.name}); {self.remedy}"
                )
        parts = [self._checked(path) for path in paths]
        return RawImages(
            np.concatenate([images for images, _ in parts[:-1]]),
            np.concatenate([labels for _, labels in parts[:-1]]),
            *parts[-1],
            self._class_names(folder / self.names),
            checksums.agreeing(paths, self.published) == len(paths),
        )

    @property
    def remedy(self) -> str:
        return f"unpack {self.archive} from {SITE}/{self.archive}"

    def _checked(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.read_batch(self, path)
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise InputError(
                f"data: {path}: labels must lie in [0, {len(self.classes)}) (got {labels.min()} to {labels.max()}); "
                f"this is no {self.title} batch"
            )
        return images.reshape(-1, *SHAPE), labels.astype(np.int64)

    def _class_names(self, path: Path) -> tuple[str, ...]:
        names = self.read_names(self, path) if path.is_file() else ()
        return names if len(names) == len(self.classes) else self.classes


def _read_records(layout: Batches, path: Path) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(layout.labels, int)
    record = layout.labels + PIXELS
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(
            f"data: {path}: the batch must be readable (got {error.strerror or error}); check permissions and disk"
        ) from error
    if data.size == 0 or data.size % record:
        raise InputError(
            f"data: {path}: its length must be a multiple of {record} bytes, {layout.labels} of labels and one image "
            f"each (got {data.size}); the file is damaged, {layout.remedy} again"
        )
    rows = data.reshape(-1, record)
    return rows[:, layout.labels :], rows[:, layout.labels - 1]


def _read_lines(layout: Batches, path: Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8", errors="replace").split())


def _read_pickle(layout: Batches, path: Path) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(layout.labels, str)
    found = read_plain(path)
    images, labels = found.get("data"), found.get(layout.labels)
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.shape[1:] != (PIXELS,)
        or not len(images)
    ):
        got = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else "none"
        raise InputError(
            f"data: {path}: data must be an array, uint8 (N, {PIXELS}) (got {got}); this is no {layout.title} batch, "
            f"{layout.remedy}"
        )
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        labels = np.array(labels)
    if not isinstance(labels, np.ndarray) or labels.shape != (len(images),):
        got = str(len(labels)) if isinstance(labels, list | np.ndarray) else "none"
        raise InputError(
            f"data: {path}: {layout.labels} must be one whole number per image, {len(images)} (got {got}); this is no "
            f"{layout.title} batch, {layout.remedy}"
        )
    return images, labels


def _read_pickled_names(layout: Batches, path: Path) -> tuple[str, ...]:
    names = read_plain(path).get("label_names" if layout.labels == "labels" else "fine_label_names")
    if not isinstance(names, list):
        return ()
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)


_TEN = tuple(f"data_batch_{i}" for i in range(1, 6))
_HUNDRED = tuple(str(i) for i in range(100))

CIFAR10_BINARY = Batches(
    title="CIFAR-10",
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    train=tuple(f"{name}.bin" for name in _TEN),
    test="test_batch.bin",
    names="batches.meta.txt",
    classes=CLASSES,
    marks=(*(f"{name}.bin" for name in _TEN), "test_batch.bin"),
    labels=1,
    read_batch=_read_records,
    read_names=_read_lines,
    published=checksums.CIFAR10,
)
CIFAR10_PYTHON = Batches(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=_TEN,
    test="test_batch",
    names="batches.meta",
    classes=CLASSES,
    marks=(*_TEN, "test_batch"),
    labels="labels",
    read_batch=_read_pickle,
    read_names=_read_pickled_names,
    published=checksums.CIFAR10,
)
CIFAR100_BINARY = Batches(
    title="CIFAR-100",
    folder="cifar-100-binary",
    archive="cifar-100-binary.tar.gz",
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    classes=_HUNDRED,
    marks=("train.bin", "test.bin"),
    labels=2,
    read_batch=_read_records,
    read_names=_read_lines,
    published=checksums.CIFAR100,
)
CIFAR100_PYTHON = Batches(
    title="CIFAR-100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    train=("train",),
    test="test",
    names="meta",
    classes=_HUNDRED,
    marks=("meta",),
    labels="fine_labels",
    read_batch=_read_pickle,
    read_names=_read_pickled_names,
    published=checksums.CIFAR100,
)
