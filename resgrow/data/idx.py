"""The IDX layout of MNIST and its relatives: four files, plain or gzipped.

An IDX file is: two zero bytes, a type code (0x08 for unsigned bytes), the number of dimensions,
each dimension as a big-endian 32-bit integer, then the values in row-major order
(http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from resgrow._errors import InputError
from resgrow.data.dataset import RawImages, numbered_classes

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
UNSIGNED_BYTE = 0x08


def find_file(folder: Path, stem: str) -> Path | None:
    """``stem`` or ``stem.gz`` in ``folder``, whichever is there; the plain one first."""
    for name in (stem, f"{stem}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def recognise(folder: Path) -> Path | None:
    """``folder`` if at least one of the four files lies in it (a missing one is then an error)."""
    return folder if any(find_file(folder, stem) for stem in FILES) else None


def _bytes(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return file.read()
        return path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"data: {path}: the gzip stream must be whole (got {error}); "
            "the file is damaged or cut short, fetch it again"
        ) from error
    except OSError as error:
        raise InputError(
            f"data: {path}: the file must be readable (got {error.strerror or error}); "
            "check its permissions and the disk"
        ) from error


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in an IDX file (``.gz`` is unpacked), checked against its own header.

    Raises InputError, naming the file, for a damaged gzip stream, a wrong magic number, another
    number of dimensions than ``dimensions``, an empty dimension and a length that does not fit.
    """
    data = _bytes(path)
    header = 4 + 4 * dimensions
    if len(data) < header:
        raise InputError(
            f"data: {path}: an IDX file with {dimensions} dimensions has a header of {header} bytes "
            f"(got {len(data)} bytes in all); the file is cut short, fetch it again"
        )
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if data[:4] != magic:
        raise InputError(
            f"data: {path}: the magic number must be 0x{magic.hex()} (unsigned bytes, {dimensions} dimensions; "
            f"got 0x{data[:4].hex()}); this is another kind of file, check its name"
        )
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    if min(shape) == 0:
        raise InputError(f"data: {path}: every dimension must be at least 1 (got {shape}); fetch it again")
    if len(data) - header != math.prod(shape):
        raise InputError(
            f"data: {path}: its header promises {math.prod(shape)} values for shape {shape} "
            f"(got {len(data) - header}); the file is cut short or padded, fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _half(folder: Path, images_stem: str, labels_stem: str) -> tuple[np.ndarray, np.ndarray]:
    paths = []
    for stem in (images_stem, labels_stem):
        path = find_file(folder, stem)
        if path is None:
            raise InputError(
                f"data: {folder}: all four IDX files must be there (got no {stem} or {stem}.gz); add the missing file"
            )
        paths.append(path)
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise InputError(
            f"data: {paths[1]}: there must be one label per image (got {len(labels)} labels for "
            f"{len(images)} images in {paths[0].name}); the two files do not belong together"
        )
    return images[:, None], labels.astype(np.int64)


def read(folder: Path) -> RawImages:
    """The four files of ``folder``: images (N, 1, H, W), classes named by their number."""
    train_images, train_labels = _half(folder, TRAIN_IMAGES, TRAIN_LABELS)
    test_images, test_labels = _half(folder, TEST_IMAGES, TEST_LABELS)
    classes = numbered_classes(train_labels, test_labels)
    return RawImages(train_images, train_labels, test_images, test_labels, classes)
