"""Command line: ``resgrow info``, ``fit``, ``saliency``, ``count``, ``bench``, ``report``, ``experiment``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resgrow._errors import ExpectedError, InputError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

FIT_EXAMPLES = """examples:
  resgrow fit
      scikit-learn's digits, resnet8, a tenth of the parameters: about a minute
  resgrow fit --data mnist --data-dir ~/data --model lenet5 --budget params=0.02
      MNIST from its four IDX files, two percent of the parameters
  resgrow fit --data cifar10 --data-dir ~/data --model resnet20 --budget params=0.3,macs=0.4
      CIFAR-10 from its binary or python batches, channels, both budgets at once
  resgrow fit --data ~/photos --model resnet8 --width 2 --budget params=20000
      own images in train/<class>/ and test/<class>/, at most 20,000 parameters
"""
SALIENCY_EXAMPLES = """examples:
  resgrow saliency runs/digits-resnet8-20260101-120000 --data digits
      damped Optimal Brain Damage of a network that resgrow fit made: a table by layer, and saliency.safetensors
  resgrow saliency my-model --data mnist --data-dir ~/data --block 16x1 --damping 1 --curvature ggn
      one exact pass, with a second table by blocks of 16 output channels
  resgrow saliency my-model --data ~/photos --method obs --hessian layer --limit 500 --out scores.safetensors
      own images in train/<class>/ and test/<class>/, 500 of them
"""
COUNT_EXAMPLES = """examples:
  resgrow count resnet20
      each layer's width, parameters, multiply-accumulates and memory, and their sums
  resgrow count torchvision:vit_b_16 --batch 8 --latency
      with milliseconds, of each layer and of a forward pass
  resgrow count runs/mnist-lenet5-20260101-120000 --against lenet5 --out sizes
      before and after; profile.csv, profile.json and a drawing of the widths, widths.png, in sizes
"""
BENCH_EXAMPLES = """examples:
  resgrow bench resnet20
      half, a quarter and a tenth of the blocks left, chosen at random: each layer, the whole model, memory, break-even
  resgrow bench torchvision:resnet18 --density .2 --block 16x1,16x16 --batch 1 --threads 1 --out rn18
      inference on one image, two block sizes; plots and bench.json in rn18
  resgrow bench torchvision:resnet18 --density .2 --train --repeats 3
      a training step: forward, backward, SGD with momentum
  resgrow bench runs/mnist-lenet5-20260101-120000 --input 1x28x28
      a network that resgrow fit made; one with zeros is measured as it is
  resgrow bench mypackage.models:build --input 784 --density .5,.1
      what a function of yours returns
"""
REPORT_EXAMPLES = """examples:
  resgrow report runs/digits-resnet8-20260101-120000
      report.html and report.png in the folder, of a run that is at work or was killed, too
  resgrow report moves.jsonl --out figures
      what resgrow.controller.logs.JsonLines("moves.jsonl") wrote: moves.html and moves.png in figures
"""
EXPERIMENT_EXAMPLES = """examples:
  resgrow experiment --list
      what can be run, what it asks, and whether its results are there
  resgrow experiment saliency-truth ripple --quick
      a rough answer of each in minutes, in results/quick/NAME
  resgrow experiment architecture-learning --data-dir ~/data --only depth "table/dense" --seeds 1
      some of its parts, seed 0; run again, it goes on where it was stopped
  resgrow experiment --book docs/results.md
      one page of all results that are there
"""
INFO_EXAMPLES = """example:
  resgrow info
      what to copy into a bug report
