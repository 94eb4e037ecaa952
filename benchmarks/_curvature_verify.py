"""Is a result right? Every contestant against autograd's definition on a few samples, before anything is timed."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from _curvature_contestants import Contestant, differentiable_attention, loop_over_samples
from torch import Tensor, nn

SAMPLES, DRAWS = 4, 40
EXACT = 1e-3
# Standard errors of the mean of the draws; many parameters are tested at once.
SIGMAS = 6
Diagonal = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """What verification says: ``right``, in words for a table, and whether the contestant ran at all."""

    right: bool
    words: str
    ran: bool = True


def gauss_newton(model: nn.Module, x: Tensor, y: Tensor) -> Diagonal:
    """``1/N sum_n sum_c (d(S_c^T f_n)/dw)^2`` with ``S_c = sqrt(p_c) (e_c - p)``, a backward pass for each n and c."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    with differentiable_attention():
        for n in range(len(x)):
            output = model(x[n : n + 1])[0]
            p = output.detach().softmax(0)
            for c, factor in enumerate(p.sqrt()[:, None] * (torch.eye(len(p)) - p)):
                grads = torch.autograd.grad(output, tuple(model.parameters()), factor, retain_graph=c < len(p) - 1)
                for value, grad in zip(total.values(), grads, strict=True):
                    value.addcmul_(grad, grad, value=1 / len(x))
    return total


def references(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Diagonal]:
    x, y = x[:SAMPLES], y[:SAMPLES]
    exact = gauss_newton(model, x, y)
    return {"exact": exact, "sampled": exact, "recursion": exact, "fisher": loop_over_samples(model)(x, y)}


def verify(contestant: Contestant, model: nn.Module, x: Tensor, y: Tensor, wanted: dict[str, Diagonal]) -> Verdict:
    """Runs the contestant on a few samples. What it raises becomes its verdict: not every peer can do every network."""
    if contestant.kind == "gradient":
        return Verdict(True, "-")
    try:
        run = contestant.make(copy.deepcopy(model))
        x, y = x[:SAMPLES], y[:SAMPLES]
        torch.manual_seed(0)  # peers draw from the global state
        found = [run(x, y) for _ in range(DRAWS if contestant.kind == "sampled" else 1)]
    except Exception as error:
        reason = " ".join(str(error).split())
        return Verdict(False, f"fails: {type(error).__name__}: {reason[:90]}", ran=False)
    scale = contestant.scale(len(y))
    draws = [{name: scale * value.detach() for name, value in one.items()} for one in found]
    return _judge(contestant.kind, draws, wanted[contestant.kind])


def _judge(kind: str, draws: list[Diagonal], want: Diagonal) -> Verdict:
    found = draws[0]
    missing = [name for name in want if name not in found]
    common = {name: found[name] for name in want if name in found}
    if kind == "recursion":
        mass = sum(v.sum().item() for v in common.values()) / sum(v.sum().item() for v in want.values())
        return Verdict(not missing, f"approximate by definition, {mass:.2f} of ggn's mass")
    if kind == "sampled":
        off, wrong = _masses(draws, {name: want[name] for name in common})
    else:
        off = {name: ((value - want[name]).norm() / want[name].norm()).item() for name, value in common.items()}
        wrong = [name for name, value in off.items() if not value < EXACT]
    if not missing and not wrong:
        return Verdict(True, "right")
    worst = max(wrong, key=lambda name: off[name], default="")
    reasons = [f"wrong in {len(wrong)} of {len(want)} parameters ({worst} by {off[worst]:.2g})"] if wrong else []
    reasons += [f"leaves out {len(missing)} of {len(want)} parameters"] if missing else []
    return Verdict(False, "; ".join(reasons))


def _masses(draws: list[Diagonal], want: Diagonal) -> tuple[dict[str, float], list[str]]:
    """Relative error of each parameter's mean mass, and the parameters where chance does not explain it."""
    off, wrong = {}, []
    for name, value in want.items():
        masses = torch.stack([draw[name].double().sum() for draw in draws]) / value.double().sum()
        off[name] = (masses.mean() - 1).abs().item()
        if not off[name] < SIGMAS * masses.std().item() / len(masses) ** 0.5 + EXACT:
            wrong.append(name)
    return off, wrong
