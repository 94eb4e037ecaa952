"""Data sets known by name: finds their files, or lets torchvision fetch them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resgrow._errors import InputError, RunError
from resgrow.data import cifar, idx, layouts
from resgrow.data.dataset import RawImages, listing
from resgrow.data.layouts import Layout

VARIABLE = "RESGROW_DATA_DIR"


@dataclass(frozen=True)
class Named:
    """``subfolders``: of a data folder, where the files may lie; ours, torchvision's, the data folder itself."""

    subfolders: tuple[str, ...]
    layouts: tuple[Layout, ...]
    source: str  # what to get, and from where
    torchvision: str  # the class that fetches it


def _idx(name: str, torchvision: str, subfolders: tuple[str, ...]) -> Named:
    layout = Layout(
        idx.recognise, partial(idx.read, name=name), f"the four IDX files {', '.join(idx.FILES)}, plain or .gz"
    )
    return Named((*subfolders, ""), (layout,), f"get them from {idx.PUBLISHED[name].url}", torchvision)


def _cifar(binary: cifar.Batches, two: tuple[Layout, ...], torchvision: str, subfolders: tuple[str, ...]) -> Named:
    source = f"unpack {binary.archive} from {cifar.SITE}/{binary.archive} there"
    return Named((*subfolders, ""), two, source, torchvision)


NAMED = {
    "mnist": _idx("mnist", "MNIST", ("mnist", "MNIST/raw")),
    "fashion-mnist": _idx("fashion-mnist", "FashionMNIST", ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw")),
    "cifar10": _cifar(cifar.CIFAR10_BINARY, layouts.CIFAR10, "CIFAR10", ("cifar10", "cifar-10")),
    "cifar100": _cifar(cifar.CIFAR100_BINARY, layouts.CIFAR100, "CIFAR100", ("cifar100", "cifar-100")),
}


def roots(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The folders a user may have named, the argument before the environment variable."""
    named = [data_dir, os.environ.get(VARIABLE)]
    return [Path(folder).expanduser() for folder in named if folder]


def find(
    names: Sequence[str], data_dir: str | os.PathLike[str] | None, subfolders: Sequence[str], source: str
) -> list[Path]:
    """Files by their names, all in one folder: a subfolder of ``data_dir`` or ``$RESGROW_DATA_DIR``, or these.

    ``source``: where to get them. Raises InputError naming the files that are missing where most are there.
    """
    places = [root / sub for root in roots(data_dir) for sub in (*subfolders, "")]
    missing = {place: [name for name in names if not (place / name).is_file()] for place in places}
    for place, lacking in missing.items():
        if not lacking:
            return [place / name for name in names]
    lacking = min(missing.values(), key=len, default=list(names))
    looked = listing(places) or f"neither --data-dir nor {VARIABLE}"
    raise InputError(f"data: {' and '.join(lacking)} must be there (looked in {looked}); {source}")


def _find(folders: list[Path], named: Named) -> Callable[[], RawImages] | None:
    for root in folders:
        for sub in named.subfolders:
            for layout in named.layouts:
                found = layout.recognise(root / sub)
                if found is not None:
                    return partial(layout.read, found)
    return None


def _download(name: str, folder: Path) -> None:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch raises RuntimeError
        raise RunError(
            f"data: {name}: downloading needs torchvision (got {error}); install the torchvision that belongs "
            f"to this torch, or {NAMED[name].source} and pass --data-dir"
        ) from error
    try:
        getattr(datasets, NAMED[name].torchvision)(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise RunError(
            f"data: {name}: the download into {folder} failed ({error}); check network and folder, "
            f"or {NAMED[name].source}"
        ) from error


def read(name: str, data_dir: str | os.PathLike[str] | None, download: bool) -> RawImages:
    """The files of a data set in ``NAMED``, in ``data_dir`` or ``$RESGROW_DATA_DIR`` or their usual subfolders.

    With ``download`` missing files are fetched into the first of these folders. Raises InputError where the files are
    missing or damaged, RunError for a failed download.
    """
    named, folders = NAMED[name], roots(data_dir)
    expected = " or ".join(layout.looks_like for layout in named.layouts)
    if not folders:
        raise InputError(
            f"data: {name}: a folder must be given (got neither --data-dir nor {VARIABLE}); "
            f"name the one that holds {expected}, or {named.source}"
        )
    found = _find(folders, named)
    if found is None and download:
        _download(name, folders[0])
        found = _find(folders, named)
    if found is None:
        looked = [root / sub for root in folders for sub in named.subfolders]
        raise InputError(
            f"data: {name}: {expected} must be there (got none of these in {listing(looked)}); {named.source}, or add "
            "--download"
        )
    return found()
