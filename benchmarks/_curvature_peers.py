"""BackPACK, asdl and nngeometry, each called as its documentation says. Imported only where they compete.

Install them with ``pip install -e .[peers]``. Peers that are not there are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from _curvature_contestants import Contestant, Run
from torch import Tensor, nn
from torch.nn import functional as F

MODULES = {"BackPACK": "backpack", "asdl": "asdl", "nngeometry": "nngeometry"}


def installed(contestant: str) -> bool:
    return find_spec(MODULES[contestant.split()[0]]) is not None


def missing() -> list[str]:
    return [peer for peer, module in MODULES.items() if find_spec(module) is None]


def backpack(extension: str, field: str) -> Callable[[nn.Module], Run]:
    def make(model: nn.Module) -> Run:
        from backpack import backpack, extend, extensions

        # A plain Sequential needs no conversion; sums and downsampling paths do.
        extended = extend(model, use_converter=not isinstance(model, nn.Sequential))
        loss_fn = extend(nn.CrossEntropyLoss())

        def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            extended.zero_grad()
            with backpack(getattr(extensions, extension)()):
                loss_fn(extended(x), y).backward()
            return {name: getattr(p, field) for name, p in extended.named_parameters()}

        return run

    return make


def asdl(fisher_type: str) -> Callable[[nn.Module], Run]:
    def make(model: nn.Module) -> Run:
        import asdl

        def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            config = asdl.FisherConfig(
                fisher_type=fisher_type,
                fisher_shapes=[asdl.SHAPE_DIAG],
                loss_type=asdl.LOSS_CROSS_ENTROPY,
                data_size=len(x),
            )
            maker = asdl.get_fisher_maker(model, config)
            maker.setup_loss_call(F.cross_entropy, maker.setup_model_call(model, x), y)
            maker.forward_and_backward()
            found = {}
            for name, module in model.named_modules():
                diagonal = getattr(getattr(module, "fisher", None), "diag", None)
                for attribute in ("weight", "bias"):
                    value = getattr(diagonal, attribute, None)
                    if value is not None:
                        found[f"{name}.{attribute}"] = value
            return found

        return run

    return make


class OneBatch(torch.utils.data.DataLoader):
    """A loader that hands out one batch as it is; a real one would stack samples and lose their memory format."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(torch.utils.data.TensorDataset(*tensors), batch_size=len(tensors[0]))
        self.tensors = tensors

    def __iter__(self) -> Any:
        # nngeometry makes inputs require gradients.
        return iter([tuple(tensor.detach() for tensor in self.tensors)])


def nngeometry(sampled: bool) -> Callable[[nn.Module], Run]:
    def make(model: nn.Module) -> Run:
        from nngeometry.layercollection import LayerCollection
        from nngeometry.metrics import FIM, FIM_MonteCarlo
        from nngeometry.object import PMatDiag

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layers = LayerCollection.from_model(model)
        modules = dict(model.named_modules())

        def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            make_matrix = FIM_MonteCarlo if sampled else FIM
            matrix = make_matrix(model, OneBatch(x, y), PMatDiag, layer_collection=layers)
            found, flat = {}, matrix.get_diag()
            for name in layers.layers:
                start = layers.p_pos[name]
                for attribute in ("weight", "bias"):
                    parameter = getattr(modules[name], attribute)
                    if parameter is not None:
                        found[f"{name}.{attribute}"] = flat[start : start + parameter.numel()].view(parameter.shape)
                        start += parameter.numel()
            return found

        return run

    return make


PEERS: dict[str, Contestant] = {
    "BackPACK DiagGGNMC": Contestant(backpack("DiagGGNMC", "diag_ggn_mc"), "sampled"),
    "BackPACK DiagGGNExact": Contestant(backpack("DiagGGNExact", "diag_ggn_exact"), "exact", slow=True),
    # The sum of squares of what each sample adds to the gradient of the mean: 1/N of the mean of squares.
    "BackPACK SumGradSquared": Contestant(
        backpack("SumGradSquared", "sum_grad_squared"), "fisher", slow=True, scale=float
    ),
    "asdl MC": Contestant(asdl("fisher_mc"), "sampled"),
    "asdl exact": Contestant(asdl("fisher_exact"), "exact", slow=True),
    "asdl empirical": Contestant(asdl("fisher_emp"), "fisher", slow=True),
    "nngeometry MC": Contestant(nngeometry(True), "sampled", layout=torch.contiguous_format),
    "nngeometry exact": Contestant(nngeometry(False), "exact", slow=True, layout=torch.contiguous_format),
}
