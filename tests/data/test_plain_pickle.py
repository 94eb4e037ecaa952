"""What pickled batches may hold, and that nothing else is run: every program here would leave a file behind."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from dataset_files import make_cifar_python, python2_pickle

from resgrow._errors import InputError
from resgrow.data import load
from resgrow.data.plain_pickle import read_plain

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ARRAY = np.arange(24, dtype=np.uint8).reshape(4, 6)


class Program:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refused(path, data: bytes, found: str) -> None:
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"{path.name}: .*\(got .*{found}"):
        read_plain(path)


def test_files_as_the_originals_are(tmp_path):
    batch = {
        "batch_label": "testing batch 1 of 1",
        "labels": [3, 300],
        "data": ARRAY,
        "filenames": ["a.png", "b" * 300],
    }
    path = tmp_path / "batch"
    path.write_bytes(python2_pickle(batch))
    found, unpickled = read_plain(path), pickle.loads(path.read_bytes(), encoding="bytes")
    assert {key.encode() for key in found} == unpickled.keys()
    for key, value in found.items():
        assert np.array_equal(value, unpickled[key.encode()])
    assert found["labels"] == [3, 300]
    assert found["filenames"][0] == b"a.png"
    assert found["data"].dtype == np.uint8


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        ARRAY,
        np.asfortranarray(ARRAY),
        ARRAY.astype(">i4"),
        np.array([-5, 2**62], "<i8"),
        np.zeros((0, 3), np.uint8),
        np.array(7, np.uint16),
    ],
    ids=["C", "Fortran", "big endian", "int64", "empty", "scalar"],
)
def test_arrays_of_every_protocol(tmp_path, protocol, array):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": array, "n": 1.5, "labels": [1, 2]}, protocol=protocol))
    if array.size == 0 and protocol < 3:  # Python 3 writes empty bytes as a call of bytes()
        with pytest.raises(InputError, match=r"__builtin__\.bytes"):
            read_plain(path)
        return
    found = read_plain(path)
    assert found["data"].dtype == array.dtype
    assert np.array_equal(found["data"], array)
    assert (found["n"], found["labels"]) == (1.5, [1, 2])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("where", ["alone", "value", "key", "list", "object array"])
def test_programs_are_refused_and_not_run(tmp_path, protocol, where):
    mark = tmp_path / "was run"
    program = Program(os.system, f"touch '{mark}'")
    array = np.array([program, None], object)
    value = {
        "alone": program,
        "value": {"data": ARRAY, "labels": [1], "more": program},
        "key": {program: 1},
        "list": {"data": ARRAY, "labels": [1, program]},
        "object array": {"data": array},
    }[where]
    data = pickle.dumps(value, protocol=protocol)
    expected = r"(posix\.system|an array of O)" if where == "object array" else r"posix\.system"
    refused(tmp_path / "batch", data, expected)
    assert not mark.exists()
    if where == "alone":
        pickle.loads(data)  # it would have been run
        assert mark.exists()


@pytest.mark.parametrize(
    ("function", "arguments", "found"),
    [
        (eval, ("1",), "eval"),
        (exec, ("1",), "exec"),
        (getattr, ("a", "upper"), "getattr"),
        (__import__, ("os",), "__import__"),
        (subprocess.check_output, (["true"],), "check_output"),
        (np.load, ("a",), r"numpy\.load"),
        (np.frombuffer, (b"a", "u1"), "frombuffer"),
        (bytearray, (b"a",), "bytearray"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_names_of_other_functions(tmp_path, function, arguments, found, protocol):
    refused(tmp_path / "batch", pickle.dumps({"x": Program(function, *arguments)}, protocol=protocol), found)


def test_nested_getattr_reaches_nothing(tmp_path):
    # getattr(getattr(numpy, "os"), "system")("touch ...")
    mark = tmp_path / "was run"
    steps = b"cbuiltins\ngetattr\n(cbuiltins\ngetattr\n(cnumpy\nndarray\nX\x02\x00\x00\x00ostRX\x06\x00\x00\x00systemtR"
    refused(tmp_path / "batch", b"\x80\x02" + steps + b"(" + text(f"touch '{mark}'") + b"tR.", r"builtins\.getattr")
    assert not mark.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


@pytest.mark.parametrize(
    "name", [("numpy", "ndarray.__class__"), ("numpy", "core.multiarray._reconstruct"), ("numpy.core", "multiarray")]
)
def test_names_with_dots_reach_nothing(tmp_path, name):
    refused(tmp_path / "batch", b"\x80\x04" + text(name[0]) + text(name[1]) + b"\x93.", r"numpy\.")


ENCODE = b"c_codecs\nencode\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
EMPTY = RECONSTRUCT + NDARRAY + b"K\x00\x85U\x01b\x87R"
U1 = DTYPE + b"U\x02u1K\x00K\x01\x87R"


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (NDARRAY, "_Type"),
        (NDARRAY + b")R", "TypeError"),
        (EMPTY, "_Array"),
        (b"}U\x01x" + EMPTY + b"s", "an array without numbers"),
        (RECONSTRUCT + RECONSTRUCT + b"K\x00\x85U\x01b\x87R", "_MakeArray"),
        (DTYPE + b"U\x01OK\x00K\x01\x87R", "an array of O"),
        (DTYPE + b"U\x02f8K\x00K\x01\x87R", "an array of f8"),
        (DTYPE + b"K\x05K\x00K\x01\x87R", "int"),
        (U1 + b"(K\x03U\x01|N]]K\x01K\x01K\x00tb", "an array of records"),
        (U1 + b"(K\x03U\x01xNNNK\x01K\x01K\x00tb", "byte order x"),
        (U1 + b"N" + b"b", "a numpy.dtype that is none"),
        (EMPTY + b"(K\x01K\x04\x85" + U1 + b"\x89U\x03abctb", r"3 bytes for an array of shape \(4,\)"),
        (EMPTY + b"(K\x01J\xff\xff\xff\xff\x85" + U1 + b"\x89U\x03abctb", "an array that is none"),
        (EMPTY + b"(K\x01K\x03\x85" + U1 + b"\x89](K\x01K\x02K\x03etb", "an array that is none"),
        (EMPTY + b"(K\x01K\x03\x85U\x02u1\x89U\x03abctb", "an array that is none"),
        (ENCODE + text("a") + text("zip") + b"\x86R", "_codecs.encode to zip"),
        (ENCODE + text("a") + text("latin1") + text("x") + b"\x87R", "TypeError"),
        # Attributes of the stand-ins, by both forms of state: a later file must not find them changed.
        (RECONSTRUCT + b"}U\x08__call__K\x01sb", "AttributeError"),
        (RECONSTRUCT + b"N}X\x08\x00\x00\x00__call__K\x01s\x86b", "AttributeError"),
        (RECONSTRUCT + b"N}X\x09\x00\x00\x00__class__" + NDARRAY + b"s\x86b", "TypeError"),
        (b"U\x01xQ", "the operation BINPERSID"),
        (b"Px\n", "the operation PERSID"),
        (b"\x82\x01", "the operation EXT1"),
        (b"(cos\nsystem\nU\x04trueo", "the operation OBJ"),
        (b"(U\x04trueios\nsystem\n", "the operation INST"),
        (NDARRAY + b")\x81", "the operation NEWOBJ"),
        (b"\x97", "the operation NEXT_BUFFER"),
        (b"\x8f", "the operation EMPTY_SET"),
        (b"}r\xff\xff\xff\x7f", "object number 2147483647"),
        (b"}p2147483647\n", "object number 2147483647"),
        (b")" + b"\x85" * 100_000 + b"q\x01}h\x01K\x01s", "tuples"),
        (b"]", "list"),
        (b"}U\x01x}s", "dict"),
        (b"}U\x01x)s", "tuple"),
        (b"}U\x01x](]es", "a list with list"),
        (b"}U\x01xNs", "NoneType"),
        (b"}K\x01K\x01s", "int"),
        (b"}]K\x01s", "TypeError"),
    ],
)
def test_what_a_batch_has_no_use_for(tmp_path, steps, found):
    refused(tmp_path / "batch", b"\x80\x02" + steps + b".", found)
    path = tmp_path / "good"
    path.write_bytes(python2_pickle({"data": ARRAY}))
    assert np.array_equal(read_plain(path)["data"], ARRAY)


def test_nothing_is_imported(tmp_path):
    (tmp_path / "traps.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(tmp_path))
    try:
        refused(tmp_path / "batch", b"\x80\x02ctraps\nrun\n)R.", r"traps\.run")
    finally:
        sys.path.remove(str(tmp_path))
    assert "traps" not in sys.modules


def test_every_cut_is_named(tmp_path):
    whole = python2_pickle({"labels": [1, 2], "data": ARRAY})
    for length in range(len(whole)):
        path = tmp_path / "batch"
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"batch: the file must be a whole pickle .*fetch it again"):
            read_plain(path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damage_is_an_input_error_or_data(tmp_path):
    whole = bytearray(python2_pickle({"labels": [1, 2], "data": ARRAY}))
    generator, refusals = np.random.default_rng(0), 0
    path = tmp_path / "batch"
    for _ in range(600):
        damaged = whole.copy()
        for place in generator.integers(0, len(whole), generator.integers(1, 4)):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            found = read_plain(path)
        except InputError:
            refusals += 1
        else:
            assert all(isinstance(value, bytes | str | int | float | list | np.ndarray) for value in found.values())
    assert 200 < refusals < 600


def test_a_program_among_batches(tmp_path):
    make_cifar_python(tmp_path)
    mark = tmp_path / "was run"
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], "more": Program(os.system, f"touch '{mark}'")}
    (tmp_path / "data_batch_5").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(InputError, match=r"data_batch_5: .*posix\.system.*fetch it again"):
        load(tmp_path)
    assert not mark.exists()


def test_unreadable_file(tmp_path):
    with pytest.raises(InputError, match="must be readable"):
        read_plain(tmp_path / "nowhere")
