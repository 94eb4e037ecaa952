"""The binary layout of CIFAR-10: a folder ``cifar-10-batches-bin``.

Each record is one label byte and 3,072 pixel bytes (red, green, blue planes of 32x32, row-major;
https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resgrow._errors import InputError
from resgrow.data.dataset import RawImages

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
CLASSES_FILE = "batches.meta.txt"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32


def recognise(folder: Path) -> Path | None:
    """The folder with the batches: ``folder`` itself or its subfolder of the standard name."""
    for candidate in (folder, folder / FOLDER):
        if any((candidate / name).is_file() for name in (*TRAIN_FILES, TEST_FILE)):
            return candidate
    return None


def _records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(
            f"data: {path.parent}: all CIFAR-10 batches must be readable (got {error.strerror or error} for "
            f"{path.name}); unpack the archive cifar-10-binary.tar.gz again"
        ) from error
    if data.size == 0 or data.size % RECORD:
        raise InputError(
            f"data: {path}: its length must be a multiple of {RECORD} bytes, one label and one image each "
            f"(got {data.size}); the file is damaged, unpack the archive again"
        )
    rows = data.reshape(-1, RECORD)
    labels = rows[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        raise InputError(
            f"data: {path}: labels must lie in [0, 10) (got {labels.max()}); this is no CIFAR-10 batch "
            "(CIFAR-100 has two label bytes per record)"
        )
    return rows[:, 1:].reshape(-1, *SHAPE), labels


def _class_names(folder: Path) -> tuple[str, ...]:
    path = folder / CLASSES_FILE
    if not path.is_file():
        return CLASSES
    names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    return names if len(names) == len(CLASSES) else CLASSES


def read(folder: Path) -> RawImages:
    """The five training batches and the test batch: images (N, 3, 32, 32)."""
    parts = [_records(folder / name) for name in TRAIN_FILES]
    test_images, test_labels = _records(folder / TEST_FILE)
    train_images = np.concatenate([images for images, _ in parts])
    train_labels = np.concatenate([labels for _, labels in parts])
    return RawImages(train_images, train_labels, test_images, test_labels, _class_names(folder))
