"""Tables of numbers with a target: CSV files, split and standardised."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resgrow._errors import InputError

DELIMITERS = ",;\t|"
TEST_SHARE = 0.2


@dataclass(frozen=True)
class RawTable:
    """A table as it was read: ``x`` float64 (N, F); ``y`` float64 (N,), or int64 (N,) where there are ``classes``."""

    x: np.ndarray
    y: np.ndarray
    features: tuple[str, ...]
    target: str
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class Table:
    """A problem of classification or regression in memory.

    ``train_x``, ``test_x``: float32 (N, F), each column standardised with mean and deviation of the *training* rows.
    ``train_y``, ``test_y``: int64 (N,) in [0, len(classes)); of a regression (``classes`` None) float32 (N, 1),
    standardised as well: ``target_mean + target_deviation * y`` is in the target's own unit.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    features: tuple[str, ...]
    target: str
    classes: tuple[str, ...] | None
    target_mean: float = 0.0
    target_deviation: float = 1.0

    def to(self, device: str | torch.device) -> Table:
        """The same with its tensors on ``device``."""
        tensors = {name: getattr(self, name).to(device) for name in ("train_x", "train_y", "test_x", "test_y")}
        return replace(self, **tensors)


def load_table(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    target: str,
    *,
    delimiter: str | None = None,
    classes: bool | None = None,
    test_share: float = TEST_SHARE,
    seed: int = 0,
) -> Table:
    """`read_csv`, then `standardise_table`; the name is that of the first file."""
    raw = read_csv(paths, target, delimiter=delimiter, classes=classes)
    first = paths if isinstance(paths, str | os.PathLike) else paths[0]
    return standardise_table(Path(first).stem, raw, test_share=test_share, seed=seed)


