"""Random, evolutionary and Bayesian search for widths within a budget of compute. Nothing here trains a network.

Optuna searches: MIT licence, no dependence on a service, and its three samplers take whole numbers and categories.

* random: uniform (the third width: in its logarithm).
* evolutionary: NSGA-II, which with one objective is an elitist genetic algorithm. CMA-ES would draw categories at
  random.
* Bayesian: a Gaussian process and expected improvement, as spearmint has them, made for tens of trials. Optuna's
  default, TPE, is for hundreds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resgrow._errors import RunError
from resgrow.experiments.architecture.widths import LENET5, Widths

METHODS = ("random", "evolutionary", "bayesian")
# Of a generation, and before the Gaussian process has its say: a search has twenty or thirty trials. These first ones
# are drawn at random, the same by all methods with one seed.
POPULATION = 6
# The search ends after that many proposals in a row of which none could be tried.
IDLE = 10


@dataclass(frozen=True)
class Price:
    """Compute, in any one unit, of a ``trial`` of a network and of its ``final`` training."""

    trial: int
    final: int


@dataclass(frozen=True)
class Trial:
    """``objective``: less is better. ``spent``: compute of the search so far, this trial's with it."""

    widths: Widths
    objective: float
    spent: int


@dataclass(frozen=True)
class Search:
    """``trials`` in their order; ``seconds`` that the searcher itself took, without the trials."""

    trials: list[Trial]
    seconds: float


def best(trials: Sequence[Trial]) -> Trial:
    return min(trials, key=lambda trial: trial.objective)


def search(
    method: str, seed: int, budget: int, price: Callable[[Widths], Price], measure: Callable[[Widths], float]
) -> Search:
    """Tries widths for as long as ``budget`` pays for the trials and for the final training of the best.

    A proposal that has been tried is not tried again: the searcher is told the same once more, which costs nothing.
    Nor does one that is too expensive for what is left, of which the searcher learns that it failed: otherwise the
    first large network would end the search. What is proposed depends on ``method``, ``seed``, ``budget`` and what
    ``measure`` returned, so that a search that was stopped is resumed by one whose ``measure`` remembers.

    Raises:
        RunError: no Optuna, or nothing that was proposed fits into the budget.
    """
    optuna = _optuna()
    states = optuna.trial.TrialState
    own = _sampler(optuna, method, seed)
    # Other draws than those that the search begins with.
    chance = _sampler(optuna, "random", seed + 1000)
    study = optuna.create_study(sampler=own)
    space = _space(optuna)
    trials: list[Trial] = []
    seconds, idle = 0.0, 0
    while idle < IDLE:
        # A Gaussian process that is sure of its best point would propose that until the end.
        study.sampler = chance if idle and method == "bayesian" else own
        started = time.perf_counter()
        proposal = study.ask(space)
        seconds += time.perf_counter() - started
        widths = _widths(proposal.params)
        objective = next((trial.objective for trial in trials if trial.widths == widths), None)
        idle += 1
        if objective is None and _needed(trials, widths, price) <= budget:
            objective = measure(widths)
            trials.append(Trial(widths, objective, _spent(trials) + price(widths).trial))
            idle = 0
        study.tell(proposal, objective, state=states.FAIL if objective is None else states.COMPLETE)
    if not trials:
        raise RunError(f"search: a budget must pay for a trial and a training (got {budget}); raise it")
    return Search(trials, seconds)


def _spent(trials: list[Trial]) -> int:
    return trials[-1].spent if trials else 0


def _needed(trials: list[Trial], widths: Widths, price: Callable[[Widths], Price]) -> int:
    """Compute of everything until the end if ``widths`` is tried and the search ends with that.

    Whether the new network is the best, so that the final training is its own, is seen only afterwards.
    """
    finals = [price(widths).final]
    if trials:
        finals.append(price(best(trials).widths).final)
    return _spent(trials) + price(widths).trial + max(finals)


def _space(optuna: Any) -> dict[str, Any]:
    """What a proposal says. ``third`` is said of merged networks, too: a model of J needs one space."""
    of = optuna.distributions
    return {
        "first": of.IntDistribution(1, LENET5.first),
        "second": of.IntDistribution(1, LENET5.second),
        "third": of.IntDistribution(1, LENET5.third, log=True),
        "merged": of.CategoricalDistribution([False, True]),
    }


def _widths(proposed: Mapping[str, Any]) -> Widths:
    return Widths(proposed["first"], proposed["second"], None if proposed["merged"] else proposed["third"])


def _sampler(optuna: Any, method: str, seed: int) -> Any:
    of = optuna.samplers
    if method == "random":
        return of.RandomSampler(seed=seed)
    if method == "evolutionary":
        return of.NSGAIISampler(population_size=POPULATION, seed=seed)
    return of.GPSampler(n_startup_trials=POPULATION, seed=seed)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RunError(
            "search: random, evolutionary and Bayesian search need Optuna (got none that can be imported); "
            "pip install 'optuna>=4.0', or choose --only learnt"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
