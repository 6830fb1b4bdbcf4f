"""Prompts and answers in separate columns: the same tokens as in sft and inference, and how they are cut."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pyarrow as pa
import pytest

from llmmod.config.schema.base import CutoffPolicy, Ranked
from llmmod.data.examples.answers import Judgements, Preferences, Prompts
from llmmod.data.examples.tokenize import ExampleTokenizer
from llmmod.data.rows.records import PromptRecord, RowLocation
from llmmod.render.auto import AutoTemplate
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import encode, encode_prompt
from llmmod.render.template import Template

_spec = importlib.util.spec_from_file_location("renders", Path(__file__).parents[2] / "render" / "conftest.py")
renders = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(renders)
byte_level, dummy_prefix, shipped = renders.byte_level, renders.dummy_prefix, renders.shipped

JINJA = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HISTORY = [Message("user", "Hello?"), Message("assistant", "Hi! "), Message("user", " 一加一等于几? ")]
PROMPTS = {
    "question": [Message("user", "What is a render?")],
    "history": HISTORY,
    "system": [Message("system", "Be brief."), *HISTORY],
    "spaces at the seam": [Message("user", "Say: ")],
}
GOOD, BAD = Message("assistant", "It is 2. "), Message("assistant", " 等于三。")


def placed(*records):
    return [(RowLocation("x.json", number), record) for number, record in enumerate(records, start=1)]


TYPES = {
    "preference": Preferences.of(Ranked.all, weighs=False),
    "judgement": Judgements.of(Ranked.all, weighs=False),
    "prompt": Prompts.to_answer({}),
}


def made(record, kind, render, tokenizer, limit=512, policy="proportional"):
    """The rows of a record or its error, and the `TokenizedRecord`."""
    example_type = TYPES[kind]
    (found,) = ExampleTokenizer(render, tokenizer, limit, CutoffPolicy(policy), example_type=example_type).tokenize(placed(record))
    return str(found.error) if found.error else [example_type.row(e.record, e.encoded) for e in found.examples if not e.dropped], found


@pytest.fixture(params=["chatml", "llama2", "chatglm2", "vicuna", "baichuan2", "intern", "default", "auto"])
def written(request, byte_level, dummy_prefix, shipped):
    """A render and a tokenizer like those of its models."""
    tokenizer = {"llama2": dummy_prefix, "vicuna": dummy_prefix, "chatglm2": dummy_prefix}.get(request.param, byte_level)
    if request.param == "auto":
        return AutoTemplate(tokenizer=tokenizer, name="auto", template=JINJA), tokenizer
    return Template(tokenizer=tokenizer, **shipped(request.param)), tokenizer


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_with_its_answer_is_what_sft_sees_token_for_token(written, prompt):
    render, tokenizer = written
    ((row,), _) = made(PromptRecord(Conversation(prompt), [GOOD, BAD]), "preference", render, tokenizer)
    for answer, name in ((GOOD, "chosen_ids"), (BAD, "rejected_ids")):
        conversation = Conversation([*prompt, answer])
        (sft,) = encode(render.examples(conversation)[-1:], tokenizer)
        assert row["prompt_ids"] + row[name] == sft.input_ids
        assert row[name] == sft.labels[len(row["prompt_ids"]) :], "every id of an answer, and its terminator, is trained"
        assert row[name][-1] in render.stop_ids
    assert row["prompt_ids"] == encode_prompt(render.prompt(Conversation(prompt)), tokenizer)


def test_a_judgement_and_a_prompt_are_asked_the_same_way(written):
    render, tokenizer = written
    prompt = Conversation(PROMPTS["system"])
    ((pair,), _) = made(PromptRecord(prompt, [GOOD, BAD]), "preference", render, tokenizer)
    ((judged,), _) = made(PromptRecord(prompt, [BAD], {"label": False}), "judgement", render, tokenizer)
    ((asked,), _) = made(PromptRecord(prompt, (), {"answer": "2"}), "prompt", render, tokenizer)
    assert judged == {"prompt_ids": pair["prompt_ids"], "completion_ids": pair["rejected_ids"], "label": False}
    said = [{"role": m.role, "content": m.content} for m in prompt.messages]
    assert asked == {"prompt_ids": pair["prompt_ids"], "prompt": said, "answer": "2"}


def test_the_columns_are_lists_of_int32():
    ids = pa.list_(pa.int32())
    assert dict(zip(TYPES["preference"].schema.names, TYPES["preference"].schema.types, strict=True)) == {
        "prompt_ids": ids,
        "chosen_ids": ids,
        "rejected_ids": ids,
    }
    assert TYPES["judgement"].schema.field("label").type == pa.bool_()


LONG = "Why so? " * 60
SHORT_PAIR = [Message("assistant", "Yes."), Message("assistant", "No, it is not.")]
LONG_PAIR = [Message("assistant", "Because. " * 60), Message("assistant", "Nothing. " * 20)]


@pytest.mark.parametrize("answers", [SHORT_PAIR, LONG_PAIR], ids=["short-answers", "long-answers"])
@pytest.mark.parametrize("question", ["Hi", LONG], ids=["short-question", "long-question"])
@pytest.mark.parametrize("limit", [60, 150])
def test_proportional_cuts_a_pair_s_prompt_once_and_keeps_markers_and_the_ends_of_whole_answers(
    chatml, tiny_tokenizer, question, answers, limit
):
    ((row,), found) = made(PromptRecord(Conversation([Message("user", question)]), answers), "preference", chatml, tiny_tokenizer, limit)
    assert found.examples[0].cut == (question is LONG or answers is LONG_PAIR)
    longest = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    assert longest <= limit
    text = tiny_tokenizer.decode(row["prompt_ids"])
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert found.examples[0].end_lost == (answers is LONG_PAIR)
    for name, answer in zip(("chosen_ids", "rejected_ids"), answers, strict=True):
        text = tiny_tokenizer.decode(row[name])
        assert answer.content.startswith(text.removesuffix("<|im_end|>"))
        assert text.endswith("<|im_end|>") == (answers is SHORT_PAIR)


@pytest.mark.parametrize(
    ("policy", "question", "answers", "prompt", "chosen", "rejected"),
    [
        ("left", LONG, SHORT_PAIR, "the end", "whole", "whole"),
        ("left", "Hi", LONG_PAIR, "the end", "the start", "the start"),
        ("right", "Hi", LONG_PAIR, "whole", "the start", "the start"),
        ("drop", LONG, SHORT_PAIR, None, None, None),
        ("drop", "Hi", SHORT_PAIR, "whole", "whole", "whole"),
    ],
)
def test_a_cut_at_an_end_leaves_every_answer_some_of_its_tokens(
    chatml, tiny_tokenizer, policy, question, answers, prompt, chosen, rejected
):
    record, limit = PromptRecord(Conversation([Message("user", question)]), answers), 150
    ((whole,), _) = made(record, "preference", chatml, tiny_tokenizer, 10_000)
    rows, found = made(record, "preference", chatml, tiny_tokenizer, limit, policy)
    if prompt is None:
        assert rows == []
        assert found.examples[0].dropped
        return
    (row,) = rows
    for name, kept in (("prompt_ids", prompt), ("chosen_ids", chosen), ("rejected_ids", rejected)):
        start, stop = {"whole": (0, None), "the end": (-len(row[name]), None), "the start": (0, len(row[name]))}[kept]
        assert row[name] == whole[name][start:stop], name
        assert row[name]
    longest = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    assert longest == limit if policy != "drop" else longest < limit
    assert found.examples[0].end_lost == (chosen == "the start")


@pytest.mark.parametrize(
    ("kind", "policy", "text"),
    [
        ("preference", "right", "its prompt takes all of them. Set dataset.cutoff_len to {} or more"),
        ("prompt", "right", "its prompt takes all of them. Set dataset.cutoff_len to {} or more"),
        ("prompt", "proportional", None),
        ("prompt", "left", None),
    ],
)
def test_a_prompt_that_takes_all_tokens(chatml, tiny_tokenizer, kind, policy, text):
    record = PromptRecord(Conversation([Message("user", LONG)]), LONG_PAIR if kind == "preference" else ())
    found, _ = made(record, kind, chatml, tiny_tokenizer, 100, policy)
    if text is None:
        assert 0 < len(found[0]["prompt_ids"]) <= 100
        assert tiny_tokenizer.decode(found[0]["prompt_ids"]).endswith("<|im_end|>\n<|im_start|>assistant\n")
    else:
        prompt = len(encode_prompt(chatml.prompt(record.prompt), tiny_tokenizer))
        assert text.format(prompt + (kind == "preference")) in found


def test_the_oldest_rounds_of_a_prompt_are_removed_if_it_can_t_be_shortened(chatml, tiny_tokenizer):
    rounds = [Message(role, f"{role} {n}") for n in range(20) for role in ("user", "assistant")]
    ((row,), _) = made(PromptRecord(Conversation([*rounds, Message("user", "last")])), "prompt", chatml, tiny_tokenizer, 60)
    text = tiny_tokenizer.decode(row["prompt_ids"])
    assert "assistant 19" in text
    assert "user 0" not in text
    assert text.endswith("last<|im_end|>\n<|im_start|>assistant\n")


def test_a_render_with_other_prompts_in_training_than_in_inference_is_reported(chatml, tiny_tokenizer):
    class Wrong:
        def prompt(self, conversation):
            return chatml.prompt(Conversation([*conversation.messages[:-1], Message("user", "!")]))

        def examples(self, conversation, *, mask_prompt=True):
            return chatml.examples(conversation)

    found, _ = made(PromptRecord(Conversation([Message("user", "q")]), [GOOD, BAD]), "preference", Wrong(), tiny_tokenizer)
    assert found == (
        "x.json, row 1: the render writes another prompt in training than for inference. Choose another render, or leave such rows out."
    )