def read_csv(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    target: str,
    *,
    delimiter: str | None = None,
    classes: bool | None = None,
) -> RawTable:
    """CSV files (UTF-8, RFC 4180 quoting) with one header, their rows one below the other.

    Args:
        paths: one file, or several whose headers are the same.
        target: the column to predict; all others are features and must be finite numbers.
        delimiter: between cells; None takes the one of ``,``, ``;``, tab and ``|`` that splits the header most.
        classes: whether the target's values are classes, named as in the file, numbers in numerical and others in
            alphabetical order; None: where any of them is not a number.

    Raises:
        InputError: no file; a file that cannot be read or is no text; no header with the target in it; headers that
            differ; a row with more or fewer cells; a cell that is no finite number. The message has file, line and
            column.
    """
    files = [Path(path).expanduser() for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not files:
        raise InputError("data: a table must have at least one CSV file (got none); name it")
    header: list[str] | None = None
    rows: list[list[float]] = []
    targets: list[str] = []
    for path in files:
        found, lines = _parse(path, delimiter)
        if header is not None and found != header:
            raise InputError(f"data: {path}: all files must have the header of {files[0]} (got {found}, not {header})")
        header = found
        where = _target(path, header, target)
        for number, cells in lines:
            targets.append(cells.pop(where).strip())
            names = [*header[:where], *header[where + 1 :]]
            rows.append([_number(path, number, *pair) for pair in zip(names, cells, strict=True)])
    assert header is not None
    if not rows:
        raise InputError(f"data: {files[0]}: there must be rows below the header (got none); complete the file")
    features = tuple(name for name in header if name != target)
    y, named = _targets(files[0], target, targets, classes)
    return RawTable(np.array(rows, np.float64), y, features, target, named)


def standardise_table(name: str, raw: RawTable, *, test_share: float = TEST_SHARE, seed: int = 0) -> Table:
    """Splits rows at random, of classification each class by itself, and standardises columns on training rows.

    A column that is constant there is 0. The same ``seed`` gives the same split. Raises InputError where a half would
    be empty, for a target that is constant, and for fewer than two classes.
    """
    if not 0 < test_share < 1:
        raise InputError(f"data: {name}: test_share must lie between 0 and 1 (got {test_share}); 0.2 is the default")
    if raw.classes is None and raw.y.min() == raw.y.max():
        raise InputError(f"data: {name}: the target {raw.target!r} must vary (got {raw.y[0]:g} in every row)")
    if raw.classes is not None and len(raw.classes) < 2:
        raise InputError(f"data: {name}: there must be at least 2 classes in {raw.target!r} (got {raw.classes})")
    train, test = _split(raw, test_share, seed)
    if not len(train) or not len(test):
        raise InputError(
            f"data: {name}: there must be training and test rows (got {len(train)} and {len(test)}); "
            "give more rows, or another test_share"
        )
    mean, deviation = _moments(raw.x[train])

    def columns(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(((raw.x[rows] - mean) / deviation).astype(np.float32))

    parts = columns(train), columns(test)
    if raw.classes is not None:
        y = torch.from_numpy(raw.y)
        return Table(name, parts[0], y[train], parts[1], y[test], raw.features, raw.target, raw.classes)
    middle, spread = (float(value[0]) for value in _moments(raw.y[train, None]))
    y = torch.from_numpy(((raw.y[:, None] - middle) / spread).astype(np.float32))
    return Table(name, parts[0], y[train], parts[1], y[test], raw.features, raw.target, None, middle, spread)


def _parse(path: Path, delimiter: str | None) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows with their line numbers; blank lines are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"data: {path}: the file must be readable (got {error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"data: {path}: a CSV file must be UTF-8 text (got {error}); save it as that") from error
    lines = text.splitlines(keepends=True)
    if not lines:
        raise InputError(f"data: {path}: a CSV file must have a header (got an empty file)")
    if delimiter is None:
        delimiter = max(DELIMITERS, key=lambda each: len(next(csv.reader(lines[:1], delimiter=each))))
    elif len(delimiter) != 1 or delimiter in '"\r\n':
        raise InputError(f"data: {path}: delimiter must be one character (got {delimiter!r}); leave it out to find it")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    header = [cell.strip() for cell in next(reader)]
    return header, _rows(path, reader, len(header))


def _rows(path: Path, reader: Iterator[list[str]], width: int) -> Iterator[tuple[int, list[str]]]:
    try:
        for cells in reader:
            number: int = reader.line_num  # type: ignore[attr-defined]
            if cells and len(cells) != width:
                raise InputError(
                    f"data: {path}, line {number}: every row must have as many cells as the header, {width} "
                    f"(got {len(cells)}); put cells that hold the delimiter in quotes"
                )
            if cells:
                yield number, cells
    except csv.Error as error:
        raise InputError(f"data: {path}: the file must be CSV (got {error}); save it as that") from error


def _target(path: Path, header: list[str], target: str) -> int:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"data: {path}: names in the header must differ (got {twice} more than once); rename them")
    if target not in header:
        known = ", ".join(header)
        raise InputError(
            f"data: {path}: the first line must be a header with the target {target!r} in it (got {known}); give "
            "the name of one of these columns, add a header, or give the delimiter"
        )
    if len(header) < 2:
        raise InputError(f"data: {path}: there must be columns beside the target (got {header}); give the delimiter")
    return header.index(target)


def _number(path: Path, line: int, column: str, cell: str) -> float:
    value = _float(cell)
    if value is None or not math.isfinite(value):
        raise InputError(
            f"data: {path}, line {line}, column {column!r}: a feature must be a finite number with a decimal point "
            f"(got {cell.strip()!r}); fill in or leave out such rows, and code words as numbers"
        )
    return value


def _float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _targets(
    path: Path, target: str, cells: list[str], classes: bool | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Values and the classes' names, or None for a regression."""
    values = [_float(cell) for cell in cells]
    odd = next((cell for cell, value in zip(cells, values, strict=True) if value is None), None)
    if classes or (classes is None and odd is not None):
        if "" in cells:
            raise InputError(f"data: {path}: every row must have a class in {target!r} (got an empty cell); fill it in")
        names = sorted(set(cells)) if odd is not None else sorted(set(cells), key=lambda cell: (float(cell), cell))
        place = {name: i for i, name in enumerate(names)}
        return np.array([place[cell] for cell in cells], np.int64), tuple(names)
    bad = next(
        (cell for cell, value in zip(cells, values, strict=True) if value is None or not math.isfinite(value)), None
    )
    if bad is not None:
        raise InputError(
            f"data: {path}: the target {target!r} of a regression must be finite numbers (got {bad!r}); correct it, "
            "or give classes=True"
        )
    return np.array(values, np.float64), None


def _split(raw: RawTable, test_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of both halves. Of every class at least one row is for training."""
    generator = np.random.default_rng(seed)
    count = 1 if raw.classes is None else len(raw.classes)
    groups = [np.arange(len(raw.y))] if raw.classes is None else [np.flatnonzero(raw.y == i) for i in range(count)]
    train, test = [], []
    for rows in groups:
        order = rows[generator.permutation(len(rows))]
        cut = max(int(len(rows) * (1 - test_share)), 1)
        train.append(order[:cut])
        test.append(order[cut:])
    return np.concatenate(train), np.concatenate(test)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per column; a constant one keeps deviation 1, whatever rounding says."""
    varies = x.min(0) < x.max(0)
    mean = np.where(varies, x.mean(0), x[0])
    return mean, np.where(varies, x.std(0), 1.0)
