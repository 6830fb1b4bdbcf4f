"""Lines that are written out of order are sorted at the end, and written lines are never lost."""

from __future__ import annotations

import pytest

from llmmod.steps.predict.step import OrderedLines


def test_in_order_at_the_end(tmp_path):
    with OrderedLines(tmp_path / "a.jsonl") as lines:
        for number, text in [(2, "zwei"), (0, "零"), (1, "")]:
            lines.write(number, text)
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == "零\n\nzwei\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_on_the_disk_as_soon_as_written(tmp_path):
    with OrderedLines(tmp_path / "a.jsonl") as lines:
        lines.write(1, "one")
        assert (tmp_path / "a.jsonl").read_text() == "one\n"


def test_after_an_interruption_what_was_written_stays(tmp_path):
    def interrupted():
        with OrderedLines(tmp_path / "a.jsonl") as lines:
            lines.write(3, "three")
            lines.write(1, "one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.jsonl").read_text() == "three\none\n"


def test_an_earlier_file_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text("old\nold\n")
    with OrderedLines(tmp_path / "a.jsonl") as lines:
        lines.write(0, "new")
    assert (tmp_path / "a.jsonl").read_text() == "new\n"
