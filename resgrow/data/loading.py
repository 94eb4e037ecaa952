"""Name or folder -> data set."""

from __future__ import annotations

import os
from pathlib import Path

from resgrow._errors import InputError
from resgrow.data import digits, named
from resgrow.data.dataset import Dataset, RawImages, standardise
from resgrow.data.layouts import LAYOUTS

NAMES = ("digits", *named.NAMED)


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
    """Images in memory, standardised per channel.

    ``name_or_dir``: "digits" (built in); "mnist", "fashion-mnist", "cifar10" or "cifar100", whose files are in
    ``data_dir`` or ``$RESGROW_DATA_DIR`` or in a subfolder there with a usual name; or a folder: four IDX files, the
    binary or python batches of CIFAR-10 or CIFAR-100, or images in ``train/<class>/`` and ``test/<class>/``.
    ``download``: let torchvision fetch the files of a known name if they are missing.
    Whether they are the files that were published is told by ``Dataset.verified``. Nothing that a pickled batch names
    is run (`plain_pickle.read_plain`).
    Raises InputError for unknown names and missing or damaged files, RunError for a failed download.
    """
    if name_or_dir == "digits":
        return standardise("digits", digits.read())
    if isinstance(name_or_dir, str) and name_or_dir in named.NAMED:
        return standardise(name_or_dir, named.read(name_or_dir, data_dir, download))
    folder = Path(name_or_dir).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"data: --data must be {', '.join(NAMES)} or an existing folder (got {str(name_or_dir)!r}); "
            "check the spelling"
        )
    return standardise(folder.resolve().name, _read_folder(folder))
