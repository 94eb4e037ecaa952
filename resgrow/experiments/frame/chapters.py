"""An experiment of several that belong together: each keeps its own settings, tables and figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from matplotlib.figure import Figure

from resgrow.experiments.frame.experiment import Experiment, Quick, Row, Settings, tables
from resgrow.experiments.frame.lacks import Lacks
from resgrow.experiments.frame.runs import Result, Runs

# What answers: from the results of each chapter that has some.
Answer = Callable[[Mapping[str, Sequence[Result]]], str]
HEIGHT = 3.4


def of_chapters(
    chapters: Mapping[str, Experiment],
    *,
    title: str,
    question: str,
    control: str,
    answer: Answer,
    quick: tuple[str, ...] | None = None,
) -> Experiment:
    """An experiment whose parts are these, and "CHAPTER/PART" for the parts of each.

    Each chapter has a table of its name. ``quick``: parts of ``--quick``.
    """

    def run(runs: Runs, settings: Settings) -> None:
        with Lacks() as lacks:
            for name, chapter in chapters.items():
                if _chosen(name, settings):
                    with lacks.part():
                        chapter.run(runs.within(name), _settings(name, chapter, settings))

    def each(results: Sequence[Result]) -> dict[str, list[Result]]:
        return {name: own for name in chapters if (own := [run for run in results if run["chapter"] == name])}

    def tell(results: Sequence[Result]) -> str:
        return "\n\n".join(
            f"### {chapters[name].title or name}\n\n{chapters[name].question}\n\n{chapters[name].tell(own)}"
            for name, own in each(results).items()
        )

    def rows(results: Sequence[Result]) -> dict[str, list[Row]]:
        return {
            where: part
            for name, own in each(results).items()
            for where, part in tables(name, chapters[name].rows(own)).items()
        }

    def draw(figure: Figure, results: Sequence[Result]) -> None:
        drawn = {name: own for name, own in each(results).items() if chapters[name].draw is not None}
        if not drawn:
            return
        figure.set_figheight(HEIGHT * len(drawn))
        places: Any = figure.subfigures(len(drawn), 1, squeeze=False)[:, 0]
        for place, (name, own) in zip(places, drawn.items(), strict=True):
            draws = chapters[name].draw
            assert draws is not None
            draws(cast(Figure, place), own)

    return Experiment(
        title=title,
        question=question,
        control=control,
        answer=lambda results: answer(each(results)),
        epochs=0,
        seeds=(),
        parts=(*chapters, *(f"{name}/{part}" for name, chapter in chapters.items() for part in chapter.parts)),
        quick=Quick(None, None, quick),
        run=run,
        tell=tell,
        rows=rows,
        draw=draw,
    )


def _chosen(name: str, settings: Settings) -> bool:
    return any(part.partition("/")[0] == name for part in settings.only)


def _settings(name: str, chapter: Experiment, settings: Settings) -> Settings:
    parts = [part.partition("/")[2] for part in settings.only if part.startswith(f"{name}/")]
    return chapter.settings(
        seeds=settings.seeds or None,
        epochs=settings.epochs or None,
        data_dir=settings.data_dir,
        only=() if name in settings.only else parts,
        quick=settings.quick,
    )
