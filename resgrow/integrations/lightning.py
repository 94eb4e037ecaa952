"""A controller in a Lightning `Trainer`: works with ``lightning`` and with ``pytorch_lightning``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.controller import Budget, Controller
from resgrow.controller.state import take_structure
from resgrow.curvature.batches import Batch
from resgrow.curvature.heads import LossFn
from resgrow.integrations.beside import Beside, Make, numbers

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError(
            f"resgrow.integrations.lightning: needs the package lightning (got {error}); pip install "
            "'resgrow[lightning]'"
        ) from error

_OP = "ControllerCallback"


class ControllerCallback(Callback):
    """Steps a `resgrow.Controller` after every step of the optimizer, with the batches seen since the step before.

    Use::

        callback = ControllerCallback(resgrow.Budget(params=0.1), model="net")
        Trainer(callbacks=[callback]).fit(module, loader)
        small = resgrow.compact(module.net, x)

    The controller is made when fitting starts, is saved in the trainer's checkpoints and comes back with them (but for
    the recent batches, which it collects anew). ``resgrow/params`` and other costs are logged after each step, for
    monitors too; the numbers of each move go to the trainer's loggers.

    Where a checkpoint is loaded into the module (``ckpt_path=`` of fit, validate, test or predict), the model gets the
    shapes that it had then before its weights come: it may have grown. `prepare` does that outside of a trainer.

    Args:
        budget: of the controller.
        loss_fn: of the controller, on the model's output; by default ``CrossEntropyLoss``.
        model: name of the submodule that the controller works on, or a function of the LightningModule that returns a
            module (`resgrow.integrations.beside.LogitsOf` takes one entry of an output). By default the LightningModule
            itself. Its ``forward`` has to return one tensor.
        as_pair: from a batch to ``(input, target)``, where batches are not such pairs already.
        controller: instead of a budget, a `Controller` made for the trainer's optimizer, or a function of model and
            optimizer that makes one.
        options: of the controller. ``example_inputs`` is the LightningModule's ``example_input_array``, where it has
            one; channels and residual blocks come only where there are some.

    Attributes:
        controller: from ``on_fit_start`` on.

    Raises:
        ValueError, TypeError: as `Beside` and `Controller`; when fitting starts, a strategy of several devices or
            processes, or more or less than one optimizer.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        loss_fn: LossFn | None = None,
        *,
        model: str | Callable[[Any], nn.Module] | None = None,
        as_pair: Callable[[Any], Batch] | None = None,
        controller: Controller | Make | None = None,
        **options: Any,
    ) -> None:
        self._beside = Beside(_OP, budget, loss_fn, controller, as_pair or _as_pair, options)
        self._model = model
        self._steps = 0
        self._hooked: Any = None

    @property
    def controller(self) -> Controller | None:
        """None before ``on_fit_start``, unless one was given."""
        return self._beside.controller

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuses what cannot work, before anything is loaded or trained, and sees to it that weights find a model of
        their shapes: the module's ``on_load_checkpoint`` is the one hook between the checkpoint and them."""
        if stage == "fit":
            _require_one_process(trainer)
        self._unhook()
        original = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            state = (checkpoint.get("callbacks") or {}).get(self.state_key)
            self._beside.shape(lambda: _chosen(pl_module, self._model), state, trainer.optimizers)
            original(checkpoint)

        self._hooked = pl_module, vars(pl_module).get("on_load_checkpoint")
        pl_module.on_load_checkpoint = on_load_checkpoint

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The module has its own ``on_load_checkpoint`` again."""
        self._unhook()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """As `teardown`."""
        self._unhook()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the controller."""
        self._unhook()
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"{_OP}: there must be one optimizer, which holds the model's parameters (got "
                f"{len(trainer.optimizers)})"
            )
        example = getattr(pl_module, "example_input_array", None)
        defaults = {} if example is None else {"example_inputs": example}
        self._beside.begin(lambda: _chosen(pl_module, self._model), trainer.optimizers[0], defaults)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Steps of an earlier part of the training are no news."""
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Steps the controller where the optimizer made a step, and logs."""
        self._beside.see(batch)
        if trainer.global_step == self._steps:
            return  # gradients are still being accumulated
        self._steps = trainer.global_step
        moves = self._beside.step()
        for name, value in self._beside.size().items():
            pl_module.log(name, value, on_step=True, on_epoch=False)
        for move in moves:
            for logger in trainer.loggers:
                logger.log_metrics(numbers(move), step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The controller's state, in plain types and tensors."""
        return self._beside.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until fitting starts."""
        self._beside.load_state_dict(state_dict)

    def _unhook(self) -> None:
        if self._hooked is None:
            return
        (pl_module, own), self._hooked = self._hooked, None
        if own is None:
            del pl_module.on_load_checkpoint
        else:
            pl_module.on_load_checkpoint = own


def prepare(
    pl_module: Any, checkpoint: str | Path, *, model: str | Callable[[Any], nn.Module] | None = None
) -> dict[str, Any]:
    """Give a new LightningModule the shapes that its model had when a trainer with a `ControllerCallback` saved it.

    For use outside of a trainer, which does it by itself::

        module = Module()
        module.load_state_dict(prepare(module, "last.ckpt", model="net")["state_dict"])

    Args:
        pl_module: made by the original constructor; changed in place. Its weights are not loaded yet.
        checkpoint: the file. Nothing in it is unpickled but tensors and plain types.
        model: as the callback's.

    Returns:
        The checkpoint.

    Raises:
        ValueError: the file has no controller, or a structure that does not fit the model, which is as it was then.
        pickle.UnpicklingError: the file holds other types.
    """
    found: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = (found.get("callbacks") or {}).get(ControllerCallback.__qualname__)
    if not state:
        raise ValueError(
            f"prepare: the checkpoint must be of a trainer with a {_OP} (got none in {checkpoint}); load it as it is"
        )
    if state["structure"] is not None:
        take_structure(_chosen(pl_module, model), state["structure"])
    return found


def _chosen(pl_module: Any, model: str | Callable[[Any], nn.Module] | None) -> nn.Module:
    if model is None:
        chosen: Any = pl_module
    elif isinstance(model, str):
        try:
            chosen = pl_module.get_submodule(model)
        except AttributeError as error:
            raise ValueError(
                f"{_OP}: model must name a submodule of the LightningModule (got {model!r}: {error})"
            ) from error
    else:
        chosen = model(pl_module)
    if not isinstance(chosen, nn.Module):
        raise TypeError(f"{_OP}: model must give a torch.nn.Module (got {type(chosen).__name__})")
    return chosen


def _require_one_process(trainer: Any) -> None:
    """By name: ``lightning`` and ``pytorch_lightning`` have a class each."""
    names = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    if "SingleDeviceStrategy" not in names or trainer.world_size != 1:
        raise ValueError(
            f"{_OP}: training must run on one device in one process, or each process would choose other units (got "
            f"{names[0]}, {trainer.world_size} processes); use Trainer(devices=1, strategy='auto')"
        )


def _as_pair(batch: Any) -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise TypeError(
            f"{_OP}: a batch must be an (input, target) pair with a tensor target (got {type(batch).__name__}); give "
            "as_pair=, a function that makes one of it"
        )
    return batch[0], batch[1]
