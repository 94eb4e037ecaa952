"""An experiment that is made in a moment: are dice fair? Two of its parts cannot be run: data lack, a signal comes."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from statistics import fmean

from resgrow._errors import InputError
from resgrow.experiments.frame.experiment import Experiment, Quick, Settings, spread
from resgrow.experiments.frame.lacks import Lacks
from resgrow.experiments.frame.runs import Result, Runs

THROWS = 50


def run(runs: Runs, settings: Settings) -> None:
    with Lacks() as lacks:
        for seed in settings.seeds:
            for part in settings.only:
                with lacks.part():
                    runs.make({"seed": seed, "die": part}, lambda p=part, s=seed: throw(p, s, settings))


def throw(part: str, seed: int, settings: Settings) -> dict[str, object]:
    if part == "stolen":
        raise InputError("load: the die must be in its box; get it from the shop")
    if part == "stopped":
        os.kill(os.getpid(), signal.SIGTERM)
    generator = random.Random(seed)
    throws = [6 if part == "loaded" else generator.randint(1, 6) for _ in range(settings.epochs)]
    return {"mean": fmean(throws), "steps": len(throws), "nested": {"least": min(throws)}, "worst": float("nan")}


def answer(results: Sequence[Result]) -> str:
    means = [run["mean"] for run in results]
    verdict = "Yes" if abs(fmean(means) - 3.5) < 1 else "No"
    return f"{verdict}: the mean is {spread(means)}. It is that of {len(means)} dice."


def draw(figure, results):
    figure.add_subplot().bar(range(len(results)), [run["mean"] for run in results])


EXPERIMENT = Experiment(
    question="Are dice fair?",
    epochs=THROWS,
    run=run,
    tell=lambda results: f"Dice: {len(results)}.",
    draw=draw,
    parts=("fair", "loaded", "stolen", "stopped"),
    title="Fair dice?",
    control="Random numbers.",
    answer=answer,
    quick=Quick(epochs=5, parts=("fair",)),
)
