from __future__ import annotations

import pytest

from devtools.reflect import describe, first_sentence, plain, to_ascii

SENTENCES = {
    "first of two": ("The batch size per device. More.", "The batch size per device"),
    "abbreviation": ("Some value, e.g. `x`. More.", "Some value, e.g. `x`"),
    "abbreviation before a capital": ("Some methods, e.g. GaLore. More.", "Some methods, e.g. GaLore"),
    "decimal point": ("Divides by 1.5 always. More.", "Divides by 1.5 always"),
    "equation number": ("As in the paper, Eq. 2. More.", "As in the paper, Eq. 2"),
    "a few words and the next sentence": ("Overrides `x`. If positive, steps. More.", "Overrides `x`. If positive, steps"),
    "one word and the next sentence": ("Deprecated. Use `x` instead. More.", "Deprecated. Use `x` instead"),
    "a sentence about the field but not what it is": ("It is only for GPTQ. Enable QALoRA. More.", "It is only for GPTQ. Enable QALoRA"),
    "no full stop": ("Lora alpha", "Lora alpha"),
}


@pytest.mark.parametrize(("text", "first"), SENTENCES.values(), ids=SENTENCES)
def test_first_sentence(text, first):
    assert first_sentence(text) == first


def test_links_references_and_tags_are_reduced_to_their_text():
    assert plain("See [the paper](https://x.y/z) and [`~transformers.Trainer`],\n  <a href='u'>here</a>, ~20%% more") == (
        "See the paper and `transformers.Trainer`, here, ~20% more"
    )
    assert plain("calls `torch.<device>.empty_cache()`") == "calls `torch.<device>.empty_cache()`"


def test_ascii():
    assert to_ascii("“α” → 1 – β ≥ 2") == '"alpha" -> 1 - beta >= 2'
    with pytest.raises(ValueError, match="no ASCII for '字'"):
        to_ascii("字")


DOCSTRING = """A class.

    Args:
        r (`int`):
            The rank of the update. Larger is more.
        other (`int`):
            Something else.
"""


def test_a_help_text_that_only_repeats_the_name_gives_way_to_the_docstring():
    assert describe("r", help_text="Lora r", docstring=DOCSTRING) == "The rank of the update"
    assert describe("r", help_text="How many dimensions there are.", docstring=DOCSTRING) == "How many dimensions there are"
    assert describe("q", help_text="", docstring=DOCSTRING) == ""
