"""Parts of an experiment that cannot be run, for want of data or a package, do not keep the others from running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from resgrow._errors import ExpectedError, InputError


class Lacks:
    """What parts lacked, said when all have had their turn:

        with Lacks() as lacks:
            for name in settings.only:
                with lacks.part():
                    ...

    Raises:
        InputError: at the end of the outer block, with all that was said in the inner ones, each once.
    """

    def __init__(self) -> None:
        self._found: list[str] = []

    def __enter__(self) -> Lacks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._found:
            raise InputError("; ".join(dict.fromkeys(self._found)))

    @contextmanager
    def part(self) -> Iterator[None]:
        try:
            yield
        except ExpectedError as error:
            self._found.append(str(error))
