"""Results of an experiment on disk: one JSON line for each run, so that what is done is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]
# Lists of one entry per quarter of an epoch: too long to be shown.
HIDDEN = ("curve",)


class Runs:
    """``DIR/NAME.jsonl``. A run is known by its settings; several processes may share a file.

    Args:
        directory: made if it is not there.
        name: of the experiment.
    """

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{name}.jsonl"

    def __iter__(self) -> Iterator[Result]:
        if self.path.exists():
            yield from (json.loads(line) for line in self.path.read_text().splitlines())

    def find(self, settings: Mapping[str, Any]) -> Result | None:
        """The run of these settings, if it is there."""
        wanted = json.loads(json.dumps(settings))
        return next((run for run in self if all(run.get(key) == value for key, value in wanted.items())), None)

    def make(self, settings: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> Result:
        """The run of these settings; if it is not there, ``run`` makes it, and it is written with its seconds."""
        found = self.find(settings)
        if found is not None:
            return found
        started = time.perf_counter()
        result = {**settings, **run(), "seconds": time.perf_counter() - started}
        with self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps({key: value for key, value in result.items() if key not in HIDDEN}), flush=True)
        return result
