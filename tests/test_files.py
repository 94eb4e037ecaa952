from pathlib import Path

import pytest

from resgrow._files import replacing, write_atomic


def test_writes_bytes_and_text(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"\x00\xff")
    write_atomic(str(tmp_path / "b"), "größer")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_text("utf-8") == "größer"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "a", "x")