"""

MODEL_HELP = (
    "resnet8, resnet20, resnet56, lenet5, torchvision:NAME, package.module:function, or a folder written by "
    "resgrow.save or resgrow fit"
)

DATA_HELP = (
    "digits, mnist, fashion-mnist, cifar10, cifar100, or a folder: four IDX files, binary or python CIFAR batches, or "
    "images in train/<class>/ and test/<class>/"
)
DATA_DIR_HELP = "where the files of a known name are, or their usual subfolder (default: $RESGROW_DATA_DIR)"


def _info(arguments: argparse.Namespace) -> int:
    from resgrow.info import report

    rows = report()
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _fit(arguments: argparse.Namespace) -> int:
    # Imported here: --help and info need not wait for all of it.
    from rich.console import Console

    from resgrow.experiments.config import make_config
    from resgrow.experiments.fit import fit
    from resgrow.experiments.interrupts import Interrupted
    from resgrow.experiments.run_folder import default_folder

    config = make_config(
        arguments.data,
        arguments.model,
        arguments.budget,
        method=arguments.method,
        gates=arguments.gates,
        width=arguments.width,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        optimizer=arguments.optimizer,
        lr=arguments.lr,
        unit=arguments.unit,
        grow=arguments.grow,
        seed=arguments.seed,
        data_dir=arguments.data_dir,
        download=arguments.download,
        device=arguments.device,
    )
    _set_threads("fit", arguments.threads)
    out = Path(arguments.out) if arguments.out else default_folder(config.data, config.model)
    try:
        fit(config, out, Console())
    except Interrupted as signal:
        print(f"resgrow: interrupted by {signal}", file=sys.stderr)
        return signal.exit_code
    return 0


def _saliency(arguments: argparse.Namespace) -> int:
    from resgrow.experiments.saliency_command import make_config, run

    config = make_config(
        arguments.model,
        arguments.data,
        out=arguments.out,
        block=arguments.block,
        damping=arguments.damping,
        options={name: getattr(arguments, name) for name in ("curvature", "samples", "temperature", "hessian")},
        method=arguments.method,
        data_dir=arguments.data_dir,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        seed=arguments.seed,
    )
    _set_threads("saliency", arguments.threads)
    run(config, _console())
    return 0


def _count(arguments: argparse.Namespace) -> int:
    from resgrow.experiments.count_command import make_config, run

    config = make_config(
        arguments.model,
        against=arguments.against,
        input_shape=arguments.input,
        out=arguments.out,
        **{name: getattr(arguments, name) for name in ("batch", "latency", "device")},
    )
    _set_threads("count", arguments.threads)
    run(config, _console())
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from resgrow.experiments.bench_command import make_config, run

    config = make_config(
        arguments.model,
        block=arguments.block,
        density=arguments.density,
        input_shape=arguments.input,
        out=arguments.out,
        **{
            name: getattr(arguments, name)
            for name in ("batch", "method", "train", "fuse", "repeats", "remeasure", "seed", "device")
        },
    )
    _set_threads("bench", arguments.threads)
    run(config, _console())
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from resgrow.experiments.report_command import run

    run(Path(arguments.run_path), Path(arguments.out) if arguments.out else None, _console())
    return 0


def _experiment(arguments: argparse.Namespace) -> int:
    from resgrow.experiments.frame import running
    from resgrow.experiments.frame.book import write_book
    from resgrow.experiments.interrupts import Interrupted

    given = {name: getattr(arguments, name) for name in ("seeds", "epochs", "data_dir", "quick", "report")}
    order = running.Order(tuple(arguments.names), Path(arguments.out), only=tuple(arguments.only), **given)
    _set_threads("experiment", arguments.threads)
    if arguments.list or not (arguments.names or arguments.book):
        running.show(order, _console())
    try:
        lacking = running.run(order, _console()) if arguments.names else []
    except Interrupted as signal:
        print(f"resgrow: interrupted by {signal}; the same command goes on from here", file=sys.stderr)
        return signal.exit_code
    if arguments.book:
        write_book(order.folder, Path(arguments.book))
    if lacking:
        raise InputError("; ".join(lacking))
    return 0


def _console() -> Any:
    from rich.console import Console

    console = Console()
    # Tables in pipes and files need not fit a terminal.
    return console if console.is_terminal else Console(width=160)


def _set_threads(command: str, threads: int | None) -> None:
    import torch

    if threads is None:
        return
    if threads < 1:
        raise InputError(f"{command}: --threads must be at least 1 (got {threads}); leave it out for all")
    torch.set_num_threads(threads)


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, instruction sets, CUDA kernels and devices, threads",
        description="Prints what this installation consists of.",
        epilog=INFO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_info)


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "fit",
        help="train a baseline and a network that finds its own size, and compare them",
        description="Trains an ordinary network and a self-sizing twin alike, makes the twin physically smaller, "
        "measures both, and writes a run folder with a report.",
        epilog=FIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="digits", metavar="NAME|DIR", help=f"{DATA_HELP} (default: digits)")
    add("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    add("--download", action="store_true", help="fetch a data set of a known name with torchvision if it is missing")
    add("--model", metavar="NAME", help="resnet8, resnet20, resnet56 or lenet5 (default: by data set)")
    add("--width", type=float, default=1.0, help="factor on a resnet's channels (default: 1.0)")
    add(
        "--budget",
        metavar="params=X[,macs=Y]",
        help="what may be left of params, macs, latency_ms or loss: such as 10%%, or absolute; for params and macs "
        "numbers up to 1 are fractions (default: params=0.1)",
    )
    add(
        "--method",
        default="controller",
        metavar="controller|tristate",
        help="a controller that moves towards the budget, or gates that learn with the weights (default: controller)",
    )
    add("--gates", type=float, metavar="X", help="weight of the gates' penalty, for tristate (default: 0.001)")
    add(
        "--unit",
        metavar="channel|weight|residual",
        help="the smallest thing removed and added, or several with + (default: by model)",
    )
    add(
        "--grow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether parts that are worth more than others come for them",
    )
    add("--epochs", type=int, metavar="N", help="of each network (default: by data set and model)")
    add("--batch-size", type=int, metavar="N", help="images per step (default: by data set and model)")
    add("--optimizer", metavar="adam|adamw|sgd", help="for both networks (default: by data set and model)")
    add("--lr", type=float, metavar="X", help="first learning rate; falls to 0 by a cosine (default: by optimizer)")
    add("--seed", type=int, default=0, help="of weights and batch order (default: 0)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--out", metavar="DIR", help="run folder (default: runs/<data>-<model>-<time>)")
    parser.set_defaults(run=_fit)


def _add_saliency(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "saliency",
        help="score every parameter of a stored model, by layer and as a file",
        description="Scores every parameter of a stored model on training images, prints what each layer is worth, and "
        "writes the scores as safetensors.",
        epilog=SALIENCY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder written by resgrow.save, or run folder of resgrow fit")
    add("--data", required=True, metavar="NAME|DIR", help=DATA_HELP)
    add("--data-dir", metavar="DIR", help=DATA_DIR_HELP)
    add(
        "--method",
        default="obd",
        metavar="NAME",
        help="obd, magnitude, taylor, fisher, obs, wanda, apoz or random (default: obd)",
    )
    add("--curvature", metavar="NAME", help="for obd: hessian, ggn, ggn-mc, fisher, lecun or hutchinson")
    add("--damping", metavar="auto|X", help="for obd and obs: multiple of the mean curvature (default: by method)")
    add("--samples", type=int, metavar="N", help="random vectors per image or batch, where curvature is drawn")
    add("--temperature", type=float, metavar="T", help="of the softmax whose curvature is taken (default: 1)")
    add("--hessian", metavar="NAME", help="for obs: fisher, ggn-mc or layer (default: fisher)")
    add("--limit", type=int, default=2048, metavar="N", help="training images used, drawn at random (default: 2048)")
    add("--batch-size", type=int, default=128, metavar="N", help="images per pass (default: 128)")
    add("--block", default="none", metavar="RxC|channel|none", help="units of a second table (default: none)")
    add("--seed", type=int, default=0, help="of the choice of images and of random vectors (default: 0)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--out", metavar="FILE", help="where the scores go (default: MODEL/saliency.safetensors)")
    parser.set_defaults(run=_saliency)


def _add_count(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "count",
        help="parameters, multiply-accumulates, memory and time of a model, layer by layer",
        description="Counts what each layer of a model costs for a batch of inputs, zeros apart where weights have "
        "some, and compares it with another model where one is given.",
        epilog=COUNT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add("--against", metavar="MODEL", help="the model to compare with: as it was before")
    add("--batch", type=int, default=1, metavar="N", help="inputs at once (default: 1)")
    add("--input", metavar="CxHxW", help="shape of an input (default: by model, where that is known)")
    add("--latency", action="store_true", help="measure times too")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--out", metavar="DIR", help="folder for profile.csv, profile.json and widths.png (default: none)")
    parser.set_defaults(run=_count)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="dense against block-sparse: each layer and the whole model, time and memory",
        description="Removes blocks of a dense model's weights (a sparse model is taken as it is), puts block-sparse "
        "layers in where they are measured faster, and times the two against each other on this machine.",
        epilog=BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add(
        "--block",
        action="append",
        metavar="RxC,...",
        help="block sizes (default: 16x1; of a sparse model: the fastest)",
    )
    add("--density", metavar="D,...", help="shares of the weights that stay (default: .5,.25,.1)")
    add("--method", default="random", metavar="NAME", help="which go: random or magnitude (default: random)")
    add("--batch", type=int, default=32, metavar="N", help="inputs at once (default: 32)")
    add("--input", metavar="CxHxW", help="shape of an input (default: by model, where that is known)")
    add("--train", action="store_true", help="a training step with SGD and momentum instead of inference")
    add(
        "--fuse",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="for inference, also with norms, additions and activations fused, against dense with norms folded",
    )
    add("--repeats", type=int, default=10, metavar="N", help="rounds whose median is taken (default: 10)")
    add("--remeasure", action="store_true", help="measure each layer anew, whatever was measured earlier")
    add("--seed", type=int, default=0, help="of weights, inputs and random choice (default: 0)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    add("--out", metavar="DIR", help="folder for bench.json, speedup.png and layers.png (default: none)")
    parser.set_defaults(run=_bench)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="draw a run, or a controller's log, at any time",
        description="Draws size, widths, depth, loss against size, and predicted against actual change of the loss, as "
        "one page and one picture.",
        epilog=REPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_path", metavar="RUN", help="run folder of resgrow fit, or a controller's file of JSON lines")
    add("--out", metavar="DIR", help="folder for page and picture (default: that of RUN)")
    parser.set_defaults(run=_report)


def _add_experiment(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "experiment",
        help="run an experiment of the documentation, or all of them, and tell its answer",
        description="Runs what is missing of experiments, and writes tables (Markdown, CSV, JSON) and a figure to "
        "DIR/NAME. What is done is kept in DIR/NAME/runs.jsonl and not done again.",
        epilog=EXPERIMENT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="see --list; all for each of them")
    add("--list", action="store_true", help="the experiments and what they ask")
    add("--quick", action="store_true", help="a rough answer in minutes, into DIR/quick")
    add("--seeds", type=int, metavar="N", help="seeds 0 to N-1 (default: by experiment)")
    add("--epochs", type=int, metavar="E", help="of one training (default: by experiment)")
    add("--only", nargs="+", default=[], metavar="PART", help="some of an experiment's parts")
    add("--data-dir", metavar="DIR", help="where data sets are (default: $RESGROW_DATA_DIR)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--out", default="results", metavar="DIR", help="where results are kept (default: results)")
    add("--report", action="store_true", help="tell what is there, run nothing")
    add("--book", metavar="FILE", help="write one page of all results in DIR, and the figures beside it")
    parser.set_defaults(run=_experiment)


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="resgrow", description="Networks that find their own size.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_info(commands)
    _add_fit(commands)
    _add_saliency(commands)
    _add_count(commands)
    _add_bench(commands)
    _add_report(commands)
    _add_experiment(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 wrong input (one line on stderr), 130/143 interrupted."""
    arguments = make_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (ExpectedError, OSError, ImportError) as error:
        print(f"resgrow: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:  # before the job has set its own handlers
        print("resgrow: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
