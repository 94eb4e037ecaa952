"""The IDX layout of MNIST and its relatives: four files, plain or gzipped.

An IDX file is: two zero bytes, a type code (0x08 for unsigned bytes), the number of dimensions,
each dimension as a big-endian 32-bit integer, then the values in row-major order
(http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resgrow._errors import InputError
from resgrow.data import checksums
from resgrow.data.dataset import RawImages, numbered_classes

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
UNSIGNED_BYTE = 0x08


@dataclass(frozen=True)
class Published:
    """A data set in this layout: ``classes`` have names, where they mean more than their numbers."""

    title: str
    url: str
    md5: checksums.Table
    classes: tuple[str, ...] = ()


PUBLISHED = {
    "mnist": Published("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/", checksums.MNIST),
    "fashion-mnist": Published(
        "Fashion-MNIST",
        "https://github.com/zalandoresearch/fashion-mnist",
        checksums.FASHION_MNIST,
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
}


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


def _path(folder: Path, stem: str, source: str) -> Path:
    path = find_file(folder, stem)
    if path is None:
        raise InputError(
            f"data: {folder}: all four IDX files must be there (got no {stem} or {stem}.gz); "
            f"add the missing file{source}"
        )
    return path


def _half(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise InputError(
            f"data: {labels_path}: there must be one label per image (got {len(labels)} labels for "
            f"{len(images)} images in {images_path.name}); the two files do not belong together"
        )
    return images[:, None], labels.astype(np.int64)


def _compare(folder: Path, paths: list[Path], name: str | None) -> tuple[str | None, bool | None]:
    """Whose files these are, as far as that can be told, and whether they are the published ones."""
    whole, some = None, False
    for each in sorted(PUBLISHED, key=lambda key: key != name):
        count = checksums.agreeing(paths, PUBLISHED[each].md5)
        some = some or count > 0
        if count == len(paths):
            whole = each
            break
    if name is None:
        return whole, True if whole else False if some else None
    if whole is not None and whole != name:
        raise InputError(
            f"data: {folder}: the files must be those of {PUBLISHED[name].title} (got {PUBLISHED[whole].title}'s, by "
            f"their MD5); give --data {whole}, or the folder that holds {PUBLISHED[name].title}"
        )
    return name, whole == name


def read(folder: Path, name: str | None = None) -> RawImages:
    """The four files of ``folder``: images (N, 1, H, W).

    ``name``: the key of ``PUBLISHED`` that they should be; None for whatever they are. Fashion-MNIST's classes have
    their names, others are named by their number. Raises InputError naming the file that is missing or damaged, and
    where the files are another published data set than ``name``.
    """
    source = f" from {PUBLISHED[name].url}" if name else ""
    paths = [_path(folder, stem, source) for stem in FILES]
    train_images, train_labels = _half(*paths[:2])
    test_images, test_labels = _half(*paths[2:])
    whose, verified = _compare(folder, paths, name)
    classes = numbered_classes(train_labels, test_labels)
    known = PUBLISHED[whose].classes if whose else ()
    if len(classes) <= len(known):
        classes = known
    return RawImages(train_images, train_labels, test_images, test_labels, classes, verified)
