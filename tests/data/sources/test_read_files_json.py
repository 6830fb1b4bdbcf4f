from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmmod.data.rows.records import RowError
from llmmod.data.sources import read_files as module
from llmmod.data.sources.read_files import read_json
from llmmod.errors import DataError

ROWS = [{"instruction": "q1", "output": "a\n1"}, {"instruction": "q2 {[,]}", "output": "答案"}, {"instruction": "q3"}]


def write(tmp_path, text, name="x.json"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", json.dumps(ROWS)),
        ("x.json", json.dumps(ROWS, indent=4, ensure_ascii=False)),
        ("x.jsonl", json.dumps(ROWS, indent=1)),
        ("x.jsonl", "\n".join(json.dumps(row) for row in ROWS)),
        ("x.json", "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n"),
        ("x.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("x.json", "\ufeff" + json.dumps(ROWS)),
    ],
    ids=["array", "pretty-array", "array-named-jsonl", "lines", "lines-named-json", "pretty-objects", "byte-order-mark"],
)
def test_rows_are_numbered_from_1_however_the_file_is_laid_out(tmp_path, name, text):
    assert list(read_json(write(tmp_path, text, name))) == list(enumerate(ROWS, start=1))


def test_a_row_that_is_a_line_has_the_lines_number(tmp_path):
    path = write(tmp_path, '\n{"a": 1}\n\n{"a": 2}\n', "x.jsonl")
    assert list(read_json(path)) == [(2, {"a": 1}), (4, {"a": 2})]


_TEXT = st.text(st.sampled_from('a",[]{}:\\\n答'), max_size=8)
_VALUE = st.none() | st.booleans() | st.integers() | _TEXT | st.lists(_TEXT, max_size=3)
_ROWS = st.lists(st.dictionaries(_TEXT, _VALUE, max_size=3), max_size=6)


@pytest.fixture(scope="session")
def one_file(tmp_path_factory):
    return tmp_path_factory.mktemp("rows") / "x.json"


@given(rows=_ROWS, indent=st.sampled_from([None, 0, 3]), window=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_an_array_reads_as_json_load_does_wherever_the_window_ends(one_file, rows, indent, window):
    path = one_file
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", window)
        assert list(read_json(path)) == list(enumerate(rows, start=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.json: the file is empty."),
        (" \n\n", "x.json: the file is empty."),
        ("Dear reader,\n", "x.json, row 1: not JSON: Expecting value (line 1, character 1)."),
        ('[\n {"a": 1},\n {"a": 2}\n', "x.json, row 2: not JSON: the array does not end: expecting ',' or ']' (line 4, character 1)."),
        ('[\n {"a": 1}\n {"a": 2}\n]', "x.json, row 1: not JSON: expecting ',' or ']' between rows (line 3, character 2)."),
        ('[{"a": 1},\n {"a": }]', "x.json, row 2: not JSON: Expecting value (line 2, character 8)."),
        ('[{"a": 1},\n {"a": "x}]', "x.json, row 2: not JSON: Unterminated string starting at (line 2, character 8)."),
        ('[{"a": 1},]', "x.json, row 2: not JSON: Expecting value (line 1, character 11)."),
        ('[{"a": 1}]\n[{"a": 2}]', "x.json, row 1: not JSON: text follows the array (line 2, character 1)."),
        (b'[{"a": "cafe"},\n{"a": "caf\xe9"}]', "x.json, line 2: not UTF-8 text: byte 0xe9 can't be read."),
    ],
    ids=["empty", "blank", "prose", "no-end", "no-comma", "no-value", "no-quote", "comma-at-end", "two-arrays", "latin-1"],
)
def test_a_file_that_is_not_json_is_reported_with_row_and_line(tmp_path, text, message):
    with pytest.raises(DataError) as error:
        list(read_json(write(tmp_path, text)))
    assert str(error.value).startswith(message)
    assert error.value.exit_code == 2


def test_the_line_of_an_error_is_counted_across_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 50)
    rows = ",\n".join('{"a": "' + "x" * 30 + '"}' for _ in range(40))
    with pytest.raises(DataError) as error:
        list(read_json(write(tmp_path, f"[{rows},\n{{a: 1}}]")))
    assert str(error.value) == ("x.json, row 41: not JSON: Expecting property name enclosed in double quotes (line 41, character 2).")


def test_a_line_that_is_not_json_leaves_the_others_readable(tmp_path):
    path = write(tmp_path, '{"a": 1}\n{"a": \n[1, 2]\n{"a": 4}\n', "x.jsonl")
    found = list(read_json(path))
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert [row for _, row in found if not isinstance(row, RowError)] == [{"a": 1}, {"a": 4}]
    assert [str(row) for _, row in found if isinstance(row, RowError)] == [
        "not JSON: Expecting value at character 8 of the line",
        "a list of 2 where an object with columns is expected",
    ]


def test_a_line_that_is_not_utf8_leaves_the_others_readable(tmp_path):
    path = write(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "caf\xe9"}\r\n{"a": "caf\xc3\xa9"}\r\n', "x.jsonl")
    (first, one), (second, bad), (third, other) = read_json(path)
    assert (first, second, third) == (1, 3, 4)
    assert (one, other) == ({"a": 1}, {"a": "café"})
    assert str(bad) == "not UTF-8 text: byte 0xe9 can't be read"


def test_an_array_on_one_line_is_recognised_without_reading_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 100)
    path = write(tmp_path, json.dumps([{"a": n} for n in range(10_000)]))
    rows = read_json(path)
    assert len(module._first_line(path)) == 100
    assert next(rows) == (1, {"a": 0})
