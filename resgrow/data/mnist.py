"""MNIST: finds the four IDX files, or lets torchvision fetch them."""

from __future__ import annotations

import os
from pathlib import Path

from resgrow._errors import InputError, RunError
from resgrow.data import idx
from resgrow.data.dataset import RawImages, listing

VARIABLE = "RESGROW_DATA_DIR"
# Below a data folder: the files themselves, our own subfolder, torchvision's.
SUBFOLDERS = ("", "mnist", "MNIST/raw")


def roots(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The folders a user may have named, the argument before the environment variable."""
    named = [data_dir, os.environ.get(VARIABLE)]
    return [Path(folder).expanduser() for folder in named if folder]


def _find(folders: list[Path]) -> Path | None:
    for root in folders:
        for sub in SUBFOLDERS:
            found = idx.recognise(root / sub)
            if found is not None:
                return found
    return None


def _download(folder: Path) -> None:
    try:
        from torchvision.datasets import MNIST
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch raises RuntimeError
        raise RunError(
            f"data: mnist: downloading needs torchvision (got {error}); install the torchvision that belongs "
            "to this torch, or put the four IDX files into a folder and pass --data-dir"
        ) from error
    try:
        MNIST(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise RunError(
            f"data: mnist: the download into {folder} failed ({error}); check network and folder, "
            "or put the four IDX files there yourself"
        ) from error


def read(data_dir: str | os.PathLike[str] | None, download: bool) -> RawImages:
    """The files in ``data_dir`` or ``$RESGROW_DATA_DIR`` or a ``mnist/`` folder in either.

    With ``download`` missing files are fetched into the first of these folders.
    """
    folders = roots(data_dir)
    if not folders:
        raise InputError(
            f"data: mnist: a folder must be given (got neither --data-dir nor {VARIABLE}); "
            f"name the folder that holds {idx.TRAIN_IMAGES}.gz and its three companions"
        )
    found = _find(folders)
    if found is None and download:
        _download(folders[0])
        found = _find(folders)
    if found is None:
        raise InputError(
            f"data: mnist: the four IDX files must be there (got none of {', '.join(idx.FILES)}, plain or .gz, "
            f"in {listing(folders)} or a mnist/ folder below); put them there, or add --download"
        )
    return idx.read(found)
