"""Tests of the numbers and files that a table with one row per run can have."""

from __future__ import annotations

import math

import pytest

from megatron.errors import DataError
from muneox.scaling.table import as_size, read_table


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1e-4", 1e-4), (" 3.5 ", 3.5), (".5", 0.5), ("-2.", -2.0), ("+1E+3", 1000.0), ("0", 0.0),
        ("124M", 124e6), ("7B", 7e9), ("6.7 b", 6.7e9), ("300k", 3e5), ("1.4T", 1.4e12), ("2G", 2e9),
        ("1,048,576", 1048576.0), ("1'234.5", 1234.5), ("12 000 000", 12e6), ("1_000", 1000.0), ("1,234", 1234.0),
        ("", None), ("abc", None), ("7BB", None), ("1,23", None), ("12,34,567", None), ("1 234,5", None), ("M", None),
    ],
)  # fmt: skip
def test_numbers_of_a_cell(cell, number):
    assert as_size(cell) == (None if number is None else pytest.approx(number))


@pytest.mark.parametrize(("cell", "number"), [("3,14", 3.14), ("3,141", 3.141), ("1,234,567", 1234567.0), ("2.5", 2.5)])
def test_numbers_with_a_decimal_comma(cell, number):
    assert as_size(cell, decimal_comma=True) == pytest.approx(number)


def test_a_loss_that_is_not_finite_is_a_number():
    assert math.isnan(as_size("NaN")) and as_size("inf") == math.inf and as_size("-Infinity") == -math.inf


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("comma.csv", 'params , loss\n124M, 3.25\n\n"1,300,000,000",2.5\n'),
        ("bom.csv", "\ufeffparams,loss\r\n124M,3.25\r\n1.3B,2.5\r\n"),
        ("semicolon.csv", "params;loss\n124 000 000;3,25\n1,3e9;2,5\n"),
        ("tabs.tsv", "params\tloss\n124e6\t3.25\n1300000000\t2.5\n"),
    ],
)
def test_kinds_of_text_files(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    table = read_table(tmp_path / name)
    assert table.columns == ["params", "loss"]
    assert [table.number(i, "params") for i in range(len(table.rows))] == pytest.approx([124e6, 1.3e9])
    assert [table.number(i, "loss") for i in range(len(table.rows))] == pytest.approx([3.25, 2.5])


def test_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "table.parquet"
    pandas.DataFrame({"name": ["a", None], "params": [124_000_000, 1_300_000_000], "loss": [3.25, None]}).to_parquet(
        path
    )
    table = read_table(path)
    assert table.number(0, "params") == 124e6 and table.number(0, "loss") == 3.25 and table.rows[1]["name"] == ""
    with pytest.raises(DataError, match=r"table\.parquet, row 3: `loss` is '', expected a number"):
        table.number(1, "loss")
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_table(path)


def test_an_empty_cell_is_named_by_its_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("params,loss\n1,2\n2,\n")
    with pytest.raises(DataError, match=r"t\.csv, row 3: `loss` is '', expected a number"):
        read_table(path).number(1, "loss")


def test_rows_that_repeat_another_are_found(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("params,loss\n1,2\n1,3\n1,2\n1,2\n")
    assert read_table(path).repeated() == {2, 3}
