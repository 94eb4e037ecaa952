"""Small data sets on disk, in the layouts that the loaders read."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path: Path, array: np.ndarray) -> None:
    data = idx_bytes(array)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def make_mnist(folder: Path, suffix: str = ".gz", train: int = 20, test: int = 10, size: int = 28) -> Path:
    """Four IDX files; label i of image i is i % 10 and is painted into its pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = np.broadcast_to(labels[:, None, None] * 20, (count, size, size)).copy()
        images[:, 0, 0] = 255
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels)
    return folder


def make_cifar(folder: Path, per_batch: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        labels = (np.arange(per_batch) % 10).astype(np.uint8)
        pixels = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        pixels[:, 0] = labels  # first red pixel says the label
        np.concatenate([labels[:, None], pixels], axis=1).tofile(folder / name)
    return folder


def make_images(folder: Path, mode: str = "RGB", size: tuple[int, int] = (10, 8)) -> Path:
    for half in ("train", "test"):
        for value, name in ((40, "cat"), (200, "dog")):
            (folder / half / name).mkdir(parents=True, exist_ok=True)
            for i in range(3):
                Image.new(mode, size, color=value + i if mode == "L" else (value, i, 0)).save(
                    folder / half / name / f"{i}.png"
                )
    return folder
