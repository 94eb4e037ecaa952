"""Histories as figures want them: of `resgrow fit` or a controller's JSON lines, of this or an earlier version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Event = Mapping[str, Any]
Events = Sequence[Event]
KINDS = ("shrink", "regrow", "widen", "deepen", "restore")
# Earlier versions had these costs as fields of their own.
_COSTS = ("params", "macs")
_ALWAYS = ("step", "unit", "predicted", "actual", "ratio", "damping", "accepted")


def normal_move(event: Event) -> dict[str, Any]:
    """One move with the fields of `resgrow.Move`: those of earlier versions only shrank, and did not tell where.

    Raises:
        ValueError: a field is missing that moves had from the beginning.
    """
    missing = [name for name in _ALWAYS if name not in event]
    if missing:
        raise ValueError(f"a move must have {', '.join(_ALWAYS)} (got none of {', '.join(missing)} in {dict(event)})")
    kind = event.get("kind")
    return {
        **event,
        "kind": kind if kind in KINDS else "shrink",
        "where": event.get("where") or {},
        "count": event.get("count", event.get("removed", 0)),
        "cost": cost_of(event),
    }


def cost_of(move: Event) -> dict[str, float]:
    """What the model costs after a move."""
    return move.get("cost") or {name: move[name] for name in _COSTS if move.get(name) is not None}


def moves_of(history: Events) -> list[dict[str, Any]]:
    """Every move that was tried, in order."""
    found = (event for event in history if event.get("event") == "move" or event.get("kind") in ("move", *KINDS))
    return [normal_move(event) for event in found]


def epochs_of(history: Events) -> list[Event]:
    """What `resgrow fit` tells after each epoch of either network."""
    return [event for event in history if event.get("kind") == "epoch"]


def sizes_of(history: Events) -> list[dict[str, Any]]:
    """``{"step", "cost", "loss"}`` by step: what the model cost, and its training loss or None where that is not known.

    From the sizes of a controller's JSON lines, the epochs of the twin, and the moves that were kept, of which a step's
    move comes last, as its loss is another one.
    """
    found = [event for event in history if event.get("event") == "size"]
    twin = [event for event in epochs_of(history) if event["role"] == "sized"]
    sizes = [{"step": event["step"], "cost": event["cost"], "loss": event["loss"]} for event in found]
    sizes += [{"step": event["step"], "cost": {"params": event["params"]}, "loss": event["loss"]} for event in twin]
    kept = [move for move in moves_of(history) if move["accepted"]]
    sizes += [{"step": move["step"], "cost": move["cost"], "loss": None} for move in kept]
    return sorted(sizes, key=lambda size: size["step"])


def last_step(history: Events) -> int:
    """How far the history reaches; the dense network of `resgrow fit` counts its own steps."""
    return max((event["step"] for event in history if "step" in event and event.get("role") != "dense"), default=0)


def start_of(history: Events) -> dict[str, float]:
    """What the model cost before its first move, where that is told."""
    dense = next((event for event in epochs_of(history) if event["role"] == "dense"), None)
    if dense is not None:
        return {"params": dense["params"]}
    first = next((event for event in history if "event" in event), {})
    return dict(first.get("cost", {})) if first.get("event") == "size" else {}


def widths_of(history: Events) -> tuple[list[int], dict[str, list[int]], bool]:
    """Steps, and units of each layer or group at these: numbers of them (True) where the history tells these, else
    how many came or went since the start (False)."""
    gates = [event for event in history if event.get("kind") == "gates"]
    if gates:
        names = list(gates[0]["widths"])
        return [event["step"] for event in gates], {n: [event["widths"][n] for event in gates] for n in names}, True
    kept = [move for move in moves_of(history) if move["accepted"] and move["unit"] != "residual"]
    return *_summed(kept), False


def depth_of(history: Events) -> tuple[list[int], list[int]]:
    """Steps, and how many residual blocks, or layers that bend, came or went since the start."""
    gates = [event for event in history if event.get("kind") == "gates"]
    if gates:
        return [event["step"] for event in gates], [-len(event["linear"]) for event in gates]
    steps, by_name = _summed([m for m in moves_of(history) if m["accepted"] and m["unit"] == "residual"])
    return steps, [sum(values) for values in zip(*by_name.values(), strict=True)]


def _summed(kept: Sequence[Event]) -> tuple[list[int], dict[str, list[int]]]:
    """Changes since the start, from 0 at step 0, by the names in ``where``."""
    names = list(dict.fromkeys(name for move in kept for name in move["where"]))
    if not names:
        return [], {}
    sums = {name: [0] for name in names}
    for move in kept:
        sign = -1 if move["kind"] == "shrink" else 1
        for name, values in sums.items():
            values.append(values[-1] + sign * move["where"].get(name, 0))
    return [0, *(move["step"] for move in kept)], sums
