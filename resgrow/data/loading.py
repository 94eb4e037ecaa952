"""Name or folder -> data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resgrow._errors import InputError
from resgrow.data import cifar, digits, idx, images, mnist
from resgrow.data.dataset import Dataset, RawImages, standardise


@dataclass(frozen=True)
class Layout:
    """One way in which a folder can hold a data set."""

    name: str
    recognise: Callable[[Path], Path | None]  # the folder to read from, or None
    read: Callable[[Path], RawImages]
    looks_like: str


# Tried in this order; the first that recognises the folder reads it.
LAYOUTS = (
    Layout("idx", idx.recognise, idx.read, f"{idx.TRAIN_IMAGES}[.gz] and three more"),
    Layout("cifar-10-batches-bin", cifar.recognise, cifar.read, f"{cifar.FOLDER}/{cifar.TRAIN_FILES[0]}"),
    Layout("images", images.recognise, images.read, "train/<class>/*.png and test/<class>/*.png"),
)
NAMES = ("digits", "mnist")


def _read_folder(folder: Path) -> RawImages:
    for layout in LAYOUTS:
        found = layout.recognise(folder)
        if found is not None:
            return layout.read(found)
    known = "; ".join(layout.looks_like for layout in LAYOUTS)
    raise InputError(f"data: {folder}: its content must be a known layout (known are: {known}); check the path")


def load(
    name_or_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Dataset:
    """A data set in memory, standardised per channel.

    ``name_or_dir``: "digits" (built in), "mnist" (files in ``data_dir`` or ``$RESGROW_DATA_DIR``), or a
    folder in one of ``LAYOUTS``. ``download``: let torchvision fetch MNIST if its files are missing.
    Raises InputError for unknown names and missing or damaged files, RunError for a failed download.
    """
    if name_or_dir == "digits":
        return standardise("digits", digits.read())
    if name_or_dir == "mnist":
        return standardise("mnist", mnist.read(data_dir, download))
    folder = Path(name_or_dir).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"data: --data must be {' or '.join(NAMES)} or an existing folder (got {str(name_or_dir)!r}); "
            "check the spelling"
        )
    return standardise(folder.resolve().name, _read_folder(folder))
