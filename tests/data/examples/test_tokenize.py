from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from llmmod.config.schema.base import CutoffPolicy
from llmmod.data.examples.tokenize import ExampleTokenizer
from llmmod.data.rows.records import RowLocation
from llmmod.render.conversation import Conversation, Message
from llmmod.render.template import Template

NO = -100
LONG_QUESTION, LONG_ANSWER = "Why so? " * 60, "Because. " * 60


def conversation(*texts, system=None):
    messages = [Message("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(texts)]
    return Conversation([Message("system", system)] * (system is not None) + messages)


def placed(*conversations):
    return [(RowLocation("x.json", number), made) for number, made in enumerate(conversations, start=1)]


@pytest.fixture
def tokenizing(chatml, tiny_tokenizer):
    return lambda limit, policy="proportional", **more: ExampleTokenizer(chatml, tiny_tokenizer, limit, CutoffPolicy(policy), **more)


@pytest.fixture
def decoded(tiny_tokenizer):
    return lambda example: tiny_tokenizer.decode(example.encoded.input_ids)


@pytest.fixture
def trained(tiny_tokenizer):
    return lambda example: tiny_tokenizer.decode([label for label in example.encoded.labels if label != NO])


def test_an_example_is_what_the_render_writes(tokenizing, decoded, trained):
    (made,) = tokenizing(512).tokenize(placed(conversation("Hi", "Hello", "Bye", "See you", system="Be kind.")))
    (example,) = made.examples
    assert decoded(example) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you<|im_end|>"
    )
    assert trained(example) == "Hello<|im_end|>See you<|im_end|>"


def test_an_answer_takes_the_tokens_of_its_text_and_not_of_its_letters(tokenizing, tiny_tokenizer):
    answer = "The quick brown fox jumps over the lazy dog."
    (made,) = tokenizing(512).tokenize(placed(conversation("Hi", answer)))
    labels = [label for label in made.examples[0].encoded.labels if label != NO]
    assert labels[:-1] == tiny_tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert len(labels) < len(answer) / 2


@pytest.mark.parametrize("limit", [60, 100, 300])
@pytest.mark.parametrize("question", ["Hi", LONG_QUESTION], ids=["short-question", "long-question"])
def test_proportional_keeps_markers_and_terminator(tokenizing, decoded, trained, question, limit):
    (made,) = tokenizing(limit).tokenize(placed(conversation(question, LONG_ANSWER)))
    (example,) = made.examples
    assert len(example.encoded.input_ids) <= limit
    assert example.cut
    assert example.end_lost
    text, answer = decoded(example), trained(example)
    assert text.startswith(f"<|im_start|>user\n{question[:8].strip()}")
    assert "<|im_end|>\n<|im_start|>assistant\nBecause. " in text
    assert answer.startswith("Because. ")
    assert text.endswith("<|im_end|>")
    assert not answer.endswith("<|im_end|>")  # else the model would learn to stop at the limit


@pytest.mark.parametrize(
    ("answers", "ends", "lost"),
    [(["Yes.", "No."], 2, False), ([LONG_ANSWER, "No."], 1, True), (["Yes.", LONG_ANSWER], 1, True), ([LONG_ANSWER, LONG_ANSWER], 0, True)],
    ids=["neither", "first", "last", "both"],
)
@pytest.mark.parametrize("efficient", [False, True])
def test_the_end_of_a_cut_answer_is_not_trained(tokenizing, tiny_tokenizer, chatml, trained, answers, ends, lost, efficient):
    """This holds for each answer separately, wherever the render trains its terminator."""
    render = Template(tokenizer=tiny_tokenizer, **{**asdict(chatml.conf), "efficient_eos": efficient})
    made = tokenizing(140)
    (found,) = replace(made, render=render).tokenize(placed(conversation(LONG_QUESTION, answers[0], LONG_QUESTION, answers[1])))
    (example,) = found.examples
    assert (example.cut, example.end_lost) == (True, lost)
    assert trained(example).count("<|im_end|>") == ends
    assert trained(example).count("Because.") >= (2 - ends if lost else 0)


def test_the_end_of_a_cut_answer_that_would_not_be_trained_is_not_lost(tokenizing):
    made = conversation("Hi", LONG_ANSWER, "And?", "No.")
    messages = [replace(message, train=message.content == "No.") if message.role == "assistant" else message for message in made.messages]
    (example,) = tokenizing(100).tokenize(placed(Conversation(messages)))[0].examples
    assert (example.cut, example.end_lost) == (True, False)


def test_nothing_after_a_cut_is_trained(tokenizing, decoded, trained):
    """For example a tool call that follows a text: after a cut text, nothing leads to it."""
    call = {"type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    asked, answered = Message("user", "Hi"), Message("assistant", LONG_ANSWER, tool_calls=[call])
    (example,) = tokenizing(100).tokenize(placed(Conversation([asked, answered])))[0].examples
    assert example.end_lost
    assert "look_up" in decoded(example)
    assert "look_up" not in trained(example)


def test_proportional_keeps_every_turn_of_a_conversation(tokenizing, decoded):
    (made,) = tokenizing(200).tokenize(placed(conversation(LONG_QUESTION, "Yes.", "And then?", LONG_ANSWER, "Really?", "No.")))
    text = decoded(made.examples[0])
    assert text.count("<|im_start|>") == text.count("<|im_end|>") == 6
    assert "user\nAnd then?<|im_end|>" in text
    assert text.endswith("assistant\nNo.<|im_end|>")


def test_right_cuts_the_end_and_says_that_the_terminator_is_lost(tokenizing):
    whole = tokenizing(4096).tokenize(placed(conversation("Hi", LONG_ANSWER)))[0].examples[0].encoded
    (example,) = tokenizing(50, "right").tokenize(placed(conversation("Hi", LONG_ANSWER)))[0].examples
    assert example.encoded == (whole.input_ids[:50], whole.labels[:50])
    assert (example.cut, example.end_lost) == (True, True)


def test_left_keeps_the_answers_end(tokenizing, trained):
    whole = tokenizing(4096).tokenize(placed(conversation(LONG_QUESTION, "Yes.")))[0].examples[0].encoded
    (example,) = tokenizing(50, "left").tokenize(placed(conversation(LONG_QUESTION, "Yes.")))[0].examples
    assert example.encoded == (whole.input_ids[-50:], whole.labels[-50:])
    assert trained(example) == "Yes.<|im_end|>"
    assert (example.cut, example.end_lost) == (True, False)


def test_drop_leaves_long_examples_out(tokenizing):
    short, long = tokenizing(50, "drop").tokenize(placed(conversation("Hi", "Yes."), conversation("Hi", LONG_ANSWER)))
    assert [example.dropped for example in short.examples + long.examples] == [False, True]


@pytest.mark.parametrize("policy", ["proportional", "right"])
def test_a_prompt_longer_than_the_limit_is_reported_with_its_row(tokenizing, policy):
    fine, bad = tokenizing(40, policy).tokenize(placed(conversation("Hi", "Yes."), conversation("Hi", "Yes.", system="Be kind. " * 20)))
    assert fine.error is None
    text = str(bad.error)
    assert text.startswith("x.json, row 2: dataset.cutoff_len=40 tokens is too short for its prompt and an answer: ")
    assert "or leave such rows out: dataset.cutoff_policy=drop." in text
    assert bad.examples == []


def test_the_limit_that_a_message_asks_for_is_enough(tokenizing):
    rows = placed(conversation(LONG_QUESTION, LONG_ANSWER, system="Be kind. " * 20))
    needed = int(str(tokenizing(40).tokenize(rows)[0].error).partition("Set dataset.cutoff_len to ")[2].split()[0])
    assert tokenizing(needed).tokenize(rows)[0].error is None
    assert tokenizing(needed - 1).tokenize(rows)[0].error is not None


def test_a_conversation_whose_answers_are_all_masked_is_reported_with_its_row(tokenizing):
    masked = Conversation([Message("user", "Hi"), Message("assistant", "Yes.", train=False)])
    fine, bad = tokenizing(512).tokenize(placed(conversation("Hi", "Yes."), masked))
    assert len(fine.examples) == 1
    assert str(bad.error).startswith("x.json, row 2: none of its answers is trained")


def test_a_render_that_masks_everything_is_reported(chatml, tiny_tokenizer):
    class Masking:
        def examples(self, conversation, *, mask_prompt):
            return [[segment._replace(trained=False) for segment in example] for example in chatml.examples(conversation)]

    (made,) = ExampleTokenizer(Masking(), tiny_tokenizer, 512).tokenize(placed(conversation("Hi", "Yes.")))
    assert str(made.error) == "x.json, row 1: all of its answers are masked, so it doesn't have trained tokens."


def test_without_mask_prompt_the_prompt_is_trained_too_and_cut_the_same_way(tokenizing):
    rows = placed(conversation(LONG_QUESTION, LONG_ANSWER))
    (masked,) = tokenizing(100).tokenize(rows)[0].examples
    (trained,) = tokenizing(100, mask_prompt=False).tokenize(rows)[0].examples
    assert trained.encoded.input_ids == masked.encoded.input_ids
    assert trained.encoded.labels == [*trained.encoded.input_ids[:-1], NO]  # the answer's end was cut off


@pytest.fixture
def rounds(tiny_tokenizer):
    """A render that makes an example of each round."""
    render = Template(tokenizer=tiny_tokenizer, name="rounds", prompt=["Q: {{query}}\nA: "], use_history=False)
    return lambda limit: ExampleTokenizer(render, tiny_tokenizer, limit)


def test_where_each_round_is_an_example_only_the_long_ones_are_cut(rounds, decoded):
    (made,) = rounds(60).tokenize(placed(conversation("Hi", "Yes.", LONG_QUESTION, LONG_ANSWER, "Bye", "No.")))
    first, second, third = made.examples
    assert [example.cut for example in made.examples] == [False, True, False]
    assert decoded(first) == "Q: Hi\nA: Yes.<|endoftext|>"
    assert decoded(second).startswith("Q: Why so? ")
    assert len(second.encoded.input_ids) <= 60
    assert decoded(third) == "Q: Bye\nA: No.<|endoftext|>"
