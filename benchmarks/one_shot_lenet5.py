"""One-shot pruning of LeNet-5 on MNIST, without retraining: damped OBD against magnitude.

"refit" corrects the surviving weights layer by layer by least squares, from 2,048 training images.

    python benchmarks/one_shot_lenet5.py --data-dir DIR [--seeds 0 1 2]

DIR holds the four MNIST files. Each seed trains LeNet-5 for three epochs with Adam (learning rate 1e-3, times 0.3 per
epoch), then removes weights by global score and prints test accuracy. Saliency sees training images only.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from _accuracy import accuracy
from torch import nn
from torch.nn import functional as F

import resgrow
from resgrow.data import Dataset, load

SPARSITIES = (0.8, 0.9, 0.95)


def train(data: Dataset, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = resgrow.nn.lenet5()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.3**epoch
        for batch in torch.randperm(len(data.train_y)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    data = load("mnist", args.data_dir)
    for seed in args.seeds:
        model = train(data, seed)
        part = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(seed))[:2048]
        batches = list(zip(data.train_x[part].split(128), data.train_y[part].split(128), strict=True))
        start = time.perf_counter()
        scores = {
            "obd": resgrow.saliency(model, nn.CrossEntropyLoss(), batches),
            "obd, refit": resgrow.saliency(model, nn.CrossEntropyLoss(), batches, refit=True),
            "magnitude": resgrow.saliency(model, method="magnitude"),
            "magnitude, refit": resgrow.saliency(model, data=batches, method="magnitude", refit=True),
        }
        seconds = time.perf_counter() - start
        print(f"seed {seed}: dense {accuracy(model, data.test_x, data.test_y):.2f} %, saliency {seconds:.1f} s")
        for name, score in scores.items():
            row = []
            for sparsity in SPARSITIES:
                pruned = copy.deepcopy(model)
                resgrow.prune(pruned, score, sparsity=sparsity)
                row.append(f"{sparsity:.0%} removed: {accuracy(pruned, data.test_x, data.test_y):.2f} %")
            print(f"  {name:16s}  " + "   ".join(row), flush=True)


if __name__ == "__main__":
    main()
