"""The command line of the architecture experiments."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from resgrow._files import write_atomic
from resgrow.experiments.architecture import classes, coefficients, depth, finetune, search, table
from resgrow.experiments.architecture.experiment import Experiment, Settings
from resgrow.experiments.architecture.runs import Runs
from resgrow.report.style import empty_figure

EXPERIMENTS: dict[str, Experiment] = {
    "table": table.EXPERIMENT,
    "coefficients": coefficients.EXPERIMENT,
    "classes": classes.EXPERIMENT,
    "depth": depth.EXPERIMENT,
    "finetune": finetune.EXPERIMENT,
    "search": search.EXPERIMENT,
}


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    for name in given.names:
        experiment = EXPERIMENTS[name]
        unknown = set(given.only) - set(experiment.parts)
        if unknown:
            raise SystemExit(f"{name}: --only takes {', '.join(experiment.parts) or 'nothing'} (got {sorted(unknown)})")
        settings = Settings(
            tuple(given.seeds if given.seeds is not None else experiment.seeds),
            given.epochs or experiment.epochs,
            given.data_dir,
            tuple(given.only) or experiment.parts,
        )
        runs = Runs(given.work, name)
        if not given.report:
            experiment.run(runs, settings)
        report(experiment, runs, given.work / name)


def report(experiment: Experiment, runs: Runs, path: Path) -> None:
    """``path``.md and, of an experiment that draws, ``path``.png, from whatever runs there are."""
    results = list(runs)
    if not results:
        return
    write_atomic(path.with_suffix(".md"), f"{experiment.question}\n\n{experiment.tell(results)}\n")
    if experiment.draw is not None:
        with empty_figure(9, 3.4) as figure:
            experiment.draw(figure, results)
            image = io.BytesIO()
            figure.savefig(image, format="png", dpi=120)
        write_atomic(path.with_suffix(".png"), image.getvalue())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m resgrow.experiments.architecture",
        description="Experiments with tri-state ReLUs. What is done is kept in DIR/NAME.jsonl and not done again.",
        epilog="\n".join(f"{name}: {each.question}" for name, each in EXPERIMENTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=list(EXPERIMENTS), metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where results are kept")
    parser.add_argument("--seeds", nargs="*", type=int)
    parser.add_argument("--epochs", type=int, help="of one training")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", help="some of an experiment's parts")
    parser.add_argument("--report", action="store_true", help="write the report of what is there, run nothing")
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets lie (default: $RESGROW_DATA_DIR)")
    return parser
