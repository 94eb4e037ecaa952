"""Parts of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from resgrow.data import Dataset


def with_classes(data: Dataset, classes: Sequence[int], images: int | None = None) -> Dataset:
    """Images of these classes alone, which are 0, 1, ... from then on.

    ``images``: so many of the training images, the first ones, as evenly over the classes as can be; all by default.
    Every class must have enough of them.
    """
    chosen = torch.tensor(list(classes))
    train, test = (torch.isin(labels, chosen) for labels in (data.train_y, data.test_y))
    if images is not None:
        train = _first(data, chosen, images)
    number = torch.zeros(len(data.classes), dtype=torch.long)
    number[chosen] = torch.arange(len(chosen))
    return replace(
        data,
        train_x=data.train_x[train],
        train_y=number[data.train_y[train]],
        test_x=data.test_x[test],
        test_y=number[data.test_y[test]],
        classes=tuple(data.classes[i] for i in classes),
    )


def first_images(data: Dataset, images: int | None, tested: int = 1_000) -> Dataset:
    """So many training images, evenly over the classes, and the first test images; the whole for None."""
    if images is None:
        return data
    part = with_classes(data, range(len(data.classes)), min(images, len(data.train_y)))
    return replace(part, test_x=part.test_x[:tested], test_y=part.test_y[:tested])


def _first(data: Dataset, classes: torch.Tensor, images: int) -> torch.Tensor:
    shares = [images * (i + 1) // len(classes) - images * i // len(classes) for i in range(len(classes))]
    places = []
    for label, share in zip(classes.tolist(), shares, strict=True):
        found = (data.train_y == label).nonzero().flatten()[:share]
        if len(found) < share:
            raise ValueError(f"with_classes: class {label} must have {share} training images (got {len(found)})")
        places.append(found)
    return torch.cat(places).sort().values
