"""Errors that a user can put right: the command line prints them as one line, without a traceback."""

from __future__ import annotations


class ExpectedError(Exception):
    """Base of the errors whose message alone says what is wrong and what to do."""


class InputError(ExpectedError, ValueError):
    """An argument or a file given by the user does not fit."""


class RunError(ExpectedError, RuntimeError):
    """A run cannot start, or cannot go on, for a reason outside the program."""
