"""What command lines of experiments have in common: they run what is missing, and report what is there."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from resgrow._files import write_atomic
from resgrow.experiments.architecture.experiment import Experiment, Settings
from resgrow.experiments.architecture.runs import Runs
from resgrow.report.style import empty_figure


def run_experiments(
    experiments: Mapping[str, Experiment], program: str, about: str, arguments: Sequence[str] | None
) -> None:
    """The command line of some experiments, by name.

    Args:
        program: how it is called. about: one sentence for its help.
        arguments: those of the command line by default.
    """
    given = _parser(experiments, program, about).parse_args(arguments)
    for name in given.names:
        experiment = experiments[name]
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


def _parser(experiments: Mapping[str, Experiment], program: str, about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=f"{about} What is done is kept in DIR/NAME.jsonl and not done again.",
        epilog="\n".join(f"{name}: {each.question}" for name, each in experiments.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=list(experiments), metavar="NAME", help=", ".join(experiments))
    parser.add_argument(
        "--work", "--out", dest="work", type=Path, required=True, metavar="DIR", help="where results are kept"
    )
    parser.add_argument("--seeds", nargs="*", type=int)
    parser.add_argument("--epochs", type=int, help="of one training")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", help="some of an experiment's parts")
    parser.add_argument("--report", action="store_true", help="write the report of what is there, run nothing")
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets lie (default: $RESGROW_DATA_DIR)")
    return parser
