"""Every family on a GPU against what torch has, with the ceilings of the device measured in the same run.

    python benchmarks/gpu_bench.py --out DIR [--only SECTION ...] [--seconds S] [--device cpu]

Results are compared with a reference before anything is timed. Times are medians over interleaved rounds, by CUDA
events around replayed graphs where the calls can be captured, over buffers that together are four times the
second-level cache; ratios are medians of the rounds' ratios. Each section runs in a process of its own and ends with
its share of the time, so that neither an endless nor a crashed one costs the others: what it has measured is kept.

Writes DIR/SECTION.json and DIR/gpu_bench.md, whose first table has every target beside what was measured. Exit code 1
where a case is wrong or a section breaks. With ``--device cpu`` every line runs once, on sizes of no interest.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

import torch
from _gpu_block_sparse import block_sparse
from _gpu_curvature import curvature, squared_grad
from _gpu_models import models
from _gpu_pointwise import ceilings, select, tristate_relu
from _gpu_report import Bench, Row, Section, markdown

from resgrow._files import write_atomic

# name: (its cases, share of the time)
SECTIONS = {
    "ceilings": (ceilings, 0.05),
    "tristate_relu": (tristate_relu, 0.17),
    "select": (select, 0.13),
    "squared_grad": (squared_grad, 0.15),
    "curvature": (curvature, 0.13),
    "block_sparse": (block_sparse, 0.27),
    "models": (models, 0.10),
}
STARTING = 6.0  # seconds of a section's share that its process takes to begin
GRACE = 1.5  # times its share, and then a section is stopped from outside


def run_section(name: str, bench: Bench, folder: Path, seconds: float) -> Section:
    """Case after case until the time is over; a case that fails is a row that says so."""
    start = perf_counter()
    section = Section(name, ended="under way")
    for case, rows in SECTIONS[name][0](bench):
        if perf_counter() - start > seconds:
            section.ended = "out of time"
            break
        try:
            for row in rows():
                section.rows.append(row)
        except Exception as error:
            section.rows.append(Row(case, error=" ".join(f"{type(error).__name__}: {error}".split())[:300]))
        section.seconds = perf_counter() - start
        section.write(folder)
    else:
        section.ended = "complete"
    section.write(folder)
    return section


def share_of(name: str, later: list[str], left: float) -> float:
    """Seconds for a section when these come after it: what one leaves, the others get."""
    weights = {each: SECTIONS[each][1] for each in (name, *later)}
    return max(1.0, left * weights[name] / sum(weights.values()) - STARTING)


def run_apart(name: str, arguments: argparse.Namespace, share: float) -> Section:
    """The section in a process of its own: an error of a kernel makes CUDA unusable for the rest of a process."""
    path = arguments.out / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--section", name, "--out", str(arguments.out)]
    command += ["--seconds", str(share), "--device", arguments.device]
    try:
        code = subprocess.run(command, check=False, timeout=GRACE * share + 15).returncode
        ended = f"ended with exit code {code}"
    except subprocess.TimeoutExpired:
        ended = "stopped: one case took too long"
    section = Section.read(path) if path.exists() else Section(name)
    if section.ended == "under way" or not path.exists():
        section.ended = ended
        section.write(arguments.out)
    return section


def title(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, every line once"
    driver = _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    commit = _first_line(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"])
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else "-"
    date = datetime.now(timezone.utc).date()
    return f"{name}, {date}: torch {torch.__version__}, cuDNN {cudnn}, driver {driver}, commit {commit}"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmarks of every family on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("gpu-bench"), help="folder for the results")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=220, help="of all sections together (default: 220)")
    parser.add_argument("--device", default="cuda", help="cpu: every line once, on tiny sizes")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(given: list[str] | None = None) -> int:
    arguments = parsed(given)
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if arguments.section:
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True  # the dense contestants choose their fastest algorithms
        gc.freeze()  # a capture may collect garbage: not among all that was imported
        bench = Bench(device, tiny=device.type != "cuda")
        section = run_section(arguments.section, bench, arguments.out, arguments.seconds)
        return int(any(row.error for row in section.rows))
    sections: list[Section] = []
    end = perf_counter() + arguments.seconds
    for i, name in enumerate(arguments.only):
        share = share_of(name, arguments.only[i + 1 :], end - perf_counter())
        sections.append(run_apart(name, arguments, share))
        write_atomic(arguments.out / "gpu_bench.md", markdown(title(device), sections))
        print(f"{name}: {sections[-1].ended}, {len(sections[-1].rows)} rows", flush=True)
    print((arguments.out / "gpu_bench.md").read_text(encoding="utf-8"))
    broken = [s for s in sections if s.ended not in ("complete", "out of time") or any(r.error for r in s.rows)]
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
