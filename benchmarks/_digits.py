"""The small residual network on scikit-learn's digits that the evidence scripts train."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resgrow
from resgrow.data import Dataset, load
from resgrow.surgery import Masks

Batch = tuple[Tensor, Tensor]
RESULTS = Path(__file__).parent / "results"


def digits() -> Dataset:
    """1,437 training and 360 test images of 8x8 pixels."""
    return load("digits")


def network(width: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return resgrow.nn.resnet(8, width, in_channels=1)


def train(
    model: nn.Module,
    data: Dataset,
    epochs: int,
    seed: int,
    rate: float = 3e-3,
    masks: Masks | None = None,
) -> nn.Module:
    """Adam with a cosine schedule to zero, batches of 64, no weight decay; the model is left in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    if masks is not None:
        masks.attach(optimizer)
    steps = epochs * -(-len(data.train_y) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_y), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
            schedule.step()
    if masks is not None:
        masks.detach()
    return model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean loss, and accuracy in percent, in eval mode."""
    output = model.eval()(x)
    return F.cross_entropy(output, y).item(), 100 * (output.argmax(1) == y).double().mean().item()


def batches(x: Tensor, y: Tensor, size: int = 256) -> list[Batch]:
    return list(zip(x.split(size), y.split(size), strict=True))


def heading(title: str, command: str) -> list[str]:
    """The lines that every results file begins with: what ran where and when."""
    return [
        f"# {title}",
        "",
        f"{today()}, {processor()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), "
        f"commit {commit()}. `{command}`",
        "",
    ]


def commit() -> str:
    """The commit of the installed package, marked where files differ from it."""
    git = ["git", "-C", str(Path(resgrow.__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def today() -> str:
    return date.today().isoformat()


def processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers."""
    header = list(header)
    lines = [f"| {' | '.join(header)} |", f"|---{'|---:' * (len(header) - 1)}|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
