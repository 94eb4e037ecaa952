from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from resgrow._errors import InputError
from resgrow.data import load_table, named
from resgrow.data.tables import RawTable, read_csv, standardise_table


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def numbers(path, rows: int = 20, delimiter: str = ",", first: int = 0):
    lines = [delimiter.join(("a", '"b c"', "y"))]
    lines += [delimiter.join((str(i), str(i * i / 8), str(2 * i + 1))) for i in range(first, first + rows)]
    return write(path, "\n".join(lines) + "\n")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("given", [True, False])
def test_delimiter_given_or_found(tmp_path, delimiter, given):
    raw = read_csv(numbers(tmp_path / "a.csv", 5, delimiter), "y", delimiter=delimiter if given else None)
    assert raw.features == ("a", "b c")
    assert raw.x.tolist() == [[i, i * i / 8] for i in range(5)]
    assert raw.y.tolist() == [1, 3, 5, 7, 9]
    assert raw.classes is None


def test_target_may_be_any_column(tmp_path):
    raw = read_csv(numbers(tmp_path / "a.csv", 3), "b c")
    assert raw.features == ("a", "y")
    assert raw.x.tolist() == [[0, 1], [1, 3], [2, 5]]
    assert raw.y.tolist() == [0, 1 / 8, 1 / 2]


def test_several_files_one_below_the_other(tmp_path):
    paths = [numbers(tmp_path / "a.csv", 5), numbers(tmp_path / "b.csv", 3, first=5)]
    both, whole = read_csv(paths, "y"), read_csv(numbers(tmp_path / "c.csv", 8), "y")
    assert np.array_equal(both.x, whole.x)
    assert np.array_equal(both.y, whole.y)


def test_quotes_byte_order_mark_blank_lines_and_spaces(tmp_path):
    path = write(tmp_path / "a.csv", '\ufeff"a, of all", y\r\n 1.5 ,"cat"\r\n\r\n"-2e3", "dog, big"\r\n')
    raw = read_csv(path, "y")
    assert raw.features == ("a, of all",)
    assert raw.x.tolist() == [[1.5], [-2000]]
    assert raw.classes == ("cat", "dog, big")
    assert raw.y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("cells", "classes", "names", "labels"),
    [
        ("b a b", None, ("a", "b"), [1, 0, 1]),
        ("10 9 10", True, ("9", "10"), [1, 0, 1]),
        ("10 9 x", None, ("10", "9", "x"), [0, 1, 2]),
        ("10 9 10", None, None, [10, 9, 10]),
    ],
)
def test_classes_or_numbers(tmp_path, cells, classes, names, labels):
    path = write(tmp_path / "a.csv", "a,y\n" + "".join(f"1,{cell}\n" for cell in cells.split()))
    raw = read_csv(path, "y", classes=classes)
    assert raw.classes == names
    assert raw.y.tolist() == labels


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must have a header \\(got an empty file"),
        ("a,y\n", "there must be rows below the header"),
        ("1,2\n3,4\n", "first line must be a header with the target 'y' in it \\(got 1, 2\\)"),
        ("y\n1\n", "there must be columns beside the target"),
        ("a,a,y\n1,2,3\n", "names in the header must differ \\(got \\['a'\\]"),
        ("a,y\n1,2\n3\n", "line 3: every row must have as many cells as the header, 2 \\(got 1\\)"),
        ("a,y\n1,2\n3,4,5\n", "line 3: every row must have as many cells as the header, 2 \\(got 3\\)"),
        ("a,y\n1,2\nred,4\n", "line 3, column 'a': a feature must be a finite number .*\\(got 'red'\\)"),
        ("a;y\n1,5;2\n", "line 2, column 'a': .*decimal point \\(got '1,5'\\)"),
        ("a,y\n1,2\n,4\n", "line 3, column 'a': .*\\(got ''\\)"),
        ("a,y\nnan,2\n", "column 'a': .*\\(got 'nan'\\)"),
        ("a,y\n1,inf\n2,3\n", "target 'y' of a regression must be finite numbers \\(got 'inf'\\)"),
        ("a,y\n1,\n2,cat\n", "every row must have a class in 'y' \\(got an empty cell\\)"),
        ('a,y\n1,"' + "2" * 200_000 + '"\n', "the file must be CSV \\(got field larger"),
    ],
)
def test_what_is_wrong_and_where(tmp_path, text, rule):
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(InputError, match=rule) as caught:
        read_csv(path, "y")
    assert str(path) in str(caught.value)


def test_words_in_the_target_of_a_regression(tmp_path):
    path = write(tmp_path / "a.csv", "a,y\n1,cat\n")
    with pytest.raises(InputError, match="finite numbers \\(got 'cat'\\); correct it, or give classes=True"):
        read_csv(path, "y", classes=False)


