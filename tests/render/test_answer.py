"""If a model generates exactly its training data, the answer that is read equals the data's, with every render."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmmod.models.generation.settings import Reader
from llmmod.render.auto import AutoTemplate
from llmmod.render.conversation import Conversation
from llmmod.render.encode import encode, encode_prompt
from llmmod.render.template import Template, inner_text

RENDERS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "render").glob("*.yaml") if path.stem != "auto")
# As Qwen 3's; the same with special tokens as marks, which decoded answers don't contain; and one that also writes after an answer.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = THINKING.replace("<think>", "<|im_start|>").replace("</think>", "<|im_start|>")
FRAMED = THINKING.replace("<think>\n\n</think>\n\n", "Answer: ").replace("{{ m.content }}", "{{ m.content }}\n(end)")
TEMPLATES = {"thinking": THINKING, "marked": MARKED, "framed": FRAMED}


@pytest.mark.parametrize("name", [*RENDERS, *TEMPLATES])
def test_what_is_trained_is_read_as_the_answer(name, shipped, byte_level, two_turns):
    if name in TEMPLATES:
        render = AutoTemplate(tokenizer=byte_level, name="auto", template=TEMPLATES[name])
    else:
        render = Template(tokenizer=byte_level, **shipped(name))
    reader = Reader.of(render, byte_level)
    for end in (3, 5):
        conversation = Conversation(two_turns.messages[:end])
        ids, prompt = (
            encode([render.examples(conversation)[-1]], byte_level)[0].input_ids,
            encode_prompt(render.prompt(conversation), byte_level),
        )
        assert ids[: len(prompt)] == prompt
        assert reader(ids[len(prompt) :]) == two_turns.messages[end - 1].content


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("<think>\n\n</think>\n\n2", "2"),
        ("\n<think>\n\n</think>\n2", "2"),  # the white space around it depends on the tokenizer
        ("<think>\nOne and one.\n</think>\n\n2", "<think>\nOne and one.\n</think>\n\n2"),  # the model's own thoughts
        ("  2\n", "2"),
        ("2 <think>\n\n</think>", "2 <think>\n\n</think>"),
        ("", ""),
    ],
)
def test_the_template_s_frame_is_no_part_of_an_answer_and_the_model_s_thoughts_are(generated, answer):
    assert inner_text(generated, before="<think>\n\n</think>\n\n") == answer
