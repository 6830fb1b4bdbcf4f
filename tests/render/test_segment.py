from __future__ import annotations

from llmmod.render.segments import Segment, segments


def test_neighbouring_texts_become_one_segment_and_empty_ones_none():
    assert segments([1, "a", "", "b", 2, "", 3, "c"], trained=True) == [
        Segment(None, 1, True),
        Segment("ab", None, True),
        Segment(None, 2, True),
        Segment(None, 3, True),
        Segment("c", None, True),
    ]
