from __future__ import annotations

import csv
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmmod.data.rows.records import RowLocation
from llmmod.data.sources.read_files import read_arrow, read_csv, read_parquet, read_text, read_tsv
from llmmod.data.sources.source import Table
from llmmod.errors import DataError

ROWS = [{"q": f"question {i}", "a": f"answer, {i}\nwith a second line"} for i in range(1, 2501)]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_csv_rows_are_counted_without_the_header(tmp_path):
    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["q", "a"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert list(read_csv(tmp_path / "x.csv")) == list(enumerate(ROWS, start=1))


def test_csv_cells_may_be_longer_than_csv_allows_by_itself(tmp_path):
    (tmp_path / "x.csv").write_text("q,a\nlong," + "x" * 200_000 + "\n")
    assert len(next(iter(read_csv(tmp_path / "x.csv")))[1]["a"]) == 200_000


def test_a_short_record_lacks_columns_and_a_long_one_is_bad(tmp_path):
    (tmp_path / "x.csv").write_text("q,a\n1,2\n3\n\n4,5,6\n")
    (first, second, (number, third)) = read_csv(tmp_path / "x.csv")
    assert first == (1, {"q": "1", "a": "2"})
    assert second == (2, {"q": "3"})
    assert (number, str(third)) == (3, "3 cells, but the header has 2 columns")


def test_tabs_separate_the_cells_of_a_tsv_file(tmp_path):
    (tmp_path / "x.tsv").write_text("q\ta\n1, 2\t3\n")
    assert list(read_tsv(tmp_path / "x.tsv")) == [(1, {"q": "1, 2", "a": "3"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.csv: the file is empty."),
        ("q,a,q\n1,2,3\n", "x.csv, header: the column 'q' occurs 2 times."),
        ('q,a\n1,2\n3,"4\n', "x.csv, row 2: not CSV: unexpected end of data."),
    ],
    ids=["empty", "twice", "quote"],
)
def test_a_file_that_is_not_csv_is_reported(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError) as error:
        list(read_csv(tmp_path / "x.csv"))
    assert str(error.value) == message


def test_parquet_and_both_kinds_of_arrow_files_read_the_same(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=700)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=999)
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    (stream,) = (tmp_path / "saved").glob("*.arrow")
    expected = list(enumerate(ROWS, start=1))
    assert list(read_parquet(tmp_path / "x.parquet")) == expected
    assert list(read_arrow(tmp_path / "file.arrow")) == expected
    assert list(read_arrow(stream)) == expected


@pytest.mark.parametrize(("read", "kind"), [(read_parquet, "a parquet"), (read_arrow, "an arrow")])
@pytest.mark.parametrize("content", [b"", b"no table at all"], ids=["empty", "prose"])
def test_a_file_of_another_kind_is_reported(tmp_path, read, kind, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read(tmp_path / "x"))
    assert str(error.value).startswith(f"x: not {kind} file: ")


def test_each_line_of_a_text_file_is_a_row(tmp_path):
    (tmp_path / "x.txt").write_text("one\n\n  two \nthree", encoding="utf-8")
    assert list(read_text(tmp_path / "x.txt")) == [(1, {"text": "one"}), (3, {"text": "  two "}), (4, {"text": "three"})]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_a_text_that_is_not_utf_8_is_a_bad_row_and_the_others_are_read(kind):
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"one", b"tw\xff", b"three"]).buffers())
    table = pa.table({"a": ["x", "y", "z"], "q": texts})
    if kind == "parquet":
        pq.write_table(table, "x.parquet")
        found = list(read_parquet(Path("x.parquet")))
    elif kind == "arrow":
        with pa.OSFile("x.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        found = list(read_arrow(Path("x.arrow")))
    else:
        found = [(place.number, row) for place, row in Table("saved", datasets.Dataset(datasets.table.InMemoryTable(table)))]
    assert [number for number, _ in found] == [1, 2, 3]
    assert [found[0][1], found[2][1]] == [{"a": "x", "q": "one"}, {"a": "z", "q": "three"}]
    assert str(found[1][1].at(RowLocation("x", 2))) == "x, row 2, column 'q': not UTF-8 text: byte 0xff can't be read."
