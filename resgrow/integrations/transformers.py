"""A controller in the `Trainer` of Hugging Face's transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resgrow._state_file import read_state, write_state
from resgrow.controller import Budget, Controller
from resgrow.controller.state import take_structure
from resgrow.curvature.batches import Batch
from resgrow.curvature.heads import LossFn
from resgrow.integrations.beside import Beside, LogitsOf, Make, numbers

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        f"resgrow.integrations.transformers: needs the package transformers (got {error}); pip install "
        "'resgrow[transformers]'"
    ) from error

_OP = "ControllerCallback"
FILE = "resgrow_controller.safetensors"
# Elements at either end of a parameter that tell one model's weights from another's.
_ENDS = 16


class ControllerCallback(TrainerCallback):
    """Steps a `resgrow.Controller` after every step of the optimizer, with the batches seen since the step before.

    Use::

        trainer = Trainer(model, arguments, train_dataset=data)
        trainer.add_callback(ControllerCallback(trainer, resgrow.Budget(params=0.1), unit="weight"))
        trainer.train()

    The controller is made when training begins, of ``LogitsOf(trainer.model)``: its names of parameters begin with
    ``model.``. Every checkpoint gets a file ``resgrow_controller.safetensors``, and training that is resumed from it
    goes on with that state (but for the recent batches, which the controller collects anew); so does the best model
    where ``load_best_model_at_end`` brings it back. ``resgrow/params`` and other costs are logged with the trainer's
    own numbers and with each move's.

    Where the trainer loads a checkpoint, to resume or as the best, its model gets the shapes that it had then before
    the weights come: it may have grown. `prepare` does that outside of a trainer.

    Args:
        trainer: the trainer, to see its batches and to log.
        budget: of the controller.
        loss_fn: of the controller, on the logits; by default ``CrossEntropyLoss``.
        output: name or place of the logits in the model's output.
        as_pair: from a batch to ``(input, target)``; by default all but "labels" are the input (the model's keyword
            arguments), and "labels" the target.
        controller: instead of a budget, a `Controller` made for the trainer's optimizer, or a function of model and
            optimizer that makes one.
        resume_from: the checkpoint folder that training is resumed from, where that is not the trainer's own of that
            step; or False to begin with a new controller.
        options: of the controller. Where ``example_inputs`` are wanted, a dict of the model's keyword arguments will
            do; channels and residual blocks come only where there are some.

    Attributes:
        controller: from the beginning of training on.

    Raises:
        ValueError, TypeError: as `Beside` and `Controller`; when training begins, more than one device or process, a
            search for hyperparameters, or a checkpoint without, or with another model's, controller.
    """

    def __init__(
        self,
        trainer: Any,
        budget: Budget | None = None,
        loss_fn: LossFn | None = None,
        *,
        output: str | int = "logits",
        as_pair: Callable[[Any], Batch] | None = None,
        controller: Controller | Make | None = None,
        resume_from: str | Path | bool = True,
        **options: Any,
    ) -> None:
        if not hasattr(trainer, "compute_loss"):
            raise TypeError(f"{_OP}: trainer must be a transformers.Trainer (got {type(trainer).__name__})")
        self._beside = Beside(_OP, budget, loss_fn, controller, as_pair or _as_pair, options)
        self._trainer, self._output, self._resume_from = trainer, output, resume_from
        self._watching = False
        self._own: Any = None
        self._shape_before("_load_from_checkpoint", lambda folder, *_, **__: folder)
        self._shape_before("_load_best_model", lambda *_, **__: trainer.state.best_model_checkpoint)

    @property
    def controller(self) -> Controller | None:
        """None before training begins, unless one was given."""
        return self._beside.controller

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the controller, and loads its state where training is resumed."""
        _require_one_process(self._trainer, args, state)
        resumed = state.global_step > 0 and self._resume_from is not False
        if resumed:
            self._load(self._checkpoint(args, state))
        self._beside.begin(self._logits, _inner(self._trainer.optimizer), {}, loaded=resumed)
        self._watch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Steps the controller, and logs."""
        if getattr(self._trainer.accelerator, "optimizer_step_was_skipped", False):
            return  # gradients overflowed: the batches count for the next step
        moves = self._beside.step()
        # Trainer.log takes the wish to log for granted, of which the trainer has not made its own use yet.
        wanted = control.should_log
        for move in moves:
            self._trainer.log({**numbers(move), **self._beside.size()})
        if wanted and not moves:
            self._trainer.log(self._beside.size())
        control.should_log = wanted

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts the controller's state into the checkpoint."""
        found = {"fingerprint": _fingerprint(self._trainer.model), "controller": self._beside.state_dict()}
        write_state(_own_checkpoint(args, state) / FILE, found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Goes back to the controller of the best model, if the trainer went back to that."""
        self._unwatch()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(Path(state.best_model_checkpoint))
            self._beside.begin(self._logits, _inner(self._trainer.optimizer), {})

    def _logits(self) -> LogitsOf:
        return LogitsOf(self._trainer.model, self._output)

    def _shape_before(self, name: str, folder_of: Callable[..., str | Path]) -> None:
        """Have the trainer's method that loads a folder's weights find a model of their shapes. No callback is told
        early enough."""
        original = getattr(self._trainer, name, None)
        if original is None:
            return

        def load(*args: Any, **kwargs: Any) -> Any:
            folder = Path(folder_of(*args, **kwargs))
            if not (folder / FILE).is_file() and not isinstance(self._resume_from, bool):
                folder = Path(self._resume_from)
            if (folder / FILE).is_file():
                optimizer = self._trainer.optimizer
                state = read_state(folder / FILE)["controller"]
                self._beside.shape(self._logits, state, [] if optimizer is None else [_inner(optimizer)])
            return original(*args, **kwargs)

        setattr(self._trainer, name, load)

    def _watch(self) -> None:
        """See the batches: callbacks are not given them."""
        self._unwatch()
        original = self._trainer.compute_loss
        self._own = vars(self._trainer).get("compute_loss")

        def compute_loss(model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if model.training:
                self._beside.see(dict(inputs))
            return original(model, inputs, *args, **kwargs)

        self._trainer.compute_loss = compute_loss
        self._watching = True

    def _unwatch(self) -> None:
        if not self._watching:
            return
        self._watching = False
        if self._own is None:
            del self._trainer.compute_loss
        else:
            self._trainer.compute_loss = self._own

    def _checkpoint(self, args: Any, state: Any) -> Path:
        given = self._resume_from
        return _own_checkpoint(args, state) if isinstance(given, bool) else Path(given)

    def _load(self, folder: Path) -> None:
        remedy = "give resume_from= the folder that training is resumed from, or False to begin with a new controller"
        try:
            found = read_state(folder / FILE)
        except FileNotFoundError as error:
            raise ValueError(f"{_OP}: the checkpoint must hold {FILE} (got none in {folder}); {remedy}") from error
        if found["fingerprint"] != _fingerprint(self._trainer.model):
            raise ValueError(f"{_OP}: the controller must be that of the model (got another's in {folder}); {remedy}")
        self._beside.load_state_dict(found["controller"])


def prepare(model: nn.Module, folder: str | Path, *, output: str | int = "logits") -> nn.Module:
    """Give a new model the shapes that it had when a trainer with a `ControllerCallback` wrote a checkpoint.

    For use outside of a trainer, which does it by itself::

        model = prepare(AutoModelForSequenceClassification.from_config(config), folder)
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))

    Args:
        model: made by the original constructor or configuration; changed in place. Its weights are not loaded yet.
        folder: the checkpoint. Nothing is unpickled.
        output: as the callback's.

    Returns:
        ``model``.

    Raises:
        ValueError: the folder has no controller, or a structure that does not fit the model, which is as it was then.
    """
    try:
        structure = read_state(Path(folder) / FILE)["controller"]["structure"]
    except FileNotFoundError as error:
        raise ValueError(
            f"prepare: the checkpoint must be of a trainer with a {_OP} (got no {FILE} in {folder}); load it as it is"
        ) from error
    if structure is not None:
        take_structure(LogitsOf(model, output), structure)
    return model


def _own_checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside of accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _fingerprint(model: nn.Module) -> str:
    """Of a model's weights, from a few of each parameter's elements."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        ends = torch.cat([flat[:_ENDS], flat[-_ENDS:]]).double().cpu()
        found.update(f"{name} {tuple(parameter.shape)}".encode())
        found.update(ends.numpy().tobytes())
    return found.hexdigest()


def _require_one_process(trainer: Any, args: Any, state: Any) -> None:
    kind = getattr(trainer.accelerator.distributed_type, "value", trainer.accelerator.distributed_type)
    if kind != "NO" or args.world_size != 1 or args.n_gpu > 1:
        raise ValueError(
            f"{_OP}: training must run on one device in one process, or each process would choose other units (got "
            f"distributed type {kind}, {args.world_size} processes, {args.n_gpu} GPUs); start one process with "
            "CUDA_VISIBLE_DEVICES set to one GPU"
        )
    if state.is_hyper_param_search:
        raise ValueError(
            f"{_OP}: a search for hyperparameters needs a new callback for each trial (got one for all); call train "
            "for each trial"
        )


def _as_pair(batch: Any) -> Batch:
    if not isinstance(batch, Mapping) or not isinstance(batch.get("labels"), Tensor):
        found = f"keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(
            f"{_OP}: a batch must be a mapping with a tensor of labels (got {found}); give as_pair=, a function that "
            "makes an (input, target) pair of it"
        )
    return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
