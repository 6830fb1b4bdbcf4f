from __future__ import annotations

import pytest

from llmmod.render.findings import parting, seam, spelling


@pytest.mark.parametrize(
    ("one", "other", "at"), [([1, 2, 3], [1, 4, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [1], 0)], ids=["differ", "longer", "empty"]
)
def test_where_two_lists_differ(one, other, at):
    assert parting(one, other) == at


def test_a_seam_shows_the_tokens_before_and_how_each_goes_on(byte_level):
    training, inference = (byte_level(text, add_special_tokens=False)["input_ids"] for text in ("Hello: you", "Hello: Ho"))
    first, second = seam(byte_level, training=training, inference=inference).splitlines()
    assert first.startswith("   training: H(")
    assert second.startswith("  inference: H(")
    before, after = second.split(" ▶ ")
    assert first.startswith(before.replace("inference", " training")[:20])
    assert after.startswith("' H'(")


def test_the_end_of_a_list_and_masked_labels_are_named(byte_level):
    ids = byte_level("Hello", add_special_tokens=False)["input_ids"]
    assert seam(byte_level, ids=ids, labels=[-100] * len(ids)).splitlines()[1].endswith("labels:  ▶ masked masked masked")
    assert seam(byte_level, one=ids, other=ids[:1]).splitlines()[1] == f"  other: H({ids[0]}) ▶ the end"


@pytest.mark.parametrize(("name", "shown"), [("<s>", "<s>"), ("Ċ", r"'\n'"), ("é", "é")], ids=["special", "text", "half-a-character"])
def test_a_token_is_spelt_on_one_line(byte_level, name, shown):
    token = byte_level.convert_tokens_to_ids(name)
    assert spelling(byte_level, token) == f"{shown}({token})"
