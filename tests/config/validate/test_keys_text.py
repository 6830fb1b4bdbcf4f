"""Values that are not UTF-8 are refused, with their key, before anything is tokenized or written."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.system='be \udcff'", "dataset.system: found the byte 0xff, which is not UTF-8, in 'be \\udcff'. Write it in UTF-8."),
        ("render.sep=['\ud83d']", "render.sep[0]: found \\ud83d, half of a character, in '\\ud83d'. Write it in UTF-8."),
        ("steps.chat.system='\udcff'", "steps.chat.system: found the byte 0xff, which is not UTF-8, in '\\udcff'. Write it in UTF-8."),
        ("dataset.data_files='g\udcff'", "dataset.data_files: found the byte 0xff, which is not UTF-8, in 'g\\udcff'. Write it in UTF-8."),
    ],
    ids=["byte", "half", "step", "file"],
)
def test_values_that_are_not_text_are_refused(told, override, message):
    assert message in told(override)
