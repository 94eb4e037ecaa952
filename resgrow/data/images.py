"""Image folders: ``train/<class>/*.png|jpg|jpeg`` and ``test/<class>/...``, all images of one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from resgrow._errors import InputError
from resgrow.data.dataset import RawImages

SUFFIXES = (".png", ".jpg", ".jpeg")
# Pillow's mode of a file -> the mode it is read as.
MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}


def recognise(folder: Path) -> Path | None:
    """``folder`` if it holds ``train/`` and ``test/``."""
    return folder if (folder / "train").is_dir() and (folder / "test").is_dir() else None


def _class_folders(half: Path) -> list[Path]:
    return sorted(path for path in half.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(half: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """(path, label) of every image below ``half``, in a fixed order."""
    found = []
    for folder in _class_folders(half):
        if folder.name not in classes:
            raise InputError(
                f"data: {folder}: every class must have a folder in train/ (got none named {folder.name}); "
                "add it there or remove it here"
            )
        label = classes.index(folder.name)
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        found += [(path, label) for path in images]
    if not found:
        raise InputError(
            f"data: {half}: there must be images in its class folders (got no {', '.join(SUFFIXES)}); "
            "put them in <class>/ subfolders"
        )
    return found


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            mode = MODES.get(image.mode)
            if mode is None:
                raise InputError(
                    f"data: {path}: images must have 8 bits per channel (got Pillow mode {image.mode}); "
                    "convert them to 8-bit grey or RGB"
                )
            return image.convert(mode)
    except (OSError, SyntaxError) as error:  # Pillow reports some broken PNGs as SyntaxError
        raise InputError(f"data: {path}: the image must be readable (got {error}); replace the file") from error


def _decode(files: list[tuple[Path, int]]) -> tuple[list[Image.Image], np.ndarray]:
    return [_open(path) for path, _ in files], np.array([label for _, label in files], np.int64)


def _stack(images: list[Image.Image], files: list[tuple[Path, int]], mode: str, size: tuple[int, int]) -> np.ndarray:
    """uint8 (N, C, H, W)."""
    arrays = []
    for image, (path, _) in zip(images, files, strict=True):
        if image.size != size:
            raise InputError(
                f"data: {path}: all images must have one size, that of the first, {size[0]}x{size[1]} "
                f"(got {image.size[0]}x{image.size[1]}); resize them"
            )
        pixels = np.asarray(image.convert(mode))
        arrays.append(pixels[None] if mode == "L" else pixels.transpose(2, 0, 1))
    return np.stack(arrays)


def read(folder: Path) -> RawImages:
    """Grey images become (N, 1, H, W); if a single one is coloured, all become (N, 3, H, W)."""
    classes = tuple(path.name for path in _class_folders(folder / "train"))
    train_files = _files(folder / "train", classes)
    test_files = _files(folder / "test", classes)
    train_images, train_labels = _decode(train_files)
    test_images, test_labels = _decode(test_files)
    mode = "RGB" if any(image.mode == "RGB" for image in train_images + test_images) else "L"
    size = train_images[0].size
    return RawImages(
        _stack(train_images, train_files, mode, size),
        train_labels,
        _stack(test_images, test_files, mode, size),
        test_labels,
        classes,
    )
