"""What a run is told to do, and the recipe constants that fill in what it is not told."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from resgrow._errors import InputError
from resgrow.experiments.device import require_device

# Shares of all training steps: the controller rests until START_SHARE, since an untrained network does not
# know yet what it needs, and should be within the budget by DEADLINE_SHARE; the rest, with the learning
# rate falling to zero, heals the twin.
START_SHARE = 0.2
DEADLINE_SHARE = 0.6
# Moves of the controller between the two: curvature is taken anew for each.
MOVES = 40
UNITS = ("channel", "weight", "residual")
LIMITS = ("params", "macs", "latency_ms", "loss")
METHODS = ("controller", "tristate")
# Of gates that learn: the weight of their penalty (l3 in its equation), and how far one can move in all of the
# training, with Adam and a learning rate that falls by a cosine. They start .2 from closing.
DEFAULT_GATES = 1e-3
GATE_TRAVEL = 3.0
DEFAULT_BUDGET = "params=0.1"


@dataclass(frozen=True)
class OptimizerRecipe:
    """Default learning rate and weight decay of an optimizer."""

    lr: float
    weight_decay: float


OPTIMIZERS = {
    "adam": OptimizerRecipe(lr=1e-3, weight_decay=0.0),
    "adamw": OptimizerRecipe(lr=3e-3, weight_decay=0.05),
    "sgd": OptimizerRecipe(lr=0.1, weight_decay=5e-4),
}
MOMENTUM = 0.9


@dataclass(frozen=True)
class Recipe:
    """Defaults for one model, or for one model on one data set."""

    epochs: int
    batch_size: int
    optimizer: str
    lr: float | None = None  # the optimizer's default; counts for the recipe's own optimizer only
    unit: str = "channel"


# (data set, model) first, then ("*", model).
RECIPES = {
    ("digits", "resnet8"): Recipe(epochs=40, batch_size=64, optimizer="adamw"),
    ("mnist", "lenet5"): Recipe(epochs=12, batch_size=128, optimizer="adam", lr=3e-3),
    ("*", "resnet8"): Recipe(epochs=30, batch_size=128, optimizer="sgd"),
    ("*", "resnet20"): Recipe(epochs=60, batch_size=128, optimizer="sgd"),
    ("*", "resnet56"): Recipe(epochs=100, batch_size=128, optimizer="sgd"),
    ("*", "lenet5"): Recipe(epochs=20, batch_size=128, optimizer="adam", lr=3e-3),
}
DEFAULT_MODELS = {"digits": "resnet8", "mnist": "lenet5", "fashion-mnist": "lenet5"}
DEFAULT_MODEL = "resnet20"


@dataclass(frozen=True)
class FitConfig:
    """A complete description of one run of ``resgrow fit``.

    ``method``: "controller" or "tristate". ``budget``, of the controller: {"params": ..., "macs": ...}, fractions in
    (0, 1] of the dense network or absolute counts > 1. ``gates``, of tristate: the penalty's coefficient.
    """

    data: str
    model: str
    method: str
    budget: dict[str, float | str]
    gates: float | None
    width: float
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    unit: str
    grow: bool
    seed: int
    data_dir: str | None
    download: bool
    device: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse_budget(text: str) -> dict[str, float | str]:
    """ "params=0.1,macs=20%" -> {"params": 0.1, "macs": "20%"}. Raises InputError."""
    remedy = "write for example --budget params=0.1 or --budget params=10%,loss=0.05"
    budget: dict[str, float | str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in LIMITS or name in budget:
            raise InputError(f"fit: a budget has {', '.join(LIMITS)}, each at most once (got {text!r}); {remedy}")
        try:
            number = float(value.removesuffix("%"))
        except ValueError:
            raise InputError(f"fit: a budget needs a number after {name}= (got {value!r}); {remedy}") from None
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"fit: a budget must be positive and finite (got {name}={value}); {remedy}")
        budget[name] = value if value.endswith("%") else number
    return budget


def _budget(method: str, text: str | None) -> dict[str, float | str]:
    if method != "tristate":
        return parse_budget(DEFAULT_BUDGET if text is None else text)
    _require(
        "gates that learn have no budget", text is None, f"--budget {text}", "give --gates, or --method controller"
    )
    return {}


def _gates(method: str, coefficient: float | None) -> float | None:
    if method != "tristate":
        _require("--gates is for --method tristate", coefficient is None, coefficient, "leave it out, or give both")
        return None
    value = DEFAULT_GATES if coefficient is None else coefficient
    _require("--gates must be positive", 0 < value < math.inf, value, "0.001 is the default; larger removes more")
    return value


def _require(rule: str, holds: bool, given: object, remedy: str) -> None:
    if not holds:
        raise InputError(f"fit: {rule} (got {given}); {remedy}")


def _check(config: FitConfig) -> None:
    _require("--epochs must be at least 1", config.epochs >= 1, config.epochs, "leave it out for the default")
    _require(
        "--batch-size must be at least 2",
        config.batch_size >= 2,
        config.batch_size,
        "batch norm needs two images to normalise",
    )
    _require("--lr must be positive", 0 < config.lr < math.inf, config.lr, "leave it out for the default")
    _require("--width must be positive", 0 < config.width < math.inf, config.width, "1.0 is the standard width")
    _require("--seed must not be negative", config.seed >= 0, config.seed, "use 0 or more")
    require_device("fit", config.device)


def _learning_rate(recipe: Recipe, optimizer: str) -> float:
    if optimizer == recipe.optimizer and recipe.lr is not None:
        return recipe.lr
    return OPTIMIZERS[optimizer].lr


def make_config(
    data: str = "digits",
    model: str | None = None,
    budget: str | None = None,
    *,
    method: str = "controller",
    gates: float | None = None,
    width: float = 1.0,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    lr: float | None = None,
    unit: str | None = None,
    grow: bool = True,
    seed: int = 0,
    data_dir: str | None = None,
    download: bool = False,
    device: str = "cpu",
) -> FitConfig:
    """Fills in the recipe where an argument is None. Raises InputError for values that cannot work."""
    model = model or DEFAULT_MODELS.get(data, DEFAULT_MODEL)
    recipe = RECIPES.get((data, model)) or RECIPES.get(("*", model))
    if recipe is None:
        known = sorted({name for _, name in RECIPES})
        raise InputError(f"fit: --model must be one of {', '.join(known)} (got {model!r}); check the spelling")
    _require(f"--method must be one of {', '.join(METHODS)}", method in METHODS, method, "choose one")
    optimizer = optimizer or recipe.optimizer
    unit = unit or recipe.unit
    _require(f"--optimizer must be one of {', '.join(OPTIMIZERS)}", optimizer in OPTIMIZERS, optimizer, "choose one")
    good = all(each in UNITS for each in unit.split("+"))
    _require(f"--unit must be of {', '.join(UNITS)}", good, unit, "choose one, or several such as channel+residual")
    config = FitConfig(
        data=data,
        model=model,
        method=method,
        budget=_budget(method, budget),
        gates=_gates(method, gates),
        width=width,
        epochs=recipe.epochs if epochs is None else epochs,
        batch_size=recipe.batch_size if batch_size is None else batch_size,
        optimizer=optimizer,
        lr=_learning_rate(recipe, optimizer) if lr is None else lr,
        weight_decay=OPTIMIZERS[optimizer].weight_decay,
        unit=unit,
        grow=grow,
        seed=seed,
        data_dir=data_dir,
        download=download,
        device=device,
    )
    _check(config)
    return config
