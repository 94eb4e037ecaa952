"""Pickles that hold nothing but data, read without running anything that they name.

A pickle is a program: it may name any function of any module and call it. `read_plain` gives it stand-ins in the place
of the names that arrays are pickled with, and refuses every other name before anything is imported or called. The
stand-ins only take notes, which are checked; numpy is given bytes and a number type, never the pickle's own description
of an array, which could name objects by their addresses. Before that, the file is looked through for operations that
data has no use for, and for those by which a short file takes all memory.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from resgrow._errors import InputError

Plain = bytes | str | int | float | list[Any] | np.ndarray
NUMBERS = frozenset(kind + size for kind in "iu" for size in "1248")
_SCALARS = (bytes, str, int, float)
# Operations of the pickle machine, by pickletools' names. Not among them: objects of classes, persistent names, buffers
# from elsewhere, the registry of extensions.
_OPERATIONS = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL
    REDUCE BUILD
    """.split()  # noqa: SIM905
)
# An array is pickled with about five. Very many can be nested so deep that hashing the outermost ends the process.
_TUPLES = 1000


class _RefusedError(Exception):
    """What the pickle holds that data does not."""


def _require(holds: bool, found: object) -> None:
    if not holds:
        raise _RefusedError(str(found)[:200])


def _text(value: object) -> str:
    """Names are bytes in pickles of Python 2."""
    _require(type(value) in (bytes, str), type(value).__name__)
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


# Instances without __dict__ stand for functions and classes: a pickle can neither change them nor reach what they are
# made of.
class _Type:
    """``numpy.ndarray``, as an argument."""

    __slots__ = ()


class _Number:
    """A ``numpy.dtype``: whole numbers only."""

    __slots__ = ("code", "order")

    def __init__(self, code: object) -> None:
        self.code, self.order = _text(code).lstrip("|<>="), "<"
        _require(self.code in NUMBERS, f"an array of {self.code}")

    def __setstate__(self, state: Any) -> None:
        _require(type(state) is tuple and len(state) >= 5, "a numpy.dtype that is none")
        _require(state[2] is None and state[3] is None and state[4] is None, "an array of records")
        order = _text(state[1])
        _require(order in ("|", "<", ">", "="), f"byte order {order}")
        self.order = "<" if order == "=" else order

    def array(self, shape: Any, data: Any, order: str) -> np.ndarray:
        good = type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape)
        _require(good and type(data) in (bytes, bytearray), "an array that is none")
        number = np.dtype(self.order + self.code)
        _require(math.prod(shape) * number.itemsize == len(data), f"{len(data)} bytes for an array of shape {shape}")
        return np.frombuffer(bytes(data), number).reshape(shape, order="F" if order == "F" else "C")


class _Array:
    """A ``numpy.ndarray``, which is first made and then filled."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _require(type(state) is tuple and len(state) == 5 and type(state[2]) is _Number, "an array that is none")
        _, shape, number, by_columns, data = state
        self.value = number.array(shape, data, "F" if by_columns else "C")


class _MakeNumber:
    """``numpy.dtype``, called."""

    __slots__ = ()

    def __call__(self, code: object, *flags: object) -> _Number:
        return _Number(code)


class _MakeArray:
    """``numpy.core.multiarray._reconstruct``."""

    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> _Array:
        _require(type(kind) is _Type, type(kind).__name__)
        return _Array()


class _FromBuffer:
    """``numpy.core.numeric._frombuffer``, of protocol 5."""

    __slots__ = ()

    def __call__(self, data: object, number: object, shape: object, order: object) -> _Array:
        _require(type(number) is _Number, type(number).__name__)
        made = _Array()
        made.value = number.array(shape, data, _text(order))  # type: ignore[attr-defined]
        return made


class _Encode:
    """``_codecs.encode``: bytes, as Python 3 writes them in protocol 2."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        _require(type(text) is str and encoding == "latin1", f"_codecs.encode to {encoding}")
        return str(text).encode("latin1")


# numpy 1 and 2 have one name each.
_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _MakeNumber,
    ("numpy.core.multiarray", "_reconstruct"): _MakeArray,
    ("numpy._core.multiarray", "_reconstruct"): _MakeArray,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    ("_codecs", "encode"): _Encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise _RefusedError(f"{module}.{name}")
        return stand_in()


def _look_through(data: bytes) -> None:
    tuples = 0
    for operation, argument, _ in pickletools.genops(data):
        _require(operation.name in _OPERATIONS, f"the operation {operation.name}")
        tuples += operation.name.startswith("TUPLE")
        # The table of remembered objects is made as long as the largest of these numbers.
        number = argument if operation.name.endswith("PUT") else 0
        _require(isinstance(number, int) and number <= len(data), f"object number {argument}")
    _require(tuples <= _TUPLES, f"{tuples} tuples")


def _plain(value: object) -> Plain:
    if type(value) is _Array:
        _require(value.value is not None, "an array without numbers")
        return value.value  # type: ignore[return-value]
    if type(value) is list:
        odd = next((item for item in value if type(item) not in _SCALARS), None)
        _require(odd is None, f"a list with {type(odd).__name__}")
        return value
    _require(type(value) in _SCALARS, type(value).__name__)
    return value  # type: ignore[return-value]


def read_plain(path: Path) -> dict[str, Plain]:
    """The dictionary in ``path``, of any protocol and of Python 2, its keys as text.

    Allowed, and nothing else: one dictionary whose keys are strings and whose values are bytes, strings, whole and
    floating-point numbers, lists of these, and numpy arrays of whole numbers. Strings of Python 2 come as bytes.

    Raises InputError, naming the file and what was found, for everything else, for files that are no pickles or are cut
    short, and for files that cannot be read. Nothing that the file names is imported or called.
    """
    try:
        data = path.read_bytes()
        _look_through(data)
        found = _Reader(io.BytesIO(data), encoding="bytes").load()
        _require(type(found) is dict, type(found).__name__)
        return {_text(key): _plain(value) for key, value in found.items()}
    except _RefusedError as error:
        raise InputError(
            f"data: {path}: a pickled data set may hold one dictionary of strings, numbers, lists of them and arrays "
            f"of whole numbers (got {error}); this is not the published file and could run programs elsewhere, fetch "
            "it again"
        ) from None
    except OSError as error:
        raise InputError(
            f"data: {path}: the file must be readable (got {error.strerror or error}); check permissions and disk"
        ) from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise InputError(
            f"data: {path}: the file must be a whole pickle (got {type(error).__name__}: {error}); it is damaged or "
            "cut short, fetch it again"
        ) from error
