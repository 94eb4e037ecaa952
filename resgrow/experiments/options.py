"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

from resgrow._errors import InputError


def shape_of(command: str, text: str) -> tuple[int, ...]:
    """``--input 3x224x224``: the shape of one input. Raises InputError for anything else."""
    parts = text.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{command}: --input must be for example 3x224x224 (got {text!r}); leave the batch out")
    return tuple(int(part) for part in parts)


def require_new_folder(command: str, out: Path | None) -> None:
    """Raises InputError unless ``--out`` is left out, empty, or can be made."""
    if out is None:
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{command}: the folder must not hold anything yet (got {out}); choose another with --out")
    if not out.parent.is_dir():
        raise InputError(
            f"{command}: the folder's parent must exist (got {out.parent}); make it, or choose another --out"
        )
