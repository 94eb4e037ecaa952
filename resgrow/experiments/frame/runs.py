"""Results of an experiment on disk: one JSON line for each run, so that what is done is not done again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resgrow.experiments.frame.watch import Watch

Result = dict[str, Any]


class Runs:
    """``DIR/NAME.jsonl``. A run is known by its settings; several processes may share a file.

    Args:
        directory: made when the first run is written.
        name: of the file.
        watch: who is told of runs that are made; nobody by default.
    """

    def __init__(self, directory: Path, name: str = "runs", watch: Watch | None = None) -> None:
        self.path = directory / f"{name}.jsonl"
        self.watch = watch
        self.made = 0  # runs that were not there
        self._inner = [0.0]  # seconds of runs made within the one that is being made

    def __iter__(self) -> Iterator[Result]:
        """Whole lines: a process that was killed in the middle of one did not make that run."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            yield from (json.loads(line) for line in lines if line.endswith("\n"))

    def find(self, settings: Mapping[str, Any]) -> Result | None:
        """The run of these settings, if it is there."""
        wanted = json.loads(json.dumps(settings))
        return next((run for run in self if all(run.get(key) == value for key, value in wanted.items())), None)

    def make(self, settings: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> Result:
        """The run of these settings; if it is not there, ``run`` makes it, and it is written with its seconds.

        Seconds are its own: without those of other runs that are made within it, so that their sum is the time spent.
        """
        found = self.find(settings)
        if found is not None:
            return found
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            with self._watched(settings):
                made = run()
        finally:
            whole = time.perf_counter() - started
            inner = self._inner.pop()
            self._inner[-1] += whole
        result = {**settings, **made, "seconds": whole - inner}
        self._write(result)
        if self.watch is not None:
            self.watch.made(settings, result)
        return result

    @contextmanager
    def _watched(self, settings: Mapping[str, Any]) -> Iterator[None]:
        if self.watch is None:
            yield
            return
        self.watch.begin(settings)
        try:
            yield
        finally:
            self.watch.end()

    def within(self, chapter: str) -> Runs:
        """Those of one chapter, in the same file: "chapter" is one more of their settings, set and seen to here."""
        return _Chapter(self, chapter)

    def _write(self, result: Result) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            _cut(file)
            file.write(json.dumps(result).encode() + b"\n")  # in one piece: lines of several processes do not mix
        self.made += 1


class _Chapter(Runs):
    def __init__(self, whole: Runs, chapter: str) -> None:
        self.path = whole.path
        self.watch = whole.watch
        self._whole = whole
        self._chapter = chapter
        self._inner = whole._inner

    def __iter__(self) -> Iterator[Result]:
        return (run for run in self._whole if run["chapter"] == self._chapter)

    def _write(self, result: Result) -> None:
        self._whole._write(result)

    def make(self, settings: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> Result:
        return super().make({"chapter": self._chapter, **settings}, run)


def _cut(file: Any) -> None:
    """Take away what is left of a line that was not written to its end."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
