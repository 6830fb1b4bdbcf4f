"""Every shipped render, written to a file for people to read.

LLMMOD_WRITE_GOLDEN=1 writes the files again: read the difference before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmmod.render.conversation import Conversation
from llmmod.render.template import Template

HERE = Path(__file__).parent
RENDERS = sorted(path.stem for path in (HERE.parents[1] / "conf" / "render").glob("*.yaml") if path.stem != "auto")
LEGEND = "⟨a token⟩ «trained» ␣ space at a seam ⏎ line break ⟦x⟧ the position that follows is trained as x"


def shown(segments, tokenizer):
    """Segments in a readable form."""
    found, trained = [], False
    for segment in segments:
        if segment.trained != trained:
            found.append("«" if segment.trained else "»")
            trained = segment.trained
        if segment.first_label is not None:
            found.append(f"⟦{tokenizer.convert_ids_to_tokens(segment.first_label)}⟧")
        found.append(f"⟨{tokenizer.convert_ids_to_tokens(segment.token)}⟩" if segment.text is None else _seams(segment.text))
    return "".join(found) + "»" * trained


def _seams(text):
    inner = text.strip(" ")
    at = text.index(inner) if inner else len(text)
    return ("␣" * at + inner + "␣" * (len(text) - at - len(inner))).replace("\n", "⏎\n")


def written_out(template, conversation, tokenizer):
    without = Conversation(conversation.messages[1:])
    sections = {
        "with a system text": template.examples(conversation),
        "without one": template.examples(without),
        "with an empty one": template.examples(Conversation([type(conversation.messages[0])("system", ""), *without.messages])),
        "asked for the second answer": [template.prompt(conversation)],
    }
    blocks = [LEGEND]
    for title, examples in sections.items():
        blocks += [f"== {title}", *("\n-- and\n".join(shown(example, tokenizer) for example in examples).splitlines())]
    return "\n".join(blocks) + "\n"


@pytest.mark.parametrize("name", RENDERS)
def test_the_render_writes_what_a_person_has_read(name, shipped, byte_level, two_turns):
    found = written_out(Template(tokenizer=byte_level, **shipped(name)), two_turns, byte_level)
    path = HERE / "golden" / f"{name}.txt"
    if os.environ.get("LLMMOD_WRITE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


def test_there_is_a_golden_file_for_each_render_and_no_other():
    assert sorted(path.stem for path in (HERE / "golden").glob("*.txt")) == RENDERS
