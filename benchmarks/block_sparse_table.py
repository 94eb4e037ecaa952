"""All cases of bench_block_sparse.py in one process, as a table of results with machine, peak and targets.

    python benchmarks/block_sparse_table.py [--threads N ...] [--blocks BO,BI ...] [--densities D ...] [--only TEXT]

Every case is verified, then interleaved with torch's dense layer, a copy and the machine's peak; see ``figures`` in
_block_sparse_cases.py. Rows are printed as they come; the file is written when all are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from _block_sparse_cases import (
    BLOCKS,
    BREAK_EVEN,
    CONVOLUTIONS,
    DENSITIES,
    FLOOR,
    LINEARS,
    TARGETS,
    TURN,
    Block,
    Convolution,
    Linear,
    figures,
    verdict,
)
from _digits import RESULTS, heading, table, today
from _peak import peak

from resgrow._load import _C

Row = dict[str, str]
# Titles of the columns that hold parts, and their figures.
PARTS = {"of peak": "peak", "dense of peak": "dense_peak", "products": "products", "copy": "floor"}
READING = f"""\
Ratios are medians over rounds in which every contestant has its turn: one call, or as many as {1e3 * TURN:g} ms take
(these are warm; between other layers of a network short calls cost more). `ratio` is torch's time over ours, `share`
that times the density. Targets of `share`: {", ".join(f"{name} {target}" for name, target in TARGETS.items())}, or a
forward product at {FLOOR:.0%} of the memory floor; from density {BREAK_EVEN} on, a ratio of 1. `of peak` is how much
of the machine's peak of multiply-adds the present weights reach, `dense of peak` what torch's layer reaches; products
with padding count, which torch leaves out (18 % of them at 7x7), so that it may be above 100 %. Where our time goes:
`products` is the part that these multiply-adds take with operands as the kernels read them, a vector of weights times
single pixels from the first-level cache; `copy` is the memory floor, reading the input and writing the output once;
`rest` is what both leave: packing the input, ragged tiles, reading weights from further away, dealing out work, the
call itself. The two may overlap, so that `rest` is a lower bound."""


def cases(only: str) -> Iterator[tuple[str, str, type[Convolution] | type[Linear], tuple[int, ...]]]:
    """Product, name, kind and shape of every layer whose product or name holds ``only``."""
    for product in TARGETS:
        kind, layers = (Linear, LINEARS) if product == "linear" else (Convolution, CONVOLUTIONS)
        for name, shape in layers.items():
            if only in f"{product} {name}":
                yield product, name, kind, shape


def row(product: str, name: str, block: Block, wanted: float, found: dict[str, float]) -> Row:
    cells = {
        product: name,
        "block": f"{block[0]}x{block[1]}",
        "density": f"{found['density']:.2f}",
        "ratio": f"{found['ratio']:.2f}",
        "share": f"{found['share']:.2f}",
    }
    cells |= {title: f"{found[key]:.0%}" for title, key in PARTS.items() if key in found}
    if "products" in found:
        cells["rest"] = f"{max(0.0, 1 - found['products'] - found['floor']):.0%}"
    return cells | {"target": verdict(product, wanted, found)}


def measure(args: argparse.Namespace, threads: int) -> list[str]:
    """The section of one number of threads."""
    torch.set_num_threads(threads)
    machine, rows, peaks = peak(threads), {}, []
    for product, name, kind, shape in cases(args.only):
        for block in args.blocks:
            for density in args.densities:
                torch.manual_seed(0)
                case = kind(shape, block, density)
                case.verify()
                found = figures(case, product, machine)
                peaks.append(found.get("peak_gflops", 0.0))
                rows.setdefault(product, []).append(row(product, name, block, density, found))
                print(threads, *rows[product][-1].values(), sep=" | ", flush=True)
    lines = [f"## {threads} thread{'s' * (threads > 1)}", ""]
    if machine is not None and peaks:
        lines += [f"Peak: {max(peaks):.0f} GFLOP/s ({_C.cpu_isa()}, the best case's median).", ""]
    for product, found_rows in rows.items():
        met = sum(r["target"] != "missed" for r in found_rows)
        lines += [f"{product}: {met} of {len(found_rows)} cases meet their target.", ""]
        lines += [*table(found_rows[0], (r.values() for r in found_rows)), ""]
    return lines


def parse() -> argparse.Namespace:
    def block(text: str) -> Block:
        outputs, inputs = map(int, text.split(","))
        return outputs, inputs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--blocks", type=block, nargs="+", default=BLOCKS, metavar="BO,BI")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--only", default="", metavar="TEXT", help='such as "forward", "1x1" or "batch 1"')
    parser.add_argument("--out", type=Path, default=RESULTS / f"{today()}-cpu-block-sparse.md")
    return parser.parse_args()


def main() -> None:
    args = parse()
    sections = [line for threads in args.threads for line in measure(args, threads)]
    command = " ".join(["python benchmarks/block_sparse_table.py", *sys.argv[1:]])
    lines = [*heading("Block-sparse products on a CPU", command), *READING.splitlines(), "", *sections]
    args.out.write_text("\n".join(lines).rstrip() + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