def test_files_that_do_not_fit(tmp_path):
    first, other = numbers(tmp_path / "a.csv"), write(tmp_path / "b.csv", "a,y\n1,2\n")
    with pytest.raises(InputError, match=rf"{other}: all files must have the header of {first}"):
        read_csv([first, other], "y")
    with pytest.raises(InputError, match="must be readable \\(got No such file"):
        read_csv(tmp_path / "nowhere.csv", "y")
    with pytest.raises(InputError, match="at least one CSV file"):
        read_csv([], "y")
    with pytest.raises(InputError, match="delimiter must be one character \\(got ', '\\)"):
        read_csv(first, "y", delimiter=", ")
    (tmp_path / "c.csv").write_bytes(b"a,y\n\xff,1\n")
    with pytest.raises(InputError, match="must be UTF-8 text"):
        read_csv(tmp_path / "c.csv", "y")


def test_regression_is_standardised_on_training_rows(tmp_path):
    path = numbers(tmp_path / "a.csv", 50)
    table = load_table(path, "y")
    assert (table.name, table.features, table.target, table.classes) == ("a", ("a", "b c"), "y", None)
    assert (table.train_x.shape, table.test_x.shape) == ((40, 2), (10, 2))
    assert (table.train_y.shape, table.test_y.shape) == ((40, 1), (10, 1))
    for values in (table.train_x, table.train_y):
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-6, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]))
    assert abs(float(table.test_y.mean())) > 1e-6
    # y is 2 a + 1 of whole a: every row kept its own target, and the unit comes back.
    y = table.target_mean + table.target_deviation * torch.cat([table.train_y, table.test_y])
    assert sorted(y.flatten().round().int().tolist()) == [2 * i + 1 for i in range(50)]
    torch.testing.assert_close(table.test_y[:, 0], table.test_x[:, 0], atol=1e-5, rtol=0)


def test_the_seed_alone_makes_the_split(tmp_path):
    path = numbers(tmp_path / "a.csv", 50)
    one, same, other = (load_table(path, "y", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.test_x, same.test_x)
    assert not torch.equal(one.test_x, other.test_x)
    assert len(load_table(path, "y", test_share=0.5).test_y) == 25


def test_classes_are_split_each_by_itself(tmp_path):
    cells = ["often"] * 50 + ["seldom"] * 5 + ["once"]
    path = write(tmp_path / "a.csv", "a,y\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    table = load_table(path, "y")
    assert table.classes == ("often", "once", "seldom")
    assert torch.bincount(table.train_y).tolist() == [40, 1, 4]
    assert torch.bincount(table.test_y, minlength=3).tolist() == [10, 0, 1]
    assert table.train_y.dtype == torch.int64
    assert table.to("cpu").classes == table.classes


def test_constant_columns_are_zero():
    x = np.stack([np.full(50, 0.1), np.arange(50)], 1)
    table = standardise_table("flat", RawTable(x, np.arange(50.0), ("a", "b"), "y", None))
    assert not table.train_x[:, 0].any()
    assert not table.test_x[:, 0].any()


@pytest.mark.parametrize(
    ("y", "classes", "share", "rule"),
    [
        (np.ones(10), None, 0.2, "the target 'y' must vary \\(got 1 in every row"),
        (np.zeros(10, int), ("a",), 0.2, "at least 2 classes in 'y'"),
        (np.arange(10.0), None, 0.0, "test_share must lie between 0 and 1 \\(got 0.0"),
        (np.arange(10.0), None, 1.0, "test_share must lie between 0 and 1"),
        (np.arange(2), ("a", "b"), 0.2, "training and test rows \\(got 2 and 0\\)"),
    ],
)
def test_splits_that_cannot_be(y, classes, share, rule):
    raw = RawTable(np.zeros((len(y), 1)), y, ("a",), "y", classes)
    with pytest.raises(InputError, match=rule):
        standardise_table("odd", raw, test_share=share)


@pytest.mark.data
def test_wine_quality():
    if not os.environ.get("RESGROW_DATA_DIR"):
        pytest.skip("RESGROW_DATA_DIR is not set")
    try:
        paths = named.find([f"winequality-{colour}.csv" for colour in ("red", "white")], None, ("tabular",), "")
    except InputError as error:
        pytest.skip(str(error))
    raw = read_csv(paths, "quality")
    assert raw.x.shape == (1599 + 4898, 11)
    assert raw.features[0] == "fixed acidity"
    assert raw.x[0].tolist() == [7.4, 0.7, 0, 1.9, 0.076, 11, 34, 0.9978, 3.51, 0.56, 9.4]
    table = load_table(paths, "quality", classes=True)
    assert table.classes == tuple("3456789")
    assert len(table.train_y) + len(table.test_y) == 6497
